"""Several trainings one after another, of which none is done twice: the members of an ensemble, or of an average."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from inverse_alignment.core.artifact import METRICS
from inverse_alignment.core.checkpoint import fsync_folder, fsync_tree
from inverse_alignment.core.metrics import FileReport, Report, read_metrics, truncate_metrics
from inverse_alignment.core.parallel import group
from inverse_alignment.core.seeding import derive_seed

FINISHED, MEASURED = "finished", "measured.json"
M = TypeVar("M")


@dataclass(frozen=True)
class Member:
    """One training among several.

    Attributes:
        seed: of its head, its order of pairs, and what else chance decides.
        partial: where it keeps its checkpoints.
        report: what it measures; rows reach the stage's own report once it is finished.
    """

    number: int
    seed: int
    partial: Path
    report: Report


@dataclass(frozen=True)
class Trained:
    """Members that are finished.

    Attributes:
        folders: what each member saved.
        metrics: of the trainings together: steps added up, everything else averaged.
    """

    folders: list[Path]
    metrics: dict[str, Any]


def train_members(
    count: int,
    seed: int,
    partial: Path,
    report: Report,
    train: Callable[[Member], tuple[M, Mapping[str, float]]],
    save: Callable[[M, Path], None],
) -> Trained:
    """Train members in turn; a finished one is found again, and its rows are reported again.

    Args:
        seed: of the stage.
        partial: of the stage.
        train: trains a member, going on from its checkpoints; what it made, and what it measured.
        save: writes what a member made into a folder.
    """
    if group().rank == 0:
        truncate_metrics(partial / METRICS, 0)
    folders, measured, done = [], [], 0
    for number in range(count):
        home = partial / f"member-{number}"
        home.mkdir(parents=True, exist_ok=True)
        finished = home / FINISHED
        if not finished.is_dir():
            own = _OfMember(FileReport(home / METRICS), report, number, count)
            made, metrics = train(Member(number, derive_seed("member", seed, number), home, own))
            if group().rank == 0:
                _finish(lambda folder, made=made: save(made, folder), metrics, home)  # type: ignore[misc]
            group().wait()
        if group().rank == 0:
            done = _replay(home / METRICS, report, done)
            measured.append(json.loads((home / MEASURED).read_text()))
        folders.append(finished)
    return Trained(folders, _together(measured))


def drawn(count: int, seed: int) -> np.ndarray:
    """A bootstrap: `count` of `count` rows, with replacement, ascending."""
    generator = np.random.Generator(np.random.Philox(key=derive_seed("bootstrap", seed)))
    return np.sort(generator.integers(count, size=count))


@dataclass(frozen=True)
class _OfMember:
    """The report of one training among several: rows go to its own file, progress to whoever watches the stage."""

    own: FileReport
    stage: Report
    number: int
    count: int

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.own.log(step, values)

    def progress(self, done: int, total: int, unit: str) -> None:
        self.stage.progress(self.number * total + done, self.count * total, unit)

    def stopping(self) -> bool:
        return self.stage.stopping()


def _finish(save: Callable[[Path], None], metrics: Mapping[str, float], home: Path) -> None:
    """Write a member so that it is there whole or not at all."""
    import shutil

    aside = home / f".{FINISHED}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save(aside)
    (home / MEASURED).write_text(json.dumps(dict(metrics), sort_keys=True))
    fsync_tree(home)
    aside.rename(home / FINISHED)
    fsync_folder(home)
    for left in home.glob("checkpoint-*"):
        shutil.rmtree(left)


def _replay(path: Path, report: Report, before: int) -> int:
    """Report a member's rows as the stage's, after those of the members before; the last step."""
    last = before
    for row in read_metrics(path):
        values = {name: float("nan") if value is None else value for name, value in row.items() if name != "step"}
        last = before + int(row["step"] or 0)
        report.log(last, values)
    return last


def _together(measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    names = measured[0] if measured else {}
    summed = {name: float(np.sum([of_one[name] for of_one in measured])) for name in names if name == "steps"}
    return {name: summed.get(name, float(np.mean([of_one[name] for of_one in measured]))) for name in names}
