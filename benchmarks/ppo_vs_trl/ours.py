"""The project as a contestant: `python -m benchmarks.ppo_vs_trl.ours JOB.json`.

The only file of the benchmark that knows how the project's PPO is called.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ppo_vs_trl.meter import Laps, PeakMemory
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.records import Prompt
from inverse_alignment.generation.answers import Sampling
from inverse_alignment.models.loading import load_policy
from inverse_alignment.models.reward_scores import CalibratedReward, load_calibrated
from inverse_alignment.optimise.ppo import Learner, iteration, new_learner
from inverse_alignment.optimise.settings import FixedKl, PpoConfig
from inverse_alignment.text.tokenizers import load_tokenizer

NO_BOUND = 1e9
"""TRL clips neither scores nor gradients."""


class WithoutEnd(nn.Module):
    """A reward model that reads each sequence up to its last token but one.

    The project writes the end token behind every answer it scores. Where no answer ends, TRL scores none, and both
    must optimise the same reward.
    """

    def __init__(self, model: Any, pad_token: int) -> None:
        super().__init__()
        self.model, self.pad_token, self.device = model, pad_token, model.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Right-padded ids (b, t) and their mask, as `RewardScorer` gives them."""
        mask = attention_mask[:, 1:]
        ids = input_ids[:, :-1].masked_fill(mask == 0, self.pad_token)
        return self.model(input_ids=ids, attention_mask=mask)


def main() -> None:
    """Run the job and write what it measured."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    start = Path(job["start"])
    config, runtime = _config(job["settings"]), RuntimeConfig(device="cpu")
    tokenizer = load_tokenizer(start / ("endless" if job["mode"] == "full" else "policy")).tokenizer
    sampling = Sampling(config.max_new_tokens, config.temperature, job["settings"]["context"], runtime.generation_rows)
    reward = _reward(start, job, runtime)
    policy, reference = load_policy(start / "policy"), load_policy(start / "policy")
    prompts = [Prompt.model_validate(row["prompt"]) for row in json.loads((start / "prompts.json").read_text())]
    learner = _learner(policy, reference, config, runtime)
    with PeakMemory() as memory:
        laps = Laps(job["warmup"])
        laps.wait()
        for asked in [[prompts[row] for row in rows] for rows in job["order"]]:
            done = iteration(learner, tokenizer, asked, reward, config, sampling, job["seed"])
            laps.lap()
            laps.lengths.append([len(answer.response_ids) for answer in done.answers])
            laps.metrics.append(_metrics(done.metrics, config.missing_eos_penalty))
    Path(job["out"]).write_text(json.dumps(laps.results(memory)))


def _config(settings: dict[str, Any]) -> PpoConfig:
    return PpoConfig(
        batch_size=settings["batch_size"],
        epochs=settings["epochs"],
        minibatches=settings["minibatches"],
        learning_rate=settings["learning_rate"],
        value_learning_rate=settings["learning_rate"],
        kl=FixedKl(coefficient=settings["kl_coefficient"]),
        clip=settings["clip"],
        value_clip=settings["value_clip"],
        gamma=settings["gamma"],
        lam=settings["lam"],
        temperature=settings["temperature"],
        max_new_tokens=settings["max_new_tokens"],
        missing_eos_penalty=settings["missing_eos_penalty"],
        score_clip=NO_BOUND,
        max_grad_norm=NO_BOUND,
        value_warmup_steps=0,
    )


def _learner(policy: Any, reference: Any, config: PpoConfig, runtime: RuntimeConfig) -> Learner:
    learner = new_learner(policy, reference, config, runtime.training_tokens)
    learner.value.head.bias.requires_grad_(False)  # TRL's value head has none
    return learner


def _reward(start: Path, job: dict[str, Any], runtime: RuntimeConfig) -> CalibratedReward:
    reward = load_calibrated(
        start / "reward", torch.device("cpu"), job["settings"]["reward_context"], runtime.scoring_rows
    )
    if job["mode"] == "full":
        scorer = reward.scorer
        scorer.model = WithoutEnd(scorer.model, scorer.tokenizer.pad_token_id)  # type: ignore[assignment]
    return reward


def _metrics(found: dict[str, float], penalty: float) -> dict[str, float]:
    """What TRL logs too; its score is the one after the penalty."""
    return {
        "policy_loss": found["policy_loss"],
        "value_loss": found["value_loss"],
        "kl": found["kl_k1"],
        "score": found["rm_score"] - penalty * (1 - found["ended_share"]),
    }


if __name__ == "__main__":
    main()
