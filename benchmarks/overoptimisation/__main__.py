"""`python -m benchmarks.overoptimisation --quick --json out.json`: do more comparisons make a proxy harder to
over-optimise?

For every number of comparisons and seed, a proxy is fitted and optimised for, by RL without error and by best of n, and
Gao's laws (arXiv 2210.10760) are fitted to gold along the way, seeds as units; once in a world where the rarest answers
look good and are bad, and once in one without such exploits. The law says: the larger the data, the smaller b. It is
reproduced if b of best of n falls with the data, seed by seed, where there are exploits: the interval of Spearman's ρ
between the two, by resampling seeds, lies below 0. Exits with 1 if it does not. RL stands beside it: the policies that
are exactly optimal in so small a world do not show the law, see docs/results/overoptimisation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.overoptimisation import world
from inverse_alignment.maths.overoptimisation import (
    Fit,
    best_of_n_peak,
    best_of_n_terms,
    fit_curve,
    policy_peak,
    policy_terms,
)
from inverse_alignment.maths.ranks import rank_correlation_interval

SIZES, QUICK_SIZES = (50, 100, 200, 400, 800, 1600, 3200), (50, 200, 800, 3200)
SEEDS, QUICK_SEEDS = 20, 6
WORLDS = ("exploits", "no exploits")
Law = tuple[Callable[[world.World, np.ndarray], world.Path], Any, Any]
LAWS: dict[str, Law] = {
    "rl": (world.World.optimised, policy_terms, policy_peak),
    "best_of_n": (world.World.best_of_n, best_of_n_terms, best_of_n_peak),
}


def main() -> int:
    """Parse the command line, measure and print; 1 if the law is not reproduced."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.overoptimisation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--quick", action="store_true", help=f"{len(QUICK_SIZES)} sizes and {QUICK_SEEDS} seeds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes, seeds = (QUICK_SIZES, QUICK_SEEDS) if arguments.quick else (SIZES, SEEDS)
    result = measure(sizes, seeds)
    arguments.json.write_text(json.dumps(result, indent=1))
    for name, found in result["worlds"].items():
        print(f"{name}: ρ of pairs with b {shown(found['rho_b'])}, with a {shown(found['rho_a'])}")
        for row in found["sizes"]:
            print(f"  {row['pairs']:>5} pairs: a {shown(row['a'])}, b {shown(row['b'])}, rms {row['residual']:.3f}")
    print("a: gold per √nat at first; b: how soon the proxy misleads; rms: distance of the points from the curve")
    rho = shown(result["worlds"]["exploits, best_of_n"]["rho_b"])
    verdict = "more comparisons, smaller b" if result["reproduced"] else "NOT reproduced: b does not fall with data"
    print(f"best of n with exploits: {verdict} (ρ {rho})")
    return int(not result["reproduced"])


def shown(interval: Sequence[float]) -> str:
    """A mean with its interval."""
    mean, low, high = interval
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def measure(sizes: Sequence[int], seeds: int) -> dict[str, Any]:
    """The result, as it is written."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    for kind in WORLDS:
        worlds = [world.World.of(seed, exploits=kind == "exploits") for seed in range(seeds)]
        proxies = {size: [one.proxy(size, 1000 * size + seed) for seed, one in enumerate(worlds)] for size in sizes}
        found |= {f"{kind}, {name}": _of_law(law, worlds, proxies) for name, law in LAWS.items()}
    return {
        "worlds": found,
        "reproduced": found["exploits, best_of_n"]["rho_b"][2] < 0,
        "seeds": seeds,
        "seconds": time.monotonic() - began,
    }


def _of_law(law: Law, worlds: Sequence[world.World], proxies: dict[int, list[np.ndarray]]) -> dict[str, Any]:
    """Coefficients at each size over all seeds, and how those of single seeds order with the size."""
    optimise, terms, peak = law
    rows, pairs, single, units = [], [], [], []
    for size, of_seed in proxies.items():
        paths = [optimise(one, proxy) for one, proxy in zip(worlds, of_seed, strict=True)]
        seed_of = np.repeat(np.arange(len(paths)), [len(path.distance) for path in paths])
        distance, gold = np.concatenate([p.distance for p in paths]), np.concatenate([p.gold for p in paths])
        rows.append({"pairs": size, **_row(fit_curve(terms(distance), gold, seed_of, peak, 0))})
        for seed, path in enumerate(paths):
            alone = fit_curve(terms(path.distance), path.gold, np.arange(len(path.gold)), peak, 0, resamples=1)
            pairs.append(size)
            units.append(seed)
            single.append((alone.a.mean, alone.b.mean))
    a, b = np.array(single).T
    size_of, unit_of = np.array(pairs, dtype=float), np.array(units)
    return {
        "sizes": rows,
        "rho_a": rank_correlation_interval(size_of, a, unit_of, 0),
        "rho_b": rank_correlation_interval(size_of, b, unit_of, 0),
    }


def _row(fit: Fit) -> dict[str, Any]:
    peak = [value if np.isfinite(value) else None for value in fit.peak]
    return {"a": list(fit.a), "b": list(fit.b), "peak": peak, "residual": fit.residual}


if __name__ == "__main__":
    sys.exit(main())
