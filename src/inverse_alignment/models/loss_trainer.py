"""transformers' Trainer with any loss of a batch: for what TRL has no trainer for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor
from torch.nn import Module
from transformers import Trainer, TrainingArguments

from inverse_alignment.core.metrics import Report
from inverse_alignment.models.trl_training import apart, configure, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor]
BatchLoss = Callable[[Any, Batch, int], Tensor]
"""Of a model, a batch and the optimiser steps done before it, the loss ()."""


class LossTrainer(Trainer):
    """Trainer with a loss that is a function.

    Of one process's part of a batch, the function gives the loss times its share: the mean over processes is that of
    the whole batch.
    """

    def __init__(self, *, loss: BatchLoss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._loss = loss

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch, and itself once more where outputs are asked for: what the model says stays inside."""
        loss = self._loss(model, inputs, self.state.global_step)
        return (loss, {"loss": loss}) if return_outputs else loss


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
) -> dict[str, float]:
    """Minimise a loss over rows, in place.

    Args:
        rows: in the order in which they are presented, see `models.trl_training.presented`.
        arguments: what comes with them.
        collate: makes a batch of rows.
        partial: where checkpoints live; training goes on from the newest whole one.
    """
    arguments = {name: value for name, value in arguments.items() if name != "max_length"}  # known to TRL alone
    trainer = LossTrainer(
        loss=loss,
        model=apart(model),
        args=configure(TrainingArguments, arguments),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        data_collator=collate,
    )
    return train(trainer, model, partial, report, checkpoint_seconds)
