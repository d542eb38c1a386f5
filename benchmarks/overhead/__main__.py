"""`python -m benchmarks.overhead --json out.json`: what Prefect, MLflow and DVC cost a stage and a run.

The default graph is run on stages that load what real ones load and compute for a second on one thread: in pairs, once
with and once without orchestration and tracking, each in a process of its own with an empty store, the order changing
from pair to pair. A real stage computes longer; what Prefect's server and the writer of MLflow do on another core
meanwhile costs a run nothing, here as there. The cost of a run is the median difference; the first run of a project,
which makes the databases of Prefect and MLflow, is not among the pairs, and its cost stands beside. The share is that
of the cost in a run whose stages take as long as those of the real default run did, by their artifacts; what of that
run is missing is built first. `dvc repro`, which starts a process for every stage, is measured on a smaller graph.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.overhead.stages import SECONDS
from flows.compare import compare
from inverse_alignment.config import PipelineConfig, load
from inverse_alignment.core.artifact import RUNTIME
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import open_store
from tasks import run_stage
from tasks.run_stage import Execute, Remember

PAIRS = 5
STAGE_SECONDS = 1.0
SECONDS_LIMIT, SHARE_LIMIT = 1.0, 0.03
ROOT = Path(__file__).parents[2]
SMALLER = {"rounds": 1, "arms": {"none": {"selection": {"type": "none"}}, "random": {"selection": {"type": "random"}}}}


def main() -> int:
    """Parse the command line, measure and print; 1 if a stage or a run pays more than it may."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of runs ({PAIRS})")
    arguments = parser.parse_args()
    try:
        run_seconds = seconds_of_run(load(ROOT / "params.yaml"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        projects = {how: _project(Path(folder) / how, {}) for how in ("on", "off")}
        first = _job(projects, "on")["seconds"]
        pairs = [_pair(projects, turned=index % 2 == 1) for index in range(arguments.pairs)]
        dvc = dvc_seconds(Path(folder) / "dvc")
    result = summary(pairs, first, run_seconds, dvc)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("seconds_per_stage", "share_of_run", "dvc_seconds_per_stage")}))
    return int(result["seconds_per_stage"] > SECONDS_LIMIT or result["share_of_run"] > SHARE_LIMIT)


def summary(pairs: list[dict[str, Any]], first: float, run_seconds: float, dvc: float) -> dict[str, Any]:
    """The result: costs as medians over pairs, with the pairs themselves."""
    cost = statistics.median(pair["on"] - pair["off"] for pair in pairs)
    return {
        "seconds_per_stage": round(cost / pairs[0]["stages"], 4),
        "share_of_run": round(cost / (run_seconds + cost), 4),
        "dvc_seconds_per_stage": round(dvc, 3),
        "seconds_of_a_run": round(cost, 2),
        "seconds_of_the_first_run": round(first - statistics.median(pair["off"] for pair in pairs), 2),
        "run_seconds": round(run_seconds, 1),
        "pairs": pairs,
    }


def seconds_of_run(config: PipelineConfig) -> float:
    """The seconds that the stages of the default run took, each artifact once; those that are missing are built.

    Raises:
        UserError: the run is refused, for example without the published data.
    """
    os.chdir(ROOT)
    remember = Remember()
    with run_stage.driving(Execute(open_store(config.store), config.runtime, (remember,))):
        compare(config)
    folders = {entry.artifact.uri for _, entry in remember.entries.values()}
    return sum(json.loads((Path(folder) / RUNTIME).read_text())["seconds"] for folder in folders)


def _pair(projects: dict[str, Path], turned: bool) -> dict[str, Any]:
    """A run with and a run without."""
    done = {how: _job(projects, how) for how in (("off", "on") if turned else ("on", "off"))}
    return {**{how: round(job["seconds"], 3) for how, job in done.items()}, "stages": done["on"]["stages"]}


def _job(projects: dict[str, Path], how: str) -> dict[str, Any]:
    """A run in a project whose artifacts are gone, and whose databases are not."""
    shutil.rmtree(projects[how] / "artifacts", ignore_errors=True)
    said = _python("benchmarks.overhead.job", how, cwd=projects[how], **{SECONDS: str(STAGE_SECONDS)})
    return dict(json.loads(said.splitlines()[-1]))


def dvc_seconds(folder: Path) -> float:
    """Seconds a stage of `dvc repro`, from nothing, with everything DVC does around it."""
    project = _project(folder, SMALLER)
    programs = folder.parent / "programs"
    programs.mkdir()
    program = programs / "inverse-alignment"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m benchmarks.overhead.stages "$@"\n')
    program.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    _python("benchmarks.overhead.stages", "dvc", cwd=project)
    _python("dvc", "init", "--quiet", "--no-scm", cwd=project)
    began = time.perf_counter()
    _python("dvc", "repro", "--quiet", cwd=project, PATH=path)
    stages = len(yaml.safe_load((project / "dvc.yaml").read_text())["stages"])
    return (time.perf_counter() - began) / stages


def _project(folder: Path, changes: dict[str, Any]) -> Path:
    """A project with the default configuration, and a row of data that nobody reads."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    data = {"sources": [{"format": "jsonl", "name": "toy", "path": "data/pairs.jsonl"}]}
    config = PipelineConfig.model_validate({**changes, "data": data})
    (folder / "params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return folder


def _python(module: str, *arguments: str, cwd: Path, **environment: str) -> str:
    at = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", "HOME": str(cwd), **environment}
    call = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(call, cwd=cwd, env=at, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(call)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
