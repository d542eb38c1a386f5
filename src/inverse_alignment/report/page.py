"""A comparison -> one self-contained page: no request leaves it, and no text of a policy is trusted."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from inverse_alignment.report import analysis, figures
from inverse_alignment.report.analysis import finals, mean_of, number, percent, with_sd
from inverse_alignment.report.comparison import Comparison, Evaluation, Gate, Node, Sample
from inverse_alignment.report.headline import headline
from inverse_alignment.report.table import accuracy_cell, cells, gate_cell

TEMPLATES = Path(__file__).parent / "templates"
MOST_TABLE_ROWS = 40
NARROW_COLUMNS = 4  # a data table with more takes the whole width of the page


def render(comparison: Comparison) -> str:
    """The report as HTML, the same bytes for the same comparison."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style = (TEMPLATES / "style.css.jinja").read_text(encoding="utf-8")
    script = (TEMPLATES / "script.js.jinja").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, svg=Markup)
    return environment.get_template("report.html.jinja").render(
        c=comparison,
        style=Markup(style),  # noqa: S704 - package data
        script=Markup(script),  # noqa: S704 - package data
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        headline=headline(comparison),
        tiles=[_tile(comparison, arm) for arm in comparison.arms],
        start=_start_tile(comparison),
        overoptimised=_overoptimised(comparison),
        figures=_figures(comparison),
        answers=_answers(comparison),
        lanes=[_lineage(comparison, seed) for seed in comparison.seeds],
        rows=_rows(comparison),
        gates=_gate_rows(comparison),
        sources=_source_rows(comparison),
        statistics=statistics_tables(comparison.statistics),
        seeds=analysis.seeds_label(len(comparison.seeds)),
    )


def _figures(comparison: Comparison) -> dict[str, Any]:
    return {
        "steps": figures.rewards_by_step(comparison),
        "kl": figures.rewards_by_kl(comparison),
        "accuracy": figures.accuracy_by_round(comparison),
        "selection": figures.selection_by_source(comparison),
        "gates": figures.gates(comparison),
        "variance": figures.variance_by_round(comparison),
        "columns": figures.columns_for(len(comparison.arms) + 1),
        "source": figures.accuracy_by_source(comparison),
        "training": figures.training(comparison),
    }


@dataclass(frozen=True)
class Tile:
    """The few numbers of one arm that stand at the top of the page."""

    arm: str
    index: int
    value: str
    sd: str
    facts: tuple[tuple[str, str], ...]


def _tile(comparison: Comparison, arm: str) -> Tile:
    def final(name: str) -> analysis.Mean | None:
        return finals(comparison, arm, attrgetter(name))

    main = final("gold_reward") if comparison.has_gold else final("offline_accuracy")
    accepted, refreshes = analysis.accepted_of(comparison, arm)
    facts = [("KL to SFT", f"{with_sd(final('kl_to_sft'), 1)} nats"), ("RM score", with_sd(final("rm_score")))]
    if comparison.has_gold:
        on_policy = final("on_policy_accuracy")
        facts.append(("RM right, on-policy", percent(on_policy.mean if on_policy else None)))
    else:
        longer = final("longer_wins_accuracy")
        facts.append(("longer wins", percent(longer.mean if longer else None, 1)))
    facts.append(("refreshes accepted", f"{accepted} of {refreshes}" if refreshes else "never"))
    return Tile(arm, comparison.arms.index(arm), *_main(comparison, main), tuple(facts))


def _main(comparison: Comparison, value: analysis.Mean | None) -> tuple[str, str]:
    if value is None:
        return number(None), ""
    show = number if comparison.has_gold else lambda share: percent(share, 1)
    return show(value.mean), "" if value.sd is None else f"± {show(value.sd)}"


def _start_tile(comparison: Comparison) -> Tile:
    evaluations = [start.evaluation for start in comparison.starts]
    main = mean_of(e.gold_reward if comparison.has_gold else e.offline_accuracy for e in evaluations)
    accuracy = mean_of(e.on_policy_accuracy for e in evaluations)
    facts = [("KL to SFT", "0 nats"), ("RM score", with_sd(mean_of(e.rm_score for e in evaluations)))]
    if comparison.has_gold:
        facts.append(("RM right, on-policy", percent(accuracy.mean if accuracy else None)))
    else:
        longer = mean_of(e.longer_wins_accuracy for e in evaluations)
        facts.append(("longer wins", percent(longer.mean if longer else None, 1)))
    return Tile("SFT start", -1, *_main(comparison, main), tuple(facts))


def _overoptimised(comparison: Comparison) -> list[str]:
    """Where gold falls while the RM score rises, in words, arm by arm."""
    found = []
    for arm in comparison.arms if comparison.has_gold else ():
        path = analysis.mean_path(analysis.paths_of(comparison, arm))
        start = analysis.overoptimised_from(path, analysis.gold_noise(comparison, arm))
        if start is not None:
            distance = number(max(path[start].kl, 0.0) ** 0.5, 1)
            found.append(
                f"{arm}: past step {path[start].step} (√KL {distance}) gold reward falls by more than its evaluation's "
                "noise while the RM score still rises."
            )
    return found


@dataclass(frozen=True)
class Answers:
    """One prompt with the SFT answer and every arm's answer after each round."""

    prompt: str
    start: Sample | None
    arms: tuple[tuple[int, str, tuple[Sample | None, ...]], ...]


def _answers(comparison: Comparison) -> list[Answers]:
    """Of the first seed: answers of different seeds are different runs, not variations of one."""
    first, runs = comparison.starts[0], [run for run in comparison.runs if run.seed == comparison.seeds[0]]
    shown = {sample.prompt: sample for sample in first.samples}
    prompts = list(shown) or list(dict.fromkeys(sample.prompt for run in runs for sample in run.rounds[-1].samples))

    def answer(samples: tuple[Sample, ...], prompt: str) -> Sample | None:
        return next((sample for sample in samples if sample.prompt == prompt), None)

    return [
        Answers(
            prompt,
            shown.get(prompt),
            tuple((i, run.arm, tuple(answer(r.samples, prompt) for r in run.rounds)) for i, run in enumerate(runs)),
        )
        for prompt in prompts
    ]


@dataclass(frozen=True)
class Step:
    """One artifact in the lineage: what it is, its digest, and what to say of it."""

    label: str
    node: Node
    note: str = ""


@dataclass(frozen=True)
class Lane:
    """From data to the last policy, for one seed."""

    seed: int
    shared: tuple[Step, ...]
    arms: tuple[tuple[int, str, tuple[tuple[Step, ...], ...]], ...]


def _lineage(comparison: Comparison, seed: int) -> Lane:
    nodes = comparison.lineage
    shared = (
        Step("preferences", nodes["preferences"]),
        Step("policy 0, SFT", nodes[f"sft.s{seed}"]),
        Step("reward model 0", nodes[f"reward.s{seed}"]),
    )
    runs = [run for run in comparison.runs if run.seed == seed]
    arms = []
    for index, run in enumerate(runs):
        rounds = []
        for round_ in run.rounds:
            name = f"{run.arm}.s{seed}.r{round_.round}"
            steps = []
            if round_.selection and round_.gate:
                steps.append(Step("selection", nodes[f"select.{name}"], f"{round_.selection.selected} pairs"))
                kept = "" if round_.gate.accepted else "kept the old one"
                steps.append(Step(f"reward model {round_.round}", nodes[f"refresh.{name}"], kept or "accepted"))
            steps.append(Step(f"policy {round_.round}", nodes[f"ppo.{name}"]))
            rounds.append(tuple(steps))
        arms.append((index, run.arm, tuple(rounds)))
    return Lane(seed, shared, tuple(arms))


@dataclass(frozen=True)
class Row:
    """One line of the table of all numbers."""

    arm: str
    index: int
    round: int
    values: tuple[str, ...]


def _rows(comparison: Comparison) -> list[Row]:
    rows = [Row("SFT start", -1, 0, (*_row_values([s.evaluation for s in comparison.starts]), number(None)))]
    for index, arm in enumerate(comparison.arms):
        for position in range(comparison.rounds):
            rounds = [run.rounds[position] for run in comparison.of_arm(arm)]
            values = (*_row_values([r.evaluation for r in rounds]), gate_cell(rounds))
            rows.append(Row(arm, index, position + 1, values))
    return rows


def _row_values(evaluations: list[Evaluation]) -> tuple[str, ...]:
    gold, proxy, kl, _ = cells(evaluations)
    offline = mean_of(e.offline_accuracy for e in evaluations)
    ended = mean_of(e.ended_share for e in evaluations)
    return (
        gold,
        proxy,
        kl,
        accuracy_cell(evaluations),
        percent(offline.mean if offline else None, 1),
        with_sd(mean_of(e.reward_variance for e in evaluations)),
        with_sd(mean_of(e.response_tokens for e in evaluations), 1),
        percent(ended.mean if ended else None),
    )


def _gate_rows(comparison: Comparison) -> list[Row]:
    """Per arm and round: decision, gain, lowest bound, accuracy and variance of incumbent and challenger."""
    rows = []
    for index, arm in enumerate(comparison.arms):
        for position in range(comparison.rounds):
            gates = [gate for run in comparison.of_arm(arm) if (gate := run.rounds[position].gate)]
            if gates:
                rows.append(Row(arm, index, position + 1, _gate_values(gates)))
    return rows


def _gate_values(gates: Sequence[Gate]) -> tuple[str, ...]:
    def change(before: Sequence[float | None], after: Sequence[float | None]) -> str:
        pair = [mean_of(before), mean_of(after)]
        return " → ".join(number(mean.mean if mean else None) for mean in pair)

    decision = f"{sum(gate.accepted for gate in gates)} of {len(gates)}"
    if len(gates) == 1:
        decision = "no gate" if gates[0].gate == "off" else "accepted" if gates[0].accepted else "kept old"
    return (
        decision,
        with_sd(mean_of(gate.gain for gate in gates), 3, sign=True),
        number(min((gate.low for gate in gates if gate.low is not None), default=None), 3, sign=True),
        change([gate.incumbent_accuracy for gate in gates], [gate.challenger_accuracy for gate in gates]),
        change([gate.reward_variance_before for gate in gates], [gate.reward_variance_after for gate in gates]),
    )


@dataclass(frozen=True)
class SourceRow:
    """Held-out pairs of one source policy: the rule of thumb, and every arm's last reward model."""

    source: str
    pairs: int
    longer: str
    arms: tuple[str, ...]


def _source_rows(comparison: Comparison) -> list[SourceRow]:
    of_arm = {arm: [run.final.offline_by_source for run in comparison.of_arm(arm)] for arm in comparison.arms}
    sources = sorted({source for found in of_arm.values() for seed in found for source in seed})
    rows = []
    for source in sources:
        first = next(seed[source] for found in of_arm.values() for seed in found if source in seed)
        means = [mean_of(seed[source].rm_accuracy for seed in found if source in seed) for found in of_arm.values()]
        shown = tuple(percent(mean.mean if mean else None, 1) for mean in means)
        rows.append(SourceRow(source, first.pairs, percent(first.longer_wins, 1), shown))
    return sorted(rows, key=lambda row: (-row.pairs, row.source))


@dataclass(frozen=True)
class DataTable:
    """A part of the data's statistics as columns and rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int = 0


def statistics_tables(statistics: Mapping[str, Any]) -> list[DataTable]:
    """Statistics of any nesting as tables: plain values together, then one table per mapping."""
    words = {name: statistics[f"{name}_words"] for name in ("chosen", "rejected") if f"{name}_words" in statistics}
    rest = {name: value for name, value in statistics.items() if not name.endswith("_words") or not words}
    if words:
        rest["words_per_answer"] = words
    plain = {name: value for name, value in rest.items() if not isinstance(value, Mapping)}
    tables = [_flat("the whole set", plain)] if plain else []
    tables += [_table(name.replace("_", " "), value) for name, value in rest.items() if value and name not in plain]
    return sorted(tables, key=lambda table: len(table.columns) > NARROW_COLUMNS)


def _flat(title: str, values: Mapping[str, Any]) -> DataTable:
    shown = [(name.replace("_", " "), _cell(name, value)) for name, value in values.items()]
    return _bounded(title, ("", "value"), shown)


def _table(title: str, value: Mapping[str, Any]) -> DataTable:
    if not all(isinstance(item, Mapping) for item in value.values()):
        return _flat(title, value)
    items = {name: _facts(item) for name, item in value.items()}
    columns = list(dict.fromkeys(column for item in items.values() for column in item))
    shown = [(name, *(_cell(column, item.get(column)) for column in columns)) for name, item in items.items()]
    return _bounded(title, ("", *(column.replace("_", " ") for column in columns)), shown)


def _bounded(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> DataTable:
    return DataTable(title, columns, tuple(rows[:MOST_TABLE_ROWS]), max(0, len(rows) - MOST_TABLE_ROWS))


def _facts(item: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a group that fit a table: of a distribution its mean; counts by something else are left out."""
    facts: dict[str, Any] = {}
    for name, value in item.items():
        if not isinstance(value, Mapping):
            facts[name] = value
        elif "mean" in value:
            facts[f"mean_{name}"] = value["mean"]
    return facts


def _cell(name: str, value: Any) -> str:
    if value is None:
        return number(None)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return percent(value, 1) if name == "longer_wins" else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
    if isinstance(value, list):
        return ", ".join(_cell(name, item) for item in value)
    return str(value)
