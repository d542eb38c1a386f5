"""FRFT's selector: the pairs whose answers resemble what the frozen policy writes (arXiv 2412.10529).

The paper's filter is not published in detail; every choice here is a parameter (see docs/methods).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inverse_alignment.core.blocks import blocks, in_order
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.protocols import Embed, Spread
from inverse_alignment.selection.keep import PairScores, scored
from inverse_alignment.selection.nearest import embedded, nearest, nearest_of_key, rows_of

MOST_BYTES = 2**30

Progress = Callable[[int, int, str], None]


class Pair(NamedTuple):
    """A pair as a measure of nearness sees it."""

    chosen: str
    rejected: str
    key: str


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


@dataclass(frozen=True)
class Measure:
    """Measures blocks of pairs against a policy's answers.

    Attributes:
        answers: embeddings (m, d) of the policy's answers.
        of_prompt: which of them answer a prompt, by its key; None: all are compared with every pair.
    """

    embed: Embed
    answers: np.ndarray
    of_prompt: Mapping[str, np.ndarray] | None

    def __call__(self, pairs: list[Pair]) -> PairSimilarity:
        """Cosines of one block."""
        vectors = self.embed([*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])
        chosen, rejected = np.split(vectors, 2)
        between = (chosen * rejected).sum(1).clip(max=1.0)  # rounding must not push equal answers above a bound of 1
        keys = [pair.key for pair in pairs]
        return PairSimilarity(self._nearest(chosen, keys), self._nearest(rejected, keys), between)

    def _nearest(self, vectors: np.ndarray, keys: list[str]) -> np.ndarray:
        if self.of_prompt is None:
            return nearest(vectors, self.answers)
        return nearest_of_key(vectors, keys, self.answers, self.of_prompt)


def pair_similarity(
    chosen: Sequence[str],
    rejected: Sequence[str],
    keys: Sequence[str],
    rollouts: Sequence[str],
    rollout_keys: Sequence[str],
    embed: Embed,
    same_prompt: bool,
    progress: Progress = lambda done, total, unit: None,
    spread: Spread = in_order,
    most_bytes: int = MOST_BYTES,
    folder: Path | None = None,
) -> PairSimilarity:
    """Embed all answers and measure every pair, block by block: besides three numbers a pair, little is held at once.

    Args:
        keys: prompt key of each pair.
        rollouts: the policy's answers.
        rollout_keys: prompt key of each of them.
        same_prompt: compare a pair with the policy's answers to its own prompt only.
        progress: told how many pairs are compared.
        spread: who measures the blocks; changes nothing.
        most_bytes: embeddings of the policy's answers that take more than this lie in a file of `folder`.

    Raises:
        UserError: no pair shares its prompt with a rollout.
    """
    answers = embedded(rollouts, embed, most_bytes, folder)
    measure = Measure(embed, answers, rows_of(rollout_keys) if same_prompt else None)
    found = PairSimilarity(*(np.empty(len(chosen), dtype=np.float32) for _ in range(3)))
    done = 0
    pairs = map(Pair, chosen, rejected, keys)
    for part in spread(measure, blocks(pairs, lambda pair: pair.chosen)):
        rows = slice(done, done := done + len(part.between))
        found.chosen[rows], found.rejected[rows], found.between[rows] = part.chosen, part.rejected, part.between
        progress(done, len(chosen), "pairs compared")
    if same_prompt and np.isnan(found.chosen).all():
        raise UserError(
            "no pair's prompt is among the rollouts' prompts",
            where="selection.compare_with=same_prompt",
            fix="set rollout.prompts=0 (all prompts), or selection.compare_with=all_rollouts",
        )
    return found


def similarity_scores(similarity: PairSimilarity, score: str, max_pair_similarity: float) -> PairScores:
    """Scores of all pairs; candidates are measured, and their two answers are not too much alike. Ties: the earlier."""
    values = SCORES[score](similarity.chosen, similarity.rejected).astype(np.float64)
    unmeasured = int(np.isnan(similarity.chosen).sum())
    return scored(
        values,
        np.arange(len(values)),
        similarity.between <= max_pair_similarity,
        f"of {len(values)} are candidates ({unmeasured} without rollouts to their prompt, "
        f"{int((similarity.between > max_pair_similarity).sum())} with answers more alike than {max_pair_similarity})",
    )


def dissimilarity_scores(similarity: PairSimilarity, score: str, max_pair_similarity: float) -> PairScores:
    """The same negated: what resembles the policy least is best. The control that must not help."""
    scores = similarity_scores(similarity, score, max_pair_similarity)
    return replace(scores, values=-scores.values)
