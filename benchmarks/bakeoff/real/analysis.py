"""What the rows say: who wrote what was picked, and what a refresh on it did, over targets and seeds.

A lift is a share among the selected answers over the share in the pool: 1 is blind. Every unit is a (target, seed).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.bakeoff.real.nearness import MEASURES, Nearness
from benchmarks.bakeoff.real.plan import Unit
from inverse_alignment.maths.bootstrap import Interval

Row = dict[str, Any]
Cell = tuple[str, int]
BASELINES = ("random", "length_matched_random")
LEAST_ANSWERS = 20
"""Answers in the pool of a writer whose lift counts in a correlation; of fewer it is mostly chance."""
SEED, CONFIDENCE, RESAMPLES = 0, 0.95, 5000


def identity(row: Row) -> tuple[Any, ...]:
    """Which unit and selector a row is of, in which code and settings."""
    return row["model"], row["seed"], row["target"], row["selector"], row["code"], row["config"]


def newest(rows: Iterable[Row], units: Sequence[Unit], selectors: Sequence[str], code: str) -> list[Row]:
    """Of each of these units and selectors the last row of this code."""
    wanted = {unit.key(name) for unit in units for name in selectors}
    found = {identity(row)[:4]: row for row in rows if row["code"] == code}
    return [row for key, row in found.items() if key in wanted]


def interval(cells: Mapping[Cell, float]) -> Interval:
    """Mean over units, with the percentile interval of a bootstrap in two levels: targets, and seeds inside each.

    Seeds of one target share the target, so they are no independent evidence of what another target would give.
    """
    generator = np.random.default_rng(SEED)
    strata = [
        np.array([value for (target, _), value in sorted(cells.items()) if target == name])
        for name in sorted({target for target, _ in cells})
    ]
    count = len(strata)
    means = np.stack([v[generator.integers(len(v), size=(RESAMPLES, count, len(v)))].mean(-1) for v in strata])
    picked = generator.integers(count, size=(RESAMPLES, count))
    draws = means[picked, np.arange(RESAMPLES)[:, None], np.arange(count)].mean(-1)
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.mean([values.mean() for values in strata])), float(low), float(high))


def share(by_source: Mapping[str, int], group: Iterable[str]) -> float:
    """How much of the answers a group wrote."""
    return sum(by_source.get(name, 0) for name in group) / sum(by_source.values())


def lift(row: Row, group: Sequence[str]) -> float:
    """Share of the group among the selected answers over that in the pool."""
    return share(row["selected"]["by_source"], group) / share(row["pool"]["by_source"], group)


def groups(row: Row) -> dict[str, list[str]]:
    """The target, and the writers in the pool that are nearest to it."""
    return {"target": [row["target"]], "nearest": row["nearest"]}


def lift_beyond_length(row: Row, name: str) -> float:
    """The lift of `target` or `nearest`, less what a blind draw of pairs of the same lengths would have."""
    group = groups(row)[name]
    by_length = row["length_matched"][name] / share(row["pool"]["by_source"], group)
    return lift(row, group) - float(by_length)


def own_policy(rows: Sequence[Row]) -> dict[Cell, float]:
    """The lift of each target for its own policy, less that of the same writer for the other targets' policies.

    The pool of a seed is the same for all of them, and so are the writer's popularity, length and topics: what is left
    is what the selector makes of the policy. Rows are of one selector; units without another target are left out.
    """
    found = {}
    for row in rows:
        others = [
            lift(other, [row["target"]])
            for other in rows
            if other["seed"] == row["seed"] and other["target"] != row["target"]
        ]
        if others:
            found[row["target"], row["seed"]] = lift(row, [row["target"]]) - float(np.mean(others))
    return found


def rank_correlation(row: Row, near: Mapping[str, float]) -> float:
    """Spearman's correlation over writers of their lift with their nearness to the target, which itself is left out."""
    pool = row["pool"]["by_source"]
    names = [name for name in near if pool.get(name, 0) >= LEAST_ANSWERS]
    lifts, nearness = (np.array(values) for values in ([lift(row, [n]) for n in names], [near[n] for n in names]))
    one, other = ranks(lifts), ranks(nearness)
    if not one.std() or not other.std():
        return 0.0  # all writers are picked alike
    return float(np.corrcoef(one, other)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Places in ascending order from 0, (n,); equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse])


def measured(row: Row, near: Nearness) -> dict[str, float]:
    """Every number of a row that is averaged over units."""
    found: dict[str, float] = {"characters": row["characters"]["selected"]}
    for name, group in groups(row).items():
        found[f"lift_{name}"] = lift(row, group)
        found[f"lift_{name}_beyond_length"] = lift_beyond_length(row, name)
    for measure in MEASURES:
        found[f"correlation_{measure}"] = rank_correlation(row, near.to(row["target"], measure))
    for kind, judged in (row["judged"] or {}).items():
        found[f"accuracy_before_{kind}"] = judged["before"]
        found[f"accuracy_{kind}"] = judged["after"] - judged["before"]
        found[f"nats_{kind}"] = judged["nats"]
    return found


PAIRED = ("lift_target", "lift_nearest", "accuracy_target", "accuracy_held_out", "nats_target", "nats_held_out")
"""What is also said as a difference from the baselines, unit by unit."""


def summarise(rows: Sequence[Row], near: Nearness) -> dict[str, dict[str, Any]]:
    """Every selector in means over units and their intervals."""
    cells: dict[str, dict[str, dict[Cell, float]]] = {}
    for row in rows:
        of_selector = cells.setdefault(row["selector"], {})
        for measure, value in measured(row, near).items():
            of_selector.setdefault(measure, {})[row["target"], row["seed"]] = value
    result = {}
    for name, found in cells.items():
        mine = [row for row in rows if row["selector"] == name]
        own = own_policy(mine)
        result[name] = {
            **({"lift_own_policy": _said(interval(own))} if own else {}),
            "units": len(mine),
            "acceptance_rate": acceptance(mine),
            **{measure: _said(interval(values)) for measure, values in found.items()},
            **{
                f"{measure}_over_{other}": _over(found[measure], cells[other][measure])
                for other in BASELINES
                if other in cells and other != name
                for measure in PAIRED
                if measure in found and measure in cells[other]
            },
        }
    return result


def acceptance(rows: Sequence[Row]) -> float | None:
    """Share of the refreshes that the gate accepts; None where nothing was refreshed."""
    gates = [row["gate"]["accepted"] for row in rows if row["gate"]]
    return float(np.mean(gates)) if gates else None


def _over(mine: Mapping[Cell, float], other: Mapping[Cell, float]) -> dict[str, Any] | None:
    """The mean difference inside units; None where no unit has both."""
    both = {cell: mine[cell] - other[cell] for cell in mine.keys() & other.keys()}
    return _said(interval(both)) if both else None


def _said(found: Interval) -> dict[str, Any]:
    return {"mean": found.mean, "ci95": [found.low, found.high]}


def result(rows: Sequence[Row], near: Nearness) -> dict[str, Any]:
    """The JSON of `--json`."""
    return {
        "selectors": summarise(rows, near),
        "targets": {
            row["target"]: {"held_out": row["held_out"], "nearest": row["nearest"]}
            for row in sorted(rows, key=lambda row: row["target"])
        },
        "policies": policies(rows),
        "seeds": len({row["seed"] for row in rows}),
    }


def policies(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """What the imitating policies are like, by target, over seeds."""
    found: dict[str, list[Row]] = {}
    for row in {(row["target"], row["seed"]): row for row in rows}.values():
        found.setdefault(row["target"], []).append(row)
    return {
        target: {
            **{name: float(np.mean([row["policy"][name] for row in mine])) for name in sorted(mine[0]["policy"])},
            "pool_share": float(np.mean([share(row["pool"]["by_source"], [target]) for row in mine])),
        }
        for target, mine in sorted(found.items())
    }
