"""Pictures of the bake-off, as SVG files that are the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bakeoff import analysis
from benchmarks.bakeoff.rows import Row, key_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, COLOURS = "0.55", ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Write every picture that the rows allow."""
    import matplotlib
    from matplotlib.figure import Figure

    ungated = [row for row in rows if row["rule"] == analysis.UNGATED or row["arm"] == "none"]
    gated = [row for row in rows if row["rule"] == "full"]
    levels = sorted({row["heterogeneity"] for row in gated})
    with matplotlib.rc_context({"svg.hashsalt": "bakeoff", "font.size": 8, "svg.fonttype": "path"}):
        for name, paint, height, shown in (
            ("gain", _gain, 3.6, gated),
            ("gain-ungated", _gain, 3.6, ungated),
            ("curves", _curves, 3.0, ungated),
            ("before-rl", _before_rl, 3.6, ungated),
            ("best-of-n", _best_of_n, 3.0, ungated),
        ):
            figure = Figure(figsize=(9.0, height), layout="constrained")
            axes = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
            for place, (level, axis) in enumerate(zip(levels, axes, strict=True)):
                paint(axis, [row for row in shown if row["heterogeneity"] == level], place == 0)
                axis.set_title(f"heterogeneity {level:g}")
                axis.grid(alpha=0.3)
            handles, names = axes[0].get_legend_handles_labels()
            if names:
                figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def _gain(axis: Axes, rows: Sequence[Row], first: bool) -> None:
    """Gain over `none` in gold at equal KL, with intervals."""
    found = analysis.summarise(rows)
    names = [name for name in reversed(found) if name != "none"]
    for place, name in enumerate(names):
        value, bounds = found[name]["gain_over_none"], found[name]["gain_over_none_ci95"]
        if value is not None:
            colour = GREY if name.partition("+")[0] in analysis.CONTROLS else COLOURS[0]
            axis.plot(bounds, [place, place], color=colour, linewidth=2)
            axis.plot(value, place, "o", color=colour, markersize=4)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.locator_params(axis="x", nbins=5)
    axis.set_xlabel("gold at equal KL, minus none")
    axis.set_yticks(range(len(names)), names)
    if not names:
        axis.text(0.5, 0.5, "no runs yet", transform=axis.transAxes, ha="center")


def _curves(axis: Axes, rows: Sequence[Row], first: bool) -> None:
    """Gold against KL, averaged over seeds step by step."""
    for name, colour in _shown(rows):
        ways = [analysis.Way.of(row) for row in rows if row["arm"] == name]
        kl, gold = (np.mean([getattr(way, what) for way in ways], 0) for what in ("kl", "gold"))
        axis.plot(kl, gold, color=colour, label=name, linewidth=1.4)
    axis.axvline(analysis.TARGET_KL, color="black", linewidth=0.8, linestyle=":")
    axis.set_xlabel("KL to the SFT policy (nats)")
    if first:
        axis.set_ylabel("gold")


def _before_rl(axis: Axes, rows: Sequence[Row], first: bool) -> None:
    """What the first refresh does to the ranking of the policy's own answers, without the gate."""
    names = [name for name in reversed(list(dict.fromkeys(row["arm"] for row in rows))) if name != "none"]
    for place, name in enumerate(names):
        changes = {
            key_of(row)[:2]: row["before_rl"]["refreshed"]["on_policy_accuracy"]
            - row["before_rl"]["start"]["on_policy_accuracy"]
            for row in rows
            if row["arm"] == name
        }
        found = analysis.interval(changes)
        if found:
            colour = GREY if name.partition("+")[0] in analysis.CONTROLS else COLOURS[1]
            axis.plot([found.low, found.high], [place, place], color=colour, linewidth=2)
            axis.plot(found.mean, place, "o", color=colour, markersize=4)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlabel("on-policy accuracy, refreshed minus first")
    axis.set_yticks(range(len(names)), names)
    if not names:
        axis.text(0.5, 0.5, "no runs yet", transform=axis.transAxes, ha="center")


def _best_of_n(axis: Axes, rows: Sequence[Row], first: bool) -> None:
    """Gold of the best of n answers of the SFT policy by the refreshed reward model, above the first one's."""
    for name, colour in _shown(rows):
        mine = [row["before_rl"] for row in rows if row["arm"] == name]
        picked = [one.get("refreshed", one["start"])["best_of"] for one in mine]
        sizes = sorted(map(int, picked[0]))
        axis.plot(sizes, [np.mean([one[str(n)] for one in picked]) for n in sizes], "o-", color=colour, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("n")
    if first:
        axis.set_ylabel("gold of the best of n")


def _shown(rows: Sequence[Row]) -> list[tuple[str, Any]]:
    """Which arms are drawn as curves, and how: the baselines, and the first selectors of the plan that are there."""
    arms = {row["selector"]: row["arm"] for row in rows}
    wanted = [arms[name] for name in ("similarity", "density_ratio", "uncertainty", "margin_small") if name in arms]
    baselines = [(arms[name], colour) for name, colour in (("none", "black"), ("random", GREY)) if name in arms]
    return baselines + list(zip(wanted, COLOURS, strict=False))
