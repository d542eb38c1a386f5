"""Token-level reward models from pairs that differ little.

Our reconstruction of Xu et al. 2024 (arXiv 2406.02756), who have people edit rejected answers; here a chosen answer
that differs little from the rejected one stands for such an edit. See `maths.edits` for labels and loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inverse_alignment.core import parallel
from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.records import Comparison
from inverse_alignment.maths.edits import BAD, GOOD, NEUTRAL, edit_labels, least_share, token_label_loss
from inverse_alignment.models.loss_trainer import BatchLoss, fit_loss
from inverse_alignment.models.trl_training import presented, shared_out
from inverse_alignment.text.render import encode_full, encode_prompt, prompt_budget

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def edits_loss(neutral_weight: float) -> BatchLoss:
    """`maths.edits.token_label_loss` of a batch of answers."""

    def of_batch(model: Any, inputs: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        rewards, weights = outputs.logits.squeeze(-1).float(), inputs["weights"]
        (by_token,) = parallel.shares(parallel.group(), (weights * inputs["counts"].sum(-1)).sum())
        if not by_token:
            return 0.0 * rewards.sum(), {}  # rows that only fill up a batch that several processes share
        loss = token_label_loss(
            rewards, inputs["token_labels"], inputs["counts"], weights, inputs["certainty"], neutral_weight
        )
        return by_token * loss, {}

    return of_batch


class TokenCollator:
    """Pads answers, their labels, and which of their tokens count."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One batch."""
        ids, mask = pad_right([example["input_ids"] for example in examples], self._pad)
        labels, _ = pad_right([example["token_labels"] for example in examples], NEUTRAL)
        starts = torch.tensor([example["start"] for example in examples]).unsqueeze(-1)
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "token_labels": labels,
            "counts": mask & (torch.arange(ids.shape[-1]) >= starts),
            "weights": torch.tensor([float(example["weight"]) for example in examples]),
            "certainty": torch.tensor([float(example["certainty"]) for example in examples]),
        }


def edit_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Comparison], max_tokens: int, most_edited: float
) -> list[dict[str, Any]]:
    """Both answers of every pair that differs little, as token ids with a label per token.

    Args:
        max_tokens: most tokens of prompt and answer together.
        most_edited: largest share of edited tokens among those of both answers; pairs with more are left out, and so
            are pairs whose answers are equal.
    """
    rows = []
    for pair in pairs:
        start = len(encode_prompt(tokenizer, pair.prompt, prompt_budget(max_tokens)))
        rejected, chosen = (
            encode_full(tokenizer, pair.prompt, answer, max_tokens) for answer in (pair.rejected, pair.chosen)
        )
        if least_share(rejected[start:], chosen[start:]) > most_edited:  # sooner than finding the edits
            continue
        labels = edit_labels(rejected[start:], chosen[start:])
        if not 0 < labels.share <= most_edited:
            continue
        rows += [
            {
                "input_ids": ids,
                "token_labels": [NEUTRAL] * start + list(of_answer),
                "start": start,
                "weight": pair.weight,
                "certainty": 1.0 if pair.soft_label is None else pair.soft_label,
            }
            for ids, of_answer in ((rejected, labels.before), (chosen, labels.after))
        ]
    return rows


def fit_token_head(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    arguments: dict[str, Any],
    neutral_weight: float,
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
) -> dict[str, float]:
    """Fit a token classifier with one label to edits, in place.

    Args:
        model: from `models.token_heads.token_head_from_trunk`.
        rows: from `edit_rows`.
        arguments: from `models.trl_training.arguments`.
        neutral_weight: η, how much it costs to say anything of tokens that nobody edited.
        partial: where checkpoints live; training goes on from the newest whole one.
    """
    rows, arguments = presented(rows, [len(row["input_ids"]) for row in rows], arguments)
    rows, arguments = shared_out(rows, arguments, lambda row: {**row, "weight": 0.0})
    loss, collate = edits_loss(neutral_weight), TokenCollator(tokenizer.pad_token_id)
    return fit_loss(model, tokenizer, rows, arguments, loss, collate, partial, report, checkpoint_seconds)


@torch.no_grad()
def separation(
    model: PreTrainedModel, rows: Sequence[dict[str, Any]], pad_token_id: int, most_tokens: int
) -> dict[str, float | None]:
    """How a token head tells edited tokens apart: mean g of good, bad and neutral ones, and the share of right signs.

    Args:
        rows: from `edit_rows`, of pairs that it was not trained on.
        most_tokens: padded tokens read at once.

    Returns:
        `good`, `bad`, `neutral` and `sign_accuracy`; None where there is no such token.
    """
    collate, found = TokenCollator(pad_token_id), {label: [np.empty(0)] for label in (BAD, NEUTRAL, GOOD)}
    for group in length_groups([len(row["input_ids"]) for row in rows], most_tokens):
        batch = {name: tensor.to(model.device) for name, tensor in collate([rows[i] for i in group]).items()}
        rewards = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
        for label, seen in found.items():
            seen.append(rewards[batch["counts"] & (batch["token_labels"] == label)].double().cpu().numpy())
    values = {label: np.concatenate(seen) for label, seen in found.items()}
    signed = np.concatenate([values[GOOD], -values[BAD]])
    columns = {"good": values[GOOD], "bad": values[BAD], "neutral": values[NEUTRAL], "sign_accuracy": signed > 0}
    return {name: float(column.mean()) if column.size else None for name, column in columns.items()}
