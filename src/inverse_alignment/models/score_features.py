"""What a reward model's score is a linear map of: the input of its last layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from inverse_alignment.core.batches import length_groups, pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Prompt
from inverse_alignment.models.reward_scores import RewardScorer
from inverse_alignment.text.render import encode_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 2048
"""Pairs, or answers, that are encoded and sorted by length together: bounds memory where a pool is large."""
Progress = Callable[[int, int, str], None]


class Scored(NamedTuple):
    """What a reward model makes of n answers.

    Attributes:
        features: (n, d) float32, φ.
        scores: (n,) float64, raw: `w · φ`, up to a constant.
    """

    features: np.ndarray
    scores: np.ndarray


class PairFeatures(NamedTuple):
    """What a reward model makes of n pairs.

    Attributes:
        differences: (n, d) float32, `δ = φ(x, y_c) - φ(x, y_r)`; 4 n d bytes, in memory or in a file.
        gaps: (n,) float64, `Δ = r(x, y_c) - r(x, y_r)`, raw.
        weights: (d,) float64, w of the last layer; `Δ = w · δ`.
    """

    differences: np.ndarray
    gaps: np.ndarray
    weights: np.ndarray

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Rows, their differences in float64 and their gaps, so that no more than a block need be held."""
        for start in range(0, len(self.gaps), BLOCK):
            rows = slice(start, start + BLOCK)
            yield rows, self.differences[rows].astype(np.float64), self.gaps[rows]


def in_memory(shape: tuple[int, int]) -> np.ndarray:
    """Room for a table of float32."""
    return np.empty(shape, dtype=np.float32)


def pair_features(
    scorer: RewardScorer,
    pairs: Sequence[Comparison],
    progress: Progress = lambda done, total, unit: None,
    room: Callable[[tuple[int, int]], np.ndarray] = in_memory,
) -> PairFeatures:
    """Features of both answers of every pair, one minus the other.

    Args:
        room: where they are to lie.

    Raises:
        UserError: see `score_features`.
    """
    layer = score_layer(scorer.model)
    differences, gaps = room((len(pairs), layer.in_features)), np.empty(len(pairs))
    given = iter(pairs)
    for start in range(0, len(pairs), BLOCK):
        block = list(islice(given, BLOCK))
        answers = [answer for pair in block for answer in pair.answers]
        features, scores = score_features(scorer, [pair.prompt for pair in block for _ in range(2)], answers)
        rows = slice(start, start + len(block))
        differences[rows], gaps[rows] = features[::2] - features[1::2], scores[::2] - scores[1::2]
        progress(rows.stop, len(pairs), "pairs scored")
    return PairFeatures(differences, gaps, layer.weight.detach().squeeze(0).double().cpu().numpy())


def score_layer(model: PreTrainedModel, outputs: int = 1) -> nn.Linear:
    """The last layer of a reward model: the last one that maps to one number, or to as many outputs.

    Raises:
        UserError: there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == outputs]
    if not layers:
        raise UserError(
            f"the last layer of the reward model is no linear map: {type(model).__name__}",
            where="models.reward, selection.type",
            fix="choose a selection that looks at no reward model",
        )
    return layers[-1]


@torch.no_grad()
def score_features(
    scorer: RewardScorer,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    progress: Progress = lambda done, total, unit: None,
) -> Scored:
    """Features and raw scores of n answers, each to its prompt.

    Raises:
        UserError: the score is no linear map of what the last layer reads.
    """
    parts: list[Scored] = []
    for start in range(0, len(answers), BLOCK):
        rows = slice(start, start + BLOCK)
        parts.append(_read(scorer, encode_answers(scorer.tokenizer, prompts[rows], answers[rows], scorer.max_tokens)))
        progress(min(start + BLOCK, len(answers)), len(answers), "answers scored")
    return Scored(np.concatenate([p.features for p in parts]), np.concatenate([p.scores for p in parts]))


def _read(scorer: RewardScorer, ids: Sequence[list[int]]) -> Scored:
    model, layer = scorer.model, score_layer(scorer.model)
    features, scores = np.empty((len(ids), layer.in_features), dtype=np.float32), np.empty(len(ids))
    seen: list[Tensor] = []
    watch = layer.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    try:
        for group in length_groups([len(row) for row in ids], scorer.rows * scorer.max_tokens):
            tokens, mask = pad_right([ids[row] for row in group], scorer.tokenizer.pad_token_id, model.device)
            seen.clear()
            logits = model(input_ids=tokens, attention_mask=mask.long()).logits.squeeze(-1)
            states = seen[-1]
            if states.ndim == 3:  # of every position: the score is read at the last one
                states = states[torch.arange(len(group), device=states.device), mask.sum(-1) - 1]
            _require_linear(layer, states, logits)
            features[group] = states.float().cpu().numpy()
            scores[group] = logits.double().cpu().numpy()
    finally:
        watch.remove()
    return Scored(features, scores)


def _require_linear(layer: nn.Linear, states: Tensor, logits: Tensor) -> None:
    if not torch.allclose(layer(states).squeeze(-1).float(), logits.float(), rtol=1e-2, atol=1e-3):
        raise UserError(
            "the reward model's score is no linear map of what its last layer reads",
            where="models.reward, selection.type",
            fix="choose a selection that looks at no reward model",
        )
