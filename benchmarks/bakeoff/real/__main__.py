"""`python -m benchmarks.bakeoff.real --data DIR --json out.json`: does a selector find who writes like the policy?

For several writers of AlpacaEval a policy is made to imitate one of them, on prompts whose pairs are not in the pool.
Every selector picks pairs for its answers; measured is how often the writer, and those nearest to him, wrote what was
picked, and what a refresh on it does to the reward model on held-out pairs of his. Nobody knows a gold reward here.
What is done is a row of the results file, and nothing is run twice. `--quick`: two writers, one seed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from benchmarks.bakeoff import rows as table
from benchmarks.bakeoff.plan import ROOT
from benchmarks.bakeoff.real import analysis, collection, plan
from benchmarks.bakeoff.real.nearness import Nearness, nearness, read_nearness
from benchmarks.bakeoff.real.plan import NEW, Unit
from benchmarks.bakeoff.real.work import Job, run
from inverse_alignment.core.errors import UserError

RESULTS = ROOT / "docs/results/inverse-alignment-real"
NEARNESS = RESULTS / "nearness.json"
FOLDER = ROOT / "artifacts/bakeoff-real"
SEEDS, SEEDS_OF_QUICK, TARGETS_OF_QUICK = (0, 1, 2), (0,), 2
QUICK = ("random", "length_matched_random", "similarity", "density_ratio")


class Truth(NamedTuple):
    """Who is imitated, which writer is kept out of the pool for each, and how near all are to each other."""

    targets: list[str]
    out: dict[str, str]
    near: Nearness


def main() -> int:
    """Parse the command line, run what has no row, and write what all rows say."""
    options = _options()
    if options.page:
        from benchmarks.bakeoff.real.page import render

        render(table.read(options.rows), read_nearness(NEARNESS), RESULTS)
        return 0
    try:
        found = collection.read(options.data)
        truth = _truth(found)
        units = _units(truth, options)
        names = plan.selectors(QUICK if options.quick else options.selectors or ())
        failed = _run_all(_jobs(units, names, found, truth, options), options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        rows = analysis.newest(table.read(options.rows), units, names, plan.digest_of_code())
        options.json.write_text(json.dumps(analysis.result(rows, truth.near), indent=1))
    return int(failed > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bakeoff.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder with pairs/ and responses/")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}; two writers, one seed")
    parser.add_argument("--model", default=NEW, help="new: from the configuration; or the folder of a checkpoint")
    parser.add_argument("--selectors", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 to 2; 0 if quick")
    parser.add_argument("--targets", nargs="+", help="only these writers")
    parser.add_argument("--rows", type=Path, help=f"results file ({RESULTS.relative_to(ROOT)}/rows.jsonl)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"scratch ({FOLDER.relative_to(ROOT)})")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="units at a time (one a core)")
    parser.add_argument("--page", action="store_true", help="run nothing; render table and figure of the results page")
    options = parser.parse_args()
    options.seeds = options.seeds or list(SEEDS_OF_QUICK if options.quick else SEEDS)
    options.rows = options.rows or (options.folder / "quick.jsonl" if options.quick else RESULTS / "rows.jsonl")
    return options


def _truth(found: collection.Collection) -> Truth:
    sizes = plan.sizes()
    near = nearness(found.answers, sizes.nearness_prompts, NEARNESS)
    chosen = collection.targets(found, sizes)
    out = collection.held_out({name: near.to(name) for name in chosen}, sizes.references)
    return Truth(chosen, out, near)


def _units(truth: Truth, options: argparse.Namespace) -> list[Unit]:
    """Every target with every seed; neighbours are of different seeds, so that no two processes want the same start.

    Raises:
        UserError: a target is named that there is not.
    """
    chosen, held = truth.targets, set(truth.out.values())
    wanted = options.targets or (chosen[1::2][:TARGETS_OF_QUICK] if options.quick else chosen)
    if unknown := sorted(set(wanted).difference(chosen)):
        raise UserError(f"no target {unknown[0]}", where="--targets", fix=f"choose of {', '.join(chosen)}")
    nearest = {name: tuple(o for o in truth.near.order(name) if o not in held) for name in wanted}
    return [
        Unit(seed, target, options.model, truth.out[target], nearest[target][: plan.sizes().nearest])
        for target in wanted
        for seed in options.seeds
    ]


def _jobs(
    units: Sequence[Unit],
    names: Sequence[str],
    found: collection.Collection,
    truth: Truth,
    options: argparse.Namespace,
) -> list[Job]:
    """What has no row of this code and these settings; the data of its seeds are written here."""
    done = {analysis.identity(row) for row in table.read(options.rows)}
    code, shown, jobs = plan.digest_of_code(), collection.validation(found), []
    for unit in units:
        folder = (options.folder / unit.start).resolve()
        data = folder / f"data-{plan.digest_of_data(unit.seed, truth.out)}"
        config = plan.config_of(unit, data, folder / "artifacts")
        left = [name for name in names if (*unit.key(name), code, plan.digest_of(unit, name, config)) not in done]
        if left:
            files = {
                "pairs.jsonl": collection.pairs(found, truth.out, plan.sizes(), unit.seed),
                "shown.jsonl": collection.demonstrations(found, set(truth.out.values()), unit.seed),
            }
            collection.write(data, files)
            jobs.append(Job(unit, tuple(left), data, folder, shown))
    return jobs


def _run_all(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Run jobs in worker processes and append their rows; how many failed."""
    commit, began, failed = table.commit(), time.monotonic(), 0
    print(f"{sum(len(job.selectors) for job in jobs)} rows in {len(jobs)} units to do", flush=True)
    workers = ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn"))
    with workers:
        running = {workers.submit(run, job): job for job in jobs}
        for done, future in enumerate(as_completed(running), start=1):
            unit = running[future].unit
            try:
                made = future.result()
            except Exception:
                failed += 1
                print(f"{unit.target}, seed {unit.seed}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
                continue
            for row in made:
                table.append(options.rows, {**row, "commit": commit})
            print(f"{done}/{len(jobs)} {unit.target}, seed {unit.seed}: {time.monotonic() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
