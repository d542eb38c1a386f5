"""How often a reward model ranks a pair as labelled: offline, per source policy, on the policy's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from inverse_alignment.core.protocols import Gold, Score
from inverse_alignment.core.records import Comparison, Rollout


class PairScores(NamedTuple):
    """Scores of both answers of each pair, (n,)."""

    chosen: np.ndarray
    rejected: np.ndarray

    def correct(self) -> np.ndarray:
        """1 where the chosen answer scores higher, ½ for a tie, 0 otherwise."""
        return (self.chosen > self.rejected) + 0.5 * (self.chosen == self.rejected)


def score_pairs(score: Score, pairs: Sequence[Comparison]) -> PairScores:
    """Score both answers of every pair in one pass."""
    prompts = [pair.prompt for pair in pairs]
    scores = score(prompts * 2, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
    return PairScores(scores[: len(pairs)], scores[len(pairs) :])


def longer_wins(pairs: Sequence[Comparison]) -> np.ndarray:
    """The baseline to beat: 1 where the chosen answer has more words, ½ for a tie, 0 otherwise."""
    lengths = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
    return np.array([float(c > r) + 0.5 * (c == r) for c, r in lengths])


def by_source(pairs: Sequence[Comparison], correct: np.ndarray) -> dict[str, dict[str, Any]]:
    """Accuracy of the reward model and of "longer wins" over the pairs in which each source policy wrote an answer."""
    longer = longer_wins(pairs)
    rows: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs):
        for source in {pair.provenance.source_chosen, pair.provenance.source_rejected}:
            rows.setdefault(source, []).append(row)
    return {
        source: {
            "pairs": len(rows[source]),
            "rm_accuracy": float(correct[rows[source]].mean()),
            "longer_wins": float(longer[rows[source]].mean()),
        }
        for source in sorted(rows)
    }


class AnswerPairs(NamedTuple):
    """Pairs of different answers to one prompt: rows of the two answers, (n,) each."""

    left: np.ndarray
    right: np.ndarray


def answer_pairs(rollouts: Sequence[Rollout]) -> AnswerPairs:
    """All pairs of different answers to one prompt; equal texts are one answer, if rounded to two scores."""
    return pairs_of([rollout.prompt.key for rollout in rollouts], [rollout.response for rollout in rollouts])


def pairs_of(keys: Sequence[str], texts: Sequence[str]) -> AnswerPairs:
    """The same of answers by their prompts' keys and their texts, (m,) each."""
    of_prompt: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        of_prompt.setdefault(key, []).append(row)
    found = [
        (i, j)
        for rows in of_prompt.values()
        for place, i in enumerate(rows)
        for j in rows[place + 1 :]
        if texts[i] != texts[j]
    ]
    left, right = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return AnswerPairs(left, right)


class OnPolicyPairs(NamedTuple):
    """Pairs of answers to one prompt that gold tells apart: rows of the better and of the worse answer, (n,) each."""

    better: np.ndarray
    worse: np.ndarray

    def accuracy(self, scores: np.ndarray) -> float | None:
        """Share of pairs that scores (m,) of the rollouts rank as gold does; None without pairs."""
        if not len(self.better):
            return None
        return float(PairScores(scores[self.better], scores[self.worse]).correct().mean())


def on_policy_pairs(rollouts: Sequence[Rollout], gold: np.ndarray) -> OnPolicyPairs:
    """All pairs of different answers to one prompt whose gold rewards (m,) differ."""
    return told_apart(answer_pairs(rollouts), gold)


def accuracy_on(keys: Sequence[str], texts: Sequence[str], gold: np.ndarray, scores: np.ndarray) -> float | None:
    """Share of the pairs of different answers to one prompt, told apart by gold (m,), that scores (m,) rank alike."""
    return told_apart(pairs_of(keys, texts), gold).accuracy(scores)


def told_apart(pairs: AnswerPairs, gold: np.ndarray) -> OnPolicyPairs:
    """Those of the pairs whose gold rewards (m,) differ."""
    gap = gold[pairs.left] - gold[pairs.right]
    apart = abs(gap) > 1e-9
    better, worse = np.where(gap > 0, pairs.left, pairs.right), np.where(gap > 0, pairs.right, pairs.left)
    return OnPolicyPairs(better[apart], worse[apart])


def gold_rewards(gold: Gold, rollouts: Sequence[Rollout]) -> np.ndarray:
    """Exact rewards of rollouts, (m,)."""
    return np.array([gold(rollout.prompt, rollout.response) for rollout in rollouts])
