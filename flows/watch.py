"""The verb `watch`: the curves of a run while it goes on, in the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inverse_alignment.core.artifact import METRICS
from inverse_alignment.core.errors import UserError, nearest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tasks.run_stage import Plan, Planned

BARS = "▁▂▃▄▅▆▇█"
WIDTH, EVERY_SECONDS = 48, 2.0
SHOWN = (
    *("rm_score", "look_audit_score", "look_reward_variance", "look_disagreement", "look_ess", "kl", "tokens"),
    *("length_correlation", "refusal_share", "common_opening_share", "distinct_2", "ended_share", "entropy", "loss"),
)


@dataclass(frozen=True)
class Watched:
    """What is known of a run now.

    Attributes:
        rows: of its metrics files, oldest first.
        finished: how many of its nodes are done.
        nodes: how many it has.
    """

    rows: list[dict[str, Any]]
    finished: int
    nodes: int


def watch(run: str, plan: Callable[[], Plan], console: Console, once: bool) -> None:
    """Show the curves until the run is done or somebody presses Ctrl-C.

    Args:
        run: a node of the plan, or an arm and seed (`none-s0`), whose rounds of PPO are then shown one after the other.
        plan: the plan as the store has it now.
        once: show it a single time.

    Raises:
        UserError: there is no such run.
    """
    from rich.live import Live

    seen = look(run, plan())
    if once or not console.is_terminal:
        console.print(curves(run, seen))
        return
    with Live(curves(run, seen), console=console, refresh_per_second=1) as live:
        while seen.finished < seen.nodes:
            time.sleep(EVERY_SECONDS)
            seen = look(run, plan())
            live.update(curves(run, seen))


def look(run: str, plan: Plan) -> Watched:
    """Read what the nodes of a run have reported, finished or not."""
    names = [run] if run in plan.planned else [name for name in plan.planned if _is_ppo_of(name, run)]
    if not names:
        runs = sorted({name.rpartition("-r")[0] for name in plan.planned if name.endswith("-ppo")})
        fix = nearest(run, [*runs, *plan.planned])
        raise UserError(f"no run '{run}' in the plan", where="RUN", fix=fix)
    rows: list[dict[str, Any]] = []
    for name in names:
        if folder := _folder(plan.planned[name], plan):
            rows += _rows(folder / METRICS)
    return Watched(rows, sum(plan.planned[name].status == "reuse" for name in names), len(names))


def _folder(item: Planned, plan: Plan) -> Path | None:
    """Where a node's metrics lie: in its artifact, or beside its checkpoints; None while it waits for others."""
    from tasks.run_stage import identify

    if item.entry:
        return Path(item.entry.artifact.uri)
    if any(artifact.pending for artifact in item.node.inputs.values()):
        return None
    return plan.store.partial(item.node.stage, identify(item.node, plan.stages))


def _is_ppo_of(name: str, run: str) -> bool:
    arm, _, rest = name.rpartition("-r")
    return arm == run and rest.endswith("-ppo")


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a file that somebody may be writing."""
    if not path.is_file():
        return []
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [json.loads(line) for line in whole if line.startswith("{") and line.endswith("}")]


def curves(run: str, seen: Watched) -> Table:
    """A line per metric: its last value, its range, and its curve."""
    from rich import box
    from rich.table import Table

    step = seen.rows[-1]["step"] if seen.rows else 0
    title = f"{run}: step {step}, {seen.finished} of {seen.nodes} done"
    table = Table(title=title, box=box.SIMPLE_HEAD, caption=None if seen.rows else "nothing reported yet")
    for column in ("metric", "now", "curve", "least", "most"):
        table.add_column(column, justify="left" if column in ("metric", "curve") else "right")
    for name in SHOWN:
        values = [row[name] for row in seen.rows if row.get(name) is not None]
        if values:
            table.add_row(name, _number(values[-1]), sparkline(values), _number(min(values)), _number(max(values)))
    return table


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """At most `width` bars from the least to the greatest value; a bar is the mean of the values it stands for."""
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    top = len(BARS) - 1
    return "".join(BARS[round(top * (mean - low) / (high - low)) if high > low else top // 2] for mean in means)


def _number(value: float) -> str:
    return f"{value:.3g}"
