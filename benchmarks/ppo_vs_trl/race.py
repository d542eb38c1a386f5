"""Runs contestants as processes that take turns, iteration by iteration."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ppo_vs_trl.meter import TURN

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BATCH_SIZE = 64
WARMUP = 1
SETTINGS: dict[str, Any] = {  # params.yaml's, but for the learning rate
    "batch_size": BATCH_SIZE,
    "epochs": 2,
    "minibatches": 2,
    "learning_rate": 1e-5,  # of both models, since TRL has one; small, so that lengths stay those of the SFT policy
    "kl_coefficient": 0.15,
    "clip": 0.2,
    "value_clip": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "temperature": 1.0,
    "max_new_tokens": 64,
    "missing_eos_penalty": 1.0,
    "context": 128,
    "reward_context": 128,
}


@dataclass(frozen=True)
class Contestant:
    """A process that runs PPO for a job file: the command, and how many threads torch gets."""

    name: str
    command: tuple[str, ...]
    threads: int


def ours(threads: int) -> Contestant:
    """The project's PPO in the environment of this process."""
    return Contestant("ours", (sys.executable, "-m", "benchmarks.ppo_vs_trl.ours"), threads)


def theirs(python: Path, threads: int) -> Contestant:
    """TRL's PPOTrainer in the environment of `python`."""
    return Contestant("theirs", (str(python), str(HERE / "theirs.py")), threads)


def run_round(
    contestants: Sequence[Contestant], mode: str, seed: int, iterations: int, start: Path, folder: Path
) -> list[dict[str, Any]]:
    """Let the contestants take turns until each has done its iterations; what each of them measured.

    Raises:
        RuntimeError: a contestant ended before its time; its standard error is in the message.
    """
    order = _order(len(json.loads((start / "prompts.json").read_text())), WARMUP + iterations, seed)
    processes, outs = [], []
    for place, contestant in enumerate(contestants):
        out = folder / f"{mode}-{seed}-{place}.json"
        job = {
            "start": str(start),
            "mode": mode,
            "seed": seed,
            "threads": contestant.threads,
            "warmup": WARMUP,
            "order": order,
            "settings": SETTINGS,
            "out": str(out),
        }
        job_file = folder / f"job-{place}.json"
        job_file.write_text(json.dumps(job))
        processes.append(_begin(contestant, job_file, folder / f"errors-{place}.txt"))
        outs.append(out)
    try:
        for place, process in enumerate(processes):
            _until_turn(process, folder / f"errors-{place}.txt")  # imports and models first
        for _ in order:
            for place, process in enumerate(processes):
                _go(process)
                _until_turn(process, folder / f"errors-{place}.txt")
        for process in processes:
            _go(process)
            process.communicate()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads(out.read_text()) for out in outs]


def _order(prompts: int, iterations: int, seed: int) -> list[list[int]]:
    """Rows of prompts for every iteration: pass after pass over all of them, each in a new order."""
    generator, rows = random.Random(seed), []
    while len(rows) < iterations * BATCH_SIZE:
        rows += generator.sample(range(prompts), prompts)
    return [rows[i * BATCH_SIZE : (i + 1) * BATCH_SIZE] for i in range(iterations)]


def _begin(contestant: Contestant, job: Path, errors: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(contestant.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    return subprocess.Popen(
        [*contestant.command, str(job)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors.open("w"),
        text=True,
    )


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def _until_turn(process: subprocess.Popen[str], errors: Path) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == TURN:
            return
    raise RuntimeError(f"a contestant ended early:\n{errors.read_text()[-3000:]}")
