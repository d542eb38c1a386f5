"""What every stage on a TRL trainer shares: arguments, progress, and checkpoints that are whole or absent."""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from inverse_alignment.core import checkpoint
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import METRICS_EVERY, Report, Stopped, never, truncate_metrics
from inverse_alignment.core.parallel import group
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.models.loading import quiet

BATCHES_PER_STRETCH = 16
"""Batches among which rows are sorted by length: less padding, and still a shuffle."""

R = TypeVar("R")
C = TypeVar("C", bound=TrainingArguments)
M = TypeVar("M", bound=torch.nn.Module)


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


class Schedule(Protocol):
    """Settings of a training by epochs."""

    @property
    def epochs(self) -> float:
        """Passes over the rows."""

    @property
    def learning_rate(self) -> float:
        """Its peak."""

    @property
    def batch_size(self) -> int:
        """Rows a step."""

    @property
    def warmup_share(self) -> float:
        """Share of the steps in which the rate rises."""


def scheduled(settings: Schedule, device: torch.device, context: StageContext) -> dict[str, Any]:
    """`arguments` of a stage's settings."""
    return arguments(
        partial=context.partial,
        device=device.type,
        seed=context.seed,
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        warmup_share=settings.warmup_share,
    )


def presented(rows: Sequence[R], lengths: Sequence[int], given: dict[str, Any]) -> tuple[list[R], dict[str, Any]]:
    """The rows of all epochs in the order in which they are presented, and arguments that present them so.

    Every epoch is a new shuffle; within stretches of it rows of like length share a batch, since a row is padded to
    the longest of its batch. The order depends on the seed alone, so a resumed training only has to skip.

    Args:
        lengths: tokens of each row.
        given: from `arguments`; its epochs become rows, its sampling sequential.
    """
    batch, wanted = given["per_device_train_batch_size"], round(len(rows) * given["num_train_epochs"])
    order: list[int] = []
    epoch = 0
    while len(order) < wanted:
        order += _bucketed(lengths, batch, derive_seed("row order", given["seed"], epoch))
        epoch += 1
    given = {**given, "num_train_epochs": 1, "train_sampling_strategy": "sequential"}
    return [rows[i] for i in order[:wanted]], given


def _bucketed(lengths: Sequence[int], batch: int, seed: int) -> list[int]:
    generator = np.random.Generator(np.random.Philox(key=seed))
    shuffled = generator.permutation(len(lengths))
    stretch = batch * BATCHES_PER_STRETCH
    batches: list[np.ndarray] = []
    for start in range(0, len(shuffled), stretch):
        part = shuffled[start : start + stretch]
        part = part[np.argsort([lengths[i] for i in part], kind="stable")]
        batches += [part[i : i + batch] for i in range(0, len(part), batch)]
    full = [rows for rows in batches if len(rows) == batch]
    rest = [rows for rows in batches if len(rows) < batch]  # at the end, so that all batches before it stay whole
    return [int(i) for place in generator.permutation(len(full)) for i in full[place]] + [
        int(i) for rows in rest for i in rows
    ]


def shared_out(rows: list[R], given: dict[str, Any], silent: Callable[[R], R]) -> tuple[list[R], dict[str, Any]]:
    """What the processes of this training present together: the same batches as one process, in equal shares.

    The trainer gives the first process the first part of a batch, and so on. Only whole batches can be shared out like
    this, so the last one is filled up.

    Args:
        rows: from `presented`, with its arguments.
        silent: makes a row that counts for nothing.

    Raises:
        UserError: the batch cannot be shared out.
    """
    batch, processes = given["per_device_train_batch_size"], group().size
    if processes == 1:
        return rows, given
    if batch % processes:
        raise UserError(
            f"a batch of {batch} cannot be shared out among {processes} processes",
            where="runtime.launcher.processes",
            fix="set a number that divides every batch_size",
        )
    filled = rows + [silent(rows[-1])] * (-len(rows) % batch)
    return filled, {**given, "per_device_train_batch_size": batch // processes}


def configure(kind: type[C], given: dict[str, Any]) -> C:
    """A TRL config. TRL's own defaults trip a deprecation of transformers that no user can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        return kind(**given)


class Reporting(TrainerCallback):
    """Reports progress and losses, refuses a loss that is not finite, and seals the checkpoints it asks for."""

    def __init__(self, report: Report, partial: Path, checkpoint_seconds: float, measured: Sequence[str] = ()) -> None:
        self._report, self._partial, self._seconds = report, partial, checkpoint_seconds
        self._names = ("loss", "grad_norm", "learning_rate", *measured)
        self._group = group()
        self._saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Say how far training is; ask for a checkpoint when the last one is old enough.

        Only where a row of metrics ends: the trainer forgets what it summed since, and a resumed row would differ.
        """
        self._report.progress(state.global_step, state.max_steps, "steps")
        if state.global_step == state.max_steps or control.should_training_stop:
            control.should_log = True  # the last step, planned or not
        elif state.global_step % METRICS_EVERY == 0:
            stopping = self._group.agree(self._report.stopping())
            control.should_save = self._group.agree(stopping or time.monotonic() - self._saved >= self._seconds)
            control.should_training_stop = stopping
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make the checkpoint valid; only then remove older ones."""
        self._group.wait()  # each process adds its own state
        if self._group.rank == 0:
            folder = self._partial / f"checkpoint-{state.global_step}"
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody reads
            checkpoint.adopt(self._partial, state.global_step)
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
        kept: dict[str, float] = {name: float(logs[name]) for name in self._names if logs and name in logs}
        if "loss" in kept:
            if kept["loss"] != kept["loss"] or abs(kept["loss"]) == float("inf"):
                raise FloatingPointError(f"the loss is {kept['loss']} at step {state.global_step}")
            self._report.log(state.global_step, kept)


def apart(model: M) -> M:
    """What a trainer may take: the model, or a copy of it where accelerate was told to shard what it trains.

    A sharded model is spread over all processes and no longer good for anything but training.
    """
    sharded = any(os.environ.get(f"ACCELERATE_USE_{kind}", "false") == "true" for kind in ("FSDP", "DEEPSPEED"))
    return copy.deepcopy(model) if sharded else model


def train(
    trainer: Trainer,
    model: torch.nn.Module,
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
    ended: Callable[[], bool] = never,
    measured: Sequence[str] = (),
) -> dict[str, float]:
    """Train, going on from the newest whole checkpoint in `partial`; returns steps and the mean training loss.

    Args:
        model: gets the trained weights, in the first process at least; the trainer has it `apart`.
        ended: whether a callback of the trainer's found that it need not go on to its last step.
        measured: names of what the trainer logs beside losses that is reported too.

    Raises:
        Stopped: the report asked for it, and a checkpoint was written.
    """
    trainer.add_callback(Reporting(report, partial, checkpoint_seconds, measured))
    trainer.remove_callback(PrinterCallback)  # its per-step dicts would drown the display; the report has the numbers
    resume = checkpoint.newest(partial)
    reached = int(resume.name.partition("-")[2]) if resume else 0
    if group().rank == 0:
        truncate_metrics(partial / "metrics.jsonl", reached)
    with quiet():  # the bar of each checkpoint's shards would drown the display
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if result.global_step < trainer.state.max_steps and not ended():
        raise Stopped(f"stopped after {result.global_step} of {trainer.state.max_steps} steps")
    if trainer.model is not model:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes bring theirs
        if group().rank == 0:
            model.load_state_dict(weights)
    return {"steps": float(result.global_step), "train_loss": _mean_loss(trainer.state.log_history)}


def _mean_loss(rows: list[dict[str, float]]) -> float:
    """Mean over all steps, of rows that each hold the mean since the row before. The trainer's own forgets a resume."""
    total, seen = 0.0, 0.0
    for row in rows:
        if "loss" in row:
            total, seen = total + row["loss"] * (row["step"] - seen), row["step"]
    return total / seen
