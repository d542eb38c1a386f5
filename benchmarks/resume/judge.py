"""Runs a case and says what became of it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.resume.cases import Case
from benchmarks.resume.project import Project, Ran, create, differing, graph, needed
from inverse_alignment.core import checkpoint


@dataclass(frozen=True)
class Base:
    """A project that nothing interrupted, and where each node's artifact lies in its store."""

    project: Project
    made: dict[str, str]


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes:
        kills: processes that died of SIGKILL.
        differing: files that differ from those of the run that nothing interrupted.
        faults: what else is not as it has to be.
        began: see `Case.began`.
        message: what was said about damaged checkpoints.
    """

    case: Case
    kills: int
    differing: tuple[str, ...]
    faults: tuple[str, ...]
    began: int | None = None
    message: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the bytes are those of the straight run; for a control, whether they are not."""
        return not self.faults and bool(self.differing) == bool(self.case.defect)

    def facts(self) -> dict[str, Any]:
        """As an item of `cases`."""
        return {
            **self.case.facts(),
            "kills": self.kills,
            "went_on_after": self.began,
            "said": list(self.message),
            "differing": list(self.differing),
            "faults": list(self.faults),
        }


def straight(folder: Path, cases: Sequence[Case]) -> Base:
    """Run everything that the cases need, without interruption.

    Raises:
        RuntimeError: it did not end well, so that nothing can be judged by it.
    """
    project = create(folder)
    made: dict[str, str] = {}
    for target in sorted({case.target for case in cases}):
        ran = project.run(target)
        if ran.code != 0:
            raise RuntimeError(f"the straight run of {target} ended with {ran.code}:\n{ran.printed}")
        made |= ran.made
    return Base(project, made)


def judge(case: Case, base: Base, folder: Path) -> Result:
    """Kill a run in a copy of the project without the target, let it go on, and compare the bytes."""
    absent = {case.target, *case.absent}
    project = base.project.clone(folder, base.made, needed(graph(base.project), [case.target]) - absent)
    result = _gone_on(case, project, base)
    shutil.rmtree(folder)
    return result


def _gone_on(case: Case, project: Project, base: Base) -> Result:
    for number, point in enumerate(case.kills):
        ran = project.run(case.target, (point,), checkpoint_seconds=case.checkpoint_seconds)
        if ran.code != -signal.SIGKILL:
            fault = f"{point} did not kill it: exit code {ran.code}: {ran.printed[-600:]}"
            return Result(case, number, (), (fault,))
    expected = _spoil(case, project)
    ran = project.run(case.target, case.defect)
    places = sorted({base.made[name] for name in (case.target, *case.absent) if name in base.made})
    return Result(
        case,
        len(case.kills),
        tuple(f"{place}/{name}" for place in places for name in _differing(base.project, project, place)),
        tuple(_unlike(case, ran, expected)),
        ran.began.get(case.target),
        tuple(line for line in ran.printed.splitlines() if " is passed over: " in line),
    )


def _spoil(case: Case, project: Project) -> list[str]:
    """Damage what the kill left; the parts of the messages that have to name it."""
    if case.damage is None:
        return []
    (partial,) = (project.store.root / ".partial").glob("*/*")
    before, newest = (partial / f"checkpoint-{step}" for step in checkpoint.steps(partial)[-2:])
    spoilt = [(case.damage, newest, before)]
    if case.damage_before:
        spoilt.append((case.damage_before, before, newest))
    for damage, place, other in spoilt:
        damage.apply(place, other)
    return [
        f"{place.name} is passed over: {damage.file.removeprefix('../')}|{damage.said}"
        for damage, place, _ in spoilt
        if damage.said
    ]


def _unlike(case: Case, ran: Ran, expected: Sequence[str]) -> list[str]:
    """What is wrong with how the last attempt went."""
    faults = [] if ran.code == 0 else [f"it did not go on: exit code {ran.code}: {ran.printed[-600:]}"]
    if ran.began.get(case.target) != case.began:
        faults.append(f"it went on after {ran.began.get(case.target)}, not {case.began}")
    for parts in expected:
        if not any(all(part in line for part in parts.split("|")) for line in ran.printed.splitlines()):
            faults.append(f"nothing says {parts.replace('|', ' ... ')!r}")
    return faults


def _differing(base: Project, project: Project, place: str) -> list[str]:
    expected, found = base.store.root / place, project.store.root / place
    return differing(expected, found) if found.is_dir() else ["artifact.json"]
