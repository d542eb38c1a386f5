"""`python -m benchmarks.memory_plan --json out.json [--only NAME...]`.

Runs what a stage runs, on models of about 5 and 40 million parameters with random weights and rows of full length, each
in a process of its own, and compares its highest resident memory above that after imports with what
`inverse-alignment plan --memory` says; once with an allocator that gives memory back, which is what is compared, and
once as it is. Exit code 1 if a ratio is outside of the tolerance.
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

from flows.memory import TOLERANCE, Device, needs
from inverse_alignment.config import PipelineConfig
from inverse_alignment.models.memory import Need

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}
"""With this glibc gives a tensor of 256 KiB or more back to the system once it is freed. By itself it keeps what those
of up to 32 MiB have left, which is no need of theirs."""
SIZES: dict[str, dict[str, Any]] = {
    "5M": {"vocab_size": 4096, "hidden_size": 256, "layers": 4, "heads": 4, "context": 128},
    "40M": {"vocab_size": 8192, "hidden_size": 512, "layers": 8, "heads": 8, "context": 128},
}
PPO: dict[str, Any] = {"batch_size": 16, "minibatches": 1, "epochs": 1, "max_new_tokens": 64, "value_warmup_steps": 0}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "reward": ("reward_model", {}),
    "reward, AVA-p": ("reward_model", {"reward": {"type": "ava"}}),
    "reward, AVA-d": ("reward_model", {"reward": {"type": "ava", "objective": {"type": "demonstrations"}}}),
    "reward, Preference Transformer": ("reward_model", {"reward": {"type": "preference_transformer"}}),
    "rollout": ("rollout", {}),
    "ppo": ("ppo", {}),
    "ppo, small passes": ("ppo", {"runtime": {"training_tokens": 512}}),
    "ppo, shared critic": ("ppo", {"ppo": {**PPO, "critic": {"type": "shared"}}}),
    "ppo, adapters": ("ppo", {"ppo": {**PPO, "lora": {"rank": 16}}}),
    "ppo, moving reference": ("ppo", {"ppo": {**PPO, "reference": {"type": "soft"}}}),
}


def configuration(size: str, changes: dict[str, Any]) -> PipelineConfig:
    """The configuration of a case."""
    model = {"type": "initialise", **SIZES[size]}
    runtime = {"device": "cpu", "generation_rows": 16, "scoring_rows": 16, **changes.get("runtime", {})}
    return PipelineConfig.model_validate(
        {
            "models": {"policy": model, "reward": model},
            "sft": {"type": "train", "batch_size": 16},
            "reward": {"type": "train", "batch_size": 8, **changes.get("reward", {})},
            "ppo": changes.get("ppo", PPO),
            "runtime": runtime,
            "arms": {"none": {"selection": {"type": "none"}}},
        }
    )


def planned(config: PipelineConfig, stage: str) -> Need:
    """What the plan says of a stage."""
    found = {need.stage: need for need in needs(config, Device(False, 0, "this machine"))}
    need = found[stage]
    assert isinstance(need, Need)
    return need


def measured(config: PipelineConfig, stage: str, environment: dict[str, str]) -> int:
    """Bytes that a stage's work takes above imports."""
    with tempfile.TemporaryDirectory(prefix="memory-plan-") as folder:
        return _measured(config, stage, environment, Path(folder))


def _measured(config: PipelineConfig, stage: str, environment: dict[str, str], folder: Path) -> int:
    job, out = folder / "job.json", folder / "found.json"
    job.write_text(json.dumps({"stage": stage, "config": config.model_dump(mode="json"), "out": str(out)}))
    subprocess.run(
        [sys.executable, "-m", "benchmarks.memory_plan.job", str(job)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    found: int = json.loads(out.read_text())["bytes"]
    return found


def compare(size: str, name: str) -> dict[str, Any]:
    """Plan and measurement of one case."""
    stage, changes = STAGES[name]
    config = configuration(size, changes)
    need = planned(config, stage)
    needed, held = (measured(config, stage, environment) for environment in (GIVEN_BACK, {}))
    return {
        "parameters": size,
        "case": name,
        "planned_bytes": need.total,
        "most_in": need.peak.name,
        "measured_bytes": needed,
        "ratio": need.total / needed,
        "held_bytes": held,
    }


def _line(row: dict[str, Any]) -> str:
    planned, needed, held = (row[f"{name}_bytes"] / 2**20 for name in ("planned", "measured", "held"))
    numbers = f"planned {planned:5.0f} MiB  measured {needed:5.0f}  ratio {row['ratio']:.2f}  held by glibc {held:5.0f}"
    return f"{row['parameters']:>4}  {row['case']:<30} {numbers}"


def main() -> int:
    """Measure every case, print a table and write the numbers."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory_plan", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--only", nargs="*", choices=list(STAGES), default=list(STAGES), help="cases; all by default")
    parser.add_argument("--sizes", nargs="*", choices=list(SIZES), default=list(SIZES), help="models; both by default")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.sizes:
        for name in arguments.only:
            rows.append(row := compare(size, name))
            print(_line(row), flush=True)
    found = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "tolerance": TOLERANCE,
        "cases": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(abs(row["ratio"] - 1) <= TOLERANCE for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
