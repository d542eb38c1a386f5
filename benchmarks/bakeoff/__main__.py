"""`python -m benchmarks.bakeoff --json out.json`: which selector and which refresh rule help, at equal compute?

Stage 1 is every selector under the full refresh, with and without the gate; stage 2 the best three with `none` and
`random` under every rule; both on the world of `benchmarks/bakeoff/world.yaml`. Each (heterogeneity, seed, arm) that is
done is a row of the results file, and none is run twice. `--quick`: four selectors and three seeds, within 15 minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bakeoff import analysis
from benchmarks.bakeoff import rows as table
from benchmarks.bakeoff.analysis import STAGE_1, best_selectors
from benchmarks.bakeoff.plan import (
    HETEROGENEITIES,
    ROOT,
    Arm,
    Unit,
    arms,
    config_of,
    digest_of_arm,
    digest_of_code,
    read_plan,
)
from benchmarks.bakeoff.work import Job, Row, work
from inverse_alignment.core.errors import UserError

ROWS = ROOT / "docs/results/inverse-alignment/rows.jsonl"
FOLDER = ROOT / "artifacts/bakeoff"
SEEDS, SEEDS_OF_RULES, SEEDS_OF_QUICK = range(10), range(5), range(3)
QUICK = ("none", "random", "similarity", "density_ratio")


def main() -> int:
    """Parse the command line, run what has no row, and write what all rows say."""
    options = _options()
    if options.page:
        from benchmarks.bakeoff.page import render

        render(table.newest(table.read(options.rows)), options.rows.parent)
        return 0
    try:
        chosen = _arms(options)
        units = [Unit(level, seed) for seed in options.seeds for level in HETEROGENEITIES]
        jobs = _jobs(units, chosen, options)
        failed = _run_all(jobs, options.folder, options.rows, options.processes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(_result(units, chosen, options), indent=1))
    return int(failed > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bakeoff", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} at {len(SEEDS_OF_QUICK)} seeds")
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1, help="1: selectors, 2: rules (1)")
    parser.add_argument("--best", nargs="+", help="selectors of stage 2; without it the best three of stage 1")
    parser.add_argument("--selectors", nargs="+", help="only these of stage 1")
    parser.add_argument("--rules", nargs="+", choices=STAGE_1, help="only these of stage 1")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 to 9 in stage 1, 0 to 4 in stage 2, 0 to 2 if quick")
    parser.add_argument("--rows", type=Path, help=f"results file ({ROWS.relative_to(ROOT)})")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"scratch ({FOLDER.relative_to(ROOT)})")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="units at a time (one a core)")
    parser.add_argument(
        "--page", action="store_true", help="run nothing; render tables and figures of the results page"
    )
    options = parser.parse_args()
    seeds = SEEDS_OF_QUICK if options.quick else SEEDS if options.stage == 1 else SEEDS_OF_RULES
    options.seeds = options.seeds or list(seeds)
    options.rows = options.rows or (options.folder / "quick.jsonl" if options.quick else ROWS)
    return options


def _arms(options: argparse.Namespace) -> list[Arm]:
    plan = read_plan()
    if options.quick:
        return arms(QUICK, ("full",))
    if options.stage == 1:
        return arms(options.selectors or plan["selectors"], options.rules or STAGE_1)
    best = options.best or best_selectors(table.newest(table.read(options.rows)))
    print(f"the best of stage 1: {', '.join(best)}", flush=True)
    return arms(["none", "random", *best], plan["rules"])


def _jobs(units: Sequence[Unit], chosen: Sequence[Arm], options: argparse.Namespace) -> list[Job]:
    """What has no row of this code and these settings."""
    known, code = table.read(options.rows), digest_of_code()
    jobs = []
    for unit in units:
        config = config_of(unit, chosen, options.folder / unit.name)
        digests = {arm.name: digest_of_arm(config, arm, unit) for arm in chosen}
        if left := table.missing(known, unit, chosen, code, digests):
            jobs.append(Job(unit, tuple(left)))
    return jobs


def _run_all(jobs: Sequence[Job], folder: Path, rows: Path, processes: int) -> int:
    """Run jobs in worker processes and append their rows; how many units failed."""
    left, commit = sum(len(job.arms) for job in jobs), table.commit()
    print(f"{left} runs in {len(jobs)} units to do", flush=True)
    context = multiprocessing.get_context("spawn")
    todo: Any = context.Queue()
    told: Any = context.Queue()
    for job in jobs:
        todo.put(job)
    workers = [context.Process(target=work, args=(todo, told, folder), daemon=True) for _ in range(processes)]
    for worker in workers:
        todo.put(None)
        worker.start()
    began, done, failed, ended = time.monotonic(), 0, 0, 0
    while ended < len(workers):
        try:
            what, value = told.get(timeout=5)
        except queue.Empty:
            if not any(worker.is_alive() for worker in workers):
                raise RuntimeError("the workers ended without a word") from None
            continue
        if what == "row":
            done += 1
            table.append(rows, {**value, "commit": commit})
            print(_progress(value, done, left, time.monotonic() - began), flush=True)
        elif what == "failed":
            failed += 1
            print(value, file=sys.stderr, flush=True)
        else:
            ended += 1
    return failed


def _progress(row: Row, done: int, total: int, seconds: float) -> str:
    rest = (total - done) * seconds / done
    final = row["rounds"][-1]["evaluation"]
    return (
        f"{done}/{total} h{row['heterogeneity']:g} s{row['seed']} {row['arm']}: gold {final['gold_reward']:.2f} at "
        f"KL {final['kl_to_sft']:.1f}, {row['seconds'] + row['seconds_probe']:.0f} s; {rest / 60:.0f} min left"
    )


def _result(units: Sequence[Unit], chosen: Sequence[Arm], options: argparse.Namespace) -> dict[str, Any]:
    """The JSON of `--json`, from the rows of this grid alone."""
    cells, names = {(unit.heterogeneity, unit.seed) for unit in units}, {arm.name for arm in chosen}
    code = digest_of_code()
    found = [
        row
        for row in table.newest(table.read(options.rows))
        if row["code"] == code and row["arm"] in names and (row["heterogeneity"], row["seed"]) in cells
    ]
    summary = analysis.summarise(found)
    return {
        "arms": {arm.name: summary[arm.name] for arm in chosen if arm.name in summary},
        "kl": analysis.TARGET_KL,
        "threshold_gain": analysis.GAIN,
        "heterogeneities": list(HETEROGENEITIES),
        "seeds": list(options.seeds),
        "code": code,
    }


if __name__ == "__main__":
    sys.exit(main())
