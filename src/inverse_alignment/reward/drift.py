"""Whether the policy has moved away from where a reward model was last refreshed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from inverse_alignment.core.protocols import Embed
from inverse_alignment.maths.density_ratio import effective_sample_size
from inverse_alignment.maths.drift import median_bandwidth, mmd_squared
from inverse_alignment.maths.grouping import within_group_variance
from inverse_alignment.reward.settings import DriftTrigger, RefreshTrigger

MOST_ANSWERS = 2000
"""Answers of either side that `mmd` compares: its kernels are as many numbers squared."""


@dataclass(frozen=True)
class Drift:
    """What is known of it; None where it was not measured or cannot be.

    Attributes:
        mmd: squared maximum mean discrepancy between the answers now and then, unbiased for independent samples. Two
            policies answer a prompt with the same noise, so where they hardly differ it is a little below zero.
        ess: share of the answers from then that still count as answers of the policy.
        answers: those that `ess` was measured on.
        variance: the incumbent's variance among answers to one prompt, as a share of that on the reference sample.
    """

    mmd: float | None
    ess: float | None
    answers: int | None
    variance: float | None

    def metrics(self) -> dict[str, float | int | None]:
        """Under the names of `gate.json`."""
        return {f"drift_{name}": value for name, value in asdict(self).items()}


def crossed(trigger: RefreshTrigger, drift: Drift) -> bool:
    """Whether a drift asks for a refresh; a schedule does not look at it. One that cannot be measured asks for none."""
    if not isinstance(trigger, DriftTrigger):
        return True
    measured = {"mmd": drift.mmd, "ess": drift.ess, "variance": drift.variance}[trigger.measure]
    if measured is None:
        return False
    return measured > trigger.threshold if trigger.measure == "mmd" else measured < trigger.threshold


def distance(now: Sequence[str], then: Sequence[str], embed: Embed) -> float | None:
    """The `mmd` of two lists of answers, at the bandwidth of both together; None where one has a single answer.

    Of lists longer than `MOST_ANSWERS`, answers evenly spaced.
    """
    if min(len(now), len(then)) < 2:
        return None
    first, second = (embed(_spaced(texts)) for texts in (now, then))
    return mmd_squared(first, second, median_bandwidth(np.concatenate([first, second])))


def _spaced(texts: Sequence[str]) -> list[str]:
    if len(texts) <= MOST_ANSWERS:
        return list(texts)
    return [texts[i] for i in np.linspace(0, len(texts) - 1, MOST_ANSWERS).round().astype(int)]


def still_counting(now: np.ndarray, then: np.ndarray) -> float:
    """The `ess` of answers that some policy wrote: `(Σ w)² / (n Σ w²)` with `w = π_now / π_then`; 1 if nothing moved.

    Args:
        now: (n,) log-probabilities of the answers under the policy, nats.
        then: (n,) under the policy that wrote them.
    """
    return effective_sample_size(now - then) / len(now)


def variance_left(
    scores: np.ndarray, keys: Sequence[str], before: np.ndarray, keys_before: Sequence[str]
) -> float | None:
    """The `variance` of a reward model; None where no prompt has two answers.

    Args:
        scores: (n,) of the policy's answers, and the prompts they answer.
        before: (m,) of the reference sample, likewise.
    """
    now, then = within_group_variance(scores, keys), within_group_variance(before, keys_before)
    return None if math.isnan(now) or math.isnan(then) or then == 0 else now / then
