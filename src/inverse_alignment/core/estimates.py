"""What a reward model says of answers: a reward, how sure it is, and where in the answer the reward is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RewardEstimate:
    """Rewards of n answers, in the model's own units.

    Attributes:
        mean: float64 (n,), what counts as the score where nobody asks for caution.
        std: float64 (n,), standard deviation of what the model does not know of a score; None if it cannot say.
        per_token: a reward for every token of each answer, float64 (t_i,); None if the model has none.
        members: float64 (m, n), what each of the m models of an ensemble says; None of anything else.

    Raises:
        ValueError: a shape does not fit that of the means.
    """

    mean: np.ndarray
    std: np.ndarray | None = None
    per_token: tuple[np.ndarray, ...] | None = None
    members: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1:
            raise ValueError(f"means are one number an answer, not of shape {self.mean.shape}")
        if self.std is not None and self.std.shape != self.mean.shape:
            raise ValueError(f"{self.mean.shape} means with {self.std.shape} standard deviations")
        if self.per_token is not None and len(self.per_token) != len(self.mean):
            raise ValueError(f"{len(self.mean)} means with token rewards of {len(self.per_token)} answers")
        if self.members is not None and self.members.shape[1:] != self.mean.shape:
            raise ValueError(f"{self.mean.shape} means of members whose scores are {self.members.shape}")
