"""The results page: tables and figures from the rows, put between the marks of a text that people write.

`<!-- made: NAME -->` and `<!-- end -->` enclose what is made; everything else of the page stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.bakeoff import analysis, figures
from benchmarks.bakeoff.plan import ROOT
from benchmarks.bakeoff.rows import Row

PAGE = ROOT / "docs/results/inverse-alignment.md"
MARKED = re.compile(r"<!-- made: (\w+) -->\n.*?<!-- end -->", re.DOTALL)
NONE = "–"
CELLS = 30
"""Heterogeneities times seeds of the whole of stage 1."""


def render(rows: Sequence[Row], folder: Path, page: Path = PAGE) -> None:
    """Replace every marked part of the page, and write the figures into `folder`.

    Raises:
        ValueError: there are no rows, they come from several versions of the code, or the page names a part that
            nothing makes.
    """
    if not rows:
        raise ValueError("there are no rows to show")
    if len({row["code"] for row in rows}) > 1:
        raise ValueError("the rows come from several versions of the code: run the rest, or leave the old ones out")
    text = MARKED.sub(lambda found: _made(found[1], rows), page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")
    figures.draw(rows, folder)


def _made(name: str, rows: Sequence[Row]) -> str:
    if name not in PARTS:
        raise ValueError(f"nothing makes the part '{name}'; there are {', '.join(PARTS)}")
    return f"<!-- made: {name} -->\n{PARTS[name](rows)}\n<!-- end -->"


def of_stage(rows: Sequence[Row], stage: int, rule: str = "full") -> list[Row]:
    """Stage 1: every selector under one of its rules. Stage 2: the selectors that have rows under the others."""
    if stage == 1:
        return [row for row in rows if row["rule"] == rule or row["arm"] == "none"]
    others = [row for row in rows if row["rule"] not in analysis.STAGE_1]
    chosen, seeds = {row["selector"] for row in others}, {row["seed"] for row in others}
    return [row for row in rows if row["selector"] in {*chosen, "none"} and row["seed"] in seeds]


def provenance(rows: Sequence[Row]) -> str:
    """What the numbers are made from."""
    seeds = sorted({row["seed"] for row in rows})
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    levels = ", ".join(f"{level:g}" for level in sorted({row["heterogeneity"] for row in rows}))
    seconds = sum(row["seconds"] + row["seconds_probe"] for row in rows)
    return (
        f"{len(rows)} runs: heterogeneity {levels}, seeds {seeds[0]} to {seeds[-1]}; commit {commits}, code digest "
        f"`{rows[0]['code']}`; {seconds / 3600:.1f} hours of one core. Intervals are 95 % stratified bootstrap "
        f"intervals of interquartile means ({analysis.RESAMPLES:,} resamples)."
    )


def results(rows: Sequence[Row], stage: int = 1, rule: str = "full") -> str:
    """Gold at equal KL and all that is said beside it, best first."""
    shown = of_stage(rows, stage, rule)
    if {row["arm"] for row in shown} <= {"none"}:
        return "No runs."
    found = analysis.summarise(shown)
    header = [
        "arm",
        f"gold at KL {analysis.TARGET_KL:g}",
        "gain over none",
        "gain over random",
        "P over none",
        "P over random",
        "steps to threshold",
        "final gold",
        "accepted",
        "runs (reach KL)",
    ]
    lines = [
        [
            f"`{name}`",
            _with(one["gold_at_equal_kl"], one["ci95"]),
            _with(one["gain_over_none"], one["gain_over_none_ci95"], sign=True),
            _with(one["gain_over_random"], one["gain_over_random_ci95"], sign=True),
            _with(one["p_improve_over_none"], one["p_improve_over_none_ci95"]),
            _with(one["p_improve_over_random"], one["p_improve_over_random_ci95"]),
            f"{_number(one['steps_to_threshold'], 1)} ({one['runs_that_reach_threshold']})",
            _number(one["final_gold"]),
            _percent(one["acceptance_rate"]),
            f"{one['runs']} ({one['runs_that_reach_kl']})",
        ]
        for name, one in sorted(found.items(), key=_rank)
    ]
    return _table(header, lines)


def by_rule(rows: Sequence[Row]) -> str:
    """The gain of every rule over the full fine-tune with the same selector, both without the gate."""
    found = analysis.over_full_rule(of_stage(rows, 2))
    if not found:
        return "No runs."
    selectors = list(dict.fromkeys(name for gains in found.values() for name in gains))
    names = {"full": "full, with the gate"}
    lines = [
        [
            names.get(rule, f"`{rule}`"),
            *(_with(gain.mean, gain[1:], True) if (gain := gains.get(name)) else NONE for name in selectors),
        ]
        for rule, gains in found.items()
    ]
    return _table(["rule", *("mean of all" if name == "all" else f"`{name}`" for name in selectors)], lines)


def by_heterogeneity(rows: Sequence[Row]) -> str:
    """The gain over `random` and `none` at each heterogeneity: when does pooling hurt?"""
    first = of_stage(rows, 1, analysis.UNGATED)
    levels = sorted({row["heterogeneity"] for row in first})
    found = {level: analysis.summarise([row for row in first if row["heterogeneity"] == level]) for level in levels}
    header = ["arm", *(f"over {baseline}, h = {level:g}" for baseline in analysis.BASELINES for level in levels)]
    lines = [
        [
            f"`{name}`",
            *(
                _with(one.get(f"gain_over_{baseline}"), one.get(f"gain_over_{baseline}_ci95"), True)
                for baseline in analysis.BASELINES
                for level in levels
                for one in [found[level].get(name, {})]
            ),
        ]
        for name in dict.fromkeys(row["arm"] for row in first)
        if name != "none"
    ]
    return _table(header, lines)


def before_rl(rows: Sequence[Row]) -> str:
    """Reward models before any policy learned from them: the first refresh without the gate, and the subset alone."""
    measured = [row for row in of_stage(rows, 1) + of_stage(rows, 1, analysis.UNGATED) if row["arm"] != "none"]
    lines = []
    for name in dict.fromkeys(row["selector"] for row in measured):
        mine = [row for row in measured if row["selector"] == name]
        alone = [row for row in mine if "subset" in row["before_rl"]]
        changes = [
            _change(mine, partial(_moved, key=key)) for key in ("on_policy_accuracy", "reward_variance", "best_of_8")
        ]
        values = [
            _change(alone, partial(_of, model="subset", key=key), sign=False)
            for key in ("on_policy_accuracy", "reward_variance", "margin")
        ]
        lines.append([f"`{name}`", *changes, *values])
    header = ["selector", "on-policy accuracy", "reward variance", "best of 8"]
    return _table([*header, "subset alone: on-policy accuracy", "variance", "margin"], lines)


def gates(rows: Sequence[Row]) -> str:
    """What the gate saw and decided, by arm and round."""
    lines = []
    for name in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == name and row["rounds"][0]["gate"]]
        for number in range(len(mine[0]["rounds"]) if mine else 0):
            seen = [row["rounds"][number]["gate"] for row in mine]
            lines.append(
                [
                    f"`{name}`",
                    str(number + 1),
                    f"{sum(gate['accepted'] for gate in seen)} of {len(seen)}"
                    if seen[0]["gate"] == "paired"
                    else "gate off",
                    _number(sum(gate["gain"] for gate in seen) / len(seen), 4, sign=True),
                    _number(sum(gate["detectable"] for gate in seen) / len(seen), 4),
                ]
            )
    return _table(["arm", "round", "accepted", "gain (nats a pair)", "smallest detectable"], lines)


def start(rows: Sequence[Row]) -> str:
    """What all arms start from, by heterogeneity."""
    none = [row for row in rows if row["arm"] == "none"]
    lines = []
    for level in sorted({row["heterogeneity"] for row in none}):
        mine = [row for row in none if row["heterogeneity"] == level]
        lines.append(
            [
                f"{level:g}",
                _change(mine, lambda row: row["start_evaluation"]["gold_reward"], sign=False),
                _change(mine, lambda row: row["start_evaluation"]["offline_accuracy"], sign=False),
                _change(mine, lambda row: row["start_evaluation"]["on_policy_accuracy"], sign=False),
                _change(mine, lambda row: row["rounds"][-1]["evaluation"]["on_policy_accuracy"], sign=False),
                _change(mine, lambda row: row["rounds"][-1]["evaluation"]["gold_reward"], sign=False),
            ]
        )
    return _table(
        ["heterogeneity", "SFT gold", "offline accuracy", "on-policy accuracy", "after PPO (none)", "gold after PPO"],
        lines,
    )


def default(rows: Sequence[Row]) -> str:
    """What the rule fixed beforehand makes of stage 1."""
    found, cells = analysis.verdict(rows), {(row["heterogeneity"], row["seed"]) for row in rows}
    levels, seeds = ({cell[place] for cell in cells} for place in (0, 1))
    if len(cells) < CELLS:
        return (
            f"{len(seeds)} seeds at {len(levels)} heterogeneities: not all {CELLS} worlds are there, nothing is chosen."
        )
    said = f"Of {found.candidates} candidates (confidence {found.confidence:.2%} each)"
    if found.chosen is None:
        return f"{said} none has gains over both `none` and random pairs that are surely above 0: the default stays."
    gains = "; ".join(
        f"`{arm}` " + " and ".join(_with(gain.mean, gain[1:], True) + f" over {name}" for name, gain in gains.items())
        for arm, gains in found.passing.items()
    )
    return f"{said}, {gains}. The default becomes `{found.chosen}`."


PARTS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "provenance": provenance,
    "start": start,
    "selectors": results,
    "ungated": lambda rows: results(rows, 1, analysis.UNGATED),
    "heterogeneity": by_heterogeneity,
    "before_rl": before_rl,
    "by_rule": by_rule,
    "rules": lambda rows: results(rows, 2),
    "gates": gates,
    "default": default,
}


def _of(row: Row, model: str, key: str) -> float:
    measured: dict[str, Any] = row["before_rl"][model]
    return float(measured["best_of"]["8"] if key == "best_of_8" else measured[key])


def _moved(row: Row, key: str) -> float:
    """What the first refresh changed, gate or not."""
    return _of(row, "refreshed", key) - _of(row, "start", key)


def _change(rows: Sequence[Row], value: Callable[[Row], float], sign: bool = True) -> str:
    cells: analysis.Scores = {(row["heterogeneity"], row["seed"]): value(row) for row in rows}
    found = analysis.interval(cells)
    return _with(found.mean, [found.low, found.high], sign, 3) if found else NONE


def _with(value: float | None, bounds: Sequence[float] | None, sign: bool = False, digits: int = 2) -> str:
    if value is None or bounds is None:
        return NONE
    low, high = (_number(bound, digits, sign) for bound in bounds)
    return f"{_number(value, digits, sign)} ({low} to {high})"


def _number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    return NONE if value is None else f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.0%}"


def _rank(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
    """Best first; last those that too seldom come to the KL at which gold is compared."""
    return not analysis.ranked(item[1]), -(item[1]["gold_at_equal_kl"] or 0.0)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
