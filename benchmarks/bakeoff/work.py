"""One unit after another in a process of its own: the shared start, every arm, one row per finished arm."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bakeoff.plan import Arm, Unit, config_of, digest_of_arm, digest_of_code, node_name, world_of
from flows.inverse_alignment import Round, Start, inverse_alignment, shared_data, shared_start
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.core.store import open_store
from tasks import stages
from tasks.run_stage import Execute, driving

if TYPE_CHECKING:
    from benchmarks.bakeoff.probe import Probe

HEAVY = ("ppo", "select", "refresh", "evaluate", ".partial")
"""What is deleted of a unit whose arms are done: all but the start that a later arm would need again."""
KEPT = (
    "gold_reward",
    "rm_score",
    "kl_to_sft",
    "response_tokens",
    "ended_share",
    "reward_variance",
    "on_policy_accuracy",
    "on_policy_accuracy_before",
    "on_policy_accuracy_after",
    "offline_accuracy",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The arms of one unit that have no row yet."""

    unit: Unit
    arms: tuple[Arm, ...]


def work(todo: Any, told: Any, folder: Path) -> None:
    """A worker process: jobs from a queue until there is none; rows and failures into another."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while (job := todo.get()) is not None:
        try:
            run(job, folder, lambda row: told.put(("row", row)))
        except Exception:
            told.put(("failed", f"{job.unit.name}:\n{traceback.format_exc()}"))
    told.put(("ended", None))


def run(job: Job, folder: Path, tell: Callable[[Row], None]) -> None:
    """Run the arms of a unit in `folder`, and tell every row as soon as it is known.

    Killed, it goes on from the artifacts that are there.
    """
    import torch

    from benchmarks.bakeoff.probe import Probe

    torch.set_num_threads(1)
    home = folder / job.unit.name
    config = config_of(job.unit, job.arms, home)
    write_data(home, job.unit)
    execute = Execute(open_store(config.store), config.runtime)
    began, cpu = time.monotonic(), time.process_time()
    with driving(execute):
        start = shared_start(config, job.unit.seed, shared_data(config))
        seconds = {"start": round(time.monotonic() - began, 2), "start_cpu": round(time.process_time() - cpu, 2)}
        rollouts = _first_rollouts(config, job.unit, start)
        probe = Probe(config, job.unit, start, rollouts)
        for arm in job.arms:
            tell({**run_arm(arm, probe, execute), **seconds})
    for stage in HEAVY:
        shutil.rmtree(Path(config.store) / stage, ignore_errors=True)


def write_data(home: Path, unit: Unit) -> None:
    """A unit's pairs in `home`/data, if they are not there."""
    from inverse_alignment.world.text import write_dataset

    if (home / "data").exists():
        return
    home.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=home))
    write_dataset(scratch, world_of(unit))
    os.rename(scratch, home / "data")


def _first_rollouts(config: PipelineConfig, unit: Unit, start: Start) -> Artifact:
    """What every arm's first selection looks at: answers of the SFT policy."""
    policy = start.sft.part("policy")
    given = {"policy": policy, "reference": policy, "preferences": start.preferences}
    return stages.roll_out("first-rollouts", config, unit.seed, rollout=config.rollout, **given)


def run_arm(arm: Arm, probe: Probe, execute: Execute) -> Row:
    """All rounds of an arm, and its reward models before any of them, as one row."""
    config, unit, start = probe.config, probe.unit, probe.start
    began, cpu = time.monotonic(), time.process_time()
    rounds = inverse_alignment(config, node_name(arm), unit.seed, start)
    ran = time.monotonic()
    first: dict[str, Any] = {"start": probe.first()}
    if rounds[0].selection is not None:
        first["refreshed"] = probe.refreshed(arm, execute)
        if arm.rule == "full":
            with tempfile.TemporaryDirectory() as partial:
                first["subset"] = probe.subset(rounds[0].selection, Path(partial))
    return rounded(
        {
            "heterogeneity": unit.heterogeneity,
            "seed": unit.seed,
            "arm": arm.name,
            "selector": arm.selector,
            "rule": arm.rule,
            "code": digest_of_code(),
            "config": digest_of_arm(config, arm, unit),
            "way": way_of(rounds),
            "start_evaluation": _evaluation(Path(start.evaluation.uri)),
            "rounds": [_round(round_) for round_ in rounds],
            "before_rl": first,
            "seconds": ran - began,
            "seconds_probe": time.monotonic() - ran,
            "cpu_seconds": time.process_time() - cpu,
        }
    )


def way_of(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Step, KL, gold and RM score of the answers that PPO learned from, in the order of its steps."""
    points = [
        json.loads(line)
        for round_ in rounds
        for line in (Path(round_.evaluation.uri) / "curve.jsonl").read_text().splitlines()
    ]
    return {name: [point[name] for point in points] for name in ("step", "kl", "gold", "rm_score")}


def _round(round_: Round) -> dict[str, Any]:
    selected = gate = None
    if round_.selection is not None and round_.refresh is not None:
        selected = len((Path(round_.selection.uri) / "selection.jsonl").read_text().splitlines())
        gate = json.loads((Path(round_.refresh.uri) / "gate.json").read_text())
    return {"evaluation": _evaluation(Path(round_.evaluation.uri)), "gate": gate, "selected": selected}


def _evaluation(folder: Path) -> dict[str, float | None]:
    measured = json.loads((folder / "evaluation.json").read_text())
    return {name: measured[name] for name in KEPT}


def rounded(value: Any) -> Any:
    """Numbers with five significant digits: more would be noise, and makes large files."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
