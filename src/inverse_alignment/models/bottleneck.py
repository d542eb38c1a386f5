"""Which answers are outliers in the latent space of a reward model with an information bottleneck.

The bottleneck's mean code is linear in what the last layer reads, and so is its score: the model itself is a plain
classifier, and beside it lies what its codes are, and how they are spread over the reference sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from inverse_alignment.core.records import Prompt
from inverse_alignment.maths.bottleneck import chi_squared_tail, mahalanobis_squared
from inverse_alignment.models.reward_scores import RewardScorer
from inverse_alignment.models.score_features import score_features

BOTTLENECK = "bottleneck.safetensors"
LEVEL = 0.01
"""Tail probability below which an answer counts as an outlier."""
RIDGE = 1e-6
"""Share of the mean variance that is added to each, so that codes which vary together can be told apart."""


@dataclass(frozen=True)
class Bottleneck:
    """Mean codes, and their spread over the reference sample.

    Attributes:
        encoder: float64 (k, d), W: the code of an answer is `W φ` with φ the input of the last layer, up to a constant.
        centre: float64 (k,), mean code.
        covariance: float64 (k, k).
    """

    encoder: np.ndarray
    centre: np.ndarray
    covariance: np.ndarray

    @staticmethod
    def of(encoder: np.ndarray, features: np.ndarray) -> Bottleneck:
        """The spread of the codes of some answers with features (n, d)."""
        codes = features.astype(np.float64) @ encoder.T
        covariance = np.atleast_2d(np.cov(codes.T))
        ridge = RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
        return Bottleneck(encoder, codes.mean(0), covariance + ridge * np.eye(len(covariance)))

    def tails(self, scorer: RewardScorer, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """How probable an answer at least as far out is under the reference sample's Gaussian, (n,)."""
        codes = score_features(scorer, prompts, responses).features.astype(np.float64) @ self.encoder.T
        return chi_squared_tail(mahalanobis_squared(codes, self.centre, self.covariance), len(self.centre))

    def outlier_share(self, scorer: RewardScorer, prompts: Sequence[Prompt], responses: Sequence[str]) -> float:
        """Share of answers that are outliers; about `LEVEL` where they are like the reference sample."""
        return float((self.tails(scorer, prompts, responses) < LEVEL).mean())

    def save(self, folder: Path) -> None:
        """Write it beside the classifier."""
        from safetensors.torch import save_file

        arrays = {"encoder": self.encoder, "centre": self.centre, "covariance": self.covariance}
        made = {name: torch.from_numpy(array).contiguous() for name, array in arrays.items()}
        save_file(made, str(folder / BOTTLENECK))

    @staticmethod
    def load(folder: Path) -> Bottleneck | None:
        """Read what `save` wrote; None for a model that has no bottleneck."""
        from safetensors.torch import load_file

        if not (folder / BOTTLENECK).is_file():
            return None
        found = load_file(str(folder / BOTTLENECK))
        return Bottleneck(*(found[name].numpy() for name in ("encoder", "centre", "covariance")))
