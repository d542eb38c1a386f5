"""The verb `report`: the page of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inverse_alignment.core.errors import UserError
from inverse_alignment.report.comparison import FILE, PAGE, Comparison, load

if TYPE_CHECKING:
    from rich.console import Console

    from inverse_alignment.core.store import Store

LEAST_PREFIX = 6


def report(runs: Sequence[str], store: Store, report_dir: Path, console: Console) -> None:
    """Write the page and print what its first screen says.

    Args:
        runs: each a report's folder, an artifact's folder or the beginning of its fingerprint, with `NAME=` before it
            where it is to have a name of its own.

    Raises:
        UserError: a run is not there or cannot be read, or several cannot be compared.
    """
    from inverse_alignment.report.costs import spent
    from inverse_alignment.report.merge import merged
    from inverse_alignment.report.mismatch import four_answers
    from inverse_alignment.report.page import render

    comparison = merged(_named(runs, store))
    report_dir.mkdir(parents=True, exist_ok=True)
    (report_dir / PAGE).write_text(render(comparison, spent(comparison, store.root)), encoding="utf-8")
    for question, answer in four_answers(comparison):
        console.print(f"{question} {answer}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report    {report_dir / PAGE}", markup=False, highlight=False, soft_wrap=True)


def _named(runs: Sequence[str], store: Store) -> dict[str, Comparison]:
    found: dict[str, Comparison] = {}
    for given in runs:
        name, equals, where = given.rpartition("=")
        folder = _folder(where, store)
        label = name if equals else folder.name[:12]
        if label in found:
            raise UserError(f"two runs are called '{label}'", where=given, fix=f"name one: OTHER={where}")
        found[label] = load(folder)
    return found


def _folder(given: str, store: Store) -> Path:
    """Where a comparison lies."""
    if (Path(given) / FILE).is_file():
        return Path(given)
    if len(given) >= LEAST_PREFIX:
        matching = sorted((store.root / "compare").glob(f"{given}*/{FILE}"))
        if len(matching) == 1:
            return matching[0].parent
    raise UserError(
        f"no run at {given}",
        where="RUN",
        fix=f"name a report's folder with a {FILE}, as --report-dir has it, or an artifact of the stage compare",
    )
