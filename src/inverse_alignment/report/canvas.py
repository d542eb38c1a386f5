"""How every picture is drawn: one size of type, no chart junk, colours that the page's stylesheet decides.

matplotlib draws with placeholder colours; in the SVG they become CSS variables, so one picture serves light, dark and
print. Text is drawn as paths: it looks the same everywhere and needs no font.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
STYLESHEET = Path(__file__).parent / "templates" / "style.css.jinja"
ARM_COLOURS = 8
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
TEXT = 9.5
SMALL = 8.5

STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "inverse-alignment",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.solid_capstyle": "round",
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Picture:
    """An SVG ready to be put into a page, with the words that go with it."""

    title: str
    description: str
    svg: str


@dataclass(frozen=True)
class Size:
    """Size and margins of a picture, in points."""

    width: float = 350
    height: float = 232
    left: float = 40
    right: float = 14
    top: float = 28
    bottom: float = 36


def arm_marker(index: int) -> str:
    """The marker of an arm; where colours come round again, it is another one than at first."""
    return MARKERS[(index + index // ARM_COLOURS) % len(MARKERS)]


def arm_colour(index: int) -> str:
    """Placeholder of the colour of the arm at this position; the stylesheet has `--arm-0` and on."""
    return f"#1101{index % ARM_COLOURS:02x}"


def draw(name: str, title: str, description: str, size: Size, paint: Callable[[Axes], None]) -> Picture:
    """One picture with one pair of axes. `name` keeps the ids of several pictures in a page apart."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72)
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_axes(
            (
                size.left / size.width,
                size.bottom / size.height,
                1 - (size.left + size.right) / size.width,
                1 - (size.top + size.bottom) / size.height,
            )
        )
        paint(axes)
        out = StringIO()
        canvas.print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Picture(title, description, _for_page(out.getvalue(), name, f"{title}. {description}"))


def standalone(picture: Picture) -> str:
    """A picture as an SVG file of its own, with the page's colours and background, in light and dark."""
    sheet = STYLESHEET.read_text(encoding="utf-8")
    colours = sheet[: sheet.index("* {")]
    head, _, body = picture.svg.partition(">")
    named = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    ground = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    return f"{named}><style>{colours}</style>{ground}{body}"


def caption(axes: Axes, text: str) -> None:
    """What the vertical axis shows, above it: easier to read than along it."""
    axes.annotate(
        text,
        (0, 1),
        xycoords=("figure points", "axes fraction"),
        xytext=(4, 14),
        textcoords="offset points",
        fontsize=SMALL,
        color=MUTED,
        va="bottom",
    )


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right edge beside their values `(y, text, colour)`, moved apart where they would overlap."""
    box = axes.get_position()
    height = box.height * axes.get_figure(root=True).get_figheight() * 72  # type: ignore[union-attr]
    low, high = axes.get_ylim()
    wanted = sorted(((y - low) / (high - low) * height, text, colour) for y, text, colour in ends)
    placed = spread([y for y, _, _ in wanted], TEXT * 1.3, height)
    for y, (_, text, colour) in zip(placed, wanted, strict=True):
        axes.annotate(
            text,
            (1, y / height),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def spread(positions: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending positions moved apart to at least `gap`: groups that touch are centred on where they wanted to be."""
    groups: list[list[float]] = []
    for position in positions:
        groups.append([position])
        while len(groups) > 1 and _foot(groups[-1], gap, top) < _foot(groups[-2], gap, top) + gap * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_foot(group, gap, top) + gap * place for group in groups for place in range(len(group))]


def _foot(group: Sequence[float], gap: float, top: float) -> float:
    """Where the lowest of a group lies: centred, but inside 0..top where there is room."""
    length = gap * (len(group) - 1)
    return max(0.0, min(sum(group) / len(group) - length / 2, top - length))


def room_for(labels: Sequence[str]) -> float:
    """Points that the longest label takes beside the axes."""
    return 12 + 0.62 * TEXT * max((len(label) for label in labels), default=0)


def shorten(text: str, most: int = 22) -> str:
    """A label that fits beside an axis; names often differ at their ends, so the middle goes."""
    return text if len(text) <= most else f"{text[: most - 7]}…{text[-6:]}"


def literal(text: str) -> str:
    """Text for matplotlib, which would read a pair of dollar signs as mathematics; glyphs it lacks are replaced."""
    known = (letter if ord(letter) < 0x2500 and letter.isprintable() else "?" for letter in text)
    return "".join(known).replace("$", r"\$")


def _for_page(svg: str, name: str, label: str) -> str:
    from html import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(xlink:)?href="#([^"]+)"', rf'href="#{name}-\2"', body)
    body = body.replace("url(#", f"url(#{name}-")
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, variable)
    for index in range(ARM_COLOURS):
        body = body.replace(arm_colour(index), f"var(--arm-{index})")
    box = re.search(r'viewBox="[^"]+"', body)
    assert box is not None
    head = f'<svg {box.group()} role="img" aria-label="{escape(label, quote=True)}">'
    return head + re.sub(r">\s+<", "><", body[body.index(">") + 1 :]).strip()
