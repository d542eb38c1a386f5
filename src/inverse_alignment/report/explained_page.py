"""The explanation of a round's selection as a page, a picture of its own and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inverse_alignment.report import canvas
from inverse_alignment.report.canvas import INK, MUTED, PAPER, SMALL, Picture, Size, arm_colour
from inverse_alignment.report.explained import Explained, Map, Near, Shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

PAGE, PICTURE, DATA = "selection.html", "map.png", "selection.json"
TEMPLATES = Path(__file__).parent / "templates"
MAP = Size(width=760, height=520, left=14, right=14, top=44, bottom=30)
INKS = {INK: "#1d2328", MUTED: "#5f6870", PAPER: "#ffffff", arm_colour(1): "#c8600a", arm_colour(2): "#0b6fb3"}
"""Colours of the picture that stands alone; the page's stylesheet has its own. Orange and blue: told apart by all."""
LEFT_OUT, POLICY, CHOSEN = "pairs left out", "answers of the policy", "pairs chosen"
LONGEST = 160  # characters of a text in the terminal


@dataclass(frozen=True)
class Facts:
    """What is said of the round besides its pairs.

    Attributes:
        node: of the plan.
        selector: the configuration of the selection.
        encoder: what the picture and the cosines are made with.
        used: whether the selector itself looked at that encoder.
        audit: what the stage counted.
    """

    node: str
    selector: Mapping[str, Any]
    encoder: str
    used: bool
    audit: Mapping[str, Any]


def write(explained: Explained, facts: Facts, folder: Path) -> None:
    """Write page, picture and data; the same bytes for the same selection."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(render(explained, facts), encoding="utf-8")
    (folder / PICTURE).write_bytes(png(explained.map))
    rows = [{"group": group.title, **_plain(shown)} for group in explained.groups for shown in group.pairs]
    told = {"node": facts.node, "selector": facts.selector, "encoder": facts.encoder, "audit": facts.audit}
    text = json.dumps({**told, "pairs": rows}, indent=1, ensure_ascii=False)
    (folder / DATA).write_text(text + "\n", encoding="utf-8")


def render(explained: Explained, facts: Facts) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (TEMPLATES / "style.css.jinja").read_text(encoding="utf-8")
    return environment.get_template("selection.html.jinja").render(
        style=Markup(style),  # noqa: S704 - package data
        svg=Markup(picture(explained.map).svg),  # noqa: S704 - drawn here, of numbers
        facts=facts,
        selector=json.dumps(facts.selector, indent=1),
        sources=_sources(facts.audit),
        groups=explained.groups,
        legend=[(name, len(points)) for name, points in _kinds(explained.map)],
    )


def picture(of: Map) -> Picture:
    """The map for the page, in the stylesheet's colours."""
    legend = ", ".join(f"{len(points):,} {name}" for name, points in _kinds(of))
    return canvas.draw("selection-map", "Where the pairs lie", legend, MAP, lambda axes: _paint(axes, of, str))


def png(of: Map) -> bytes:
    """The map as a file of its own."""
    from io import BytesIO

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({name: INKS.get(value, value) for name, value in canvas.STYLE.items()})
        matplotlib.rcParams["savefig.facecolor"] = "white"
        figure = Figure(figsize=(MAP.width / 72, MAP.height / 72), dpi=144)
        drawn = FigureCanvasAgg(figure)
        _paint(figure.add_axes((0.02, 0.05, 0.96, 0.86)), of, lambda colour: INKS[colour])
        out = BytesIO()
        drawn.print_png(out, metadata={"Software": None})
    return out.getvalue()


def _paint(axes: Axes, of: Map, ink: Callable[[str], str]) -> None:
    """Three kinds of points, told apart by shape, by fill and by colour; the fewest on top."""
    looks: dict[str, dict[str, Any]] = {
        LEFT_OUT: {"marker": "^", "s": 20, "facecolors": "none", "edgecolors": ink(arm_colour(1)), "linewidths": 0.8},
        POLICY: {"marker": "x", "s": 20, "c": ink(MUTED), "linewidths": 0.9},
        CHOSEN: {"marker": "o", "s": 24, "c": ink(arm_colour(2)), "edgecolors": ink(PAPER), "linewidths": 0.5},
    }
    for name, points in _kinds(of):
        axes.scatter(points[:, 0], points[:, 1], label=f"{name} ({len(points):,})", alpha=0.75, **looks[name])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=SMALL, handletextpad=0.3)
    axes.set_xlabel(f"first two principal components: {of.explained:.0%} of the variance", fontsize=SMALL)


def _kinds(of: Map) -> list[tuple[str, np.ndarray]]:
    """The kinds of points that there are, in the order of drawing."""
    kinds = ((LEFT_OUT, of.left_out), (POLICY, of.policy), (CHOSEN, of.chosen))
    return [(name, points) for name, points in kinds if len(points)]


def table(explained: Explained) -> Table:
    """The pairs for a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, show_lines=True)
    for column in ("row", "score", "weight", "pair", "nearest answer of the policy"):
        shown.add_column(column, justify="right" if column in ("score", "weight", "row") else "left", overflow="fold")
    for group in explained.groups:
        shown.add_section()
        shown.add_row("", "", "", f"[bold]{escape(group.title)}[/]", "")
        for each in group.pairs:
            of = each.pair.provenance
            sides = zip("+-", each.pair.answers, (of.source_chosen, of.source_rejected), strict=True)
            texts = "\n".join(f"{sign} {source}: {_cut(text)}" for sign, text, source in sides)
            near = "\n".join(f"{one.cosine:.3f} {_cut(one.text)}" for one in (each.near_chosen, each.near_rejected))
            numbers = (str(each.row), _number(each.score), _number(each.weight))
            shown.add_row(*numbers, escape(f"{_cut(each.pair.prompt.text())}\n{texts}"), escape(near))
    return shown


def _sources(audit: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    """(kind, name, of the pool, chosen) of every source policy and annotator."""
    return [
        (kind, name, count, audit[f"selected_by_{kind}"].get(name, 0))
        for kind in ("source", "annotator")
        for name, count in sorted(audit[f"pool_by_{kind}"].items())
    ]


def _plain(shown: Shown) -> dict[str, Any]:
    def near(of: Near) -> dict[str, Any]:
        return {"text": of.text, "cosine": round(of.cosine, 6), "own_prompt": of.own_prompt}

    return {
        "row": shown.row,
        "id": shown.pair.id,
        "why": shown.why,
        "score": shown.score,
        "weight": shown.weight,
        "prompt": shown.pair.prompt.text(),
        "chosen": shown.pair.chosen,
        "rejected": shown.pair.rejected,
        "source_chosen": shown.pair.provenance.source_chosen,
        "source_rejected": shown.pair.provenance.source_rejected,
        "nearest_to_chosen": near(shown.near_chosen),
        "nearest_to_rejected": near(shown.near_rejected),
        "alike": round(shown.alike, 6),
    }


def _number(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.4g}"


def _cut(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}…"
