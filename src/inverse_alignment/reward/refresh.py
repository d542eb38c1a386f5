"""Which pairs a refresh trains on, and whether the refreshed model may replace the incumbent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from inverse_alignment.maths.pairwise import PairGap, accuracy, best_scale, paired_gain, preference_log_likelihood


@dataclass(frozen=True)
class TrainingMix:
    """Rows of the pool that a refresh presents, in order, with their weights.

    Attributes:
        selected: whether a row is there because it was selected; the others are replayed.
    """

    indices: np.ndarray
    weights: np.ndarray
    selected: np.ndarray

    @property
    def replayed(self) -> int:
        """How many rows were drawn from the whole pool."""
        return int((~self.selected).sum())


def mix(
    selected: np.ndarray, weights: np.ndarray, pool: int, pairs_seen: int, replay_share: float, seed: int
) -> TrainingMix:
    """`pairs_seen` pairs: the selected ones, in random order and as often as needed, and a random replay of the pool.

    Weights of the selected pairs are divided by their mean, and a replayed pair weighs 1: so the replay weighs what its
    share says, whatever the scale of the selector's weights. Every arm presents the same number of pairs, whatever its
    selector kept (methods: Wolf et al., arXiv 2505.18126, concatenate rather than replace).

    Args:
        selected: (k,) rows of the pool.
        weights: (k,) their weights, positive.
        pool: rows of the pool.
        replay_share: share of `pairs_seen` drawn from the whole pool.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    replayed = min(round(pairs_seen * replay_share), pool, pairs_seen - 1)  # at least one selected pair
    wanted = pairs_seen - replayed
    passes = -(-wanted // len(selected))
    order = np.concatenate([generator.permutation(len(selected)) for _ in range(passes)])[:wanted]
    replay = generator.choice(pool, size=replayed, replace=False)
    indices = np.concatenate([selected[order], replay]).astype(np.int64)
    all_weights = np.concatenate([(weights / weights.mean())[order], np.ones(replayed)])
    shuffle = generator.permutation(len(indices))
    return TrainingMix(indices[shuffle], all_weights[shuffle], shuffle < wanted)


@dataclass(frozen=True)
class GateDecision:
    """Champion against challenger on the same held-out pairs."""

    accepted: bool
    gap: PairGap
    incumbent_accuracy: float
    challenger_accuracy: float


def judge(
    incumbent: Sequence[np.ndarray], challenger: Sequence[np.ndarray], confidence: float, resamples: int, seed: int
) -> GateDecision:
    """Accept the challenger if the bootstrap lower bound of its gain in log-likelihood per pair is above zero.

    Each model is judged at the scale at which it explains these pairs best. PPO sees standardised scores, so a reward
    model's own scale means nothing to it, and a challenger that ranks better must not be refused for having grown more
    confident. One number is fitted for each of the two, on the same pairs. A model that ranks the pairs the wrong way
    round gets scale 0, which is what a model that knows nothing gets.

    Args:
        incumbent: (chosen, rejected) raw scores, (n,) each.
        challenger: likewise, on the same pairs.
    """
    old, new = (_log_likelihood(*scores) for scores in (incumbent, challenger))
    gap = paired_gain(new, old, confidence, resamples, seed)
    return GateDecision(gap.low > 0.0, gap, *(_accuracy(*scores) for scores in (incumbent, challenger)))


def _log_likelihood(chosen: np.ndarray, rejected: np.ndarray) -> torch.Tensor:
    scores = torch.from_numpy(chosen).double(), torch.from_numpy(rejected).double()
    scale = 0.0 if torch.equal(*scores) else best_scale(*scores)
    return preference_log_likelihood(scores[0] * scale, scores[1] * scale)


def _accuracy(chosen: np.ndarray, rejected: np.ndarray) -> float:
    return float(accuracy(torch.from_numpy(chosen), torch.from_numpy(rejected)))
