"""The deployments on real servers with real workers: cancelled, killed, gone on with, run side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from benchmarks.resume.project import SMALL, WORLD
from inverse_alignment.config import PipelineConfig
from inverse_alignment.world.text import write_dataset
from tasks import server, services

pytestmark = [pytest.mark.ops, pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[2]
ARMS = {"none": {"selection": {"type": "none"}}, "random": {"selection": {"type": "random", "k": 40}}}
LONG = 100_000  # steps that nobody waits for


class Operated:
    """A project with servers and workers, and the deployments of this checkout."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.mlflow = f"sqlite:///{project}/mlflow.db"
        self.url = ""

    def up(self) -> None:
        self.url = services.up(self.project, self.mlflow).prefect

    def config(self, **ppo: Any) -> dict[str, Any]:
        sources = [{"format": "jsonl", "name": "advice", "path": str(self.project / "data" / "pairs.jsonl")}]
        values = {
            **SMALL,
            "rounds": 1,
            "arms": ARMS,
            "data": {**SMALL["data"], "sources": sources},
            "evaluation": {"samples": 2, "max_new_tokens": 8},
            "ppo": {**SMALL["ppo"], **ppo},
            "runtime": {**SMALL["runtime"], "checkpoint_seconds": 3},
            "store": str(self.project / "artifacts"),
            "tracking": {"mlflow_uri": self.mlflow, "experiment": "operated"},
        }
        return PipelineConfig.model_validate(values).model_dump(mode="json")

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        text = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", text, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def deployment(self, name: str) -> dict[str, Any]:
        flow, _, deployment = name.partition("/")
        return dict(self.ask(f"/deployments/name/{flow}/{deployment}"))

    def submit(self, deployment: str, variables: Mapping[str, Any] | None = None, **parameters: Any) -> str:
        body = {"parameters": parameters, "job_variables": variables or {}, "state": {"type": "SCHEDULED"}}
        return str(self.ask(f"/deployments/{self.deployment(deployment)['id']}/create_flow_run", body)["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self.ask(f"/flow_runs/{run_id}"))

    def state(self, run_id: str) -> str:
        return str(self.run(run_id)["state_type"])

    def cancel(self, run_id: str) -> None:
        self.ask(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})

    def open_runs(self) -> list[str]:
        """What is neither finished nor waiting: flow runs, task runs, runs in MLflow."""
        going = {"state": {"type": {"any_": ["RUNNING", "CANCELLING", "PENDING"]}}}
        flows = self.ask("/flow_runs/filter", {"flow_runs": going})
        tasks = self.ask("/task_runs/filter", {"task_runs": going})
        client = MlflowClient(self.mlflow)
        experiment = client.get_experiment_by_name("operated")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
        return [*(run["name"] for run in (*flows, *tasks)), *(str(run.info.run_name) for run in runs)]

    def log(self, run_id: str) -> str:
        lines = self.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200})
        return "\n".join(line["message"] for line in lines)

    def checkpoints(self) -> list[Path]:
        return sorted((self.project / "artifacts" / ".partial" / "ppo").glob("*/checkpoint-*"))

    def flow_process(self, run_id: str) -> psutil.Process:
        """The process that a run is in, by the label that it gave itself."""
        return psutil.Process(int(self.run(run_id)["labels"]["inverse-alignment.pid"]))

    def training(self, run_id: str) -> psutil.Process:
        """Wait until this run trains PPO and has a checkpoint of its own."""
        until(lambda: "building: " in self.log(run_id) or self.state(run_id) == "FAILED", 120)
        process = self.flow_process(run_id)
        until(lambda: any(path.stat().st_mtime > process.create_time() for path in self.checkpoints()), 120)
        return process


def until(true: Callable[[], bool], seconds: float) -> float:
    """Wait for it; how long that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        time.sleep(0.3)
    return time.monotonic() - began


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """Everything is up, and `prefect deploy` has registered what prefect.yaml holds on the fresh server."""
    project = tmp_path_factory.mktemp("operated")
    write_dataset(project / "data", WORLD)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(project))
        made = Operated(project)
        made.up()
        try:
            environment = {**os.environ, "PREFECT_API_URL": made.url}
            command = [sys.executable, "-m", "prefect", "deploy", "--all", "--no-prompt"]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdin=subprocess.DEVNULL)
            yield made
        finally:
            services.down(project)


def test_a_fresh_server_has_every_deployment_with_form_schedule_and_limit(operated: Operated) -> None:
    nightly = operated.deployment("compare/inverse-alignment")
    (schedule,) = nightly["schedules"]
    assert (schedule["schedule"]["cron"], schedule["active"]) == ("0 2 * * *", False)
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert "rounds" in nightly["parameter_openapi_schema"]["definitions"]["PipelineConfig"]["properties"]
    stage, light = operated.deployment("stage/stage"), operated.deployment("stage/stage-cpu")
    assert stage["parameter_openapi_schema"]["required"] == ["node"]
    assert (stage["work_pool_name"], light["work_pool_name"]) == ("gpu", "cpu")
    assert light["job_variables"]["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert operated.deployment("fan-out/compare")["parameters"] == {"deployment": "stage/stage"}


def test_a_misspelt_stage_fails_at_once_and_says_what_there_is(operated: Operated) -> None:
    run = operated.submit("stage/stage-cpu", node="none-s0-r1-pop", config=operated.config())
    until(lambda: operated.state(run) == "FAILED", 90)
    assert "did you mean 'none-s0-r1-ppo'?" in operated.log(run)
    assert [task["name"] for task in operated.ask("/task_runs/filter", {})] == []


def test_a_cancelled_run_writes_a_checkpoint_and_the_next_one_goes_on_from_it(operated: Operated) -> None:
    config = operated.config(steps=LONG)
    run = operated.submit("stage/stage", node="none-s0-r1-ppo", config=config)
    process = operated.training(run)
    before = operated.checkpoints()
    operated.cancel(run)
    assert until(lambda: gone(process), 60) < 25
    assert operated.checkpoints()[-1] not in before
    until(lambda: operated.state(run) == "CANCELLED", 30)
    until(lambda: not operated.open_runs(), 30)

    again = operated.submit("stage/stage", node="none-s0-r1-ppo", config=config)
    until(lambda: "continues where it was stopped" in operated.log(again), 90)
    process = operated.training(again)
    worker = services._running(operated.project)["worker-gpu"]
    os.kill(worker.pid, signal.SIGKILL)  # nobody is there to pass anything on
    assert until(lambda: gone(process), 60) < 25
    until(lambda: operated.state(again) == "CRASHED", 30)
    until(lambda: not operated.open_runs(), 30)


def test_what_died_with_the_machine_is_closed_and_keeps_nobody_waiting(operated: Operated) -> None:
    others = services._running(operated.project)
    assert "worker-gpu" not in others
    operated.up()
    workers = services._running(operated.project)
    assert {name: workers[name] for name in others} == others  # who runs is left alone
    run = operated.submit("compare/inverse-alignment", config=operated.config(steps=LONG))
    process = operated.training(run)
    os.kill(workers["worker-gpu"].pid, signal.SIGKILL)
    process.kill()
    assert operated.state(run) == "RUNNING"
    operated.up()
    assert operated.run(run)["state"]["message"].startswith("Its process is gone")
    going = {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}
    assert operated.ask("/task_runs/filter", {"task_runs": going}) == []
    limited = operated.submit("compare/inverse-alignment", config=operated.config())  # one at a time, and it is free
    until(lambda: operated.state(limited) == "COMPLETED", 180)
    assert operated.open_runs() == []  # MLflow's too: the run that came next has closed them
    artifacts = operated.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [limited]}}})
    found = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert {"inverse-alignment-rounds", "inverse-alignment-comparison"} <= set(found)
    assert f"{services._running(operated.project)['mlflow'].url}/#/experiments" in services.mlflow_page(
        operated.mlflow, operated.project
    )


def test_arms_run_side_by_side_and_wait_for_a_slot(operated: Operated) -> None:
    """The fan-out sends its stages to the pool that takes two at a time, where they take turns at one slot."""
    slot = {"env": {"INVERSE_ALIGNMENT_SLOT": f"desk-{os.getpid()}"}}
    config = operated.config(steps=LONG)
    first = operated.submit("stage/stage-cpu", slot, node="none-s0-r1-ppo", config=config)
    process = operated.training(first)
    second = operated.submit("stage/stage-cpu", slot, node="random-s0-r1-ppo", config=config)
    until(lambda: f"which none-s0-r1-ppo, process {process.pid} has" in operated.log(second), 90)
    operated.cancel(first)
    until(lambda: gone(process), 25)
    operated.training(second)
    operated.cancel(second)
    until(lambda: operated.state(second) == "CANCELLED", 60)

    run = operated.submit("fan-out/compare", config=operated.config(steps=5))
    until(lambda: operated.state(run) in ("COMPLETED", "FAILED"), 300)
    assert operated.state(run) == "COMPLETED", operated.log(run)
    children = operated.ask("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}})
    assert {child["name"] for child in children} == {"start-s0", "none-s0-r1-evaluate", "random-s0-r1-evaluate"}
    assert {child["state_type"] for child in children} == {"COMPLETED"}
    assert len({child["labels"]["inverse-alignment.pid"] for child in children}) == 3


def test_a_cancelled_fan_out_cancels_its_runs(operated: Operated) -> None:
    run = operated.submit("fan-out/compare", config=operated.config(steps=LONG))
    arms = {"name": {"any_": ["none-s0-r1-evaluate"]}}

    def child() -> dict[str, Any] | None:
        mine = {**arms, "parent_flow_run_id": {"any_": [run]}, "state": {"type": {"any_": ["RUNNING"]}}}
        found = operated.ask("/flow_runs/filter", {"flow_runs": mine})
        return found[0] if found else None

    until(lambda: child() is not None, 120)
    started = child()
    assert started is not None
    process = operated.training(started["id"])
    operated.cancel(run)
    until(lambda: gone(process), 40)
    until(lambda: operated.state(run) == "CANCELLED", 60)
    children = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}, "name": {"like_": "evaluate"}}}
    until(lambda: {c["state_type"] for c in operated.ask("/flow_runs/filter", children)} == {"CANCELLED"}, 60)


def test_a_run_outlives_the_server_and_tells_the_next_one(operated: Operated) -> None:
    run = operated.submit("stage/stage", node="none-s0-r1-ppo", config=operated.config(steps=600))
    process = operated.training(run)
    supervisor = server.status(operated.project).pid
    assert supervisor is not None
    (killed,) = psutil.Process(supervisor).children()
    killed.kill()
    until(lambda: not server.answers(operated.url), 10)
    before = operated.url
    operated.up()
    assert operated.url == before and not gone(process)
    until(lambda: operated.state(run) == "COMPLETED", 180)
    assert operated.open_runs() == []


def test_down_ends_what_up_has_started_and_nothing_else(operated: Operated) -> None:
    state = server.status(operated.project)
    started = [psutil.Process(found.pid) for found in services._running(operated.project).values()]
    started += [child for process in started for child in process.children(recursive=True)]
    started.append(psutil.Process(state.pid))
    bystander = subprocess.Popen([sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"])
    try:
        assert sorted(services.down(operated.project)) == ["mlflow", "prefect", "worker-cpu", "worker-gpu"]
        assert all(gone(process) for process in started)
        assert bystander.poll() is None
        assert services.down(operated.project) == []
    finally:
        bystander.kill()
        bystander.wait()
