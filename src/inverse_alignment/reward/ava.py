"""AVA and the Preference Transformer: beliefs about the reward of every token.

Sources: AVA is Cai et al. 2024, arXiv 2411.09341; the Preference Transformer Kim et al. 2023, arXiv 2303.00957.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.metrics import Report
from inverse_alignment.core.records import Comparison
from inverse_alignment.maths.variational import (
    ReturnCorrelations,
    return_correlations,
)
from inverse_alignment.models.beliefs import Objective, TqrCollator, beliefs_loss
from inverse_alignment.models.loss_trainer import fit_loss
from inverse_alignment.models.tqr import Tqr
from inverse_alignment.models.tqr_scores import answers_of
from inverse_alignment.models.trl_training import presented, shared_out
from inverse_alignment.text.render import encode_answers, encode_prompts, prompt_budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def belief_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Comparison], max_tokens: int
) -> list[dict[str, Any]]:
    """Token ids of both answers of every pair, where they begin, and what the pair weighs.

    A pair whose label is soft is there twice, once each way round, weighted by the label: the expectation of any loss.
    """
    prompts = [pair.prompt for pair in pairs]
    starts = [len(ids) for ids in encode_prompts(tokenizer, prompts, prompt_budget(max_tokens))]
    chosen, rejected = (
        encode_answers(tokenizer, prompts, [getattr(pair, side) for pair in pairs], max_tokens)
        for side in ("chosen", "rejected")
    )
    rows = []
    for pair, start, better, worse in zip(pairs, starts, chosen, rejected, strict=True):
        label = 1.0 if pair.soft_label is None else pair.soft_label
        for first, second, share in ((better, worse, label), (worse, better, 1.0 - label)):
            if share:
                row = {"chosen_ids": first, "rejected_ids": second, "start": start}
                rows.append({**row, "weight": share * pair.weight})
    return rows


def fit_tqr(
    model: Tqr,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    arguments: dict[str, Any],
    objective: Objective,
    partial: Path,
    report: Report,
    checkpoint_seconds: float,
) -> dict[str, float]:
    """Fit a TQR model to pairs, in place.

    Args:
        rows: from `belief_rows`.
        arguments: from `models.trl_training.arguments`.
        partial: where checkpoints live; training goes on from the newest whole one.
    """
    sides = ("chosen_ids", "rejected_ids")[: 1 + objective.paired]
    rows, arguments = presented(rows, [max(len(row[side]) for side in sides) for row in rows], arguments)
    rows, arguments = shared_out(rows, arguments, lambda row: {**row, "weight": 0.0})
    loss, collate = beliefs_loss(objective), TqrCollator(tokenizer.pad_token_id, objective.paired)
    return fit_loss(model, tokenizer, rows, arguments, loss, collate, partial, report, checkpoint_seconds)


@torch.no_grad()
def degeneration(model: Tqr, rows: Sequence[dict[str, Any]], pad_token_id: int, most_tokens: int) -> ReturnCorrelations:
    """What the summed rewards of answers may stand for: correlations with their length and their log-likelihood.

    Args:
        rows: from `belief_rows`; both answers of each are looked at.
        most_tokens: padded tokens read at once.
    """
    ids = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
    starts = [row["start"] for row in rows] * 2
    width = max(len(row) for row in ids)
    rewards, log_probs = torch.zeros(2, len(ids), width, dtype=torch.float64)
    mask = torch.zeros(len(ids), width, dtype=torch.bool)
    for group in length_groups([len(row) for row in ids], most_tokens):
        tokens, real = pad_right([ids[i] for i in group], pad_token_id, model.device)
        counts = answers_of(real, [starts[i] for i in group])
        beliefs = model(tokens, real.long(), counts)
        for table, found in ((rewards, beliefs.posterior.mean), (log_probs, beliefs.log_probs), (mask, counts)):
            table[group, : tokens.shape[-1]] = found.to(table.dtype).cpu()
    return return_correlations(rewards, log_probs, mask)
