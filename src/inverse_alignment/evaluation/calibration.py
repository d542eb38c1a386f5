"""Whether a reward model is as often right as it says, before and after one temperature is fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inverse_alignment.maths.calibration import expected_calibration_error, fitted_temperature, reliability, tempered
from inverse_alignment.maths.pairwise import preference_log_likelihood


@dataclass(frozen=True)
class PairCalibration:
    """Calibration on labelled pairs; see docs/metrics.md.

    Attributes:
        temperature: None where the labels run against the scores.
        ece: expected calibration error of the scores as they are.
        ece_tempered: with the temperature that the other half of the pairs asks for.
        log_likelihood: mean, nats per pair; log ½ = -0.693 knows nothing.
        bins: of the scores as they are: `confidence`, `accuracy`, `pairs`, for those that have any.
    """

    pairs: int
    temperature: float | None
    ece: float
    ece_tempered: float
    log_likelihood: float
    log_likelihood_tempered: float
    bins: list[dict[str, Any]]


def calibration_of(gaps: np.ndarray, bins: int = 10) -> PairCalibration | None:
    """Calibration of score gaps (n,) of labelled pairs, chosen less rejected; None where every gap is zero."""
    if not gaps.any():
        return None
    temperature, after, table = fitted_temperature(gaps), tempered(gaps), reliability(gaps, bins)
    rows = zip(*(column.tolist() for column in table), strict=True)
    return PairCalibration(
        pairs=len(gaps),
        temperature=temperature if math.isfinite(temperature) else None,
        ece=expected_calibration_error(table),
        ece_tempered=expected_calibration_error(reliability(after, bins)),
        log_likelihood=_log_likelihood(gaps),
        log_likelihood_tempered=_log_likelihood(after),
        bins=[dict(zip(table._fields, row, strict=True)) for row in rows if row[2]],
    )


def _log_likelihood(gaps: np.ndarray) -> float:
    scores = torch.from_numpy(gaps.astype(np.float64))
    return float(preference_log_likelihood(scores, torch.zeros_like(scores)).mean())
