"""What the verbs of `data` do: look at files, and write the card of a preference set."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape

from flows.inspected import WIDTH, show
from inverse_alignment.core.errors import UserError
from inverse_alignment.data import files
from inverse_alignment.data.inspection import Inspection, names_for, read_together
from inverse_alignment.data.inspection import inspect as inspect_file

if TYPE_CHECKING:
    from inverse_alignment.config import PipelineConfig
    from tasks.run_stage import Flow

POOLED = "aggregate"  # the node that pools all sources
MOST_FILES = 60  # of a folder; the others are named


def inspect(given: Sequence[Path], most_rows: int, seconds: float, as_json: bool) -> bool:
    """Look at files, and at the files in folders, and print what they are.

    Returns:
        Whether every one of them could be read.
    """
    console = _console()
    paths: list[Path] = []
    others: list[Path] = []
    for path in given:
        inside, besides = files.find(path)
        paths += inside[:MOST_FILES]
        others += [*inside[MOST_FILES:], *besides]
    found: list[Inspection] = []
    with console.status("") as status:
        for place, (path, name) in enumerate(zip(paths, names_for(paths), strict=True), start=1):
            status.update(f"reading {escape(path.name)}, {place} of {len(paths)}")
            found.append(inspect_file(path, name, most_rows, seconds))
    if as_json:
        typer.echo(json.dumps({"files": [_as_json(each) for each in found], "not_looked_at": list(map(str, others))}))
    else:
        together = [source for path in given if path.is_dir() for source in read_together(path, found)]
        with console.capture() as printed:
            show(found, together, [str(path) for path in others], console)
        typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))
    return not any(each.fault for each in found)


def write_card(config: PipelineConfig, flow: Flow, out: Path, console: Console) -> None:
    """Pool the data of a flow, or find them pooled, and write the page of what they are made of.

    Raises:
        UserError: the page cannot be written there, or the data cannot be pooled.
    """
    from inverse_alignment.core.store import open_store
    from inverse_alignment.data.aggregate import STATISTICS
    from inverse_alignment.report.card import render
    from tasks import run_stage
    from tasks.display import Display

    _require_writable(out)  # now, not after pooling
    execute = run_stage.Execute(open_store(config.store), config.runtime)
    needed = run_stage.ancestors(run_stage.draw(flow), POOLED)
    with Display(len(needed) + 1, console) as display, run_stage.observing(display):
        _, entry = run_stage.run_up_to(flow, POOLED, execute)
    statistics = json.loads((execute.store.local(entry.artifact) / STATISTICS).read_text(encoding="utf-8"))
    out.write_text(render(statistics), encoding="utf-8")
    console.print(f"data card {out}", markup=False, highlight=False, soft_wrap=True)


def _require_writable(page: Path) -> None:
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        why = "it is a folder" if page.is_dir() else "" if os.access(page.parent, os.W_OK) else "no permission"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise UserError(f"the page cannot be written there: {why}", where=f"--out {page}", fix="name another file")


def _console() -> Console:
    width = Console().width if Console().is_terminal else WIDTH
    return Console(width=min(width, WIDTH))


def _as_json(found: Inspection) -> dict[str, Any]:
    return {**asdict(found), "snippet": found.snippet}
