"""`python -m benchmarks.resume --json out.json`: is a run that was killed, at any instant, the run that was not?

A small project runs once without interruption. Then, for each case, its process group gets a real SIGKILL at a named
point, the same command goes on, and the artifact is compared byte by byte with the one of the straight run. Controls
break the resuming on purpose, and have to differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.resume.cases import CASES, CONTROLS, Case
from benchmarks.resume.judge import Base, Result, judge, straight

PROCESSES = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are asked for; 0 if every one ended with the same bytes, and every control did not."""
    parser = argparse.ArgumentParser(prog="benchmarks.resume", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this case alone; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    given = parser.parse_args(arguments)
    names = [case.name for case in (*CASES, *CONTROLS)]
    if given.list:
        print("\n".join(names))
        return 0
    if unknown := [name for name in given.only or () if name not in names]:
        parser.error(f"no case '{unknown[0]}'; --list names them")
    wanted = [case for case in (*CASES, *CONTROLS) if not given.only or case.name in given.only]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        base = straight(Path(folder) / "straight", wanted)
        print(
            f"a straight run of {len(base.made)} stages took {time.monotonic() - began:.0f} s; the cases:\n", flush=True
        )
        results = run(wanted, base, Path(folder))
    summary = summarise(results, time.monotonic() - began)
    print("\n" + json.dumps({name: value for name, value in summary.items() if name != "cases"}))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return int(not all(result.right for result in results))


def run(cases: Sequence[Case], base: Base, folder: Path) -> list[Result]:
    """All cases, in their order; a line for each as it ends."""
    found: dict[int, Result] = {}
    with ThreadPoolExecutor(PROCESSES) as pool:
        waiting = {pool.submit(judge, case, base, folder / f"case-{i}"): i for i, case in enumerate(cases)}
        for done in as_completed(waiting):
            result = done.result()
            found[waiting[done]] = result
            print(f"{len(found):3d}/{len(cases)}  {line(result)}", flush=True)
    return [found[i] for i in range(len(cases))]


def line(result: Result) -> str:
    """A case in one line, and what is wrong with it."""
    same = "differs" if result.differing else "same bytes"
    ok = "ok" if result.right else "WRONG"
    wrong = "" if result.right else "".join(f"\n         {text}" for text in (*result.differing, *result.faults))
    return f"{ok:5s}  {result.case.name:66s} {same}{wrong}"


def summarise(results: Sequence[Result], seconds: float) -> dict[str, Any]:
    """The counts, and every case."""
    cases = [result for result in results if not result.case.defect]
    controls = [result for result in results if result.case.defect]
    return {
        "kills": sum(result.kills for result in cases),
        "mismatches": sum(bool(result.differing) for result in cases),
        "faults": sum(bool(result.faults) for result in results),
        "controls": len(controls),
        "controls_noticed": sum(bool(result.differing) for result in controls),
        "seconds": round(seconds, 1),
        "cases": [result.facts() for result in results],
    }


if __name__ == "__main__":
    sys.exit(main())
