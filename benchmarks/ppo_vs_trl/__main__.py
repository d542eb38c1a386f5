"""`python -m benchmarks.ppo_vs_trl --json out.json`: this project's PPO against the last one of TRL (1.12.0).

Both start from the same policy, reference, value and reward model and answer the same prompts with the same settings;
they run as two processes that take turns, iteration by iteration. `natural`: answers end where the policy ends them;
`full`: none ends before 64 tokens. A ratio is how many times more episodes per second ours does: the median over
rounds. It counts only where both did the same work: losses and lengths agree within the tolerances in `judge.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ppo_vs_trl.judge import summary, verdict
from benchmarks.ppo_vs_trl.race import BATCH_SIZE, HERE, ROOT, SETTINGS, WARMUP, ours, run_round, theirs
from benchmarks.ppo_vs_trl.start import prepare
from inverse_alignment.core.errors import UserError

MODES = ("natural", "full")
TRIAL = 3
"""Iterations that decide about threads."""
PACKAGES = ("torch", "transformers", "accelerate", "trl", "numpy")


def main() -> int:
    """Parse the command line, race, and print the ratios."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.ppo_vs_trl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 3 iterations instead of 5 of 10")
    parser.add_argument(
        "--trl-venv", type=Path, default=ROOT / ".venv-trl112", help="TRL's own environment; made if it is not there"
    )
    parser.add_argument("--store", type=Path, default=ROOT / "artifacts", help="artifact store of what both start from")
    parser.add_argument(
        "--threads", type=int, help="torch's threads for both; without it 1 or 2, whichever is faster for TRL"
    )
    arguments = parser.parse_args()
    try:
        python = trl_python(arguments.trl_venv)
        with tempfile.TemporaryDirectory() as folder:
            result = race(python, arguments.store, Path(folder), quick=arguments.quick, fixed=arguments.threads)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.json.write_text(json.dumps(result, indent=1))
    for mode in MODES:
        found = result[mode]
        print(f"{mode}: {found['ratio']:.2f} times TRL's episodes per second, valid: {found['valid']}")
        for reason in found["reasons"]:
            print(f"  {reason}")
    print(f"peak memory above imports and models: {result['peak_memory_ratio']:.2f} times TRL's")
    return 0


def trl_python(venv: Path) -> Path:
    """The interpreter of TRL's environment, which is made from `requirements-trl.txt` first if it is not there.

    Raises:
        UserError: the environment cannot be made.
    """
    python = venv / "bin" / "python"
    if not python.exists():
        print(f"installing TRL 1.12.0 and its torch into {venv} (minutes)", file=sys.stderr)
        steps = ([sys.executable, "-m", "venv", str(venv)], [str(python), "-m", "pip", "install", "--quiet"])
        steps[1].extend(["--disable-pip-version-check", "-r", str(HERE / "requirements-trl.txt")])
        for step in steps:
            if subprocess.run(step, check=False).returncode:
                raise UserError(
                    "TRL's environment cannot be made",
                    where=" ".join(step),
                    fix="see what pip says above; remove the folder before the next try",
                )
    return python


def race(python: Path, store: Path, folder: Path, *, quick: bool, fixed: int | None) -> dict[str, Any]:
    """Prepare, find TRL's better number of threads, and run all rounds of both modes.

    Args:
        python: of TRL's environment.
        store: of artifacts; what both start from is made there, or found.
        folder: for what the contestants exchange.
        quick: for a look, with too few rounds to report.
        fixed: threads for both, instead of TRL's better number.

    Returns:
        For each mode: `ratio` of wall time, `cpu_ratio` of processor time (what counts where the machine is busy),
        `ratio_without_trl_collecting_garbage`, `peak_memory_ratio`, whether it is `valid` and the `reasons` if not,
        and what each contestant did; then settings, threads, versions, machine, and every lap as it was measured.
    """
    rounds, iterations = (2, 3) if quick else (5, 10)
    start = folder / "start"
    prepare(store, start)
    result: dict[str, Any] = {}
    raw: list[dict[str, Any]] = []
    threads: dict[str, Any] = {}
    for mode in MODES:
        threads[mode] = {"chosen": fixed} if fixed else best_threads(python, mode, start, folder)
        chosen = threads[mode]["chosen"]
        found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for seed in range(rounds):
            contestants = [ours(chosen), theirs(python, chosen)]
            swap = seed % 2  # who goes first has the warmer or the colder machine: take turns in that too
            laps = run_round(contestants[::-1] if swap else contestants, mode, seed, iterations, start, folder)
            for side, lap in zip(found, laps[::-1] if swap else laps, strict=True):
                side.append(lap)
            raw += [
                {"mode": mode, "round": seed, "contestant": each.name, **side[-1]}
                for each, side in zip(contestants, found, strict=True)
            ]
            print(f"{mode}, round {seed + 1} of {rounds}", file=sys.stderr)
        result[mode] = verdict(*found, BATCH_SIZE)
    return {
        **result,
        "peak_memory_ratio": max(result[mode]["peak_memory_ratio"] for mode in MODES),
        "settings": SETTINGS | {"rounds": rounds, "iterations": iterations, "warmup": WARMUP},
        "threads": threads,
        "versions": {"ours": _versions(Path(sys.executable)), "theirs": _versions(python)},
        "machine": _machine(),
        "raw": raw,
    }


def best_threads(python: Path, mode: str, start: Path, folder: Path) -> dict[str, Any]:
    """TRL against itself with one and with two threads; both contestants get what is faster for TRL."""
    choices = (1, 2)
    laps = run_round([theirs(python, threads) for threads in choices], mode, 0, TRIAL, start, folder)
    rates = {
        str(threads): summary([lap], BATCH_SIZE)["episodes_per_second"]
        for threads, lap in zip(choices, laps, strict=True)
    }
    return {"chosen": int(max(rates, key=lambda threads: rates[threads])), "trl_episodes_per_second": rates}


def _versions(python: Path) -> dict[str, str]:
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    found = subprocess.run([str(python), "-c", code, *PACKAGES], check=True, capture_output=True, text=True)
    return {"python": platform.python_version(), **json.loads(found.stdout)}


def _machine() -> dict[str, Any]:
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": names[0] if names else platform.processor(),
        "cpus": os.cpu_count(),
        "load_at_the_end": os.getloadavg(),
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
