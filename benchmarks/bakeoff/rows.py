"""The results file: one JSON object a line for every finished (heterogeneity, seed, arm), appended as they finish."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.bakeoff.plan import Arm, Unit

Row = dict[str, Any]
Key = tuple[float, int, str]


def key_of(row: Row) -> Key:
    """Which unit and arm a row is of."""
    return row["heterogeneity"], row["seed"], row["arm"]


def read(path: Path) -> list[Row]:
    """All whole rows; a line that a kill cut short is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append(path: Path, row: Row) -> None:
    """One more row, on a line of its own even after one that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.seek(0, 2) and not _ends_a_line(file):
            file.write(b"\n")
        file.write(json.dumps(row, sort_keys=True).encode() + b"\n")


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def missing(rows: Iterable[Row], unit: Unit, arms: Iterable[Arm], code: str, digests: dict[str, str]) -> list[Arm]:
    """The arms of a unit that no row of this code and these settings is of; `digests` by the arms' names."""
    done = {(key_of(row), row["code"], row["config"]) for row in rows}
    return [arm for arm in arms if ((unit.heterogeneity, unit.seed, arm.name), code, digests[arm.name]) not in done]


def newest(rows: Iterable[Row]) -> list[Row]:
    """Of each unit and arm the last row."""
    return list({key_of(row): row for row in rows}.values())
