"""The pictures of the data card, each a function of the statistics; None where there is nothing to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from inverse_alignment.core.records import SPLITS
from inverse_alignment.report import canvas
from inverse_alignment.report.analysis import percent
from inverse_alignment.report.canvas import INK, MUTED, PAPER, RULE, SMALL, Picture, Size, arm_colour
from inverse_alignment.report.card_statistics import Group, Statistics, Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 24
MOST_REASONS = 7
ROW = 21.0  # points
CHOSEN, REJECTED, SHADE = 3, 1, 2  # places among the page's colours
OTHER = "other"


def pictures(card: Statistics) -> dict[str, Picture | None]:
    """Every picture by name."""
    return {
        "splits": splits(card),
        "dropped": dropped(card),
        "lengths": lengths(card),
        "longer": longer_wins(card),
        "agreement": agreement(card),
    }


def reasons_of(card: Statistics) -> list[str]:
    """The reasons that have a colour in the picture of dropped rows, most rows first; the rarest share one."""
    counts: Counter[str] = Counter()
    for group in card.datasets.values():
        counts.update(group.dropped or {})
    ranked = [name for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count]
    return [*ranked[:MOST_REASONS], OTHER] if len(ranked) > MOST_REASONS + 1 else ranked


def splits(card: Statistics) -> Picture | None:
    """Pairs of every split."""
    sizes = [(name, card.splits[name]) for name in SPLITS if name in card.splits] if card.splits else []
    if not any(counts.get("pairs") for _, counts in sizes):
        return None

    def paint(axes: Axes) -> None:
        for row, (_, counts) in enumerate(sizes):
            pairs = counts.get("pairs", 0)
            axes.barh(row, pairs, height=0.62, color=arm_colour(SHADE))
            axes.annotate(
                f"{pairs:,}",
                (pairs, row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
                color=INK,
            )
        _rows(axes, [name for name, _ in sizes])
        axes.set_xticks([])
        axes.set_xlim(0, 1.16 * max(counts.get("pairs", 0) for _, counts in sizes))
        axes.spines["bottom"].set_visible(False)
        canvas.caption(axes, "pairs")

    words = ", ".join(f"{name} {counts.get('pairs', 0):,}" for name, counts in sizes)
    size = Size(height=40 + ROW * len(sizes), left=_room([name for name, _ in sizes]), bottom=8)
    return canvas.draw("card-splits", "Pairs in every split", words, size, paint)


def dropped(card: Statistics) -> Picture | None:
    """What share of every dataset's rows was dropped, and why."""
    reasons = reasons_of(card)
    rows = _largest((name, group) for name, group in card.datasets.items() if group.rows)
    if not reasons or not rows:
        return None

    def shares(group: Group) -> list[float]:
        counts = Counter(group.dropped or {})
        if reasons[-1] == OTHER:
            counts[OTHER] = sum(count for name, count in counts.items() if name not in reasons)
        return [counts[reason] / (group.rows or 1) for reason in reasons]

    def paint(axes: Axes) -> None:
        for row, (_, group) in enumerate(rows):
            axes.barh(row, 1, height=0.62, color=RULE, alpha=0.45)
            left = 0.0
            for index, share in enumerate(shares(group)):
                axes.barh(row, share, left=left, height=0.62, color=arm_colour(index))
                left += share
        _rows(axes, [_with_count(name, group.rows) for name, group in rows])
        _percents(axes)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the rows read")
        canvas.caption(axes, "dataset (rows read)")

    worst_name, worst = max(rows, key=lambda row: sum(shares(row[1])))
    words = f"{worst_name} loses most: {percent(sum(shares(worst)), 1)} of its rows"
    return canvas.draw("card-dropped", "Rows dropped, by reason", words, _size(rows), paint)


def lengths(card: Statistics) -> Picture | None:
    """Words of chosen and rejected answers: medians, and how far the longest twentieth reaches."""
    rows = _largest(
        (name, group)
        for name, group in card.datasets.items()
        if group.chosen_words.median is not None and group.rejected_words.median is not None
    )
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        for row, (_, group) in enumerate(rows):
            _words(axes, row - 0.17, group.chosen_words, CHOSEN, "o")
            _words(axes, row + 0.17, group.rejected_words, REJECTED, "D")
        _rows(axes, [_with_count(name, group.pairs) for name, group in rows])
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel("words per answer")
        canvas.caption(axes, "dataset (pairs)")

    longer = sum((group.chosen_words.median or 0) > (group.rejected_words.median or 0) for _, group in rows)
    words = f"the median chosen answer is longer than the median rejected one in {longer} of {len(rows)} datasets"
    return canvas.draw("card-lengths", "How long the answers are", words, _size(rows), paint)


def _words(axes: Axes, y: float, words: Words, colour: int, marker: str) -> None:
    if words.median is None:
        return
    if words.p95 is not None:
        axes.plot([words.median, words.p95], [y, y], color=arm_colour(colour), linewidth=1.3)
    style = {"color": arm_colour(colour), "markeredgecolor": PAPER}
    axes.plot([words.median], [y], marker=marker, markersize=5.5, zorder=4, **style)  # type: ignore[arg-type]


def longer_wins(card: Statistics) -> Picture | None:
    """How far the rule "the longer answer wins" gets in every dataset."""
    shares = [
        (name, group, group.longer_wins) for name, group in card.datasets.items() if group.longer_wins is not None
    ]
    known = {name: share for name, _, share in shares}
    rows = _largest((name, group) for name, group, _ in shares)
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        axes.axvline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        for row, (name, _) in enumerate(rows):
            axes.plot([0.5, known[name]], [row, row], color=RULE, linewidth=2.2, zorder=1)
            axes.plot(
                known[name], row, marker="D", markersize=6, color=arm_colour(SHADE), markeredgecolor=PAPER, zorder=3
            )
        _rows(axes, [_with_count(name, group.pairs) for name, group in rows])
        _percents(axes)
        axes.set_xlim(0, 1)
        axes.set_xlabel("pairs in which the longer answer was chosen")
        canvas.caption(axes, "dataset (pairs)")

    words = ", ".join(f"{name} {percent(known[name])}" for name, _ in rows)
    return canvas.draw("card-longer", "The longer answer wins", words, _size(rows), paint)


def agreement(card: Statistics) -> Picture | None:
    """Who agrees with whom: a square for every two annotators, darker the more they agree."""
    found = (
        [each for each in (card.contradictions.agreement or ()) if each.share is not None]
        if card.contradictions
        else []
    )
    names = sorted({name for each in found for name in (each.one, each.other)})[:MOST_ROWS]
    if not names:
        return None
    cells = {(each.one, each.other): each for each in found}

    def paint(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for row, one in enumerate(names):
            for column, other in enumerate(names[:row]):
                each = cells.get((one, other)) or cells.get((other, one))
                if each is None or each.share is None:
                    axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, facecolor="none", edgecolor=RULE))
                    continue
                shade = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, facecolor=arm_colour(SHADE), linewidth=0)
                shade.set_alpha(0.08 + 0.5 * each.share)
                axes.add_patch(shade)
                axes.text(
                    column, row - 0.08, f"{100 * each.share:.0f}%", ha="center", va="center", fontsize=SMALL, color=INK
                )
                total = f"of {each.agree + each.disagree:,}"
                axes.text(column, row + 0.24, total, ha="center", va="center", fontsize=SMALL - 2, color=INK)
        _rows(axes, [canvas.shorten(canvas.literal(name), 24) for name in names])
        axes.set_xlim(-0.55, len(names) - 1.45)
        axes.set_ylim(len(names) - 0.45, 0.45)
        axes.set_xticks(
            range(len(names) - 1),
            [canvas.shorten(canvas.literal(name), 24) for name in names[:-1]],
            rotation=35,
            ha="right",
        )
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(length=0)

    words = ", ".join(f"{each.one} and {each.other} {percent(each.share)}" for each in found)
    left = _room([canvas.shorten(name, 24) for name in names])
    size = Size(height=34 + 38.0 * (len(names) - 1) + 0.45 * left, left=left, top=12, bottom=22 + 0.45 * left)
    return canvas.draw("card-agreement", "How often two annotators agree", words, size, paint)


# ---------------------------------------------------------------------------------------------- shared


def _largest(groups: Iterable[tuple[str, Group]]) -> list[tuple[str, Group]]:
    """The datasets with most pairs, or most rows where pairs are equal."""
    return sorted(groups, key=lambda item: (-(item[1].pairs or 0), -(item[1].rows or 0), item[0]))[:MOST_ROWS]


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False)


def _percents(axes: Axes) -> None:
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")


def _with_count(name: str, count: int | None) -> str:
    return f"{canvas.shorten(canvas.literal(name), 24)} ({'?' if count is None else f'{count:,}'})"


def _room(labels: Sequence[str]) -> float:
    return 8 + 0.58 * SMALL * max(len(label) for label in labels)


def _size(rows: Sequence[tuple[str, Group]]) -> Size:
    widest = max((_with_count(name, max(group.rows or 0, group.pairs or 0)) for name, group in rows), key=len)
    return Size(width=360, height=68 + ROW * len(rows), left=_room([widest]), right=18)
