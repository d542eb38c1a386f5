"""What every stage on a TRL trainer shares: arguments, progress, and checkpoints that are whole or absent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inverse_alignment.core import checkpoint
from inverse_alignment.core.metrics import METRICS_EVERY, Report, truncate_metrics


def arguments(
    *,
    partial: Path,
    device: str,
    seed: int,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    warmup_share: float,
) -> dict[str, Any]:
    """Keyword arguments for a TRL config: full precision, no hub, no tracker, no bars, checkpoints by our callback.

    TRL's own defaults (bf16 and gradient checkpointing on) would be wrong on a CPU and slow for small models.
    """
    return {
        "output_dir": str(partial),
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": warmup_share,
        "per_device_train_batch_size": batch_size,
        "max_length": None,
        "seed": seed % 2**31,
        "data_seed": seed % 2**31,
        "use_cpu": device == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": METRICS_EVERY,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": device != "cpu",
        "remove_unused_columns": False,
    }


class Reporting(TrainerCallback):
    """Reports progress and losses, refuses a loss that is not finite, and seals the checkpoints it asks for."""

    def __init__(self, report: Report, partial: Path, checkpoint_seconds: float) -> None:
        self._report, self._partial, self._seconds = report, partial, checkpoint_seconds
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Say how far training is; ask for a checkpoint when the last one is old enough."""
        self._report.progress(state.global_step, state.max_steps, "steps")
        if time.monotonic() - self._saved >= self._seconds and state.global_step < state.max_steps:
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the checkpoint valid; only then remove older ones."""
        folder = self._partial / f"checkpoint-{state.global_step}"
        checkpoint.seal(folder)
        checkpoint.keep_newest(self._partial)
        self._saved = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Pass losses on; the trainer's own timings stay out, since metrics must not depend on the machine."""
        kept = {name: float(logs[name]) for name in ("loss", "grad_norm", "learning_rate") if logs and name in logs}
        if "loss" in kept:
            if kept["loss"] != kept["loss"] or abs(kept["loss"]) == float("inf"):
                raise FloatingPointError(f"the loss is {kept['loss']} at step {state.global_step}")
            self._report.log(state.global_step, kept)


def train(trainer: Trainer, partial: Path, report: Report, checkpoint_seconds: float) -> dict[str, float]:
    """Train, going on from the newest whole checkpoint in `partial`; returns steps and the mean training loss."""
    trainer.add_callback(Reporting(report, partial, checkpoint_seconds))
    resume = checkpoint.newest(partial)
    truncate_metrics(partial / "metrics.jsonl", int(resume.name.partition("-")[2]) if resume else 0)
    result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return {"steps": float(result.global_step), "train_loss": float(result.training_loss)}
