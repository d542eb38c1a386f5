"""From scores to a selection: the best, all above a bound, the best of each cluster of prompts, or all with weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.protocols import Embed
from inverse_alignment.core.records import Prompt
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.density_ratio import mean_one_weights
from inverse_alignment.selection.best import best
from inverse_alignment.selection.selection import Selection, require_at_most


@dataclass(frozen=True)
class PairScores:
    """What a selector says of each pair of a pool; the larger score is kept first.

    Attributes:
        values: (n,) float64, NaN where it can say nothing.
        allowed: (n,) bool, the candidates; never where the value is NaN.
        candidates: how many pairs are candidates and why not all, to end the sentence "only 3 pairs …".
        ties: (n,) distinct numbers; of equal scores the one with the smaller number is kept first.
    """

    values: np.ndarray
    allowed: np.ndarray
    candidates: str
    ties: np.ndarray

    def ranked(self, rows: np.ndarray) -> np.ndarray:
        """The rows, best first."""
        return rows[np.lexsort((self.ties[rows], -self.values[rows]))]


def scored(values: np.ndarray, ties: np.ndarray, allowed: np.ndarray | None = None, why: str = "") -> PairScores:
    """Scores (n,) of which NaN is no candidate, nor what is not allowed.

    Args:
        why: in words, why pairs are not allowed.
    """
    known = ~np.isnan(values)
    among = known if allowed is None else known & allowed
    return PairScores(values, among, why or f"of {len(values)} have a score", ties)


def tie_order(ids: Sequence[str]) -> np.ndarray:
    """(n,) a rank for every id that depends on the ids alone, and on nothing that ids say: the order of their digests.

    Where a selector gives all pairs one score (a policy that is still its reference), what it keeps is then a random
    subset and not the beginning of the file.
    """
    digests = np.array([derive_seed("tie", name) for name in ids], dtype=np.int64)
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[np.lexsort((np.arange(len(ids)), digests))] = np.arange(len(ids))
    return ranks


def keep_top(scores: PairScores, k: int, key: str) -> Selection:
    """The k best candidates.

    Raises:
        UserError: there are fewer than k candidates.
    """
    require_at_most(k, int(scores.allowed.sum()), scores.candidates, f"{key}.k")
    rows = np.flatnonzero(scores.allowed)
    return _kept(scores, rows[best(scores.values[rows], scores.ties[rows], k)])


def keep_above(scores: PairScores, least: float, key: str) -> Selection:
    """Every candidate whose score reaches a bound.

    Raises:
        UserError: none does.
    """
    rows = np.flatnonzero(scores.allowed & (scores.values >= least))
    if not len(rows):
        highest = scores.values[scores.allowed].max() if scores.allowed.any() else float("nan")
        raise UserError(
            f"no pair reaches the score {least}; the highest is {highest:.3f}",
            where=f"{key}.score",
            fix=f"lower the threshold, or set {key}.type=top_k",
        )
    return _kept(scores, rows)


def keep_top_per_cluster(scores: PairScores, clusters: np.ndarray, k: int, key: str) -> Selection:
    """k candidates in all, from each cluster in proportion to its candidates, the best of each.

    A cluster's share of k is rounded by largest remainder (of equal remainders the smaller cluster number first).

    Args:
        clusters: (n,) cluster of each pair, from 0.

    Raises:
        UserError: there are fewer than k candidates.
    """
    rows = np.flatnonzero(scores.allowed)
    require_at_most(k, len(rows), scores.candidates, f"{key}.k")
    shares = quotas(np.bincount(clusters[rows]), k)
    best = scores.ranked(rows)
    return _kept(scores, np.concatenate([best[clusters[best] == c][:share] for c, share in enumerate(shares)]))


def keep_weighted(scores: PairScores, log_weights: np.ndarray, key: str) -> Selection:
    """Every candidate, with weights proportional to `exp(log_weights)` and mean 1; a weight that underflows drops it.

    Args:
        log_weights: (n,).

    Raises:
        UserError: there is no candidate.
    """
    rows = np.flatnonzero(scores.allowed)
    if not len(rows):
        raise UserError(
            f"there is no pair to weight: 0 {scores.candidates}", where=key, fix="choose another selection.type"
        )
    rows, weights = heavy_rows(rows, log_weights[rows])
    return Selection(rows.astype(np.int64), weights, scores.values[rows])


def heavy_rows(rows: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (k,) and their weights of mean 1, without the rows whose weight is too small for a float."""
    heavy = mean_one_weights(log_weights) > 0
    return rows[heavy], mean_one_weights(log_weights[heavy])


def quotas(sizes: np.ndarray, k: int) -> np.ndarray:
    """k places shared out in proportion to sizes (c,), by largest remainder; no share is above its size.

    >>> quotas(np.array([6, 3, 1]), 5)
    array([3, 2, 0])
    """
    whole, rest = np.divmod(sizes * k, sizes.sum())
    extra = np.lexsort((np.arange(len(sizes)), -rest))[: k - whole.sum()]
    shares: np.ndarray = whole.copy()
    shares[extra] += 1
    return shares


def prompt_clusters(prompts: Sequence[Prompt], embed: Embed, clusters: int, seed: int) -> np.ndarray:
    """Cluster of each prompt, (n,): k-means on the embeddings of the distinct prompts, in the order of their text.

    What is found does not depend on the order of the pool, nor on how many pairs share a prompt. Of fewer distinct
    prompts than clusters each is a cluster of its own.
    """
    from sklearn.cluster import KMeans

    texts = [prompt.text() for prompt in prompts]
    distinct = sorted(set(texts))
    if len(distinct) <= clusters:
        found = np.arange(len(distinct))
    else:
        vectors = embed(distinct).astype(np.float64)
        clusters = min(clusters, len(np.unique(vectors, axis=0)))  # k-means warns where it cannot make as many
        found = KMeans(clusters, n_init=4, random_state=seed % 2**32, algorithm="lloyd").fit_predict(vectors)
    of_text = dict(zip(distinct, found.tolist(), strict=True))
    return np.array([of_text[text] for text in texts], dtype=np.int64)


def _kept(scores: PairScores, rows: np.ndarray) -> Selection:
    kept = np.sort(rows).astype(np.int64)
    return Selection(kept, np.ones(len(kept)), scores.values[kept].astype(np.float64))
