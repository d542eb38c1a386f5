"""A stored comparison -> the table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inverse_alignment.report import costs
from inverse_alignment.report.analysis import NOT_YET, mean_of, number, seeds_label, with_sd
from inverse_alignment.report.comparison import Comparison, Evaluation, Gate, Round, load

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_tables(comparison_folder: Path, store: Path, console: Console) -> None:
    """Print one row per arm and round, one seed as it is, several as mean ± sd; and what every arm cost.

    Raises:
        UserError: the comparison is missing or cannot be read.
    """
    comparison = load(comparison_folder)
    console.print(table(comparison))
    console.print(costs.table(comparison, costs.spent(comparison, store)))


def table(comparison: Comparison) -> Table:
    """The comparison as a table."""
    from rich import box
    from rich.table import Table

    n = len(comparison.seeds)
    spread = "" if n == 1 else ", mean ± sd"
    shown = Table(
        title=f"{comparison.title} ({seeds_label(n)}{spread})",
        caption="on-policy accuracy: before → after a refresh, on the answers that its round began with; "
        "one number where nothing was refreshed: on the answers of the round's last policy",
        box=box.SIMPLE_HEAD,
        title_style="bold",
    )
    shown.add_column("arm")
    shown.add_column("round", justify="right")
    for name in columns(comparison):
        shown.add_column(name, justify="right")
    shown.add_column("gate")
    shown.add_row("SFT start", "0", *cells(comparison, [start.evaluation for start in comparison.starts]), NOT_YET)
    for arm in comparison.arms:
        shown.add_section()
        for index in range(comparison.rounds):
            rounds = [run.rounds[index] for run in comparison.of_arm(arm)]
            label = _plain(arm) if index == 0 else ""
            shown.add_row(label, str(index + 1), *cells(comparison, [r.evaluation for r in rounds]), gate_cell(rounds))
    return shown


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def columns(comparison: Comparison) -> tuple[str, ...]:
    """What `cells` holds. An audit score stands beside gold, or in its place where there is no gold; the probe, what
    alignment cost elsewhere, only where there is one."""
    first = ("audit score",) if comparison.has_audit and not comparison.has_gold else ("gold reward",)
    audit = ("audit score",) if comparison.has_audit and comparison.has_gold else ()
    probe = ("probe, nats per token",) if any(run.final.probe_nll is not None for run in comparison.runs) else ()
    return (*first, "RM score", *audit, "KL to SFT, nats", "on-policy accuracy", *probe)


def cells(comparison: Comparison, evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    """The columns over the seeds of one row; on-policy accuracy before → after the refresh."""
    shown = {
        "gold reward": with_sd(mean_of(e.gold_reward for e in evaluations)),
        "audit score": with_sd(mean_of(e.audit_score for e in evaluations)),
        "RM score": with_sd(mean_of(e.rm_score for e in evaluations)),
        "KL to SFT, nats": with_sd(mean_of(e.kl_to_sft for e in evaluations), 1),
        "on-policy accuracy": accuracy_cell(evaluations),
        "probe, nats per token": with_sd(mean_of(e.probe_nll for e in evaluations), 3),
    }
    return tuple(shown[name] for name in columns(comparison))


def accuracy_cell(evaluations: Sequence[Evaluation]) -> str:
    """`before → after` on the frozen policy's answers where there was a refresh, else this policy's own accuracy."""
    before = mean_of(e.on_policy_accuracy_before for e in evaluations)
    after = mean_of(e.on_policy_accuracy_after for e in evaluations)
    if before and after:
        return f"{number(before.mean)} → {number(after.mean)}"
    return with_sd(mean_of(e.on_policy_accuracy for e in evaluations))


def gate_cell(rounds: Sequence[Round]) -> str:
    """The gate's decision of one seed, or how many seeds accepted."""
    gates = [round_.gate for round_ in rounds if round_.gate]
    if not gates:
        return NOT_YET
    if len(gates) == 1:
        return gate_word(gates[0])
    return f"{sum(gate.accepted for gate in gates)} of {sum(gate.refreshed for gate in gates)} accepted"


def gate_decision(gate: Gate) -> str:
    """`accepted`, `kept old`, `no gate`, or `not due` where the trigger asked for no refresh."""
    if not gate.refreshed:
        return "not due"
    if gate.gate == "off":
        return "no gate"
    return "accepted" if gate.accepted else "kept old"


def gate_word(gate: Gate) -> str:
    """The decision, with the gain where a gate looked at it: `accepted +0.031`."""
    word, judged = gate_decision(gate), gate.refreshed and gate.gate != "off"
    return f"{word} {number(gate.gain, 3, sign=True)}" if judged and gate.gain is not None else word
