"""Edits between two token sequences, what they say about single tokens, and the loss that learns it.

A rejected answer and a chosen one that differ little are read as a draft and its correction: what was taken out is bad,
what was put in is good, the rest is neutral. The idea is that of Xu et al. 2024, arXiv 2406.02756; its method section
was not available to us, so labels and loss are our reconstruction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inverse_alignment.maths.masked import masked, masked_sum

BAD, NEUTRAL, GOOD = -1, 0, 1


class Edit(NamedTuple):
    """Tokens `before[start:end]` become `replacement`; one of the two may be empty, not both."""

    start: int
    end: int
    replacement: tuple[int, ...]


class EditLabels(NamedTuple):
    """One label per token of either sequence: BAD (-1) where it was taken out, GOOD (1) where it was put in, else 0."""

    before: list[int]
    after: list[int]

    @property
    def share(self) -> float:
        """Labelled tokens among all of both sequences; 0 for two empty ones."""
        labels = self.before + self.after
        return sum(label != NEUTRAL for label in labels) / max(len(labels), 1)


def edit_script(before: Sequence[int], after: Sequence[int]) -> list[Edit]:
    """How to turn one sequence into the other with the fewest tokens taken out and put in.

    Edit distance `D_ij = min(D_{i-1,j} + 1, D_{i,j-1} + 1, D_{i-1,j-1} + 2·1[a_i ≠ b_j])`, so that a longest common
    subsequence stays; among such scripts one with the most tokens replaced in place. Edits are in order, and tokens
    that stay lie between any two.
    """
    head = _common(before, after)
    tail = _common(before[head:][::-1], after[head:][::-1])
    first, second = before[head : len(before) - tail], after[head : len(after) - tail]
    one = len(first) + len(second)  # more than all that replacing in place can save
    table = _distances(np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64), one)
    steps: list[Edit] = []
    i, j = len(first), len(second)
    while i or j:
        if i and j and table[i, j] == table[i - 1, j - 1] + (first[i - 1] != second[j - 1]) * (2 * one - 1):
            i, j = i - 1, j - 1
            if first[i] != second[j]:
                steps.append(Edit(head + i, head + i + 1, (second[j],)))
        elif i and table[i, j] == table[i - 1, j] + one:
            i -= 1
            steps.append(Edit(head + i, head + i + 1, ()))
        else:
            j -= 1
            steps.append(Edit(head + i, head + i, (second[j],)))
    script: list[Edit] = []
    for step in reversed(steps):
        if script and script[-1].end == step.start:
            step = Edit(script[-1].start, step.end, script.pop().replacement + step.replacement)
        script.append(step)
    return script


def edited(before: Sequence[int], script: Sequence[Edit]) -> list[int]:
    """The sequence that a script turns `before` into."""
    after: list[int] = []
    reached = 0
    for edit in script:
        after += [*before[reached : edit.start], *edit.replacement]
        reached = edit.end
    return [*after, *before[reached:]]


def edit_labels(before: Sequence[int], after: Sequence[int]) -> EditLabels:
    """What the edits from a worse to a better sequence say about their tokens."""
    labels = EditLabels([NEUTRAL] * len(before), [NEUTRAL] * len(after))
    shift = 0
    for edit in edit_script(before, after):
        start, new = edit.start + shift, len(edit.replacement)
        labels.before[edit.start : edit.end] = [BAD] * (edit.end - edit.start)
        labels.after[start : start + new] = [GOOD] * new
        shift += new - (edit.end - edit.start)
    return labels


def least_share(before: Sequence[int], after: Sequence[int]) -> float:
    """A lower bound on `EditLabels.share` from the tokens alone, whatever their order: in linear time."""
    shared = (Counter(before) & Counter(after)).total()
    total = len(before) + len(after)
    return (total - 2 * shared) / max(total, 1)


def token_label_loss(
    rewards: Tensor, labels: Tensor, mask: Tensor, weights: Tensor, certainty: Tensor, neutral_weight: float
) -> Tensor:
    """`L = Σ w [Σ_good ℓ(g_t) + Σ_bad ℓ(-g_t) + η Σ_neutral g_t²] / Σ w n` with `ℓ(g) = -p log σ(g) - (1-p) log σ(-g)`.

    Over the n tokens of each answer; p is the probability that the pair is labelled the right way round. Least where
    `σ(g)` is p on good tokens, 1 - p on bad ones, and g is 0 on neutral ones. Source: see the module.

    Args:
        rewards: (b, t), g.
        labels: (b, t), BAD, NEUTRAL or GOOD.
        mask: (b, t) bool, True at tokens of the answers.
        weights: (b,) positive weights of the pairs.
        certainty: (b,) p in [½, 1]; one for certain.
        neutral_weight: η >= 0.
    """
    rewards, p = masked(rewards, mask), certainty.unsqueeze(-1)
    signed = rewards * labels
    labelled = -p * functional.logsigmoid(signed) - (1.0 - p) * functional.logsigmoid(-signed)
    losses = torch.where(labels == NEUTRAL, neutral_weight * rewards**2, labelled)
    return (weights * masked_sum(losses, mask, -1)).sum() / (weights * mask.sum(-1)).sum()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens at the beginning are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _distances(a: np.ndarray, b: np.ndarray, one: int) -> np.ndarray:
    """Edit distances of all beginnings, (n + 1, m + 1): `one` per token out or in, `2 one - 1` per one replaced."""
    steps = one * np.arange(len(b) + 1)
    rows = [steps]
    for i, token in enumerate(a, start=1):
        replaced = rows[-1][:-1] + (b != token) * (2 * one - 1)
        row = np.concatenate([[one * i], np.minimum(rows[-1][1:] + one, replaced)])
        rows.append(np.minimum.accumulate(row - steps) + steps)  # what is put in, along the row
    return np.stack(rows)
