"""What the rows say: accuracies over seeds with intervals, and differences inside seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.bakeoff.rows import Row
from benchmarks.reward_models.plan import BASELINE, METHODS, POLICIES, REFERENCE, Sizes, digest_of
from inverse_alignment.maths.bootstrap import Interval

SEED, CONFIDENCE, RESAMPLES = 0, 0.95, 5000
ORDER = (BASELINE, *METHODS)
BEFORE = "ppo_bt"
"""The policy that the others are compared with."""


def key_of(row: Row) -> tuple[str, int, str]:
    """Which unit and method a row is of."""
    return row["data"], row["seed"], row["method"]


def current(rows: Iterable[Row], sizes: Sizes, code: str) -> list[Row]:
    """Of each unit and method the last row of this code and these settings."""
    mine = [row for row in rows if row["code"] == code and row["config"] == digest_of(sizes, row["method"])]
    return list({key_of(row): row for row in mine}.values())


def interval(by_seed: Sequence[np.ndarray]) -> Interval:
    """Mean over seeds of means over prompts, with the percentile interval of a bootstrap of both, seeds first.

    Of one seed it is that of prompts alone, and says nothing of what another training would give.
    """
    generator = np.random.default_rng(SEED)
    means = np.stack([v[generator.integers(len(v), size=(RESAMPLES, len(by_seed), len(v)))].mean(-1) for v in by_seed])
    picked = generator.integers(len(by_seed), size=(RESAMPLES, len(by_seed)))
    draws = means[picked, np.arange(RESAMPLES)[:, None], np.arange(len(by_seed))].mean(-1)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.mean([values.mean() for values in by_seed])), float(low), float(high))


def result(rows: Sequence[Row]) -> dict[str, Any]:
    """The JSON of `--json`: data to method to what was measured."""
    found: dict[str, dict[str, Any]] = {}
    judged = [row for row in rows if row["method"] in ORDER]
    for data in dict.fromkeys(row["data"] for row in judged):
        mine = {(row["method"], row["seed"]): row for row in judged if row["data"] == data}
        names = [name for name in ORDER if any(method == name for method, _ in mine)]
        found[data] = {name: _method(name, mine) for name in names}
    return {
        "data": found,
        "policies": policies(rows),
        "seeds": sorted({row["seed"] for row in rows}),
        "commits": sorted({row["commit"] for row in rows}),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def policies(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """What PPO made of the reward models, in the world: gold, and the difference from Bradley-Terry inside seeds."""
    found = {(row["method"], row["seed"]): row for row in rows if row["method"] in POLICIES}
    said: dict[str, dict[str, Any]] = {}
    for name in (each for each in POLICIES if any(each == method for method, _ in found)):
        mine = {seed: row for (method, seed), row in found.items() if method == name}
        said[name] = {
            "seeds": len(mine),
            "gold": _said(interval([np.array(row["by_prompt"]) for row in mine.values()])),
            **{key: _mean([row[key] for row in mine.values()]) for key in ("kl", "rm_score", "tokens")},
        }
        both = [seed for seed in mine if (BEFORE, seed) in found]
        if name != BEFORE and both:
            gaps = [np.array(found[name, s]["by_prompt"]) - np.array(found[BEFORE, s]["by_prompt"]) for s in both]
            said[name][f"over_{BEFORE}"] = _said(interval(gaps))
    return said


def _method(name: str, rows: dict[tuple[str, int], Row]) -> dict[str, Any]:
    mine = {seed: row for (method, seed), row in rows.items() if method == name}
    said: dict[str, Any] = {
        "seeds": len(mine),
        "test_pairs": sum(row["test_pairs"] for row in mine.values()),
        "accuracy": _said(interval([np.array(row["by_prompt"]) for row in mine.values()])),
    }
    for other in (BASELINE, REFERENCE):
        both = [seed for seed in mine if (other, seed) in rows]
        if other != name and both:
            said[f"over_{other}"] = _said(
                interval([np.array(mine[s]["by_prompt"]) - np.array(rows[other, s]["by_prompt"]) for s in both])
            )
    for key in ("gold_accuracy", "best_of", "cautious_best_of", "oracle_best_of"):
        values = [row[key] for row in mine.values() if key in row]
        if values:
            said[key] = _mean(values)
    trained = [row["training"] for row in mine.values() if "training" in row]
    for key in ("corr_return_length", "corr_return_log_prob"):
        known = [metrics[key] for metrics in trained if metrics.get(key) is not None]
        if known:
            said[key] = float(np.mean(known))
    return said


def _mean(values: Sequence[Any]) -> Any:
    """Over seeds, of numbers or of numbers by name, however deep."""
    if isinstance(values[0], dict):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    return float(np.mean(values))


def _said(found: Interval) -> dict[str, Any]:
    return {"mean": found.mean, "ci95": [found.low, found.high]}
