"""Classifiers with several outputs, trained on pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inverse_alignment.core.batches import pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.parallel import group
from inverse_alignment.core.records import Comparison
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.bottleneck import standard_normal_divergence
from inverse_alignment.maths.disentangle import head_overlap, length_loss
from inverse_alignment.maths.pairwise import bradley_terry_loss
from inverse_alignment.models.loss_trainer import BatchLoss, fit_loss
from inverse_alignment.models.sequence_scores import sequence_outputs
from inverse_alignment.models.trl_training import presented
from inverse_alignment.reward.bradley_terry import PairLoss, pair_rows
from inverse_alignment.text.render import encode_response

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairBatch:
    """n pairs and what k outputs say of both answers of each.

    Attributes:
        outputs: (2n, k) float32; chosen answers first, then rejected ones.
        weights: (n,) positive.
        margins: (n,) in score units.
        labels: (n,) probability that the chosen answer is the better one.
        counts: (n, h) how often each of h heads is shown each pair.
        lengths: (2n,) tokens of the answers.
        step: optimiser steps done before this batch, which keys noise.
    """

    outputs: Tensor
    weights: Tensor
    margins: Tensor
    labels: Tensor
    counts: Tensor
    lengths: Tensor
    step: int


LOG_VARIANCE = 10.0
"""Bound on the logarithm of a code's variance, either way."""
OutputsLoss = Callable[[PairBatch, Any], Tensor]
"""The loss of a batch; the second argument is the model."""


def outputs_loss(loss: OutputsLoss) -> BatchLoss:
    """That of a batch whose first half are chosen and second half rejected sequences."""

    def of_batch(model: Any, inputs: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = sequence_outputs(model, inputs["input_ids"], inputs["attention_mask"])
        rest = {name: inputs[name] for name in ("weights", "margins", "labels", "counts", "lengths")}
        return loss(PairBatch(outputs, step=step, **rest), model), {}

    return of_batch


class OutputsCollator:
    """Pads both answers of every pair, chosen ones first."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One batch."""
        rows = [example[side] for side in ("chosen_ids", "rejected_ids") for example in examples]
        ids, mask = pad_right(rows, self._pad)
        named = {"weights": "weight", "margins": "margin", "labels": "soft_label", "counts": "counts"}
        lengths = [example["lengths"][side] for side in (0, 1) for example in examples]
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "lengths": torch.tensor(lengths, dtype=torch.float32),
            **{key: torch.tensor([e[name] for e in examples], dtype=torch.float32) for key, name in named.items()},
        }


def output_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Comparison], counts: Sequence[Sequence[float]], max_tokens: int
) -> list[dict[str, Any]]:
    """`reward.bradley_terry.pair_rows`, with the lengths of both answers and how often each head is shown the pair.

    Args:
        counts: of every pair, see `PairBatch`.
    """
    rows = []
    for pair, shown in zip(pairs, counts, strict=True):
        lengths = [len(encode_response(tokenizer, answer)) for answer in pair.answers]
        own = pair_rows(tokenizer, [pair], [1.0], max_tokens)  # none, if both answers are the same tokens
        rows += [{**row, "counts": list(shown), "lengths": lengths} for row in own]
    return rows


def fit_outputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    arguments: dict[str, Any],
    batch_loss: OutputsLoss,
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
) -> dict[str, float]:
    """Fit a classifier with several outputs to preference pairs, in place.

    Args:
        rows: from `output_rows`.
        arguments: from `models.trl_training.arguments`.
        partial: where checkpoints live; training goes on from the newest whole one.

    Raises:
        UserError: several processes share out the batches; these losses look at a batch as a whole.
    """
    if group().size > 1:
        raise UserError(
            "a reward model with several outputs is trained by one process",
            where="runtime.launcher.stages, reward.type",
            fix="leave reward_model out of runtime.launcher.stages, or set reward.type=train",
        )
    lengths = [max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    rows, arguments = presented(rows, lengths, arguments)
    kept = ("chosen_ids", "rejected_ids", "weight", "margin", "soft_label", "counts", "lengths")
    return fit_loss(
        model,
        tokenizer,
        [{name: row[name] for name in kept} for row in rows],
        arguments,
        outputs_loss(batch_loss),
        OutputsCollator(tokenizer.pad_token_id),
        partial,
        report,
        checkpoint_seconds,
    )


def pair_loss(settings: PairLoss, batch: PairBatch, scores: Tensor, counts: Tensor | None = None) -> Tensor:
    """`maths.pairwise.bradley_terry_loss` of scores (2n,); zero where no pair counts."""
    chosen, rejected = scores.chunk(2)
    weights = batch.weights if counts is None else batch.weights * counts
    if not bool(weights.sum() > 0):
        return 0.0 * scores.sum()
    margins = batch.margins if settings.use_margins else torch.zeros_like(chosen)
    return bradley_terry_loss(chosen, rejected, weights, margins, batch.labels, settings.smoothing, settings.centring)


def heads_loss(settings: PairLoss, batch: PairBatch) -> Tensor:
    """The mean loss of heads, each of its own pairs: `Σ_h L_h Σ_i w_i c_ih / Σ_i w_i / h`, c how often h is shown i."""
    total = batch.weights.sum()
    losses = [
        pair_loss(settings, batch, batch.outputs[:, head], shown) * (batch.weights * shown).sum() / total
        for head, shown in enumerate(batch.counts.unbind(-1))
    ]
    return torch.stack(losses).mean()


def odin_loss(settings: PairLoss, batch: PairBatch, heads: Tensor, length: float, orthogonality: float) -> Tensor:
    """The pairs' loss of the sum of two heads, and what keeps length out of the first of them.

    Args:
        heads: (2, d) weights of the head that is kept, and of the one that is dropped.
        length: weight of `maths.disentangle.length_loss`.
        orthogonality: weight of `maths.disentangle.head_overlap`.
    """
    quality, dropped = batch.outputs.unbind(-1)
    return (
        pair_loss(settings, batch, quality + dropped)
        + length * length_loss(quality, dropped, batch.lengths)
        + orthogonality * head_overlap(*heads)
    )


def bottleneck_loss(
    settings: PairLoss, batch: PairBatch, decode: Callable[[Tensor], Tensor], divergence: float, seed: int
) -> Tensor:
    """The pairs' loss of scores that are read from noisy codes, and what the codes cost.

    Args:
        decode: scores (2n,) of codes (2n, k).
        divergence: β, per nat and answer.
        seed: of the noise, with the step.
    """
    mean, log_variance = batch.outputs.chunk(2, -1)
    log_variance = log_variance.clamp(-LOG_VARIANCE, LOG_VARIANCE)
    generator = torch.Generator().manual_seed(derive_seed("bottleneck", seed, batch.step))
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    scores = decode(mean + (0.5 * log_variance).exp() * noise)
    return pair_loss(settings, batch, scores) + divergence * standard_normal_divergence(mean, log_variance).mean()
