"""One case: how a project is spoilt, what must be said about it, and the verdict on what was said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.bad_input.project import Project, Said

MOST_SECONDS = 10.0
USER_ERROR = 2
FORM = ("error: ", "  where: ", "  fix:   ")


@dataclass(frozen=True)
class Case:
    """Bad input, and what the one error about it must name.

    Attributes:
        name: of the case, for `--only`.
        spoil: brings the mistake into a project that has run.
        what: parts of what is wrong.
        where: parts of where: file, row and field, or the configuration key.
        fix: parts of what to do.
        arguments: the command a user would give.
        wrap: a command to run it in, and why it cannot be had here, if so.
    """

    name: str
    spoil: Callable[[Project], object]
    what: tuple[str, ...]
    where: tuple[str, ...]
    fix: tuple[str, ...]
    arguments: tuple[str, ...] = ("run",)
    wrap: Callable[[Project], tuple[str, ...]] | None = None
    skip: Callable[[], str | None] = field(default=lambda: None)


@dataclass(frozen=True)
class Control:
    """The same mistakes under `on_bad_row: drop`: the run goes on, and the statistics count the rows by reason.

    Attributes:
        name: of the control.
        spoil: brings mistakes into a project, and a source that drops them.
        source: whose rows they are.
        dropped: how many rows are dropped, by reason.
    """

    name: str
    spoil: Callable[[Project], object]
    source: str
    dropped: dict[str, int]


def unclear(case: Case, said: Said) -> list[str]:
    """What keeps a refusal from being clear; nothing, if a person can act on it."""
    faults: list[str] = []
    if said.code != USER_ERROR:
        faults.append(f"exit code {said.code}, not {USER_ERROR}")
    if "Traceback" in said.out + said.err:
        faults.append("a traceback")
    printed = said.err.strip("\n").split("\n")
    if len(printed) != len(FORM) or not all(map(str.startswith, printed, FORM)):
        return [*faults, f"{len(printed)} lines instead of error, where and fix"]
    for wanted, line, prefix in zip((case.what, case.where, case.fix), printed, FORM, strict=True):
        part, text = prefix.strip(" :"), line.removeprefix(prefix)
        faults += [f"{part} does not name {fragment!r}" for fragment in wanted if fragment not in text]
        if not text.strip():
            faults.append(f"{part} is empty")
    if said.seconds > MOST_SECONDS:
        faults.append(f"{said.seconds:.1f} s to the message, more than {MOST_SECONDS:g}")
    return faults
