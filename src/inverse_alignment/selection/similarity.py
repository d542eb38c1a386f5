"""FRFT's selector: the pairs whose answers resemble what the frozen policy writes (arXiv 2412.10529).

The paper's filter is not published in detail; every choice here is a parameter (see docs/methods).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.protocols import Embed
from inverse_alignment.selection.selection import Selection, require_at_most

CHUNK = 4096  # pairs multiplied at once: bounds memory, changes nothing
EMBEDDED = 512  # texts embedded between two words of progress

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PairSimilarity:
    """Cosines of each pair, (n,): its answers with their nearest policy answer, and its answers with each other.

    NaN in `chosen` and `rejected` where no policy answer may be compared with the pair.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    between: np.ndarray


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "pair_max": np.maximum,  # either answer is on-policy
    "pair_min": np.minimum,  # both are: strictest
    "mean": lambda chosen, rejected: (chosen + rejected) / 2,
    "chosen": lambda chosen, rejected: chosen,
    "rejected": lambda chosen, rejected: rejected,  # the policy still behaves like the rejected side
    "gap": lambda chosen, rejected: np.abs(chosen - rejected),
}


def nearest(answers: np.ndarray, rollouts: np.ndarray) -> np.ndarray:
    """`max_j cos(a_i, y_j)` of unit vectors: (n, d) and (m, d) to (n,)."""
    return np.concatenate(
        [(answers[i : i + CHUNK] @ rollouts.T).max(1) for i in range(0, len(answers), CHUNK)]
        or [np.empty(0, dtype=answers.dtype)]
    )


def nearest_of_prompt(
    answers: np.ndarray, keys: Sequence[str], rollouts: np.ndarray, rollout_keys: Sequence[str]
) -> np.ndarray:
    """The same over the policy's answers to the pair's own prompt; NaN where there is none."""
    found = np.full(len(answers), np.nan, dtype=np.float32)
    of_prompt: dict[str, list[int]] = {}
    for row, key in enumerate(rollout_keys):
        of_prompt.setdefault(key, []).append(row)
    pairs_of: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        pairs_of.setdefault(key, []).append(row)
    for key, rows in pairs_of.items():
        if key in of_prompt:
            found[rows] = (answers[rows] @ rollouts[of_prompt[key]].T).max(1)
    return found


def pair_similarity(
    chosen: Sequence[str],
    rejected: Sequence[str],
    keys: Sequence[str],
    rollouts: Sequence[str],
    rollout_keys: Sequence[str],
    embed: Embed,
    same_prompt: bool,
    progress: Progress = lambda done, total, unit: None,
) -> PairSimilarity:
    """Embed all answers and measure every pair.

    Args:
        keys: prompt key of each pair.
        rollouts: the policy's answers.
        rollout_keys: prompt key of each of them.
        same_prompt: compare a pair with the policy's answers to its own prompt only.
        progress: told how many of all answers are embedded.

    Raises:
        UserError: no pair shares its prompt with a rollout.
    """
    vectors = _embedded([*rollouts, *chosen, *rejected], embed, progress)
    policy, e_chosen, e_rejected = np.split(vectors, [len(rollouts), len(rollouts) + len(chosen)])
    between = (e_chosen * e_rejected).sum(1).clip(max=1.0)  # rounding must not push equal answers above a bound of 1
    if not same_prompt:
        return PairSimilarity(nearest(e_chosen, policy), nearest(e_rejected, policy), between)
    measured = PairSimilarity(
        nearest_of_prompt(e_chosen, keys, policy, rollout_keys),
        nearest_of_prompt(e_rejected, keys, policy, rollout_keys),
        between,
    )
    if np.isnan(measured.chosen).all():
        raise UserError(
            "no pair's prompt is among the rollouts' prompts",
            where="selection.compare_with=same_prompt",
            fix="set rollout.prompts=0 (all prompts), or selection.compare_with=all_rollouts",
        )
    return measured


def _embedded(texts: Sequence[str], embed: Embed, progress: Progress) -> np.ndarray:
    parts = []
    for start in range(0, len(texts), EMBEDDED):
        parts.append(embed(texts[start : start + EMBEDDED]))
        progress(min(start + EMBEDDED, len(texts)), len(texts), "answers embedded")
    return np.concatenate(parts)


def candidates(similarity: PairSimilarity, score: str, max_pair_similarity: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) and which pairs may be selected (n,) bool: measured, and their two answers not too much alike."""
    scores = SCORES[score](similarity.chosen, similarity.rejected)
    return scores, ~np.isnan(scores) & (similarity.between <= max_pair_similarity)


def select_top(similarity: PairSimilarity, score: str, max_pair_similarity: float, k: int) -> Selection:
    """The k best-scoring candidates; ties go to the earlier row.

    Raises:
        UserError: there are fewer than k candidates.
    """
    scores, allowed = candidates(similarity, score, max_pair_similarity)
    require_at_most(k, int(allowed.sum()), _narrowed(similarity, max_pair_similarity), "selection.keep.k")
    rows = np.flatnonzero(allowed)
    best = np.sort(rows[np.lexsort((rows, -scores[rows]))[:k]]).astype(np.int64)
    return Selection(best, np.ones(k), scores[best].astype(np.float64))


def select_above(similarity: PairSimilarity, score: str, max_pair_similarity: float, threshold: float) -> Selection:
    """Every candidate whose score reaches the threshold.

    Raises:
        UserError: none does.
    """
    scores, allowed = candidates(similarity, score, max_pair_similarity)
    rows = np.flatnonzero(allowed & (scores >= threshold)).astype(np.int64)
    if not len(rows):
        highest = scores[allowed].max() if allowed.any() else float("nan")
        raise UserError(
            f"no pair reaches the score {threshold}; the highest is {highest:.3f}",
            where="selection.keep.score",
            fix="lower the threshold, or set selection.keep.type=top_k",
        )
    return Selection(rows, np.ones(len(rows)), scores[rows].astype(np.float64))


def _narrowed(similarity: PairSimilarity, bound: float) -> str:
    unmeasured = int(np.isnan(similarity.chosen).sum())
    return (
        f"of {len(similarity.chosen)} are candidates ({unmeasured} without rollouts to their prompt, "
        f"{int((similarity.between > bound).sum())} with answers more alike than {bound})"
    )
