"""The toy's figure: where probability goes, a panel per loss, frozen beside moving references."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from benchmarks.direct import toy

LINES = {"chosen": "#0072B2", "rejected": "#D55E00", "unseen": "#595959"}  # told apart by colour-blind readers too
NAMES = {"chosen": "chosen", "rejected": "rejected", "unseen": "never compared"}


def draw(leaks: Mapping[str, Sequence[list[toy.Mass]]], path: Path) -> None:
    """Mean masses over seeds by step; a frozen reference is drawn whole, a soft one dashed."""
    mpl.rcParams["svg.hashsalt"] = "toy"
    pairs = [("dpo", "tr_dpo"), ("ipo", "tr_ipo"), ("kto", "tr_kto")]
    figure, panels = plt.subplots(1, len(pairs), figsize=(9, 3), sharey=True)
    for axes, (frozen, moving) in zip(panels, pairs, strict=True):
        for name, style in ((frozen, "-"), (moving, (0, (4, 2)))):
            for part, colour in LINES.items():
                ways = leaks[name]
                means = [statistics.fmean(getattr(way[at], part) for way in ways) for at in range(len(ways[0]))]
                steps = [at * toy.EVERY for at in range(len(means))]
                label = NAMES[part] if style == "-" else None
                axes.plot(steps, means, color=colour, linestyle=style, linewidth=1.5, label=label)
        axes.set_title(f"{frozen} (whole), {moving} (dashed)", fontsize=9)
        axes.set_xlabel("optimiser step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("probability")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="lower center")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
