"""TRL's PPOTrainer as a contestant: `DIR/bin/python theirs.py JOB.json`, in TRL's own environment.

Imports nothing of the project but `meter.py`, which lies beside it.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from meter import Laps, PeakMemory
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Collections:
    """Seconds that PPOTrainer's own garbage collections take, two per iteration: they grow with what is imported."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._collect = gc.collect

    def __call__(self, *rest: Any) -> int:
        """Stands for `gc.collect`."""
        began = time.perf_counter()
        found = self._collect(*rest)
        self.seconds += time.perf_counter() - began
        return found

    def taken(self) -> float:
        """Seconds since the last question."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Watch(TrainerCallback):
    """Ends a lap with every iteration and keeps what TRL logs of it."""

    def __init__(self, laps: Laps, collections: Collections) -> None:
        self.laps, self.collections = laps, collections
        self.collect_seconds: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """TRL logs once per iteration."""
        assert logs is not None
        names = (
            ("policy_loss", "loss/policy_avg"),
            ("value_loss", "loss/value_avg"),
            ("kl", "objective/kl"),
            ("score", "objective/scores"),
        )
        self.laps.metrics.append({name: float(logs[key]) for name, key in names})

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything is set up."""
        self.laps.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """TRL's step is an iteration."""
        self.collect_seconds.append(self.collections.taken())
        self.laps.lap()


def main() -> None:
    """Run the job and write what it measured."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    set_seed(job["seed"])  # PPOTrainer seeds torch; its minibatches are numpy's
    start = Path(job["start"])
    tokenizer = AutoTokenizer.from_pretrained(start / ("endless" if job["mode"] == "full" else "policy"))
    policy, reference = (AutoModelForCausalLM.from_pretrained(start / "policy", dtype=torch.float32) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(start / "value", dtype=torch.float32)
    reward = _standardised(start)
    dataset = _prompts(start, job["order"])
    with tempfile.TemporaryDirectory() as scratch, PeakMemory() as memory:
        trainer = PPOTrainer(
            args=_arguments(job, scratch),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=dataset,
        )
        trainer.dataloader = DataLoader(  # unshuffled: both contestants answer the same prompts in the same order
            dataset, batch_size=job["settings"]["batch_size"], collate_fn=trainer.data_collator
        )
        trainer.remove_callback(PrinterCallback)
        laps = Laps(job["warmup"])
        _watch_lengths(laps, reward)
        gc.collect = collections = Collections()
        watch = Watch(laps, collections)
        trainer.add_callback(watch)
        trainer.train()
    collected = {"collect_seconds": watch.collect_seconds[job["warmup"] :]}
    Path(job["out"]).write_text(json.dumps(laps.results(memory) | collected))


def _prompts(start: Path, order: list[list[int]]) -> Dataset:
    rows = json.loads((start / "prompts.json").read_text())
    return Dataset.from_list([{"input_ids": rows[row]["input_ids"]} for rows_ in order for row in rows_])


def _arguments(job: dict[str, Any], scratch: str) -> PPOConfig:
    settings = job["settings"]
    return PPOConfig(
        output_dir=scratch,
        # one pass through the models for all rollouts, and one for every minibatch: nothing is faster on a CPU
        per_device_train_batch_size=settings["batch_size"],
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=settings["batch_size"],
        num_mini_batches=settings["minibatches"],
        num_ppo_epochs=settings["epochs"],
        total_episodes=settings["batch_size"] * len(job["order"]),
        response_length=settings["max_new_tokens"],
        stop_token=None if job["mode"] == "full" else "eos",
        temperature=settings["temperature"],
        missing_eos_penalty=settings["missing_eos_penalty"],
        kl_coef=settings["kl_coefficient"],
        cliprange=settings["clip"],
        cliprange_value=settings["value_clip"],
        vf_coef=1.0,  # the project steps both models apart; AdamW does not see a constant factor
        gamma=settings["gamma"],
        lam=settings["lam"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        seed=job["seed"],
        num_sample_generations=0,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        logging_steps=1_000_000,
        disable_tqdm=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
    )


def _standardised(start: Path) -> Any:
    """The reward model with its calibration in the score head: PPOTrainer takes scores as they are."""
    reward = AutoModelForSequenceClassification.from_pretrained(start / "reward", dtype=torch.float32)
    calibration = json.loads((start / "calibration.json").read_text())
    head = torch.nn.Linear(reward.score.in_features, 1)
    with torch.no_grad():
        head.weight.copy_(reward.score.weight / calibration["std"])
        head.bias.fill_(-calibration["mean"] / calibration["std"])
    reward.score = head
    return reward


def _watch_lengths(laps: Laps, reward: Any) -> None:
    """Keep the length of every answer, the end token included, when PPOTrainer asks the reward model for its score."""
    get_reward = ppo_trainer.get_reward

    def watched(model: Any, query_responses: torch.Tensor, pad_token_id: int, context_length: int) -> Any:
        if model is reward:
            laps.lengths.append((query_responses[:, context_length:] != pad_token_id).sum(-1).tolist())
        return get_reward(model, query_responses, pad_token_id, context_length)

    ppo_trainer.get_reward = watched


if __name__ == "__main__":
    main()
