"""The results page on real preferences: tables and a figure from the rows, between the marks of a written text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bakeoff.page import MARKED
from benchmarks.bakeoff.plan import ROOT
from benchmarks.bakeoff.real import analysis
from benchmarks.bakeoff.real.analysis import Row
from benchmarks.bakeoff.real.nearness import Nearness
from benchmarks.bakeoff.real.plan import NEW, ORACLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = ROOT / "docs/results/inverse-alignment-real.md"
CONTROLS = ("random", "all", "length_matched_random", "lowest_similarity", ORACLE)
NONE = "–"
OWN = "lift_own_policy"


def render(rows: Sequence[Row], near: Nearness, folder: Path, page: Path = PAGE) -> None:
    """Replace every marked part of the page, and draw the figure into `folder`.

    Raises:
        ValueError: there are no rows, they come from several versions of the code, or the page names a part that
            nothing makes.
    """
    mine = list({analysis.identity(row)[:4]: row for row in rows if row["model"] == NEW}.values())
    if not mine:
        raise ValueError("there are no rows to show")
    if len({row["code"] for row in mine}) > 1:
        raise ValueError("the rows come from several versions of the code: leave the old ones out")
    found = analysis.result(mine, near)
    text = MARKED.sub(lambda mark: _made(mark[1], mine, found), page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")
    draw(found["selectors"], folder / "lifts.svg")


def _made(name: str, rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    if name not in PARTS:
        raise ValueError(f"nothing makes the part '{name}'; there are {', '.join(PARTS)}")
    return f"<!-- made: {name} -->\n{PARTS[name](rows, found)}\n<!-- end -->"


def provenance(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """What the numbers are made from."""
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    units = {(row["target"], row["seed"]) for row in rows}
    return (
        f"{len(rows)} rows of {len(units)} units: {len(found['targets'])} targets, seeds {seeds[0]} to {seeds[-1]}; "
        f"commit {commits}, code digest `{rows[0]['code']}`. Means over units; in brackets 95 % intervals of a "
        f"bootstrap of targets and of seeds inside them ({analysis.RESAMPLES:,} resamples)."
    )


def policies(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """The imitating policies, and whether they write like their targets."""
    lines = [
        [
            f"`{name}`",
            f"{one['pool_share']:.1%}",
            f"{one['rank_of_target']:.1f} of {one['writers']:.0f}",
            f"{one['kl']:.1f}",
            f"{one['tokens']:.0f}",
            f"{one['ended']:.0%}",
            ", ".join(f"`{writer}`" for writer in found["targets"][name]["nearest"]),
            f"`{found['targets'][name]['held_out']}`",
        ]
        for name, one in found["policies"].items()
    ]
    header = ["target", "of the pool's answers", "recognised as", "KL, nats", "tokens", "ended", "nearest", "held out"]
    return table(header, lines)


def lifts(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """Whether selectors find the target and its neighbours, best first."""
    columns = {
        "target": "lift_target",
        "own policy over others'": "lift_own_policy",
        "over random": "lift_target_over_random",
        "over length-matched": "lift_target_over_length_matched_random",
        "beyond length": "lift_target_beyond_length",
        "three nearest": "lift_nearest",
        "nearest beyond length": "lift_nearest_beyond_length",
        "rank correlation, meaning": "correlation_meaning",
        "form": "correlation_form",
    }
    order = sorted(found["selectors"].items(), key=lambda item: -item[1]["lift_target"]["mean"])
    lines = [
        [
            f"`{name}`",
            *(_with(one.get(key), sign=key != "lift_target" and key != "lift_nearest") for key in columns.values()),
            f"{one['characters']['mean']:.0f}",
        ]
        for name, one in order
    ]
    return table(["selector", *columns, "characters an answer"], lines)


def accuracies(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """What the refresh does on held-out pairs, in percentage points; best for the target first."""
    columns = {
        "target": "accuracy_target",
        "over random": "accuracy_target_over_random",
        "over length-matched": "accuracy_target_over_length_matched_random",
        "held-out writer": "accuracy_held_out",
        "held-out, over random": "accuracy_held_out_over_random",
        "others": "accuracy_others",
    }
    refreshed = {name: one for name, one in found["selectors"].items() if "accuracy_target" in one}
    order = sorted(refreshed.items(), key=lambda item: -item[1]["accuracy_target"]["mean"])
    lines = [
        [
            f"`{name}`",
            *(_with(one.get(key), sign=True, scale=100, digits=1) for key in columns.values()),
            _with(one["nats_target"], sign=True, digits=4),
            f"{one['acceptance_rate']:.0%}",
        ]
        for name, one in order
    ]
    return table(["selector", *columns, "nats a pair, target", "gate accepts"], lines)


def start(rows: Sequence[Row], found: Mapping[str, Any]) -> str:
    """How well the first reward model ranks the held-out pairs, beside the rule that the longer answer wins."""
    lines = []
    for kind in ("target", "held_out", "others"):
        units = {(row["target"], row["seed"]): row for row in rows if row["judged"]}
        before = analysis.interval({cell: row["judged"][kind]["before"] for cell, row in units.items()})
        longer = analysis.interval({cell: row["longer_wins"][kind] for cell, row in units.items()})
        said = ({"mean": each.mean, "ci95": [each.low, each.high]} for each in (before, longer))
        lines.append([kind.replace("_", " "), *(_with(each, scale=100, digits=1) for each in said)])
    return table(["pairs", "first reward model, %", "the longer answer wins, %"], lines)


PARTS: Mapping[str, Callable[[Sequence[Row], Mapping[str, Any]], str]] = {
    "provenance": provenance,
    "policies": policies,
    "lifts": lifts,
    "start": start,
    "accuracies": accuracies,
}


def draw(selectors: Mapping[str, Any], file: Path) -> None:
    """How much the lift heeds the policy, lift of the nearest writers and change of accuracy, by selector.

    The oracle is left out of the first, where it is ten times farther than anything else.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = (
        (OWN, 0.0, "lift of the target, less for others' policies"),
        ("lift_nearest", 1.0, "lift of its nearest writers"),
        ("accuracy_target", 0.0, "accuracy on the target's pairs, change"),
    )
    names = sorted(selectors, key=lambda name: selectors[name]["lift_target"]["mean"])
    with matplotlib.rc_context({"svg.hashsalt": "bakeoff-real", "font.size": 8, "svg.fonttype": "path"}):
        figure = Figure(figsize=(10.0, 3.6), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (measure, blind, title) in zip(axes, panels, strict=True):
            shown = [None if measure == OWN and name == ORACLE else selectors[name].get(measure) for name in names]
            _intervals(axis, shown, names)
            axis.axvline(blind, color="black", linewidth=0.8)
            axis.set_title(title)
            axis.grid(alpha=0.3)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


def _intervals(axis: Axes, said: Sequence[Mapping[str, Any] | None], names: Sequence[str]) -> None:
    for place, (one, name) in enumerate(zip(said, names, strict=True)):
        if one is None:
            continue
        colour = "0.55" if name in CONTROLS else "#0072b2"
        axis.plot(one["ci95"], [place, place], color=colour, linewidth=2)
        axis.plot(one["mean"], place, "o", color=colour, markersize=4)
    axis.set_yticks(range(len(names)), names)


def _with(found: Mapping[str, Any] | None, sign: bool = False, scale: float = 1, digits: int = 2) -> str:
    if found is None:
        return NONE
    mean, low, high = (f"{value * scale:{'+' if sign else ''}.{digits}f}" for value in (found["mean"], *found["ci95"]))
    return f"{mean} ({low} to {high})"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
