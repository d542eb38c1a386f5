"""Why a round chose the pairs it chose: the best, the borderline, and those left out, beside what the policy writes.

Made of what the round has written; it works for every selector. Where a selector gives no score, its pairs are shown
in the order of their nearness to the policy's answers, which had then no part in the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inverse_alignment.core.protocols import Embed
from inverse_alignment.core.records import Comparison, Rollout
from inverse_alignment.core.seeding import derive_seed

MOST_POINTS = 1500
"""Points of a kind in the picture; of more, so many are drawn at random."""
TOP, BORDER, ODD = 8, 4, 4
"""Pairs of each group in the table."""


@dataclass(frozen=True)
class Near:
    """The policy's answer that is nearest to one answer of a pair.

    Attributes:
        own_prompt: whether it answers the pair's own prompt.
    """

    text: str
    cosine: float
    own_prompt: bool


@dataclass(frozen=True)
class Shown:
    """A pair of the table.

    Attributes:
        score: of the selector; None where it gave none.
        weight: of a chosen pair.
        alike: cosine of its two answers.
    """

    row: int
    why: str
    pair: Comparison
    score: float | None
    weight: float | None
    near_chosen: Near
    near_rejected: Near
    alike: float


@dataclass(frozen=True)
class Group:
    """Pairs of one fate, the most telling first."""

    title: str
    pairs: tuple[Shown, ...]


@dataclass(frozen=True)
class Map:
    """Two dimensions of the embeddings: first and second principal component of all points drawn.

    Attributes:
        policy: (p, 2), the policy's answers.
        chosen: (k, 2), pairs: where the sum of their two answers points.
        left_out: (l, 2).
        explained: share of the points' variance that the picture shows.
    """

    policy: np.ndarray
    chosen: np.ndarray
    left_out: np.ndarray
    explained: float


@dataclass(frozen=True)
class Picked:
    """What a selection kept of a pool.

    Attributes:
        rows: (k,) ascending.
        weights: (k,).
        scores: (n,) of every pair, NaN where it is no candidate; None where the selector gives no scores.
        per_cluster: whether clusters of prompts share the places.
        most_alike: bound on the likeness of a pair's answers, if there is one.
    """

    rows: np.ndarray
    weights: np.ndarray
    scores: np.ndarray | None
    per_cluster: bool = False
    most_alike: float | None = None


@dataclass(frozen=True)
class Explained:
    """All that the page shows of pairs."""

    groups: tuple[Group, ...]
    map: Map


def explain(
    pool: Sequence[Comparison],
    picked: Picked,
    rollouts: Sequence[Rollout],
    embed: Embed,
    same_prompt: bool,
) -> Explained:
    """Look up the telling pairs, their nearest policy answers, and where everything lies.

    Args:
        same_prompt: the nearest answer is looked for among those to the pair's own prompt, where there are any.
    """
    left = np.setdiff1d(np.arange(len(pool)), picked.rows)
    drawn = {"chosen": _some(picked.rows, "chosen"), "left out": _some(left, "left out")}
    telling = {} if picked.scores is None else _by_score(picked, left)
    wanted = np.unique(np.concatenate([*drawn.values(), *telling.values()]))
    view = _View(pool, wanted, rollouts, embed, same_prompt)
    if picked.scores is None:
        telling = _by_nearness(drawn, view)
    groups = tuple(
        Group(title, tuple(view.shown(int(row), picked) for row in rows))
        for title, rows in telling.items()
        if len(rows)
    )
    chosen, left_out = (view.directions(rows) for rows in drawn.values())
    return Explained(groups, flat(view.policy[_some(np.arange(len(rollouts)), "policy")], chosen, left_out))


def flat(policy: np.ndarray, chosen: np.ndarray, left_out: np.ndarray) -> Map:
    """Principal components of three kinds of points, (·, d) each; every kind counts alike, however many points it has.

    The sign of each axis is such that the largest loading is positive, so equal points give equal pictures.
    """
    kinds = [points.astype(np.float64) for points in (policy, chosen, left_out)]
    points = np.concatenate(kinds)
    weights = np.concatenate([np.full(len(kind), 1 / len(kind)) for kind in kinds if len(kind)])
    centred = points - np.average(points, axis=0, weights=weights)
    _, sizes, axes = np.linalg.svd(centred * np.sqrt(weights)[:, None], full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]
    total = float((sizes**2).sum())
    ends = np.cumsum([len(kind) for kind in kinds])[:2]
    policy, chosen, left_out = np.split(centred @ axes.T, ends)
    return Map(policy, chosen, left_out, float((sizes[:2] ** 2).sum()) / total if total > 0 else 1.0)


def _some(rows: np.ndarray, purpose: str) -> np.ndarray:
    if len(rows) <= MOST_POINTS:
        return rows
    generator = np.random.Generator(np.random.Philox(key=derive_seed("explained", purpose)))
    return np.sort(generator.choice(rows, MOST_POINTS, replace=False))


def _by_score(picked: Picked, left: np.ndarray) -> dict[str, np.ndarray]:
    """The table's rows where there are scores; a pair is in one group only."""
    scores = picked.scores
    assert scores is not None
    chosen = picked.rows[np.lexsort((picked.rows, -scores[picked.rows]))]
    candidates = left[~np.isnan(scores[left])]
    missed = candidates[np.lexsort((candidates, -scores[candidates]))]
    least = scores[picked.rows].min()
    above = missed[scores[missed] >= least]  # of equal score, or where clusters share the places
    below = missed[scores[missed] < least]
    return {
        "Chosen: the highest scores": chosen[:TOP],
        "Chosen: the lowest scores that were kept": chosen[TOP:][-BORDER:],
        "Left out although no chosen pair has a lower score": above[:BORDER],
        "Left out: the highest scores below": below[:BORDER],
        "Left out: the lowest scores": below[BORDER:][-BORDER:],
        "Left out: no candidates": left[np.isnan(scores[left])][:ODD],
    }


def _by_nearness(drawn: Mapping[str, np.ndarray], view: _View) -> dict[str, np.ndarray]:
    groups = {}
    for fate, rows in drawn.items():
        order = rows[np.lexsort((rows, -view.nearness(rows)))]
        groups[f"{fate.capitalize()}: nearest to the policy's answers"] = order[:TOP]
        groups[f"{fate.capitalize()}: farthest from them"] = order[TOP:][-BORDER:]
    return groups


class _View:
    """Embeddings of some pairs and of all rollouts."""

    def __init__(
        self,
        pool: Sequence[Comparison],
        rows: np.ndarray,
        rollouts: Sequence[Rollout],
        embed: Embed,
        same_prompt: bool,
    ) -> None:
        self.pairs = {int(row): pool[int(row)] for row in rows}
        self.rollouts = rollouts
        self.policy = embed([rollout.response for rollout in rollouts])
        self._place = {row: place for place, row in enumerate(self.pairs)}
        self._sides = [embed([pair.answers[side] for pair in self.pairs.values()]) for side in (0, 1)]
        self._of_prompt: dict[str, list[int]] = {}
        for place, rollout in enumerate(rollouts):
            self._of_prompt.setdefault(rollout.prompt.key, []).append(place)
        self._same_prompt = same_prompt

    def directions(self, rows: np.ndarray) -> np.ndarray:
        """Unit vectors of the sums of both answers."""
        places = [self._place[int(row)] for row in rows]
        both = self._sides[0][places] + self._sides[1][places]
        lengths = np.linalg.norm(both, axis=1, keepdims=True)
        return np.divide(both, lengths, out=np.zeros_like(both), where=lengths > 0)

    def nearness(self, rows: np.ndarray) -> np.ndarray:
        """The smaller of both answers' cosines with their nearest policy answer."""
        return np.array([min(self._near(int(row), side).cosine for side in (0, 1)) for row in rows])

    def shown(self, row: int, picked: Picked) -> Shown:
        """A line of the table."""
        at = int(np.searchsorted(picked.rows, row))
        kept = at < len(picked.rows) and picked.rows[at] == row
        score = None if picked.scores is None or np.isnan(picked.scores[row]) else float(picked.scores[row])
        alike = self._alike(row)
        return Shown(
            row=row,
            why=self._why(kept, score, alike, picked),
            pair=self.pairs[row],
            score=score,
            weight=float(picked.weights[at]) if kept else None,
            near_chosen=self._near(row, 0),
            near_rejected=self._near(row, 1),
            alike=alike,
        )

    @staticmethod
    def _why(kept: bool, score: float | None, alike: float, picked: Picked) -> str:
        if picked.scores is None:
            return "chosen without a score" if kept else "left out without a score"
        least = picked.scores[picked.rows].min()
        if kept:
            return f"chosen: {score:.4g} reaches the least that was kept, {least:.4g}"
        if score is None:
            if picked.most_alike is not None and alike > picked.most_alike:
                return f"no candidate: its answers are more alike ({alike:.3f}) than {picked.most_alike:g}"
            return "no candidate: the policy has not answered its prompt, or there is nothing to score"
        if score < least:
            return f"left out: {score:.4g} is below the least that was kept, {least:.4g}"
        if picked.per_cluster:
            return f"left out: its cluster of prompts has its share of better pairs ({score:.4g})"
        return f"left out: of pairs with the score {score:.4g} others come first"

    def _alike(self, row: int) -> float:
        place = self._place[row]
        return min(1.0, float(self._sides[0][place] @ self._sides[1][place]))

    def _near(self, row: int, side: int) -> Near:
        key, vector = self.pairs[row].prompt.key, self._sides[side][self._place[row]]
        own = self._of_prompt.get(key) if self._same_prompt else None
        among = np.arange(len(self.rollouts)) if own is None else np.array(own)
        cosines = self.policy[among] @ vector
        best = int(among[cosines.argmax()])
        rollout = self.rollouts[best]
        return Near(rollout.response, min(1.0, float(cosines.max())), rollout.prompt.key == key)
