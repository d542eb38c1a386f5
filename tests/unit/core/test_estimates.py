"""A reward estimate cannot be built with shapes that do not belong together."""

from __future__ import annotations

import numpy as np
import pytest

from inverse_alignment.core.estimates import RewardEstimate


def test_what_belongs_together_is_kept() -> None:
    estimate = RewardEstimate(np.array([1.0, 2.0]), np.array([0.1, 0.2]), (np.zeros(3), np.zeros(1)))
    assert estimate.mean.tolist() == [1.0, 2.0]
    assert estimate.per_token is not None and [row.size for row in estimate.per_token] == [3, 1]


@pytest.mark.parametrize(
    ("mean", "std", "per_token", "says"),
    [
        (np.zeros((2, 1)), None, None, "one number an answer"),
        (np.zeros(2), np.zeros(3), None, "standard deviations"),
        (np.zeros(2), None, (np.zeros(4),), "token rewards of 1 answers"),
    ],
)
def test_what_does_not_is_refused(
    mean: np.ndarray, std: np.ndarray | None, per_token: tuple[np.ndarray, ...] | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        RewardEstimate(mean, std, per_token)
