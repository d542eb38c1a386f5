"""`python -m benchmarks.direct --json out.json`: do direct methods with a moving reference beat those with a frozen
one?

Every method starts from the SFT policy of its seed and goes three rounds on the same pairs; PPO against the first
reward model goes beside them. Compared are gold where the KL to the SFT policy is first equal, gold at the end, and
whose answers to the same test prompts have more gold. The toy of `benchmarks/direct/toy.py` says where probability goes
that no pair is about. Each finished seed is a row of the results file, and none is run twice.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.bakeoff import rows as table_rows
from benchmarks.direct import study, toy

ROWS = study.ROOT / "docs" / "results" / "direct" / "rows.jsonl"
FIGURE = study.ROOT / "docs" / "results" / "direct" / "toy.svg"
SEEDS, QUICK_SEEDS, TOY_SEEDS = 5, 2, 10
TOY_KL = 0.5
STUDIED = ("sft", "reward_model", "direct", "ppo", "evaluate", "select")
"""The stages whose code rows are of."""


def main() -> int:
    """Parse the command line, run what is missing, print and write."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.direct", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--quick", action="store_true", help=f"six methods at {QUICK_SEEDS} seeds")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds from 0 on ({SEEDS})")
    parser.add_argument("--folder", type=Path, default=study.ROOT / "artifacts" / "direct", help="scratch")
    parser.add_argument("--rows", type=Path, default=ROWS, help="results file")
    parser.add_argument(
        "--rates", action="store_true", help="run no study: KL after a round at some rates, by which they were chosen"
    )
    parser.add_argument("--figure", action="store_true", help="draw the toy's figure into docs/results/direct too")
    arguments = parser.parse_args()
    given = study.plan()
    methods = given["quick"] if arguments.quick else list(given["methods"])
    if arguments.rates:
        tried = {f"{rate:g}": study.first_kl(methods, rate, arguments.folder / "rates") for rate in study.RATES}
        arguments.json.write_text(json.dumps(tried, indent=1))
        print(json.dumps(tried, indent=1))
        return 0
    seeds = range(QUICK_SEEDS if arguments.quick else arguments.seeds)
    rows = [row_of(seed, methods, arguments) for seed in seeds]
    leaks = {name: [toy.run(name, seed) for seed in range(TOY_SEEDS)] for name in toy.METHODS}
    result = {"methods": {name: described(name, rows, leaks) for name in methods}, "seeds": list(seeds)}
    result |= {"sft_gold_reward": [row["found"]["sft"]["gold"][0] for row in rows]}
    result |= {"toy": {name: toy_of(ways) for name, ways in leaks.items()}, "equal_kl": given["equal_kl"]}
    arguments.json.write_text(json.dumps(result, indent=1))
    print(table(result))
    print(toy_table(result))
    if arguments.figure:
        from benchmarks.direct.figure import draw

        FIGURE.parent.mkdir(parents=True, exist_ok=True)
        draw(leaks, FIGURE)
    return 0


def row_of(seed: int, methods: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """A seed's row: the one there is of this code and these methods, or a new one."""
    code = table_rows.digest_of(STUDIED, study.plan())
    for row in table_rows.read(arguments.rows):
        if row["seed"] == seed and row["code"] == code and set(methods) <= row["found"].keys():
            print(f"seed {seed}: from {arguments.rows}, commit {row['commit']}", file=sys.stderr)
            return dict(row)
    print(f"seed {seed}: {len(methods)} methods, some 20 seconds each", file=sys.stderr)
    folder = arguments.folder / f"s{seed}"
    found = study.run(seed, methods, folder)
    shutil.rmtree(folder)
    row = {"seed": seed, "code": code, "commit": table_rows.commit(), "found": found}
    table_rows.append(arguments.rows, row)
    return row


def described(name: str, rows: Sequence[dict[str, Any]], leaks: dict[str, list[list[toy.Mass]]]) -> dict[str, Any]:
    """What there is to say of a method over all seeds."""
    base, level = study.plan()["methods"][name]["base"], study.plan()["equal_kl"]
    mine, theirs = [row["found"][name] for row in rows], [row["found"].get(base) for row in rows]
    wins = [study.win_rate(a["answers"], b["answers"]) for a, b in zip(mine, theirs, strict=True) if b]
    equal = [study.gold_at_kl(one, level) for one in mine]
    of_base = [one["gold"][0] if base == "sft" else study.gold_at_kl(one, level) if one else None for one in theirs]
    gains = [a - b for a, b in zip(equal, of_base, strict=True) if a is not None and b is not None]
    return {
        "base": base,
        "gold_reward": [one["gold"][-1] for one in mine],
        "kl_to_sft": [one["kl"][-1] for one in mine],
        "win_rate_over_base": statistics.fmean(wins) if wins else None,
        "win_rates": wins,
        "gold_at_equal_kl": equal,
        "gain_at_equal_kl": interval(gains),
        "ci95": interval([one["gold"][-1] for one in mine]),
        "ood_mass": [way[-1].unseen for way in leaks[name]] if name in leaks else None,
    }


def interval(values: Sequence[float]) -> list[float] | None:
    """Mean and 95 % interval by Student's t over seeds: [mean, low, high]; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean, mean - half, mean + half]


def toy_of(ways: Sequence[list[toy.Mass]]) -> dict[str, Any]:
    """Masses at the end, and of what nobody compared at equal KL: intervals over seeds."""
    equal = [toy.unseen_at_kl(way, TOY_KL) for way in ways]
    ends = {part: interval([getattr(way[-1], part) for way in ways]) for part in toy.Mass._fields}
    return {**ends, "unseen_at_kl": interval([mass for mass in equal if mass is not None])}


def cell(found: Sequence[float] | None, sign: str = "") -> str:
    """An interval as people read it."""
    return "–" if found is None else f"{found[0]:{sign}.2f} ({found[1]:{sign}.2f} to {found[2]:{sign}.2f})"


def table(result: dict[str, Any]) -> str:
    """The methods, as Markdown."""
    level = result["equal_kl"]
    lines = [
        f"| method | final gold | KL to SFT | gold at KL {level:g} | base | gain over it there "
        "| win rate over it at the end |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines.append(f"| `sft` | {cell(interval(result['sft_gold_reward']))} | 0.0 | – | | – | – |")
    for name, one in result["methods"].items():
        there = [value for value in one["gold_at_equal_kl"] if value is not None]
        equal = cell(interval(there)) + ("" if len(there) == len(one["gold_reward"]) else f" [{len(there)} runs]")
        wins = cell(interval(one["win_rates"]))
        kl = statistics.fmean(one["kl_to_sft"])
        gain = cell(one["gain_at_equal_kl"], "+")
        lines.append(f"| `{name}` | {cell(one['ci95'])} | {kl:.1f} | {equal} | `{one['base']}` | {gain} | {wins} |")
    return "\n".join(lines)


def toy_table(result: dict[str, Any]) -> str:
    """The toy, as Markdown."""
    lines = [
        f"| method | chosen | rejected | never compared | KL | never compared at KL {TOY_KL:g} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in result["toy"].items():
        masses = " | ".join(cell(one[part]) for part in ("chosen", "rejected", "unseen", "kl"))
        lines.append(f"| `{name}` | {masses} | {cell(one['unseen_at_kl'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
