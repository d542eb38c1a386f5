"""The pictures of the report, each a function of the comparison. matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inverse_alignment.report import analysis, canvas, mismatch
from inverse_alignment.report.analysis import mean_of, percent
from inverse_alignment.report.canvas import INK, MUTED, PAPER, RULE, SMALL, Picture, Size, arm_colour
from inverse_alignment.report.comparison import Comparison, CurvePoint, Evaluation, Gate, Round, TrainingPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.ticker import Locator

MOST_ROWS = 24
SCORE, GOLD_UNIT = "sd of the SFT answers' scores", "gold reward, points per answer"
NARROW = 280.0  # points; a third of the page, so that type is as large as in wider pictures
Value = Callable[[CurvePoint], float | None]
AUDIT_DASHES = (0, (3, 1.6))


@dataclass(frozen=True)
class Curve:
    """A value on the way through PPO: how its lines look, how their ends are called, and what marks it after rounds."""

    value: Value
    dashes: Any = "-"
    suffix: str = ""
    marked: analysis.Yardstick | None = None


GOLD = Curve(analysis.GOLD.of_point, marked=analysis.GOLD)
PROXY = Curve(lambda point: point.rm_score)
AUDIT = Curve(analysis.AUDIT.of_point, AUDIT_DASHES, " audit", analysis.AUDIT)


def rewards_by_step(comparison: Comparison) -> list[Picture]:
    """Gold reward, if there is one, and the scores of the reward models against the PPO step."""
    pictures = [_by_step(comparison, "proxy-step", f"{_scores(comparison)} by step", _rivals(comparison), SCORE)]
    if comparison.has_gold:
        pictures.insert(0, _by_step(comparison, "gold-step", "Gold reward by step", [GOLD], GOLD_UNIT))
    return pictures


def rewards_by_kl(comparison: Comparison) -> list[Picture]:
    """The same against the distance from the SFT policy, the view of arXiv 2210.10760."""
    pictures = [_by_kl(comparison, "proxy-kl", f"{_scores(comparison)} by distance", _rivals(comparison), SCORE)]
    if comparison.has_gold:
        pictures.insert(0, _by_kl(comparison, "gold-kl", "Gold reward by distance", [GOLD], GOLD_UNIT))
    return pictures


def _scores(comparison: Comparison) -> str:
    return "RM score and audit score" if comparison.has_audit else "RM score"


def _rivals(comparison: Comparison) -> list[Curve]:
    """The score that PPO raises and, in the same unit, the one that nothing is optimised against."""
    return [PROXY, AUDIT] if comparison.has_audit else [PROXY]


def _by_step(comparison: Comparison, name: str, title: str, curves: Sequence[Curve], unit: str) -> Picture:
    def paint(axes: Axes) -> None:
        ends = []
        for index, arm in enumerate(comparison.arms):
            paths, clock = analysis.paths_of(comparison, arm), _clock(comparison, arm)
            for curve in curves:
                lines = [_by(path, curve.value, clock) for path in paths]
                mean = _by(analysis.mean_path(paths), curve.value, clock)
                if len(curves) == 1:
                    _seed_lines(axes, lines, index)
                _band(axes, paths, curve.value, index, clock)
                _line(axes, mean, index, curve.dashes)
                if curve.marked:
                    _intervals(axes, comparison, arm, index, curve)
                ends.append((mean[-1][1], _end_label(arm, curve), arm_colour(index)))
        _mark_rounds(axes, comparison)
        axes.set_xlabel(_clock_name(comparison))
        canvas.caption(axes, unit)
        axes.margins(y=0.08)
        canvas.label_ends(axes, ends)

    return canvas.draw(name, title, _ends_in_words(comparison, curves), _size(comparison, curves=curves), paint)


def _by_kl(comparison: Comparison, name: str, title: str, curves: Sequence[Curve], unit: str) -> Picture:
    held_against = analysis.yardstick(comparison)

    def paint(axes: Axes) -> None:
        ends = []
        for index, arm in enumerate(comparison.arms):
            paths = analysis.paths_of(comparison, arm)
            mean = analysis.mean_path(paths)
            for curve in curves:
                if len(curves) == 1:
                    _seed_lines(axes, [_by(path, curve.value, _distance) for path in paths], index)
                points = _by(mean, curve.value, _distance)
                _line(axes, points, index, curve.dashes)
                if held_against is not None and curve.marked is held_against:
                    law = mismatch.curve_of(comparison, arm, held_against).points(points[0][1], points[-1][0])
                    _thin_dotted(axes, law, index)
                face = PAPER if curve.suffix else arm_colour(index)
                style = {"marker": canvas.arm_marker(index), "color": face, "markeredgecolor": arm_colour(index)}
                marks = _evaluated(comparison, arm, curve.marked) if curve.marked else points[-1:]
                axes.plot(*zip(*marks, strict=True), markersize=6, linestyle="none", zorder=5, **style)  # type: ignore[arg-type]
                ends.append((points[-1][1], _end_label(arm, curve), arm_colour(index)))
            if held_against and (start := analysis.overoptimised_of(comparison, arm, held_against)) is not None:
                for curve in curves:
                    xs, ys = zip(*_by(mean[start:], curve.value, _distance), strict=True)
                    axes.plot(xs, ys, color=arm_colour(index), linewidth=9, alpha=0.22, zorder=1)
        axes.set_xlabel("√KL to the SFT policy, √nats per answer")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(_locator())
        canvas.caption(axes, unit)
        axes.margins(y=0.08)
        axes.set_xlim(right=axes.get_xlim()[1])
        canvas.label_ends(axes, ends)

    return canvas.draw(name, title, _ends_in_words(comparison, curves), _size(comparison, curves=curves), paint)


def _thin_dotted(axes: Axes, points: Sequence[tuple[float, float]], index: int) -> None:
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=arm_colour(index), linewidth=1.0, linestyle=(0, (1, 1.4)), zorder=2)


def _evaluated(comparison: Comparison, arm: str, measured: analysis.Yardstick) -> list[tuple[float, float]]:
    """(√KL, value) on held-out prompts after each round, means over seeds."""
    found = []
    for position in range(comparison.rounds):
        evaluations = [run.rounds[position].evaluation for run in comparison.of_arm(arm)]
        value, far = mean_of(map(measured.of_evaluation, evaluations)), mean_of(e.kl_to_sft for e in evaluations)
        if value and far:
            found.append((math.sqrt(max(far.mean, 0.0)), value.mean))
    return found


def _by(path: Sequence[CurvePoint], value: Value, x: Callable[[CurvePoint], float]) -> list[tuple[float, float]]:
    return [(x(point), v) for point in path if (v := value(point)) is not None]


def _distance(point: CurvePoint) -> float:
    return math.sqrt(max(point.kl, 0.0))


def _end_label(arm: str, curve: Curve) -> str:
    return canvas.shorten(canvas.literal(arm), 22 - len(curve.suffix)) + curve.suffix


def _ends_in_words(comparison: Comparison, curves: Sequence[Curve]) -> str:
    def ends(arm: str, curve: Curve) -> str:
        paths = analysis.paths_of(comparison, arm)
        return f"{arm}{curve.suffix} ends at {analysis.with_sd(mean_of(curve.value(path[-1]) for path in paths))}"

    parts = [ends(arm, curve) for arm in comparison.arms for curve in curves]
    return f"{analysis.seeds_label(len(comparison.seeds))}: {', '.join(parts)}"


def _size(comparison: Comparison, columns: int = 2, curves: Sequence[Curve] = (PROXY,)) -> Size:
    right = canvas.room_for([_end_label(arm, curve) for arm in comparison.arms for curve in curves])
    return Size(right=right) if columns == 2 else Size(width=NARROW, height=190, right=right, left=34)


def columns_for(pictures: int) -> int:
    """Columns of the page in which this many pictures leave no hole."""
    return 2 if pictures in (1, 2, 4) else 3


def _line(axes: Axes, points: Sequence[tuple[float, float]], index: int, dashes: Any = "-") -> None:
    if points:
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=arm_colour(index), linestyle=dashes, zorder=4)


def _seed_lines(axes: Axes, paths: Sequence[Sequence[tuple[float, float]]], index: int) -> None:
    if len(paths) > 1:
        for points in paths:
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, color=arm_colour(index), linewidth=0.6, alpha=0.45, zorder=2)


def _band(
    axes: Axes,
    paths: Sequence[Sequence[CurvePoint]],
    value: Value,
    index: int,
    clock: Callable[[CurvePoint], float],
) -> None:
    """± one standard deviation across seeds, where there are several."""
    if len(paths) < 2:
        return
    at = [{clock(p): v for p in path if (v := value(p)) is not None} for path in paths]
    steps = sorted(set.intersection(*(set(values) for values in at)))
    spreads = [mean_of(values[step] for values in at) for step in steps]
    low = [s.mean - (s.sd or 0.0) for s in spreads if s]
    high = [s.mean + (s.sd or 0.0) for s in spreads if s]
    axes.fill_between(steps, low, high, color=arm_colour(index), alpha=0.14, linewidth=0, zorder=1)


def _intervals(axes: Axes, comparison: Comparison, arm: str, index: int, curve: Curve) -> None:
    """The full evaluation after each round, with its interval over prompts for one seed."""
    runs, measured = comparison.of_arm(arm), curve.marked
    assert measured is not None
    shift = (index - (len(comparison.arms) - 1) / 2) * _last_step(comparison) * 0.012
    for position, end in enumerate(_round_ends(comparison)):
        evaluations = [run.rounds[position].evaluation for run in runs]
        value = mean_of(measured.of_evaluation(e) for e in evaluations)
        if value is None:
            continue
        axes.plot(
            end + shift,
            value.mean,
            marker=canvas.arm_marker(index),
            markersize=5,
            color=PAPER if curve.suffix else arm_colour(index),
            markeredgecolor=arm_colour(index) if curve.suffix else PAPER,
            markeredgewidth=0.8,
            zorder=6,
        )
        interval = measured.interval(evaluations[0])
        if len(runs) == 1 and interval is not None:
            axes.plot([end + shift] * 2, interval, color=arm_colour(index), linewidth=1.1, zorder=5)


def _round_ends(comparison: Comparison) -> list[int]:
    """The last step of every round: of PPO where there is an arm of it."""
    arms = sorted(comparison.arms, key=comparison.is_direct)
    return _ends_of(comparison.of_arm(arms[0])[0].rounds)


def _ends_of(rounds: Sequence[Round]) -> list[int]:
    return [max([p.step for p in r.training] + [p.step for p in r.curve], default=r.round) for r in rounds]


def _clock(comparison: Comparison, arm: str) -> Callable[[CurvePoint], float]:
    """Where a point of this arm stands: its rounds are drawn as wide as all others, however many steps they have."""
    own, common = ([0, *ends] for ends in (_ends_of(comparison.of_arm(arm)[0].rounds), _round_ends(comparison)))

    def place(point: CurvePoint) -> float:
        round_ = next((number for number, end in enumerate(own[1:], 1) if point.step <= end), len(own) - 1)
        share = (point.step - own[round_ - 1]) / max(own[round_] - own[round_ - 1], 1)
        return common[round_ - 1] + share * (common[round_] - common[round_ - 1])

    return place


def _clock_name(comparison: Comparison) -> str:
    direct = [comparison.is_direct(arm) for arm in comparison.arms]
    if all(direct):
        return "optimiser step"
    return "PPO step (rounds without PPO drawn as wide)" if any(direct) else "PPO step"


def _last_step(comparison: Comparison) -> int:
    return _round_ends(comparison)[-1]


def _mark_rounds(axes: Axes, comparison: Comparison) -> None:
    before = 0
    for number, end in enumerate(_round_ends(comparison), start=1):
        axes.axvline(end, color=MUTED, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
        axes.text(
            (before + end) / 2,
            1.02,
            f"round {number}" if comparison.rounds <= 4 else str(number),
            transform=axes.get_xaxis_transform(),
            ha="center",
            fontsize=SMALL - 1,
            color=MUTED,
        )
        before = end
    axes.set_xlim(0, before * 1.02)


def accuracy_by_round(comparison: Comparison) -> list[Picture]:
    """Per arm: RM accuracy on the policy's own answers, before and after each refresh, and on held-out pairs."""
    limits = _accuracy_limits(comparison)
    return [_accuracy(comparison, arm, index, limits) for index, arm in enumerate(comparison.arms)]


def _accuracy_limits(comparison: Comparison) -> tuple[float, float]:
    evaluations = [start.evaluation for start in comparison.starts]
    evaluations += [round_.evaluation for run in comparison.runs for round_ in run.rounds]
    values = [
        value
        for e in evaluations
        for value in (
            e.offline_accuracy,
            e.on_policy_accuracy,
            e.on_policy_accuracy_before,
            e.on_policy_accuracy_after,
            None if comparison.has_gold else e.longer_wins_accuracy,
        )
        if value is not None
    ]
    return max(0.0, min(values, default=0.5) - 0.04), min(1.0, max(values, default=0.5) + 0.04)


def _accuracy(comparison: Comparison, arm: str, index: int, limits: tuple[float, float]) -> Picture:
    final = analysis.finals(comparison, arm, lambda e: e.on_policy_accuracy)
    offline = analysis.finals(comparison, arm, lambda e: e.offline_accuracy)
    words = (
        f"after the last round {percent(final.mean if final else None)} on the policy's own answers, "
        f"{percent(offline.mean if offline else None)} on held-out offline pairs"
    )

    def paint(axes: Axes) -> None:
        axes.set_ylim(*limits)
        colour = arm_colour(index)
        ends = _offline_lines(axes, comparison, arm)
        last = _on_policy_line(axes, comparison, arm, colour)
        if last is not None:
            ends.append((last, "on-policy", colour))
        if limits[0] < 0.5:
            axes.axhline(0.5, color=MUTED, linewidth=0.7)
        ticks = range(comparison.rounds + 1)
        axes.set_xticks(list(ticks), ["start", *[_round_tick(comparison, number) for number in ticks[1:]]])
        axes.set_xlim(-0.15, comparison.rounds + 0.12)
        _percents(axes.yaxis)
        canvas.caption(axes, "pairs in which the RM prefers the better answer")
        canvas.label_ends(axes, ends)

    right = canvas.room_for(["on-policy" if comparison.has_gold else "longer wins"])
    narrow = columns_for(len(comparison.arms) + 1) == 3
    size = Size(width=NARROW, height=190, right=right, left=34, bottom=24) if narrow else Size(right=right, bottom=24)
    return canvas.draw(f"accuracy-{index}", f"RM accuracy, {arm}", words, size, paint)


def _round_tick(comparison: Comparison, number: int) -> str:
    return str(number) if comparison.rounds > 4 or number == 0 else f"round {number}"


def _offline_lines(axes: Axes, comparison: Comparison, arm: str) -> list[tuple[float, str, str]]:
    ends = []
    kinds: list[tuple[str, Callable[[Evaluation], float | None], object]] = [
        ("held-out", lambda e: e.offline_accuracy, (0, (4, 2)))
    ]
    if not comparison.has_gold:
        kinds.append(("longer wins", lambda e: e.longer_wins_accuracy, (0, (1, 2))))
    for label, value, dashes in kinds:
        means = [mean_of(value(start.evaluation) for start in comparison.starts)]
        means += [
            mean_of(value(run.rounds[number].evaluation) for run in comparison.of_arm(arm))
            for number in range(comparison.rounds)
        ]
        points = [(float(x), mean.mean) for x, mean in enumerate(means) if mean]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=MUTED, linewidth=1.3, linestyle=dashes, zorder=2)
            axes.plot(xs, ys, color=MUTED, marker="o", markersize=2.6, linestyle="none", zorder=2)
            ends.append((ys[-1], label, MUTED))
    return ends


def _on_policy_line(axes: Axes, comparison: Comparison, arm: str, colour: str) -> float | None:
    """PPO moves the policy away (thin), a refresh brings the reward model back (thick, hollow to filled)."""
    start = mean_of(s.evaluation.on_policy_accuracy for s in comparison.starts)
    here = [] if start is None else [(0.0, start.mean)]
    if here:
        axes.plot(*here[0], marker="o", markersize=5, color=colour, markeredgecolor=PAPER, zorder=5)
    for number in range(comparison.rounds):
        evaluations = [run.rounds[number].evaluation for run in comparison.of_arm(arm)]
        before = mean_of(e.on_policy_accuracy_before for e in evaluations)
        after = mean_of(e.on_policy_accuracy_after for e in evaluations)
        end = mean_of(e.on_policy_accuracy for e in evaluations)
        if before and after:
            x, y = (number + 0.2, number + 0.4), (before.mean, after.mean)
            axes.plot(x, y, color=colour, linewidth=3, zorder=4)
            axes.plot(x[0], y[0], marker="o", markersize=6, color=PAPER, markeredgecolor=colour, zorder=5)
            axes.plot(x[1], y[1], marker="o", markersize=6, color=colour, markeredgecolor=PAPER, zorder=5)
            _thin(axes, [*here, (x[0], y[0])], colour)
            here = [(x[1], y[1])]
        if end:
            _thin(axes, [*here, (number + 1.0, end.mean)], colour)
            here = [(number + 1.0, end.mean)]
            axes.plot(*here[0], marker="o", markersize=4, color=colour, markeredgecolor=PAPER, zorder=5)
    return here[0][1] if here else None


def _thin(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    xs, ys = zip(*points, strict=True)
    axes.plot(xs, ys, color=colour, linewidth=1.1, zorder=3)


def selection_by_source(comparison: Comparison) -> list[Picture]:
    """Per selecting arm: source policies of the answers in the selected pairs, against the pool's shares."""
    shares = {arm: _shares(comparison, arm) for arm in comparison.arms if comparison.selects(arm)}
    most = max((max(pool, *picked) for rows in shares.values() for _, pool, picked in rows), default=1.0)
    return [
        _selection(arm, comparison.arms.index(arm), rows, comparison.rounds, most)
        for arm, rows in shares.items()
        if rows
    ]


def _shares(comparison: Comparison, arm: str) -> list[tuple[str, float, list[float]]]:
    """Rows (source, share of the pool, share of the selection per round), seed means, largest pool share first."""
    audits = [[round_.selection for round_ in run.rounds if round_.selection] for run in comparison.of_arm(arm)]
    first = [seed[0] for seed in audits if seed]
    sources = sorted({source for audit in first for source in audit.pool_by_source})

    def share(counts: dict[str, int], source: str) -> float:
        return counts.get(source, 0) / max(sum(counts.values()), 1)

    rows = [
        (
            source,
            sum(share(audit.pool_by_source, source) for audit in first) / len(first),
            [
                sum(share(audit.selected_by_source, source) for audit in round_) / len(round_)
                for round_ in zip(*audits, strict=True)
            ],
        )
        for source in sources
    ]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def _selection(
    arm: str, index: int, every: Sequence[tuple[str, float, list[float]]], rounds: int, most: float
) -> Picture:
    rows = every[:MOST_ROWS]
    furthest = max(every, key=lambda row: row[2][-1] - row[1])
    words = (
        f"in the last round it leans most towards {furthest[0]}: {percent(furthest[2][-1])} of the selection, "
        f"{percent(furthest[1])} of the pool"
    )
    thick = min(0.26, 0.8 / rounds)

    def paint(axes: Axes) -> None:
        for row, (_, pool, picked) in enumerate(rows):
            for round_, share in enumerate(picked):
                y = row + (round_ - (rounds - 1) / 2) * thick
                alpha = 0.35 + 0.65 * (round_ + 1) / rounds
                axes.barh(y, share - pool, left=pool, height=thick * 0.85, color=arm_colour(index), alpha=alpha)
            axes.plot([pool, pool], [row - 0.46, row + 0.46], color=INK, linewidth=1.4, zorder=5)
        axes.set_yticks(range(len(rows)), [canvas.shorten(canvas.literal(source)) for source, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, most * 1.08)
        _percents(axes.xaxis)
        axes.grid(visible=False)
        axes.set_xlabel("share of the answers")
        canvas.caption(axes, f"source policy{_of(rows, every)}")

    size = Size(width=NARROW, height=68 + 24 * len(rows), left=_row_room([source for source, _, _ in rows]))
    return canvas.draw(f"selection-{index}", f"Pairs picked by {arm}", words, size, paint)


def _percents(axis: Axis) -> None:
    axis.set_major_locator(_locator())
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")


def _locator() -> Locator:
    """Few ticks, at round numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, steps=[1, 2, 5, 10])


def _row_room(labels: Iterable[str]) -> float:
    return 6 + 0.58 * SMALL * max((len(canvas.shorten(label)) for label in labels), default=4)


def gates(comparison: Comparison) -> Picture:
    """Gain of every refreshed reward model over the one it would replace, with its lower bound."""
    rows: list[tuple[str, int, list[Gate]]] = []
    for index, arm in enumerate(comparison.arms):
        runs = comparison.of_arm(arm)
        if not comparison.refreshes(arm):
            rows.append((f"{arm}: no refresh", index, []))
            continue
        for number in range(comparison.rounds):
            found: list[Gate] = [gate for run in runs if (gate := run.rounds[number].gate) and gate.refreshed]
            rows.append((f"{arm} {number + 1}{'' if found else ': not due'}", index, found))
    words = "; ".join(
        f"{arm} accepted {accepted} of {total}" if total else f"{arm} never refreshed"
        for arm in comparison.arms
        for accepted, total in [analysis.accepted_of(comparison, arm)]
    )

    def paint(axes: Axes) -> None:
        for row, (_, index, found) in enumerate(rows):
            for place, gate in enumerate(found):
                _gate_mark(axes, row + (place - (len(found) - 1) / 2) * 0.24, gate, arm_colour(index))
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), [canvas.literal(canvas.shorten(label, 26)) for label, _, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.grid(visible=False)
        axes.locator_params(axis="x", nbins=4)  # five digits a tick: more of them run into each other
        axes.set_xlabel("gain in log-likelihood, nats per pair")
        canvas.caption(axes, "arm and round")

    height = 68 + len(rows) * (17 + 5 * (len(comparison.seeds) - 1))
    left = 6 + 0.58 * SMALL * max(len(canvas.shorten(label, 26)) for label, _, _ in rows)
    return canvas.draw("gate", "Gate decisions", words, Size(width=300, height=height, left=left), paint)


def _gate_mark(axes: Axes, y: float, gate: Gate, colour: str) -> None:
    """Filled: the refreshed model was accepted. Hollow: the old one stayed."""
    if gate.gain is None:
        axes.plot(
            0, y, marker="o", markersize=5, color=colour if gate.accepted else PAPER, markeredgecolor=colour, zorder=5
        )
        return
    if gate.low is not None:
        axes.plot([gate.low, gate.gain], [y, y], color=colour, linewidth=1.6)
        axes.plot(gate.low, y, marker="|", markersize=6, color=colour)
    if gate.detectable is not None:
        axes.plot(gate.detectable, y, marker="|", markersize=7, color=MUTED, markeredgewidth=1, zorder=1)
    fill = colour if gate.accepted else PAPER
    axes.plot(
        gate.gain, y, marker="o", markersize=6.5, color=fill, markeredgecolor=colour, markeredgewidth=1.4, zorder=5
    )


def variance_by_round(comparison: Comparison) -> Picture:
    """Within-prompt variance of the RM score: what PPO has to learn from (arXiv 2503.15477)."""
    start = mean_of(s.evaluation.reward_variance for s in comparison.starts)

    def paint(axes: Axes) -> None:
        ends = []
        for index, arm in enumerate(comparison.arms):
            rounds = [mean_of(r.evaluation.reward_variance for r in group) for group in _by_round(comparison, arm)]
            points = [(float(x), mean.mean, mean.sd) for x, mean in enumerate([start, *rounds]) if mean]
            if not points:
                continue
            _line(axes, [(x, y) for x, y, _ in points], index)
            for x, y, sd in points:
                place = x + (index - (len(comparison.arms) - 1) / 2) * 0.04 if x else x
                axes.plot(place, y, marker=canvas.arm_marker(index), markersize=4.5, color=arm_colour(index), zorder=5)
                if sd is not None:
                    axes.plot([place, place], [y - sd, y + sd], color=arm_colour(index), linewidth=1, zorder=4)
            ends.append((points[-1][1], canvas.shorten(canvas.literal(arm)), arm_colour(index)))
        ticks = range(comparison.rounds + 1)
        axes.set_xticks(list(ticks), ["start", *[_round_tick(comparison, number) for number in ticks[1:]]])
        axes.set_ylim(bottom=0)
        axes.margins(y=0.1)
        canvas.caption(axes, "variance of the RM score within a prompt, sd²")
        canvas.label_ends(axes, ends)

    words = ", ".join(
        f"{arm} {analysis.with_sd(analysis.finals(comparison, arm, lambda e: e.reward_variance))}"
        for arm in comparison.arms
    )
    size = _size(comparison, columns_for(len(comparison.arms) + 1))
    return canvas.draw("variance", "Reward variance within a prompt", f"after the last round {words}", size, paint)


def _by_round(comparison: Comparison, arm: str) -> list[list[Round]]:
    return [[run.rounds[number] for run in comparison.of_arm(arm)] for number in range(comparison.rounds)]


def accuracy_by_source(comparison: Comparison) -> Picture | None:
    """Held-out pairs by source policy: every arm's last reward model beside the rule that the longer answer wins.

    The source policies with most pairs; the marks of small groups are pale.
    """
    every = analysis.by_source(comparison)
    rows, one = every[:MOST_ROWS], analysis.one_reward_model(every)
    if not rows:
        return None

    def paint(axes: Axes) -> None:
        axes.axvline(0.5, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
        for place, row in enumerate(rows):
            _source_marks(axes, place, row, one)
        axes.set_yticks(range(len(rows)), [_with_pairs(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _percents(axes.xaxis)
        axes.grid(visible=False)
        axes.set_xlabel("held-out pairs in which the chosen answer wins", loc="right")
        canvas.caption(axes, f"source policy (pairs){_of(rows, every)}")

    left = 20 + 0.58 * SMALL * max(len(_with_pairs(row)) for row in rows)
    size = Size(width=360, height=68 + 22 * len(rows), left=left)
    arms = "the one reward model of all arms" if one else f"arms {', '.join(comparison.arms)}"
    words = f"{len(every)} source policies; {arms} beside the rule that the longer answer wins"
    return canvas.draw("source", "RM accuracy by source policy", words, size, paint)


def _source_marks(axes: Axes, place: int, row: analysis.SourceShare, one: bool) -> None:
    strength = 0.35 if row.is_small else 1.0
    arms = row.arms[:1] if one else row.arms
    found = [(index, value) for index, value in enumerate(arms) if value is not None]
    values = [value for _, value in found] + ([] if row.longer_wins is None else [row.longer_wins])
    if values:
        axes.plot([min(values), max(values)], [place, place], color=RULE, linewidth=2.2, zorder=1)
    if row.longer_wins is not None:
        axes.plot(
            row.longer_wins,
            place,
            marker="D",
            markersize=5,
            color=PAPER,
            markeredgecolor=INK,
            alpha=strength,
            zorder=3,
        )
    for index, value in found:
        y = place + (index - (len(arms) - 1) / 2) * min(0.22, 0.8 / len(arms))
        colour = INK if one else arm_colour(index)
        style = {"marker": canvas.arm_marker(index), "color": colour, "markeredgecolor": PAPER}
        axes.plot(value, y, markersize=6.5, alpha=strength, zorder=4, **style)  # type: ignore[arg-type]


def _with_pairs(row: analysis.SourceShare) -> str:
    return f"{canvas.shorten(canvas.literal(row.source))} ({row.pairs:,})"


def _of(shown: Sequence[Any], every: Sequence[Any]) -> str:
    return "" if len(shown) == len(every) else f", the first {len(shown)} of {len(every)}"


def training(comparison: Comparison) -> list[Picture]:
    """How PPO went: distance, entropy, length."""
    values: list[tuple[str, str, str, Callable[[TrainingPoint], float | None]]] = [
        ("train-kl", "KL to SFT", "KL to SFT, nats per answer", lambda point: point.kl),
        ("train-entropy", "Entropy", "entropy, nats per token", lambda point: point.entropy),
        ("train-tokens", "Answer length", "tokens per answer", lambda point: point.tokens),
    ]
    return [_trace(comparison, name, title, unit, value) for name, title, unit, value in values]


def _trace(
    comparison: Comparison, name: str, title: str, unit: str, value: Callable[[TrainingPoint], float | None]
) -> Picture:
    def points_of(arm: str) -> list[tuple[float, float]]:
        rows: dict[int, list[float | None]] = {}
        for run in comparison.of_arm(arm):
            for point in (point for round_ in run.rounds for point in round_.training):
                rows.setdefault(point.step, []).append(value(point))
        return [(float(step), mean.mean) for step, found in sorted(rows.items()) if (mean := mean_of(found))]

    traces = {arm: points for arm in comparison.arms if (points := points_of(arm))}

    def paint(axes: Axes) -> None:
        ends = []
        for arm, points in traces.items():
            index = comparison.arms.index(arm)
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=arm_colour(index), linewidth=1.2)
            ends.append((ys[-1], canvas.shorten(canvas.literal(arm)), arm_colour(index)))
        _mark_rounds(axes, comparison)
        axes.set_xlabel("PPO step")
        axes.margins(y=0.08)
        canvas.caption(axes, unit)
        canvas.label_ends(axes, ends)

    last = ", ".join(f"{arm} ends at {analysis.number(points[-1][1])}" for arm, points in traces.items())
    return canvas.draw(name, title, last or "nothing reported", _size(comparison, 3), paint)
