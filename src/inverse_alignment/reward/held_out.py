"""An early stop: pairs that nobody learns from say when training no longer helps, and which weights are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inverse_alignment.core.batches import pad_right
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.parallel import group
from inverse_alignment.maths.pairwise import accuracy, bradley_terry_loss
from inverse_alignment.models.sequence_scores import sequence_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, STATE = "best.safetensors", "held_out.json"
PAIRS_AT_ONCE = 64


class HeldOut(TrainerCallback):
    """Looks at held-out pairs before the first step, every so many steps, and after the last.

    What it knows is part of every checkpoint, so that a training that is taken up again ends where it would have.

    Args:
        rows: of `reward.bradley_terry.pair_rows`.
        pad: token id of padding.
        every: steps from one look to the next.
        patience: looks without a better loss after which training ends.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], pad: int, every: int, patience: int) -> None:
        self._rows, self._pad, self._every, self._patience = rows, pad, every, patience
        self._best: dict[str, Tensor] = {}
        self._loss, self._step, self._since, self._ended = float("inf"), 0, 0, False

    def watching(self, model: PreTrainedModel, partial: Path, report: Report) -> HeldOut:
        """The same, of a training: its model, its checkpoints, and whom to tell."""
        self._model, self._partial, self._report = model, partial, report
        return self

    def ended(self) -> bool:
        """Whether it ended the training."""
        return self._ended

    def restore(self, model: PreTrainedModel) -> dict[str, float]:
        """Give a model the best weights; the step that had them, and their loss."""
        with torch.no_grad():
            for name, weight in _learned(model).items():
                weight.copy_(self._best[name])
        return {"best_step": float(self._step), "held_out_loss": self._loss}

    def look(self, model: PreTrainedModel) -> dict[str, float]:
        """Loss, in nats, without smoothing, margins or centring, and accuracy on the held-out pairs."""
        chosen, rejected = pair_scores(model, self._rows, self._pad)
        weights, labels = (torch.tensor([row[key] for row in self._rows]) for key in ("weight", "soft_label"))
        loss = bradley_terry_loss(chosen, rejected, weights, torch.zeros_like(chosen), labels)
        return {"held_out_loss": float(loss), "held_out_accuracy": float(accuracy(chosen, rejected))}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The start is the first to be beaten; a training taken up again knows what it knew."""
        if not state.global_step:
            self._keep(self.look(self._model)["held_out_loss"], 0)
            return
        from safetensors.torch import load_file

        folder = self._partial / f"checkpoint-{state.global_step}"
        known = json.loads((folder / STATE).read_text())
        self._best = load_file(str(folder / WEIGHTS))
        self._loss, self._step, self._since = known["loss"], known["step"], known["since"]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Look if it is time to; end the training if there was nothing better for too long."""
        if state.global_step % self._every and state.global_step < state.max_steps:
            return control
        found = self.look(self._model)
        self._report.log(state.global_step, found)
        if found["held_out_loss"] < self._loss:
            self._keep(found["held_out_loss"], state.global_step)
            return control
        self._since += 1
        if self._since >= self._patience and state.global_step < state.max_steps:
            self._ended = control.should_training_stop = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put what it knows into the checkpoint, before the training's own callback seals it."""
        from safetensors.torch import save_file

        if group().rank:
            return
        folder = self._partial / f"checkpoint-{state.global_step}"
        save_file(self._best, str(folder / WEIGHTS))
        known = {"loss": self._loss, "step": self._step, "since": self._since}
        (folder / STATE).write_text(json.dumps(known, sort_keys=True))

    def _keep(self, loss: float, step: int) -> None:
        self._loss, self._step, self._since = loss, step, 0
        self._best = {name: weight.detach().cpu().clone() for name, weight in _learned(self._model).items()}


@torch.no_grad()
def pair_scores(model: PreTrainedModel, rows: Sequence[dict[str, Any]], pad: int) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and of the rejected answers of pairs, (n,) each, on the CPU."""
    scores, learning = [], model.training
    model.eval()
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        some = rows[start : start + PAIRS_AT_ONCE]
        answers = [row[side] for side in ("chosen_ids", "rejected_ids") for row in some]
        scores.append(sequence_scores(model, *pad_right(answers, pad, model.device)).chunk(2))
    model.train(learning)
    chosen, rejected = (torch.cat(side).cpu() for side in zip(*scores, strict=True))
    return chosen, rejected


def _learned(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights that learn, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
