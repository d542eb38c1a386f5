"""One stage's work on models of random weights, in a process: `python -m benchmarks.memory_plan.job JOB.json`.

Every row is as long as the contexts allow, as the plan takes them to be.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import trl  # noqa: F401 (imported before memory is looked at)
from transformers import AutoModelForCausalLM
from trl import RewardTrainer, SFTTrainer  # noqa: F401

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.records import Prompt
from inverse_alignment.generation.answers import Sampling, of_model
from inverse_alignment.generation.rollouts import ask, draw, judge
from inverse_alignment.models.footprint import configuration_of
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.models.tqr import new_tqr
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.optimise import ppo
from inverse_alignment.optimise.supervised import fine_tune
from inverse_alignment.reward.ava import fit_tqr
from inverse_alignment.reward.bradley_terry import PairLoss, fit
from inverse_alignment.reward.family_settings import rewards_tokens
from inverse_alignment.stages.tqr_reward import form_of, objective_of
from inverse_alignment.text.tokenizers import train_tokenizer

STEPS = 3
"""Of the optimisers: its states are there from the second on."""


class Quiet:
    """A report that nobody reads."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Ignore it."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Ignore it."""

    def stopping(self) -> bool:
        """Never."""
        return False


def main() -> None:
    """Do the job on tiny models, then for real; write how much memory that took above what was there then, in bytes."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    config = PipelineConfig.model_validate(job["config"])
    tokenizer = _tokenizer(config.models.policy.vocab_size)  # type: ignore[union-attr]
    run = {"sft": _sft, "reward_model": _reward, "ppo": _ppo, "rollout": _rollout}[job["stage"]]
    folder = Path(sys.argv[1]).parent
    run(_tiny(config), tokenizer, folder / "first")  # what is imported or allocated once does not count
    gc.collect()
    base = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark becomes what there is now
    run(config, tokenizer, folder / "partial")
    Path(job["out"]).write_text(json.dumps({"base": base, "bytes": _highest() - base}))


def _tiny(config: PipelineConfig) -> PipelineConfig:
    """The same work on models and batches that need next to nothing; the vocabulary is the tokenizer's."""
    values = config.model_dump(mode="json")
    for model in values["models"].values():
        model.update(hidden_size=8, heads=1, layers=1)
    values["sft"]["batch_size"] = values["reward"]["batch_size"] = 1
    values["ppo"].update(batch_size=2, max_new_tokens=4)
    values["runtime"].update(generation_rows=2)
    return PipelineConfig.model_validate(values)


def _highest() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _tokenizer(entries: int) -> Any:
    """A tokenizer with as many entries as the model has, so that few sampled tokens are the end."""
    tokenizer = train_tokenizer(["some words to begin with"], 264)
    tokenizer.add_tokens([f"<{number}>" for number in range(entries - len(tokenizer))])
    return tokenizer


def _model(spec: Any, auto: Any, **more: Any) -> Any:
    assert isinstance(spec, InitialisedModel)
    config = configuration_of(spec)
    for name, value in more.items():
        setattr(config, name, value)
    return auto.from_config(config).eval()


def _policy(config: PipelineConfig) -> Any:
    return _model(config.models.policy, AutoModelForCausalLM)


def _reward_model(config: PipelineConfig) -> Any:
    from transformers import AutoModelForSequenceClassification

    return _model(config.models.reward, AutoModelForSequenceClassification, num_labels=1)


def _ids(length: int, shift: int = 0) -> list[int]:
    return [10 + (place + shift) % 200 for place in range(length)]


def _given(config: Any, partial: Path) -> dict[str, Any]:
    return arguments(
        partial=partial,
        device="cpu",
        seed=0,
        epochs=1,
        learning_rate=1e-4,
        batch_size=config.batch_size,
        warmup_share=0.0,
    )


def _sft(config: PipelineConfig, tokenizer: Any, partial: Path) -> None:
    context, rows = config.models.policy.context, STEPS * config.sft.batch_size  # type: ignore[union-attr]
    labels = [-100] * (context // 2) + _ids(context)[context // 2 :]
    shown = [{"input_ids": _ids(context), "labels": labels} for _ in range(rows)]
    fine_tune(_policy(config), tokenizer, shown, _given(config.sft, partial), partial, Quiet(), 1e9)  # type: ignore[arg-type]


def _reward(config: PipelineConfig, tokenizer: Any, partial: Path) -> None:
    if rewards_tokens(config.reward):
        return _beliefs(config, tokenizer, partial)
    context, rows = config.models.reward.context, STEPS * config.reward.batch_size  # type: ignore[union-attr]
    pair = {
        "chosen_ids": _ids(context),
        "rejected_ids": _ids(context, 3),
        "margin": 0.0,
        "weight": 1.0,
        "soft_label": 1.0,
        "linear": False,
        "start": context // 2,
    }
    model = _reward_model(config)
    model.config.pad_token_id = tokenizer.pad_token_id
    loss = PairLoss(0.0, 0.01, False)
    fit(model, tokenizer, [pair] * rows, _given(config.reward, partial), loss, partial, Quiet(), 1e9)  # type: ignore[arg-type]


def _beliefs(config: PipelineConfig, tokenizer: Any, partial: Path) -> None:
    reward: Any = config.reward
    context = config.models.reward.context
    pair = {"chosen_ids": _ids(context), "rejected_ids": _ids(context, 3), "start": 1, "weight": 1.0}
    model = new_tqr(_model(config.models.reward, AutoModelForCausalLM), form_of(reward))
    rows, given = [pair] * (STEPS * reward.batch_size), _given(reward, partial)
    fit_tqr(model, tokenizer, rows, given, objective_of(reward), partial, Quiet(), 1e9)  # type: ignore[arg-type]


def _prompts(config: PipelineConfig, sampling: Sampling, count: int) -> list[Prompt]:
    """Prompts that are cut to the most tokens a prompt may have."""
    return [Prompt.from_text("".join(f"<{n + row}>" for n in range(sampling.context))) for row in range(count)]


def _ppo(config: PipelineConfig, tokenizer: Any, partial: Path) -> None:
    import numpy as np

    from inverse_alignment.models.reward_scores import CalibratedReward, Calibration, RewardScorer

    settings, runtime = config.ppo, config.runtime
    sampling = Sampling(settings.max_new_tokens, 1.0, config.models.policy.context, runtime.generation_rows)
    learner = ppo.new_learner(_policy(config), _policy(config), settings, runtime.training_tokens)
    model = _reward_model(config)
    model.config.pad_token_id = tokenizer.pad_token_id
    scorer = RewardScorer(model, tokenizer, config.models.reward.context, runtime.scoring_rows)
    reward: Callable[..., np.ndarray] = CalibratedReward(scorer, Calibration(0.0, 1.0, 1))
    for _ in range(2):
        ppo.iteration(
            learner, tokenizer, _prompts(config, sampling, settings.batch_size), reward, settings, sampling, 0
        )


def _rollout(config: PipelineConfig, tokenizer: Any, partial: Path) -> None:
    asked, rows = config.rollout, config.runtime.generation_rows
    sampling = Sampling(asked.max_new_tokens, 1.0, config.models.policy.context, rows)
    policy, reference, questions = _policy(config), _policy(config), ask(_prompts(config, sampling, rows), 1, 0)
    answers = draw(of_model(policy, tokenizer, sampling), tokenizer, questions, sampling, Quiet().progress)
    judge(policy, reference, tokenizer.pad_token_id, questions, answers, sampling, Quiet().progress)


if __name__ == "__main__":
    main()
