"""The two contestants, and a bare loop that does our work and nothing else."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, get_linear_schedule_with_warmup
from trl import RewardConfig, RewardTrainer

from benchmarks.reward_vs_trl.pairs import Field
from inverse_alignment.maths.pairwise import bradley_terry_loss, preference_log_likelihood
from inverse_alignment.models.loading import new_reward_model
from inverse_alignment.models.sequence_scores import sequence_scores
from inverse_alignment.models.trl_training import arguments, configure, presented
from inverse_alignment.reward.bradley_terry import PairCollator, PairLoss, fit

BATCH, LEARNING_RATE, WARMUP_SHARE, CENTRING = 16, 1e-3, 0.05, 0.01
Contestant = Callable[[Field, int], torch.nn.Module]
"""Takes the pairs and a seed, gives the trained model."""


def ours(field: Field, seed: int) -> torch.nn.Module:
    """This project's training, from token ids to the trained model."""
    model = _fresh(field, seed)
    with tempfile.TemporaryDirectory() as folder:
        given = _given(Path(folder), seed)
        fit(model, field.tokenizer, field.train, given, PairLoss(0.0, CENTRING, False), Path(folder), Quiet(), 1e9)
    return model


def theirs(field: Field, seed: int) -> torch.nn.Module:
    """TRL's RewardTrainer on the same, which groups pairs by length itself."""
    return _theirs(field, seed, in_our_batches=False)


def theirs_grouped(field: Field, seed: int) -> torch.nn.Module:
    """The same, given the batches of `ours`: what TRL groups by itself has longer rows where pairs are few."""
    return _theirs(field, seed, in_our_batches=True)


def _theirs(field: Field, seed: int, in_our_batches: bool) -> torch.nn.Module:
    model = _fresh(field, seed)
    rows = [{name: row[name] for name in ("chosen_ids", "rejected_ids")} for row in field.train]
    for row in rows:
        row["length"] = max(len(row["chosen_ids"]), len(row["rejected_ids"]))  # what it pads to
    with tempfile.TemporaryDirectory() as folder:
        given = {**_given(Path(folder), seed), "train_sampling_strategy": "group_by_length"}
        if in_our_batches:
            rows, given = presented(rows, [row["length"] for row in rows], given)
        settings = configure(RewardConfig, {**given, "center_rewards_coefficient": CENTRING})
        data = Dataset.from_list(rows)
        trainer = RewardTrainer(model=model, args=settings, train_dataset=data, processing_class=field.tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model


def bare(field: Field, seed: int) -> torch.nn.Module:
    """The same passes and steps as `ours` in a loop of a few lines: as fast as it could be."""
    model = _fresh(field, seed).train()
    rows, _ = presented(field.train, lengths(field.train), _given(Path(), seed))
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    steps = -(-len(rows) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimiser, ceil(WARMUP_SHARE * steps), steps)
    collate = PairCollator(field.tokenizer.pad_token_id)
    for start in range(0, len(rows), BATCH):
        batch = collate(rows[start : start + BATCH])
        chosen, rejected = sequence_scores(model, batch["input_ids"], batch["attention_mask"]).chunk(2)
        ones = torch.ones_like(chosen)
        bradley_terry_loss(chosen, rejected, ones, 0 * ones, ones, centring=CENTRING).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return model


CONTESTANTS: dict[str, Contestant] = {
    "ours": ours,
    "theirs": theirs,
    "theirs_grouped": theirs_grouped,
    "bare": bare,
}


def timed(name: str, field: Field, seed: int) -> dict[str, float]:
    """Seconds on the clock and of the processor that a contestant takes, and what its model makes of held-out pairs."""
    wall, cpu = time.perf_counter(), time.process_time()
    model = CONTESTANTS[name](field, seed)
    taken = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return {**taken, "held_out_loss": held_out_loss(model, field)}


@torch.no_grad()
def held_out_loss(model: Any, field: Field) -> float:
    """Mean Bradley-Terry loss of the pairs held out, nats."""
    batch = PairCollator(field.tokenizer.pad_token_id)(field.held_out)
    chosen, rejected = sequence_scores(model.eval(), batch["input_ids"], batch["attention_mask"]).chunk(2)
    return -float(preference_log_likelihood(chosen, rejected).mean())


def lengths(rows: list[dict[str, Any]]) -> list[int]:
    """Tokens of the longer side of each pair."""
    return [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]


class Quiet:
    """A report that nobody reads."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `core.metrics.Report.log`."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """See `core.metrics.Report.progress`."""

    def stopping(self) -> bool:
        """See `core.metrics.Report.stopping`."""
        return False


def _fresh(field: Field, seed: int) -> Any:
    model = new_reward_model(field.spec, field.tokenizer, seed)
    model.config.pad_token_id = field.tokenizer.pad_token_id
    return model


def _given(folder: Path, seed: int) -> dict[str, Any]:
    return arguments(
        partial=folder,
        device="cpu",
        seed=seed,
        epochs=1,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH,
        warmup_share=WARMUP_SHARE,
    )
