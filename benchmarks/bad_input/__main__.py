"""`python -m benchmarks.bad_input --json out.json`: is bad input refused so well that nobody reads a traceback?

Each case spoils a copy of a small project that has run, gives the command a user would give, and checks the three lines
that it prints, the exit code, the seconds to the message, and that nothing that was finished before is lost: every
artifact keeps its bytes, nothing half-written lies about, and with the mistake mended a run would reuse everything.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bad_input.case import Case, Control, unclear
from benchmarks.bad_input.data_cases import CONTROLS, FILES, POOLS, ROWS
from benchmarks.bad_input.model_cases import MODELS
from benchmarks.bad_input.project import Project, Said, copy, prepare
from benchmarks.bad_input.setting_cases import MACHINE, SETTINGS

CASES: tuple[Case, ...] = (*FILES, *ROWS, *POOLS, *MODELS, *SETTINGS, *MACHINE)
PROCESSES = 2


@dataclass(frozen=True)
class Result:
    """What became of one case or control.

    Attributes:
        name: its name.
        arguments: the command that was given.
        said: what it printed; None where the case could not be had on this machine.
        faults: what keeps it from being clear; for a control, what is wrong.
        lost: what was computed before and is lost, or left half-written.
        skipped: why it was not tried.
    """

    name: str
    arguments: tuple[str, ...]
    said: Said | None
    faults: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    skipped: str | None = None

    def detail(self) -> dict[str, Any]:
        """As an item of `details`."""
        said = self.said
        return {
            "name": self.name,
            "command": ["inverse-alignment", *self.arguments],
            "message": said.err.strip("\n").split("\n") if said else None,
            "exit_code": said.code if said else None,
            "seconds": round(said.seconds, 2) if said else None,
            "clear": said is not None and not self.faults,
            "faults": list(self.faults),
            "lost": list(self.lost),
            "skipped": self.skipped,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are asked for; 0 if all are clear and nothing is lost."""
    parser = argparse.ArgumentParser(prog="benchmarks.bad_input", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this case alone; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    given = parser.parse_args(arguments)
    every: tuple[Case | Control, ...] = (*CASES, *CONTROLS)
    names = [each.name for each in every]
    if given.list:
        print("\n".join(names))
        return 0
    if unknown := [name for name in given.only or () if name not in names]:
        parser.error(f"no case '{unknown[0]}'; --list names them")
    wanted = set(given.only or names)
    with tempfile.TemporaryDirectory(prefix="bad-input-") as folder:
        began = time.monotonic()
        base = prepare(Path(folder) / "base", print)
        before = base.plan()
        if before is None or before[0] != before[1]:
            raise RuntimeError(f"a sound project plans {before}, not to reuse all it has: nothing can be judged by it")
        print(f"{before[0]} stages are there after {time.monotonic() - began:.0f} s; the cases, two at a time:\n")
        results = run([each for each in every if each.name in wanted], base)
    summary = summarise(results)
    show(summary)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    skipped = len(summary["skipped"])
    return int(summary["clear"] + skipped < summary["cases"] or summary["lost"] > 0 or bool(summary["controls_failed"]))


def run(cases: Sequence[Case | Control], base: Project) -> list[Result]:
    """All cases, in their order; a line for each as it ends."""
    found: dict[str, Result] = {}
    with ThreadPoolExecutor(PROCESSES) as pool:
        waiting = {pool.submit(_tried, case, base): case.name for case in cases}
        for done in as_completed(waiting):
            result = done.result()
            found[result.name] = result
            print(line(len(found), len(cases), result), flush=True)
    return [found[case.name] for case in cases]


def line(done: int, total: int, result: Result) -> str:
    """One row of the table."""
    if result.said is None:
        verdict, seconds = f"skipped: {result.skipped}", ""
    else:
        verdict = "; ".join(result.faults) or "clear"
        seconds = f"{result.said.seconds:.1f} s"
    lost = f"  LOST {', '.join(result.lost)}" if result.lost else ""
    return f"{done:3d}/{total}  {result.name:44s} {seconds:>7s}  {verdict}{lost}"


def _tried(case: Case | Control, base: Project) -> Result:
    project = copy(base, base.folder.with_name(case.name))
    try:
        return refused(case, project, base) if isinstance(case, Case) else dropped(case, project)
    finally:
        shutil.rmtree(project.folder, ignore_errors=True)


def refused(case: Case, project: Project, base: Project) -> Result:
    """Spoil the project, run the command, judge what it said, mend the mistake and see what is left."""
    if reason := case.skip():
        return Result(case.name, case.arguments, None, skipped=reason)
    had = base.finished()
    case.spoil(project)
    wrapper = case.wrap(project) if case.wrap else ()
    said = Project(project.folder, wrapper=wrapper).command(*case.arguments)
    return Result(case.name, case.arguments, said, tuple(unclear(case, said)), tuple(lost(project, base, had)))


def lost(project: Project, base: Project, had: dict[str, str]) -> list[str]:
    """What of the finished artifacts is gone or changed, what is half-written, what a corrected run would redo."""
    has = project.finished()
    gone = [name for name, digest in had.items() if has.get(name) != digest]
    for path in project.folder.iterdir():  # everything but the store becomes what it was
        if path.name != "artifacts":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(base.folder, project.folder, ignore=shutil.ignore_patterns("artifacts"), dirs_exist_ok=True)
    planned = project.plan()
    redone = [] if planned and planned[0] == planned[1] else [f"a corrected run reuses {planned}"]
    return [*gone, *project.half_written(), *redone]


def dropped(control: Control, project: Project) -> Result:
    """Aggregate the spoilt source for real, and compare the counts of dropped rows with those known."""
    arguments = ("stage", "aggregate")
    had = set(project.finished())
    control.spoil(project)
    said = project.command(*arguments)
    if said.code != 0:
        return Result(control.name, arguments, said, (f"exit code {said.code}: {said.err.strip()}",))
    (made,) = [name for name in set(project.finished()) - had if name.startswith("aggregate/")]
    statistics = json.loads((project / "artifacts" / made / "statistics.json").read_text(encoding="utf-8"))
    groups = [group for group in (statistics["datasets"], statistics["others"]) if control.source in group]
    found = groups[0][control.source]["dropped"] if groups else None
    faults = () if found == control.dropped else (f"dropped {found}, not {control.dropped}",)
    return Result(control.name, arguments, said, faults)


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """The counts, and every case with its message."""
    controls = {control.name for control in CONTROLS}
    cases = [result for result in results if result.name not in controls]
    tried = [result for result in cases if result.said is not None]
    return {
        "cases": len(cases),
        "clear": sum(not result.faults for result in tried),
        "lost": sum(bool(result.lost) for result in tried),
        "slowest_seconds": max((round(result.said.seconds, 2) for result in tried if result.said), default=0.0),
        "skipped": [result.name for result in cases if result.skipped],
        "controls": len(results) - len(cases),
        "controls_failed": [result.name for result in results if result.name in controls and result.faults],
        "details": [result.detail() for result in results],
    }


def show(summary: dict[str, Any]) -> None:
    """The message of every case that is not clear, then the counts."""
    for each in summary["details"]:
        if each["faults"] or each["lost"]:
            print(f"\n{each['name']}: {'; '.join((*each['faults'], *each['lost']))}")
            print("\n".join(f"    {text}" for text in each["message"]))
    print("\n" + json.dumps({name: value for name, value in summary.items() if name != "details"}))


if __name__ == "__main__":
    sys.exit(main())
