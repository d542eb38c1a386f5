"""Run by a test in several processes: a few iterations of PPO, each process with its own share of the rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed

from inverse_alignment.core.parallel import Group, Together
from inverse_alignment.optimise import ppo
from inverse_alignment.optimise.credit_settings import UniformCredit
from inverse_alignment.optimise.settings import AdaptiveKl, FixedKl, Lora, PpoConfig, SharedCritic, SoftReference
from tests.unit.models import tiny

PROMPTS = tiny.PROMPTS * 4
STEPS = 3
SEED = 1
"""One in which no draw falls so near the border of two tokens that the order of a sum decides between them."""
COMMON = {
    "batch_size": 16,
    "learning_rate": 1e-3,
    "value_learning_rate": 1e-3,
    "max_new_tokens": 8,
    "value_warmup_steps": 1,
    "kl": FixedKl(coefficient=0.2),
}
CASES = {
    "separate": (PpoConfig(**COMMON), 10_000),
    "shared": (PpoConfig(**{**COMMON, "critic": SharedCritic(), "reference": SoftReference(alpha=0.3)}), 10_000),
    "adapters": (PpoConfig(**{**COMMON, "lora": Lora(rank=4, alpha=8), "credit": UniformCredit()}), 10_000),
    "narrow": (PpoConfig(**{**COMMON, "kl": AdaptiveKl(), "minibatches": 4, "max_update_kl": 1e-5}), 40),
}
"""Configurations, and padded tokens read at once."""


class Deaf(Together):
    """The wrong variant: every process keeps the gradients of its own rows."""

    def add(self, *tensors: Tensor) -> None:
        if len(tensors) == 1:
            super().add(*tensors)


def liking(prompts, texts) -> np.ndarray:
    """A score that depends on prompt and answer."""
    return np.array(
        [text.count("a") / 3 - len(prompt.key + text) % 7 / 5 for prompt, text in zip(prompts, texts, strict=True)]
    )


def policy():
    """A policy that sometimes ends, so that answers differ in length."""
    model = tiny.policy(scale=3.0)
    with torch.no_grad():
        model.lm_head.weight[tiny.tokenizer().eos_token_id] *= 20
    return model


def trained(case: str, group: Group) -> tuple[list[dict[str, float]], dict[str, Tensor], list[str]]:
    """Metrics of every iteration, the weights in the end, and the last answers."""
    config, tokens = CASES[case]
    learner = ppo.new_learner(policy(), policy(), config, tokens, 0, group)
    sampling = tiny.sampling(config.max_new_tokens)
    done = [
        ppo.iteration(learner, tiny.tokenizer(), PROMPTS, liking, config, sampling, seed=SEED) for _ in range(STEPS)
    ]
    weights = {**tiny.weights(learner.policy), **{f"value.{k}": v for k, v in tiny.weights(learner.value).items()}}
    return [one.metrics for one in done], weights, [answer.text for answer in done[-1].answers]


def main(folder: Path, rank: int, size: int) -> None:
    """Train every case with a group that talks and the first with one that does not; write what came of it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    found = {}
    for case in (*CASES, "deaf"):
        group = Deaf() if case == "deaf" else Together()
        metrics, weights, texts = trained("separate" if case == "deaf" else case, group)
        found[case] = {
            "metrics": metrics,
            "texts": texts,
            "sum": float(sum(w.double().sum() for w in weights.values())),
        }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
