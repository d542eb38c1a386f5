"""A comparison -> one self-contained page: no request leaves it, and no text of a policy is trusted."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from inverse_alignment.report import analysis, certainty, costs, figures, mismatch
from inverse_alignment.report.analysis import finals, listed, mean_of, number, percent, with_sd
from inverse_alignment.report.comparison import Comparison, Evaluation, Gate, Node, Sample, Stratum
from inverse_alignment.report.headline import headline
from inverse_alignment.report.table import accuracy_cell, gate_cell, gate_decision

TEMPLATES = Path(__file__).parent / "templates"
MOST_TABLE_ROWS = 200
MOST_LISTED = 12
SHARES = {"longer_wins", "kept_after_tokenisation"}
NARROW_COLUMNS = 4  # a data table with more takes the whole width of the page


def render(comparison: Comparison, taken: Mapping[tuple[str, int], costs.Spent] | None = None) -> str:
    """The report as HTML, the same bytes for the same comparison.

    Args:
        taken: what every run cost, by arm and seed, if the page is to say it.
    """
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
    curves, of_source = mismatch.curves(comparison), analysis.by_source(comparison)
    one_model = analysis.one_reward_model(of_source)
    rated = comparison.arms[:1] if one_model else comparison.arms
    idle = [f"“{arm}”" for arm in comparison.arms if not comparison.selects(arm)]
    environment.filters.update(number=number, percent=percent, svg=Markup)
    return environment.get_template("report.html.jinja").render(
        c=comparison,
        style=Markup(style),  # noqa: S704 - package data
        script=Markup(script),  # noqa: S704 - package data
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        headline=headline(comparison),
        tiles=[_tile(comparison, arm) for arm in comparison.arms],
        start=_start_tile(comparison),
        rewards_lead=_rewards_lead(comparison),
        overoptimised=_overoptimised(comparison),
        four_answers=mismatch.four_answers(comparison),
        gains=[
            (comparison.arms.index(one.arm), one, certainty.cells(comparison, one))
            for one in certainty.gains(comparison)
        ],
        gain_columns=certainty.columns(comparison),
        gain_caption=certainty.caption(comparison),
        curves=curves,
        without_curve=mismatch.without_curve(curves),
        alarms=mismatch.alarms(comparison),
        cost_columns=mismatch.cost_columns(comparison),
        costs=mismatch.costs(comparison),
        trust=mismatch.trust(comparison),
        figures=_figures(comparison),
        answers=_answers(comparison),
        lanes=[_lineage(comparison, seed) for seed in comparison.seeds],
        cost_caption=costs.caption(comparison),
        spent_columns=costs.COLUMNS,
        spent=[] if taken is None else list(zip(comparison.arms, costs.rows(comparison, taken), strict=True)),
        columns=_columns(comparison),
        rows=_rows(comparison),
        audits=_audit_rows(comparison),
        gates=_gate_rows(comparison),
        refreshing=any(map(comparison.refreshes, comparison.arms)),
        selecting=any(map(comparison.selects, comparison.arms)),
        trained=not all(map(comparison.is_direct, comparison.arms)),
        some_direct=any(map(comparison.is_direct, comparison.arms)),
        select_nothing=listed(idle) if idle else "",
        strata=_strata_rows(comparison),
        sources=_source_rows(of_source, len(rated)),
        every_source=_all_sources(comparison, rated),
        source_arms=("every arm",) if one_model else comparison.arms,
        one_model=one_model,
        small_group=analysis.SMALL_GROUP,
        most_rows=figures.MOST_ROWS,
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
    if comparison.has_audit:
        facts.append(("audit score", with_sd(final("audit_score"))))
    if comparison.has_gold:
        on_policy = final("on_policy_accuracy")
        facts.append(("RM right, on-policy", percent(on_policy.mean if on_policy else None)))
    else:
        longer = final("longer_wins_accuracy")
        facts.append(("longer wins", percent(longer.mean if longer else None, 1)))
    if refreshes:
        facts.append(("refreshes accepted", f"{accepted} of {refreshes}"))
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
    if comparison.has_audit:
        facts.append(("audit score", with_sd(mean_of(e.audit_score for e in evaluations))))
    if comparison.has_gold:
        facts.append(("RM right, on-policy", percent(accuracy.mean if accuracy else None)))
    else:
        longer = mean_of(e.longer_wins_accuracy for e in evaluations)
        facts.append(("longer wins", percent(longer.mean if longer else None, 1)))
    return Tile("SFT start", -1, *_main(comparison, main), tuple(facts))


def _strata_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Train pairs by strength, weakest first, over seeds; none where no seed measured it."""
    found: dict[int, list[Stratum]] = {}
    for stratum in (each for start in comparison.starts for each in start.strata):
        found.setdefault(stratum.stratum, []).append(stratum)
    return [
        (
            str(place),
            f"{sum(each.pairs for each in same):,}",
            with_sd(mean_of(each.strength for each in same)),
            with_sd(mean_of(each.std for each in same)),
            percent(sum(each.accuracy for each in same) / len(same), 1),
            with_sd(mean_of(each.loss for each in same)),
        )
        for place, same in sorted(found.items())
    ]


def _rewards_lead(comparison: Comparison) -> str:
    """What the scores are, and what a rising one is evidence of."""
    known = comparison.has_gold or comparison.has_audit
    said = ["PPO raises the RM score, the proxy." if known else "PPO raises the RM score."]
    if comparison.has_gold:
        said.append("Gold reward says what the answers are worth.")
    if comparison.has_audit:
        said.append(
            "The audit score is that of a second reward model, trained alike on other prompts, which nothing is "
            "optimised against: what only the proxy likes does not raise it. One audit model scores all arms of a "
            "seed. It is not gold: what both models get wrong alike raises both."
        )
    if not known:
        said.append("Without a gold reward a rising score is not evidence of better answers.")
    said.append(
        "A score is in standard deviations of what the same model gives the SFT policy's answers; a refresh changes "
        "the model behind the RM score, so it may jump where a round begins."
    )
    return " ".join(said)


def _overoptimised(comparison: Comparison) -> list[str]:
    """Where gold, or without gold the audit score, falls while the RM score rises, in words, arm by arm."""
    held_against, found = analysis.yardstick(comparison), []
    for arm in comparison.arms if held_against else ():
        assert held_against is not None
        path = analysis.mean_path(analysis.paths_of(comparison, arm))
        start = analysis.overoptimised_of(comparison, arm, held_against)
        if start is not None:
            distance = number(max(path[start].kl, 0.0) ** 0.5, 1)
            where = f"round {start}" if comparison.is_direct(arm) else f"step {path[start].step}"
            found.append(
                f"{arm}: past {where if start else 'the SFT policy'} (√KL {distance}) the {held_against.name} falls by "
                "more than its evaluation's noise while the RM score still rises."
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
    names = {
        "preferences": "preferences",
        f"sft.s{seed}": "policy 0, SFT",
        f"reward.s{seed}": "reward model 0",
        f"audit.s{seed}": "audit model",
    }
    shared = tuple(Step(label, nodes[name]) for name, label in names.items() if name in nodes)
    runs = [run for run in comparison.runs if run.seed == seed]
    arms = []
    for index, run in enumerate(runs):
        rounds = []
        for round_ in run.rounds:
            name = f"{run.arm}.s{seed}.r{round_.round}"
            steps = []
            if round_.selection:
                steps.append(Step("selection", nodes[f"select.{name}"], f"{round_.selection.selected} pairs"))
            if round_.gate:
                kept = "kept the old one" if round_.gate.refreshed else "no refresh due"
                done = "accepted" if round_.gate.accepted else kept
                steps.append(Step(f"reward model {round_.round}", nodes[f"refresh.{name}"], done))
            optimised = "ppo" if f"ppo.{name}" in nodes else "direct"
            steps.append(Step(f"policy {round_.round}", nodes[f"{optimised}.{name}"]))
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


def _columns(comparison: Comparison) -> tuple[str, ...]:
    """What `_rows` holds beside arm and round."""
    audit = ("audit score, sd", "ranked alike") if comparison.has_audit else ()
    first = ("gold reward", "RM score, sd", *audit, "KL to SFT, nats", "on-policy accuracy", "held-out accuracy")
    return (*first, "reward variance", "tokens", "ended", "gate, nats per pair")


def _rows(comparison: Comparison) -> list[Row]:
    columns = _columns(comparison)
    starts = _row_values([s.evaluation for s in comparison.starts])
    rows = [Row("SFT start", -1, 0, tuple(starts.get(name, number(None)) for name in columns))]
    for index, arm in enumerate(comparison.arms):
        for position in range(comparison.rounds):
            rounds = [run.rounds[position] for run in comparison.of_arm(arm)]
            values = {**_row_values([r.evaluation for r in rounds]), "gate, nats per pair": gate_cell(rounds)}
            rows.append(Row(arm, index, position + 1, tuple(values[name] for name in columns)))
    return rows


def _row_values(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    def mean(name: str) -> analysis.Mean | None:
        return mean_of(getattr(e, name) for e in evaluations)

    def share(name: str, digits: int) -> str:
        return percent(found.mean if (found := mean(name)) else None, digits)

    return {
        "gold reward": with_sd(mean("gold_reward")),
        "RM score, sd": with_sd(mean("rm_score")),
        "audit score, sd": with_sd(mean("audit_score")),
        "ranked alike": share("audit_agreement", 0),
        "KL to SFT, nats": with_sd(mean("kl_to_sft"), 1),
        "on-policy accuracy": accuracy_cell(evaluations),
        "held-out accuracy": share("offline_accuracy", 1),
        "reward variance": with_sd(mean("reward_variance")),
        "tokens": with_sd(mean("response_tokens"), 1),
        "ended": share("ended_share", 0),
    }


def _audit_rows(comparison: Comparison) -> list[Row]:
    """The SFT start and every arm's last policy under both reward models; none without an audit model."""
    if not comparison.has_audit:
        return []
    groups = [("SFT start", -1, 0, [start.evaluation for start in comparison.starts])]
    groups += [
        (arm, index, comparison.rounds, [run.final for run in comparison.of_arm(arm)])
        for index, arm in enumerate(comparison.arms)
    ]
    return [Row(arm, index, round_, _audit_values(evaluations)) for arm, index, round_, evaluations in groups]


def _audit_values(evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    means = {
        name: mean_of(getattr(e, name) for e in evaluations)
        for name in ("audit_agreement", "offline_accuracy", "audit_accuracy")
    }
    alike, first, second = (percent(mean.mean if mean else None, 1) for mean in means.values())
    return (
        with_sd(mean_of(e.rm_score for e in evaluations)),
        with_sd(mean_of(e.audit_score for e in evaluations)),
        alike,
        with_sd(mean_of(e.audit_correlation for e in evaluations)),
        first,
        second,
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

    decision = f"{sum(gate.accepted for gate in gates)} of {sum(gate.refreshed for gate in gates)}"
    if len(gates) == 1:
        decision = gate_decision(gates[0])
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
    pairs: str
    is_small: bool
    longer: str
    arms: tuple[str, ...]


def _source_rows(rows: Sequence[analysis.SourceShare], shown: int) -> list[SourceRow]:
    """With the cells of the first few arms: of one where all have one reward model."""
    return [
        SourceRow(
            row.source,
            f"{row.pairs:,}",
            row.is_small,
            percent(row.longer_wins, 1),
            tuple(percent(value, 1) for value in row.arms[:shown]),
        )
        for row in rows
    ]


def _all_sources(comparison: Comparison, rated: Sequence[str]) -> SourceRow:
    """The whole test split: below, a pair counts for both of its writers."""
    last = comparison.runs[0].final
    accuracies = [finals(comparison, arm, attrgetter("offline_accuracy")) for arm in rated]
    return SourceRow(
        "all pairs",
        number(None) if last.offline_pairs is None else f"{last.offline_pairs:,}",
        False,
        percent(last.longer_wins_accuracy, 1),
        tuple(percent(mean.mean if mean else None, 1) for mean in accuracies),
    )


@dataclass(frozen=True)
class DataTable:
    """A part of the data's statistics as columns and rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int = 0


def statistics_tables(statistics: Mapping[str, Any]) -> list[DataTable]:
    """Statistics of any nesting as tables: plain values together, then a table per mapping, the narrow ones first."""
    words = {name: statistics[f"{name}_words"] for name in ("chosen", "rejected") if f"{name}_words" in statistics}
    rest = {name: value for name, value in statistics.items() if name.removesuffix("_words") not in words}
    if words:
        rest["words_per_answer"] = words
    return sorted(_tables("", rest), key=lambda table: len(table.columns) > NARROW_COLUMNS)


def _tables(title: str, value: Mapping[str, Any]) -> list[DataTable]:
    """One mapping as tables: of its plain values, and of what is nested in it.

    Where every value is a mapping of something to show, they are the rows of one table.
    """
    given = {name: _by_place(item) for name, item in value.items()}
    nested = {name: item for name, item in given.items() if isinstance(item, Mapping)}
    facts = {name: _facts(item) for name, item in nested.items()}
    if title and nested and len(nested) == len(given) and any(facts.values()):
        columns = list(dict.fromkeys(column for item in facts.values() for column in item))
        rows = [(name, *(_cell(column, item.get(column)) for column in columns)) for name, item in facts.items()]
        return [_bounded(title, ("", *map(_words, columns)), rows)]
    plain = [(_words(name), _cell(name, item)) for name, item in given.items() if name not in nested]
    tables = [_bounded(title or "the whole set", ("", "value"), plain)] if plain else []
    for name, item in nested.items():
        tables += _tables(f"{title}: {_words(name)}" if title else _words(name), item)
    return tables


def _by_place(value: Any) -> Any:
    """A list of mappings as a mapping, so that it becomes a table of its own."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
        return {str(place): item for place, item in enumerate(value, start=1)}
    return value


def _words(name: str) -> str:
    return name.replace("_", " ")


def _bounded(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> DataTable:
    return DataTable(title, columns, tuple(rows[:MOST_TABLE_ROWS]), max(0, len(rows) - MOST_TABLE_ROWS))


def _facts(item: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a group that fit a table: of a distribution its mean; counts by something else are left out."""
    facts: dict[str, Any] = {}
    for name, value in item.items():
        if not isinstance(_by_place(value), Mapping):
            facts[name] = value
        elif isinstance(value, Mapping) and "mean" in value:
            facts[f"mean_{name}"] = value["mean"]
    return facts


def _cell(name: str, value: Any) -> str:
    if value is None or value == []:
        return number(None)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return percent(value, 1) if name in SHARES else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_cell(name, item) for item in value[:MOST_LISTED])
        return f"{shown}, … ({len(value)})" if len(value) > MOST_LISTED else shown
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key))} {_cell(str(key), item)}" for key, item in value.items())
    return str(value)
