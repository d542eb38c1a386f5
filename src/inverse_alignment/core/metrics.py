"""Metrics are returned and reported; nobody inside `src` calls a tracker."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

METRICS_EVERY = 10
"""Steps between two rows of a trainer's metrics."""

Listener = Callable[[int, int, str, Mapping[str, float]], None]


class Report(Protocol):
    """Where a running stage says how far it is and what it measured."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values at a step. Values must not depend on time or place."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Say that `done` of `total` units of work are finished."""

    def stopping(self) -> bool:
        """Whether the stage is asked to write a checkpoint now and end with `Stopped`."""


class Stopped(Exception):
    """A stage was asked to stop, and did so after a checkpoint: run again, it goes on from there."""


def never() -> bool:
    """Nobody asks a stage to stop."""
    return False


def ignore(done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
    """A listener that does not listen."""


@dataclass
class FileReport:
    """Appends one JSON object a line to `path` and passes progress, with the newest values, to a listener."""

    path: Path
    listener: Listener = ignore
    asked_to_stop: Callable[[], bool] = never

    def __post_init__(self) -> None:
        self._newest: dict[str, float] = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Report.log`. A value that is not finite is written as null."""
        row = {name: (value if math.isfinite(value) else None) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}, sort_keys=True) + "\n")
        self._newest = dict(values)

    def progress(self, done: int, total: int, unit: str) -> None:
        """See `Report.progress`."""
        self.listener(done, total, unit, self._newest)

    def stopping(self) -> bool:
        """See `Report.stopping`."""
        return self.asked_to_stop()


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the rows after `step`, and all from one that is damaged or cut short: a resumed stage writes them again."""
    if not path.exists():
        return
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = [line for line in takewhile(_is_row, whole) if json.loads(line)["step"] <= step]
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.rename(path)  # never half a file, whenever we are killed


def _is_row(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and isinstance(row.get("step"), int)


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The rows of a metrics file, oldest first; empty if a stage reported nothing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
