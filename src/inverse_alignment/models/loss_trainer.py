"""transformers' Trainer with any loss of a batch: for what TRL has no trainer for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor
from torch.nn import Module
from transformers import Trainer, TrainerCallback, TrainingArguments

from inverse_alignment.core.metrics import Report
from inverse_alignment.models.trl_training import apart, configure, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor]
BatchLoss = Callable[[Any, Batch, int], tuple[Tensor, Mapping[str, Tensor]]]
"""Of a model, a batch and the optimiser steps done before it: the loss (), and numbers that are reported beside it."""


@dataclass
class Seen:
    """Sums of what was measured since the last row of metrics."""

    sums: dict[str, float] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Numbers of one forward pass."""
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.passes[name] = self.passes.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Their means, and begin again."""
        means = {name: total / self.passes[name] for name, total in self.sums.items()}
        self.sums, self.passes = {}, {}
        return means


class LossTrainer(Trainer):
    """Trainer with a loss that is a function.

    Of one process's part of a batch, the function gives the loss times its share: the mean over processes is that of
    the whole batch.
    """

    def __init__(self, *, loss: BatchLoss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._loss, self._seen = loss, Seen()
        self.model_accepts_loss_kwargs = False  # the loss is a mean: the trainer divides it by the passes of a step

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch; there are no outputs to return."""
        loss, measured = self._loss(model, inputs, self.state.global_step)
        self._seen.add(measured)
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With what was measured beside the loss."""
        super().log({**logs, **(self._seen.take() if "loss" in logs else {})}, start_time)


def fit_loss(
    model: Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    arguments: dict[str, Any],
    loss: BatchLoss,
    collate: Callable[[list[dict[str, Any]]], Batch],
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
    callbacks: Sequence[TrainerCallback] = (),
    measured: Sequence[str] = (),
) -> dict[str, float]:
    """Minimise a loss over rows, in place.

    Args:
        rows: in the order in which they are presented, see `models.trl_training.presented`.
        arguments: what comes with them.
        collate: makes a batch of rows.
        partial: where checkpoints live; training goes on from the newest whole one.
        callbacks: of the trainer; called before a checkpoint is sealed.
        measured: names of the numbers beside the loss that are reported.
    """
    arguments = {name: value for name, value in arguments.items() if name != "max_length"}  # known to TRL alone
    trainer = LossTrainer(
        loss=loss,
        model=apart(model),
        args=configure(TrainingArguments, arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        data_collator=collate,
        callbacks=list(callbacks),
    )
    return train(trainer, model, partial, report, checkpoint_seconds, measured=measured)
