"""What a person should look at in a run of PPO: findings of an audit, made from what was measured.

They say what was seen, not what will come: such signals audit well and warn poorly (trl#6350, OpenRLHF#1263).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from inverse_alignment.maths.bootstrap import Interval, mean_interval
from inverse_alignment.maths.grouping import group_means
from inverse_alignment.optimise.settings import AlarmName

Row = Mapping[str, Any]

STRONG_CORRELATION, LONGER = 0.5, 1.25
MORE_REFUSALS, MORE_STOCK = 0.1, 0.25
LESS_DISTINCT, LESS_VARIANCE, MORE_DISAGREEMENT = 0.5, 0.25, 1.5
LEAST_COVERAGE = 0.05
WINDOW = 4


class Alarm(NamedTuple):
    """One finding: its name, the step at which it was made, and what was seen."""

    name: AlarmName
    step: int
    text: str


def findings(metrics: Sequence[Row], looks: Sequence[Row]) -> list[Alarm]:
    """All findings of a round, in a fixed order.

    Args:
        metrics: a row per iteration.
        looks: a row per answer and look, oldest look first.
    """
    found = [rule(metrics) for rule in (_length, _refusals, _stock_phrases, _repetition)]
    found += [rule(metrics) for rule in (_variance, _disagreement, _coverage)]
    return [alarm for alarm in (audit_fell(looks), *found) if alarm is not None]


def audit_fell(looks: Sequence[Row], seed: int = 0) -> Alarm | None:
    """Whether the audit model's score fell since its best look while the reward model's rose (Bai et al., 2204.05862).

    Both on the same prompts, as means over a prompt's answers; 95 % intervals of the two changes by bootstrap over
    prompts lie on their sides of 0. None without an audit model.
    """
    of_step: dict[int, list[Row]] = {}
    for row in looks:
        if row["audit_score"] is not None:
            of_step.setdefault(row["step"], []).append(row)
    if len(of_step) < 2:
        return None
    audits = {step: _by_prompt(rows, "audit_score") for step, rows in of_step.items()}
    scores = {step: _by_prompt(rows, "rm_score") for step, rows in of_step.items()}
    best, last = max(audits, key=lambda step: float(audits[step].mean())), max(audits)
    fall, rise = audits[last] - audits[best], scores[last] - scores[best]
    if best == last or _interval(fall, seed).high >= 0 or _interval(rise, seed).low <= 0:
        return None
    text = (
        f"From step {best} to step {last} the audit score fell by {-fall.mean():.2f} sd while the RM score rose by "
        f"{rise.mean():.2f} sd, on the same {len(fall)} held-out prompts."
    )
    return Alarm("audit", last, text)


def _by_prompt(rows: Sequence[Row], name: str) -> np.ndarray:
    keys = [str(row["prompt"]) for row in rows]
    return group_means(np.array([row[name] for row in rows], dtype=float), keys)


def _interval(values: np.ndarray, seed: int) -> Interval:
    return mean_interval(torch.from_numpy(values), seed)


def _length(metrics: Sequence[Row]) -> Alarm | None:
    ends, correlation = _ends(metrics, "tokens"), _ends(metrics, "length_correlation")
    if ends is None or correlation is None or ends.last < LONGER * ends.first or correlation.last < STRONG_CORRELATION:
        return None
    text = (
        f"Answers grew from {ends.first:.0f} to {ends.last:.0f} tokens, and the RM score correlates with length by "
        f"{correlation.last:.2f}: part of its rise may be length."
    )
    return Alarm("length", ends.step, text)


def _refusals(metrics: Sequence[Row]) -> Alarm | None:
    return _rise(metrics, "refusal_share", "refusal", MORE_REFUSALS, "of the answers refuse")


def _stock_phrases(metrics: Sequence[Row]) -> Alarm | None:
    opening = "of the answers begin with the same words"
    return _rise(metrics, "stock_phrase_share", "stock_phrases", MORE_STOCK, "of the answers have a stock phrase") or (
        _rise(metrics, "common_opening_share", "stock_phrases", MORE_STOCK, opening)
    )


def _repetition(metrics: Sequence[Row]) -> Alarm | None:
    words = "distinct pairs of words among all"
    return _change(metrics, "distinct_2", "repetition", lambda a, b: b < LESS_DISTINCT * a, words)


def _variance(metrics: Sequence[Row]) -> Alarm | None:
    words = "variance of the RM score among answers to one prompt"
    return _change(metrics, "look_reward_variance", "variance", lambda a, b: b < LESS_VARIANCE * a, words)


def _disagreement(metrics: Sequence[Row]) -> Alarm | None:
    words = "what the reward models disagree by, sd"
    return _change(metrics, "look_disagreement", "disagreement", lambda a, b: b > MORE_DISAGREEMENT * a, words)


def _coverage(metrics: Sequence[Row]) -> Alarm | None:
    words = "effective share of the offline answers under the policy"
    return _change(metrics, "look_ess", "coverage", lambda a, b: b < LEAST_COVERAGE, words)


class _Ends(NamedTuple):
    """Means of the first and of the last few rows that have a value, and the step of the last."""

    first: float
    last: float
    step: int


def _ends(metrics: Sequence[Row], name: str) -> _Ends | None:
    there = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
    width = min(WINDOW, len(there) // 2)
    if not width:
        return None
    values = [value for _, value in there]
    return _Ends(float(np.mean(values[:width])), float(np.mean(values[-width:])), there[-1][0])


def _rise(metrics: Sequence[Row], name: str, alarm: AlarmName, least: float, words: str) -> Alarm | None:
    ends = _ends(metrics, name)
    if ends is None or ends.last - ends.first < least:
        return None
    return Alarm(alarm, ends.step, f"{ends.last:.0%} {words}; {ends.first:.0%} did when the round began.")


def _change(
    metrics: Sequence[Row], name: str, alarm: AlarmName, is_one: Callable[[float, float], bool], words: str
) -> Alarm | None:
    ends = _ends(metrics, name)
    if ends is None or not is_one(ends.first, ends.last):
        return None
    return Alarm(alarm, ends.step, f"From {ends.first:.2g} to {ends.last:.2g}: {words}.")
