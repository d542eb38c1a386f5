"""Results files: one JSON object a line for everything that has finished, appended as it does.

Of the bake-off a row is of one (heterogeneity, seed, arm), of studies that go seed by seed of one seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bakeoff.plan import Arm, Unit
from inverse_alignment.core.artifact import canonical_json, sha256_text
from inverse_alignment.core.fingerprint import code_digest
from inverse_alignment.stages.registry import STAGES

ROOT = Path(__file__).parents[2]
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


def commit() -> str:
    """The commit that is checked out."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def digest_of(stages: Sequence[str], settings: Any) -> str:
    """Of the code of the stages that a study runs, and its settings: rows of another digest are of something else."""
    reached = [code_digest(STAGES[stage].module) for stage in stages]
    return sha256_text(canonical_json({"stages": reached, "plan": settings}))[:16]


def asked(prog: str, description: str | None, seeds: int, folder: Path, rows: Path) -> argparse.Namespace:
    """The command line of a study that goes seed by seed; `folder` is its scratch."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--seeds", type=int, default=seeds, help=f"seeds from 0 on ({seeds})")
    parser.add_argument("--folder", type=Path, default=folder, help="scratch")
    parser.add_argument("--rows", type=Path, default=rows, help="results file; a seed that it has is not run again")
    return parser.parse_args()


def by_seed(given: argparse.Namespace, code: str, run: Callable[[int, Path], dict[str, Any]]) -> list[dict[str, Any]]:
    """What was found of every seed: as a row of this digest says, or as `run` finds in a scratch folder of its own."""
    rows = {row["seed"]: row for row in read(given.rows) if row["code"] == code}
    for seed in range(given.seeds):
        if seed not in rows:
            print(f"seed {seed}", file=sys.stderr)
            found = run(seed, given.folder / f"s{seed}")
            rows[seed] = {"seed": seed, "code": code, "commit": commit(), "found": found}
            append(given.rows, rows[seed])
    return [rows[seed]["found"] for seed in range(given.seeds)]
