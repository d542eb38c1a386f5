"""From raw laps to a result, and whether it counts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

POLICY_LOSS_TOLERANCE = 0.01
"""Largest difference of the mean policy losses: advantages are whitened, so a token's loss is of the order of one."""
VALUE_LOSS_TOLERANCE = 0.2
"""Largest relative difference of the mean value losses."""
KS_LEVEL = 0.01
"""Length distributions differ where the Kolmogorov-Smirnov test says so at this level."""

Lap = dict[str, Any]
"""What a contestant measured in one round (see `meter.Laps.results`)."""


def verdict(ours: Sequence[Lap], theirs: Sequence[Lap], batch_size: int) -> dict[str, Any]:
    """Ratios of two contestants over their common rounds, whether they count, and what each of them did."""
    reasons = objections(ours, theirs)
    uncollected = [
        {**each, "wall_seconds": [sum(each["wall_seconds"]) - sum(each["collect_seconds"])]} for each in theirs
    ]
    p_value = float(ks_2samp(_lengths(ours), _lengths(theirs)).pvalue)
    return {
        "ratio": _ratio(ours, theirs, "wall_seconds"),
        "cpu_ratio": _ratio(ours, theirs, "cpu_seconds"),
        "ratio_without_trl_collecting_garbage": _ratio(ours, uncollected, "wall_seconds"),
        "peak_memory_ratio": median(a["peak_memory_bytes"] / b["peak_memory_bytes"] for a, b in _pairs(ours, theirs)),
        "valid": not reasons,
        "reasons": reasons,
        "lengths_ks_p": p_value,
        "ours": summary(ours, batch_size),
        "theirs": summary(theirs, batch_size),
    }


def summary(rounds: Sequence[Lap], batch_size: int) -> dict[str, Any]:
    """Medians over rounds, means over all iterations."""
    lengths = _lengths(rounds)
    return {
        "episodes_per_second": median(_rate(each, "wall_seconds", batch_size) for each in rounds),
        "episodes_per_cpu_second": median(_rate(each, "cpu_seconds", batch_size) for each in rounds),
        "peak_memory_mib": median(each["peak_memory_bytes"] for each in rounds) / 2**20,
        "length_mean": float(lengths.mean()),
        "length_quantiles": {str(q): float(np.quantile(lengths, q)) for q in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)},
        **{name: _mean(rounds, name) for name in rounds[0]["metrics"][0]},
    }


def objections(ours: Sequence[Lap], theirs: Sequence[Lap]) -> list[str]:
    """Why the contestants did not do the same work; empty if they did."""
    found = []
    mine, other = _mean(ours, "policy_loss"), _mean(theirs, "policy_loss")
    if not abs(mine - other) <= POLICY_LOSS_TOLERANCE:
        found.append(f"policy losses differ by more than {POLICY_LOSS_TOLERANCE}: {mine:.4f} and {other:.4f}")
    mine, other = _mean(ours, "value_loss"), _mean(theirs, "value_loss")
    if not abs(mine - other) <= VALUE_LOSS_TOLERANCE * max(mine, other):
        found.append(f"value losses differ by more than {VALUE_LOSS_TOLERANCE:.0%}: {mine:.4f} and {other:.4f}")
    test = ks_2samp(_lengths(ours), _lengths(theirs))
    if not test.pvalue >= KS_LEVEL:
        found.append(f"lengths are not distributed alike: D = {test.statistic:.3f}, p = {test.pvalue:.2g}")
    return found


def _pairs(ours: Sequence[Lap], theirs: Sequence[Lap]) -> list[tuple[Lap, Lap]]:
    return list(zip(ours, theirs, strict=True))


def _ratio(ours: Sequence[Lap], theirs: Sequence[Lap], clock: str) -> float:
    """Median over rounds of how many times faster ours was; both did the same number of iterations."""
    return median(sum(b[clock]) / sum(a[clock]) for a, b in _pairs(ours, theirs))


def _rate(each: Lap, clock: str, batch_size: int) -> float:
    return batch_size * len(each[clock]) / sum(each[clock])


def _lengths(rounds: Sequence[Lap]) -> np.ndarray:
    return np.array([length for each in rounds for lengths in each["lengths"] for length in lengths])


def _mean(rounds: Sequence[Lap], name: str) -> float:
    return float(np.mean([metrics[name] for each in rounds for metrics in each["metrics"]]))
