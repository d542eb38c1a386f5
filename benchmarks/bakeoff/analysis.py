"""What the rows say: gold at equal KL, steps to a threshold, and how sure that is (rliable's statistics).

The analysis was fixed in docs/decisions/015-bakeoff-preregistered.md before there was a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.bakeoff.rows import Row, key_of
from inverse_alignment.maths.bootstrap import Interval
from inverse_alignment.maths.runs import (
    improvement_interval,
    interquartile_interval,
    probability_of_improvement,
)
from inverse_alignment.maths.trajectories import at_first_reach, running_means

TARGET_KL = 5.0
"""Nats to the SFT policy at which gold is compared: the PPO of every tuning run without refresh passes it."""
GAIN = 0.3
"""Gold above the SFT policy's that counts as reached."""
LEAST_REACHED = 0.9
"""Share of an arm's runs that must come to that KL; an arm of which fewer do is not ranked."""
WINDOW, WARMUP = 3, 3
"""PPO steps averaged into one point of the way; and those at the start in which the policy does not move."""
BASELINES = ("none", "random")
"""Without refresh; and a refresh on as many pairs drawn blindly, under the arm's own rule."""
CONTROLS = ("none", "random", "all", "length_matched_random", "lowest_similarity")
UNGATED = "gate_off"
STAGE_1 = ("full", UNGATED)
"""The rules under which every selector runs."""
SEED, CONFIDENCE, RESAMPLES = 0, 0.95, 5000

Cell = tuple[float, int]
Scores = dict[Cell, float | None]
"""One number of an arm by heterogeneity and seed; None where the arm has none."""


@dataclass(frozen=True)
class Way:
    """The smoothed way of one run: answers that PPO learned from, to prompts of the train split."""

    steps: list[float]
    kl: list[float]
    gold: list[float]
    start: float

    @classmethod
    def of(cls, row: Row) -> Way:
        """The way that a row holds; its start is what the policy writes before it moves."""
        way = row["way"]
        smooth = {name: running_means(way[name], WINDOW) for name in ("step", "kl", "gold")}
        start = float(np.mean(way["gold"][:WARMUP]))
        return cls(smooth["step"], smooth["kl"], smooth["gold"], start)

    def gold_at(self, kl: float) -> float | None:
        """Gold when the run first was so far from the SFT policy; None if it never was."""
        return at_first_reach(self.kl, self.gold, kl)

    def steps_to(self, gain: float) -> float | None:
        """PPO steps until gold was so much above its start; None if it never was."""
        return at_first_reach(self.gold, self.steps, self.start + gain)


def by_arm(rows: Iterable[Row], value: Callable[[Row], float | None]) -> dict[str, Scores]:
    """A number of every row, by arm and cell."""
    found: dict[str, Scores] = {}
    for row in rows:
        heterogeneity, seed, arm = key_of(row)
        found.setdefault(arm, {})[heterogeneity, seed] = value(row)
    return found


def strata(scores: Mapping[Cell, float | None]) -> list[np.ndarray]:
    """The numbers that are there, apart by heterogeneity; a heterogeneity without numbers is left out."""
    levels = sorted({heterogeneity for heterogeneity, _ in scores})
    parts = [
        np.array(
            [value for (level, _), value in sorted(scores.items()) if level == heterogeneity and value is not None]
        )
        for heterogeneity in levels
    ]
    return [part for part in parts if part.size]


def interval(scores: Mapping[Cell, float | None], confidence: float = CONFIDENCE) -> Interval | None:
    """Interquartile mean with its stratified bootstrap interval; None without numbers."""
    parts = strata(scores)
    return interquartile_interval(parts, SEED, confidence, RESAMPLES) if parts else None


def differences(first: Scores, second: Scores) -> Scores:
    """First minus second, cell by cell: both started from the same data, policy and reward model."""
    return {
        cell: None if (a := first[cell]) is None or (b := second[cell]) is None else a - b
        for cell in sorted(first.keys() & second.keys())
    }


def improvement(first: Scores, second: Scores) -> dict[str, Any] | None:
    """rliable's probability that a run of the first scores higher than one of the second, with its interval.

    Beside it the share of cells in which it does, ties one half; over the heterogeneities at which both have numbers.
    """
    levels = [
        level
        for level in sorted({heterogeneity for heterogeneity, _ in first})
        if all(any(cell[0] == level and value is not None for cell, value in each.items()) for each in (first, second))
    ]
    if not levels:
        return None
    sides = [
        [np.array([v for (h, _), v in sorted(each.items()) if h == level and v is not None]) for level in levels]
        for each in (first, second)
    ]
    found = improvement_interval(sides[0], sides[1], SEED, CONFIDENCE, RESAMPLES)
    gaps = [value for value in differences(first, second).values() if value is not None]
    paired = float(np.mean([0.5 + 0.5 * np.sign(gap) for gap in gaps])) if gaps else None
    return {
        "p": probability_of_improvement(sides[0], sides[1]),
        "ci95": [found.low, found.high],
        "paired": paired,
    }


def acceptance(rows: Sequence[Row]) -> float | None:
    """Share of an arm's refreshes that its gate accepted; None for an arm without refreshes."""
    gates = [round_["gate"]["accepted"] for row in rows for round_ in row["rounds"] if round_["gate"]]
    return float(np.mean(gates)) if gates else None


def total_steps(rows: Iterable[Row]) -> int:
    """PPO steps of the longest run."""
    return max(len(row["way"]["step"]) for row in rows)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Every arm in the numbers that the results page and `--json` give."""
    ways = {key_of(row): Way.of(row) for row in rows}
    gold = by_arm(rows, lambda row: ways[key_of(row)].gold_at(TARGET_KL))
    steps = by_arm(rows, lambda row: ways[key_of(row)].steps_to(GAIN))
    last = total_steps(rows)
    names = list(dict.fromkeys(row["arm"] for row in rows))
    rules = {row["arm"]: row["rule"] for row in rows}
    return {
        name: {
            **_arm(name, [row for row in rows if row["arm"] == name], gold[name], steps[name], last),
            **_against(name, {"none": "none", "random": under("random", rules[name])}, gold),
        }
        for name in names
    }


def under(selector: str, rule: str) -> str:
    """The name of a selector's arm under a rule."""
    return selector if rule == "full" else f"{selector}+{rule}"


def over_full_rule(rows: Sequence[Row]) -> dict[str, dict[str, Interval | None]]:
    """The gain of every rule over the ungated full fine-tune with the same selector: of each, and the mean of `all`.

    By rule and selector. The mean is over the selectors that have a value in a (heterogeneity, seed).
    """
    gold = by_arm(rows, lambda row: Way.of(row).gold_at(TARGET_KL))
    found: dict[str, dict[str, Interval | None]] = {}
    for rule in dict.fromkeys(row["rule"] for row in rows if row["rule"] != UNGATED):
        gaps = {
            selector: differences(gold[under(selector, rule)], gold[under(selector, UNGATED)])
            for selector in dict.fromkeys(row["selector"] for row in rows if row["rule"] == rule)
            if under(selector, UNGATED) in gold
        }
        if not gaps:
            continue
        cells = sorted({cell for each in gaps.values() for cell in each})
        there = {cell: [v for each in gaps.values() if (v := each.get(cell)) is not None] for cell in cells}
        pooled: Scores = {cell: float(np.mean(values)) if values else None for cell, values in there.items()}
        found[rule] = {"all": interval(pooled), **{selector: interval(each) for selector, each in gaps.items()}}
    return found


def _arm(name: str, rows: Sequence[Row], gold: Scores, steps: Scores, last: int) -> dict[str, Any]:
    """An arm by itself."""
    found = interval(gold)
    censored = interval({cell: last + 1.0 if value is None else value for cell, value in steps.items()})
    final = interval(by_arm(rows, _final_gold)[name])
    return {
        "gold_at_equal_kl": found.mean if found else None,
        "ci95": [found.low, found.high] if found else None,
        "runs": len(gold),
        "runs_that_reach_kl": sum(value is not None for value in gold.values()),
        "steps_to_threshold": censored.mean if censored else None,
        "runs_that_reach_threshold": sum(value is not None for value in steps.values()),
        "acceptance_rate": acceptance(rows),
        "final_gold": final.mean if final else None,
        "seeds": len({row["seed"] for row in rows}),
        "seconds": float(np.mean([row["seconds"] + row["seconds_probe"] for row in rows])),
    }


def _against(name: str, baselines: Mapping[str, str], gold: Mapping[str, Scores]) -> dict[str, Any]:
    """An arm against the arms that stand for each baseline; null where there is none, or it is the arm itself."""
    result: dict[str, Any] = {}
    for baseline, arm in baselines.items():
        there = arm in gold and arm != name
        better = improvement(gold[name], gold[arm]) if there else None
        gap = interval(differences(gold[name], gold[arm])) if there else None
        result |= {
            f"p_improve_over_{baseline}": better["p"] if better else None,
            f"p_improve_over_{baseline}_ci95": better["ci95"] if better else None,
            f"wins_over_{baseline}": better["paired"] if better else None,
            f"gain_over_{baseline}": gap.mean if gap else None,
            f"gain_over_{baseline}_ci95": [gap.low, gap.high] if gap else None,
        }
    return result


def _final_gold(row: Row) -> float | None:
    value: float | None = row["rounds"][-1]["evaluation"]["gold_reward"]
    return value


def best_selectors(rows: Sequence[Row], count: int = 3) -> list[str]:
    """The selectors with the highest gain over `random` in gold at equal KL, ungated; controls are no candidates.

    Without the gate, because where it refuses a refresh all selectors are one run.
    """
    found = summarise([row for row in rows if row["rule"] == UNGATED])
    gains = {
        selector: found[arm]["gain_over_random"]
        for selector in _candidates(rows)
        if (arm := under(selector, UNGATED)) in found and ranked(found[arm])
    }
    return sorted((name for name, gain in gains.items() if gain is not None), key=lambda name: -gains[name])[:count]


@dataclass(frozen=True)
class Verdict:
    """What becomes the default: of the arms that pass, the one with the largest gain over `none`; None if none does.

    Attributes:
        passing: gains over both baselines, at the corrected confidence.
    """

    candidates: int
    confidence: float
    passing: dict[str, dict[str, Interval]]
    chosen: str | None


def verdict(rows: Sequence[Row]) -> Verdict:
    """The arms of stage 1 whose gains over both baselines are above 0 at a confidence corrected for their number."""
    first = [row for row in rows if row["rule"] in STAGE_1]
    gold = by_arm(first, lambda row: Way.of(row).gold_at(TARGET_KL))
    tried = {under(name, rule): rule for name in _candidates(first) for rule in STAGE_1 if under(name, rule) in gold}
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(tried))
    passing = {}
    for arm, rule in tried.items():
        baselines = {"none": "none", "random": under("random", rule)}
        if not _enough(gold[arm]) or not gold.keys() >= set(baselines.values()):
            continue
        gains = {name: interval(differences(gold[arm], gold[other]), confidence) for name, other in baselines.items()}
        sure = {name: gain for name, gain in gains.items() if gain is not None and gain.low > 0}
        if len(sure) == len(baselines):
            passing[arm] = sure
    chosen = max(passing, key=lambda arm: passing[arm]["none"].mean, default=None)
    return Verdict(len(tried), confidence, passing, chosen)


def ranked(arm: Mapping[str, Any]) -> bool:
    """Whether enough of an arm's runs come to the KL at which gold is compared."""
    return bool(arm["runs_that_reach_kl"] >= LEAST_REACHED * arm["runs"])


def _enough(scores: Scores) -> bool:
    return sum(value is not None for value in scores.values()) >= LEAST_REACHED * len(scores)


def _candidates(rows: Iterable[Row]) -> list[str]:
    return [name for name in _selectors(rows) if name not in CONTROLS]


def _selectors(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["selector"] for row in rows))
