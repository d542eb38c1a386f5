"""What arms cost beside what they gained: gold where all have gone equally far, time, tokens and memory.

Time and memory depend on the machine, so that no artifact holds them; they lie beside each artifact in the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inverse_alignment.core.artifact import METRICS, RECORD, RUNTIME
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.report.analysis import Mean, mean_of, number, with_sd
from inverse_alignment.report.comparison import Comparison, Run

if TYPE_CHECKING:
    from rich.table import Table

STAGES = ("select", "refresh", "ppo", "direct")
"""What an arm is paid for here. Left out: evaluations; rollouts, which SELM and IRFT learn from and others look at;
and the first reward model, which all arms of a seed share and a direct method may not need."""
COLUMNS = ("gold at equal KL", "KL to SFT, nats", "seconds", "answer tokens", "peak memory, GiB")


@dataclass(frozen=True)
class Spent:
    """What one run of an arm took; None where the store does not tell.

    Attributes:
        seconds: of selecting, refreshing and optimising, in the attempt that finished each.
        tokens: of answers that the policy learned from: those that PPO sampled, however many passes it makes over them,
            and those that a direct method was shown, in every pass.
        peak_gib: the most memory that one of these stages held, on the GPU if there is one.
    """

    seconds: float | None
    tokens: int | None
    peak_gib: float | None


def spent(comparison: Comparison, store: Path) -> dict[tuple[str, int], Spent]:
    """What every run took, by arm and seed.

    Args:
        store: folder of the store, or of its local copy.
    """
    return {(run.arm, run.seed): _spent(comparison, run, store) for run in comparison.runs}


def _spent(comparison: Comparison, run: Run, store: Path) -> Spent:
    names = [f"{stage}.{run.arm}.s{run.seed}.r{one.round}" for one in run.rounds for stage in STAGES]
    folders = [
        store / name.partition(".")[0] / comparison.lineage[name].fingerprint
        for name in names
        if name in comparison.lineage
    ]
    times = [_read(folder / RUNTIME) for folder in folders]
    return Spent(
        _all(sum, [time.get("seconds") for time in times]),
        _all(sum, [_tokens(folder) for folder in folders if folder.parent.name in ("ppo", "direct")]),
        _all(max, [time.get("gpu_peak_gib") or time.get("peak_gib") for time in times]),
    )


def _all(combine: Callable[[Any], Any], values: Sequence[Any]) -> Any:
    """Of values that are all there; else None."""
    return None if None in values or not values else combine(values)


def _tokens(folder: Path) -> Any:
    """Of a round of PPO the tokens of the answers that it sampled, which it learns from; else what the stage says."""
    record = _read(folder / RECORD)
    if folder.parent.name == "direct" or not record:
        return record.get("metrics", {}).get("tokens")
    batch = record["identity"]["config"]["ppo"]["batch_size"]
    rows = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else []
    means = [float(row["tokens"] or 0) for row in rows if "tokens" in row]
    return round(batch * sum(means)) if means else None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def equal_kl(comparison: Comparison) -> float:
    """The KL that every run has reached at the end of some round: the least of the farthest, nats."""
    return min(max(one.evaluation.kl_to_sft for one in run.rounds) for run in comparison.runs)


def gold_at(comparison: Comparison, run: Run, kl: float) -> float | None:
    """Gold on held-out prompts where a run first reaches a KL, linear between the ends of its rounds; None: never."""
    from inverse_alignment.maths.trajectories import at_first_reach

    (start,) = (one.evaluation for one in comparison.starts if one.seed == run.seed)
    ends = [start, *(one.evaluation for one in run.rounds)]
    golds = [one.gold_reward for one in ends]
    known = [gold for gold in golds if gold is not None]
    if len(known) < len(golds):
        return None
    return at_first_reach([0.0, *(one.kl_to_sft for one in ends[1:])], known, kl)


def rows(comparison: Comparison, taken: Mapping[tuple[str, int], Spent]) -> list[tuple[str, ...]]:
    """`COLUMNS` of every arm, over seeds."""
    kl = equal_kl(comparison)
    found: list[tuple[str, ...]] = []
    for arm in comparison.arms:
        runs = comparison.of_arm(arm)
        cost = [taken[run.arm, run.seed] for run in runs]
        peak = [one.peak_gib for one in cost]
        found.append(
            (
                with_sd(mean_of(gold_at(comparison, run, kl) for run in runs)),
                with_sd(mean_of(run.final.kl_to_sft for run in runs), 1),
                with_sd(mean_of(one.seconds for one in cost), 0),
                _whole(mean_of(one.tokens for one in cost)),
                number(_all(max, peak)),
            )
        )
    return found


def _whole(mean: Mean | None) -> str:
    return number(None) if mean is None else f"{mean.mean:,.0f}"


def caption(comparison: Comparison) -> str:
    """What the columns are."""
    return (
        f"Gold at equal KL: on held-out prompts, at {number(equal_kl(comparison))} nats, the most that every run "
        "reaches; linear between the ends of rounds. Seconds and memory: of selecting, refreshing and optimising, as "
        "measured where they ran; rollouts, evaluations and the first reward model are left out. Answer tokens: those "
        "that PPO sampled, or that a direct method was shown in all its passes."
    )


def table(comparison: Comparison, taken: Mapping[tuple[str, int], Spent]) -> Table:
    """The same for the terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title="What it cost", caption=caption(comparison), box=box.SIMPLE_HEAD, title_style="bold")
    shown.add_column("arm")
    for name in COLUMNS:
        shown.add_column(name, justify="right")
    for arm, cells in zip(comparison.arms, rows(comparison, taken), strict=True):
        shown.add_row(escape(arm), *cells)
    return shown


def cost_of(runs: Sequence[Run], taken: Mapping[tuple[str, int], Spent]) -> dict[str, list[float | None]]:
    """What `summary.json` holds of an arm's cost, in the order of the seeds."""
    cost = [taken[run.arm, run.seed] for run in runs]
    return {
        "seconds": [one.seconds for one in cost],
        "tokens": [one.tokens for one in cost],
        "peak_gib": [one.peak_gib for one in cost],
    }
