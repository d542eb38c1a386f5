"""Rebuild a recorded pipeline in an empty store and say what came out again; the verb `verify`."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from tasks import run_stage
from tasks.display import Display
from tasks.run_stage import Flow
from tasks.verify import Status, Verdict, needed_for
from tasks.verify import verify as rebuild

COLOURS: dict[Status, str] = {"same bytes": "green", "within tolerances": "yellow", "differs": "red"}


def verify(
    flow: Flow, config: PipelineConfig, nodes: Sequence[str], store: Path | None, out: Path | None, console: Console
) -> bool:
    """Whether everything that was recorded came out again; what did not is printed metric by metric.

    Args:
        flow: the pipeline of `config`.
        config: its runtime says where and how the stages run.
        nodes: which to verify, with what they need; none for all.
        store: an empty folder that keeps what is built; None for one that goes afterwards.
        out: a file that gets the verdicts as JSON.
        console: where to print.
    """
    require_writable(out)
    with _empty(store) as root:
        execute = run_stage.Execute(Store(root), config.runtime)
        total = len(needed_for(run_stage.draw(flow, execute.stages), nodes))
        with Display(total, console) as display, run_stage.observing(display):
            verdicts = list(rebuild(flow, Path(), execute, nodes))
    for verdict in verdicts:
        _print(verdict, console)
    counts = Counter(verdict.status for verdict in verdicts)
    console.print(", ".join(f"{counts[status]} {status}" for status in COLOURS), highlight=False)
    if out:
        out.write_text(json.dumps([_as_json(verdict) for verdict in verdicts], indent=1) + "\n", encoding="utf-8")
    return counts["differs"] == 0


def require_writable(out: Path | None) -> None:
    """Refuse a file that cannot be written before anything is built.

    Raises:
        UserError: its folder cannot be made.
    """
    try:
        if out:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.touch()
    except OSError as error:
        raise UserError(
            f"the verdicts cannot be written there: {error.strerror}", where=f"--json {out}", fix="name another file"
        ) from error


@contextmanager
def _empty(store: Path | None) -> Iterator[Path]:
    if store is not None:
        yield store.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        yield Path(folder)


def _print(verdict: Verdict, console: Console) -> None:
    status = f"[{COLOURS[verdict.status]}]{verdict.status}[/]"
    console.print(f"{verdict.node}: {status}, {len(verdict.rows)} metrics; {verdict.why}", highlight=False)
    if verdict.status == "same bytes":
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("metric", "recorded", "rebuilt", "may differ by", ""):
        table.add_column(column, overflow="fold")
    for row in verdict.rows:
        reproduced = "reproduced" if row.reproduced else "[red]not reproduced[/]"
        table.add_row(row.metric, _short(row.recorded), _short(row.rebuilt), str(row.tolerance), reproduced)
    console.print(table)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _as_json(verdict: Verdict) -> dict[str, Any]:
    rows = [{**asdict(row), "tolerance": asdict(row.tolerance)} for row in verdict.rows]
    return {**asdict(verdict), "rows": rows}
