"""A full device outside of the store: three lines as well, and what only remembers does without."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import USER_ERROR, Verbs
from tasks import external

FULL = Path("/dev/full")  # every write to it ends in a real ENOSPC
pytestmark = pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no /dev/full")


def test_a_report_without_room_is_said_in_three_lines() -> None:
    app = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)

    @app.command()
    def report() -> None:
        FULL.write_text("a page")

    @app.command()
    def other() -> None:
        Path("/no/such/folder").write_text("a page")

    result = CliRunner().invoke(app, ["report"])
    assert result.exit_code == USER_ERROR
    lines = result.stderr.splitlines()
    assert lines[0] == "error: no room left on the device" and lines[1] == f"  where: {Path.cwd()}"
    assert lines[2].startswith("  fix:   free space there") and len(lines) == 3
    assert isinstance(CliRunner().invoke(app, ["other"]).exception, FileNotFoundError)


def test_hashes_that_cannot_be_remembered_are_made_again(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("a pair")
    (tmp_path / "taken").write_text("a file where the cache should be")
    first = external.data_file(str(file), "data.sources[0].path", tmp_path / "taken")
    assert external.data_file(str(file), "data.sources[0].path", tmp_path / "cache").digest == first.digest
