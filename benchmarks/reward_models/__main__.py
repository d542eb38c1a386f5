"""`python -m benchmarks.reward_models --json out.json`: which way to train a reward model ranks held-out pairs best?

Bradley-Terry, ensembles and other families of it, the Preference Transformer, AVA and its ablations, from one backbone
and on the same pairs: of the world, whose gold also says what the best of n answers is worth, and of real data in a
folder (`--data`). Every method has the same epochs, rate and batch. What is done is a row of the results file, and
nothing is run twice. `--quick`: one seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bakeoff import rows as table
from benchmarks.reward_models import analysis
from benchmarks.reward_models.plan import (
    BASELINE,
    METHODS,
    POLICIES,
    REAL,
    ROOT,
    WORLD,
    Sizes,
    Unit,
    digest_of,
    digest_of_code,
)
from inverse_alignment.core.errors import UserError

RESULTS = ROOT / "docs/results/reward-models"
FOLDER = ROOT / "artifacts/reward-models"
SEEDS, SEEDS_OF_QUICK = (0, 1, 2, 3, 4), (0,)


def main() -> int:
    """Parse the command line, run what has no row, and write what all rows say."""
    options = _options()
    sizes, code = Sizes(), digest_of_code()
    if options.page:
        from benchmarks.reward_models.page import render

        render(analysis.current(table.read(options.rows), sizes, code))
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        _run(options, sizes, code)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [row for row in analysis.current(table.read(options.rows), sizes, code) if row["seed"] in options.seeds]
    if options.json:
        options.json.write_text(json.dumps(analysis.result(rows), indent=1))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reward_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with pairs/*.jsonl.gz; without it the world alone")
    parser.add_argument("--json", type=Path, help="file to write the result to")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument(
        "--ppo", action="store_true", help="in the world, optimise the backbone against some of them too"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="only these, and the baseline")
    parser.add_argument("--sets", nargs="+", choices=[WORLD, *REAL], help="only these data")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 to 4; 0 if quick")
    parser.add_argument("--rows", type=Path, help=f"results file ({RESULTS.relative_to(ROOT)}/rows.jsonl)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"scratch ({FOLDER.relative_to(ROOT)})")
    parser.add_argument("--page", action="store_true", help="run nothing; render the tables of the results page")
    options = parser.parse_args()
    options.seeds = options.seeds or list(SEEDS_OF_QUICK if options.quick else SEEDS)
    options.rows = options.rows or (options.folder / "quick.jsonl" if options.quick else RESULTS / "rows.jsonl")
    options.sets = options.sets or [WORLD, *(REAL if options.data else ())]
    return options


def _run(options: argparse.Namespace, sizes: Sizes, code: str) -> None:
    from benchmarks.reward_models.work import run

    commit, began = table.commit(), time.monotonic()
    names = [BASELINE, *(options.methods or METHODS)]
    for unit in (Unit(data, seed) for seed in options.seeds for data in options.sets):
        wanted = [*names, *(POLICIES if options.ppo and unit.data == WORLD else ())]
        left = missing(table.read(options.rows), unit, wanted, sizes, code)
        for row in run(unit, left, sizes, options.data, options.folder):
            table.append(options.rows, {**row, "commit": commit})
            said = f"{100 * row['accuracy']:.1f} %" if "accuracy" in row else f"gold {row['gold']:.3f}"
            print(
                f"{unit.data}, seed {unit.seed}: {row['method']} {said} "
                f"({row['seconds']:.0f} s; {time.monotonic() - began:.0f} s in all)",
                flush=True,
            )


def missing(rows: list[table.Row], unit: Unit, names: Sequence[str], sizes: Sizes, code: str) -> list[str]:
    """The methods of a unit that no row of this code and these settings is of."""
    done = {(analysis.key_of(row), row["code"], row["config"]) for row in rows}
    return [name for name in names if ((*unit, name), code, digest_of(sizes, name)) not in done]


if __name__ == "__main__":
    sys.exit(main())
