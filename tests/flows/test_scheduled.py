"""The real flows under a real Prefect server, on stages that take no time: what is recorded, and what is not lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient
from prefect.logging.handlers import APILogHandler

from flows.scheduled import compare_flow, run_compare
from inverse_alignment.config import PipelineConfig, TrackingConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Entry
from inverse_alignment.stages.registry import STAGES
from tasks import prefect_driver, server
from tasks.launch import LaunchFailed
from tasks.prefect_driver import transient
from tasks.run_stage import Node, Remember
from tests.flows.quick_stages import QUICK

ROOT = Path(__file__).parents[2]
CONFIG = PipelineConfig(rounds=2, seeds=(0, 1), tracking=TrackingConfig(mlflow_uri=""))
SMALL = CONFIG.model_copy(update={"seeds": (1,), "arms": {"similarity": CONFIG.arms["similarity"]}})
TRACKED = SMALL.model_copy(update={"tracking": TrackingConfig(experiment="toys")})
NODES = 2 + 2 * (4 + 2 * (3 + 5 + 5)) + 1


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, spec in QUICK.items():
            patch.setitem(STAGES, name, spec)
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, with_database: Callable[[Path], Path]) -> Iterator[Path]:
    """A project with data, in which a run has started a server of its own and ended it."""
    folder = with_database(tmp_path_factory.mktemp("project"))
    (folder / "data" / "advice").mkdir(parents=True)
    (folder / "data" / "advice" / "pairs.jsonl").write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def first(project: Path) -> Remember:
    """A first run, which has to start a server, and leaves none."""
    remember = Remember()
    run_compare(CONFIG, (remember,))
    assert server.status(project).url is None
    assert "PREFECT_API_URL" not in os.environ
    return remember


@pytest.fixture(scope="module")
def url(project: Path, first: Remember) -> Iterator[str]:
    """A server that was started after the first run."""
    yield server.start(project)
    server.stop(project)


def ask(url: str, path: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def flow_runs(url: str) -> list[dict[str, Any]]:
    return list(ask(url, "/flow_runs/filter", {"sort": "START_TIME_ASC"}))


def task_runs(url: str, flow_run: str) -> list[dict[str, Any]]:
    return list(ask(url, "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}, "limit": 200}))


def messages(url: str, task_run: str) -> str:
    logs = ask(url, "/logs/filter", {"logs": {"task_run_id": {"any_": [task_run]}}})
    return "\n".join(entry["message"] for entry in logs)


def test_every_stage_of_a_run_that_ended_its_server_is_recorded(first: Remember, url: str) -> None:
    assert len(first.entries) == NODES == 63
    runs = flow_runs(url)
    assert Counter(run["name"] for run in runs) == Counter(
        ["compare-none-random-similarity-s0-1", *(f"{arm}-s{seed}" for arm in CONFIG.arms for seed in CONFIG.seeds)]
    )
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    recorded = {task["name"]: task for run in runs for task in task_runs(url, run["id"])}
    assert set(first.entries) <= set(recorded)  # and the task runs that stand for the subflows
    assert {task["state_type"] for task in recorded.values()} == {"COMPLETED"}
    node = recorded["random-s1-r2-refresh"]
    upstream = {entry["id"] for entry in node["task_inputs"]["wait_for"]}
    assert recorded["random-s1-r2-select"]["id"] in upstream
    assert "never built" in messages(url, recorded["sft-s0"]["id"])
    (table,) = ask(url, "/artifacts/filter", {"artifacts": {"key": {"like_": "inverse-alignment-rounds"}}})
    rows = json.loads(table["data"])
    assert len(rows) == 12
    assert rows[0]["gold_reward"] == 0.25
    (text,) = ask(url, "/artifacts/filter", {"artifacts": {"key": {"like_": "inverse-alignment-comparison"}}})
    assert "| similarity | 2 | 0.25 ± 0.00 | 1.00 ± 0.00 | 1.5 ± 0.0 |" in text["data"]
    shown = {}
    for name in ("rewards-by-step", "rewards-by-kl"):  # no toy arm has a gate
        found = ask(url, "/artifacts/filter", {"artifacts": {"key": {"like_": f"inverse-alignment-{name}"}}})
        assert len(found) == 1, name
        picture = found[0]
        kind, _, data = picture["data"].partition(",")
        assert picture["type"] == "image" and kind == "data:image/svg+xml;base64"
        shown[name] = b64decode(data).decode()
    assert all(svg.startswith("<svg xmlns=") for svg in shown.values()) and len(set(shown.values())) == 2
    report = Path(re.search(r"report: `(.*)`", text["data"])[1])  # type: ignore[index]
    assert report.name == "report.html" and report.parent.parent.name == "compare"


def test_a_second_run_reuses_everything_and_still_shows(
    first: Remember, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    before = {run["id"] for run in flow_runs(url)}
    again = Remember()
    run_compare(TRACKED, (again,))
    assert [name for name, (_, entry) in again.entries.items() if not entry.reused] == ["compare"]
    new = [run for run in flow_runs(url) if run["id"] not in before]
    assert len(new) == 2
    (arm,) = [run for run in new if run["name"] == "similarity-s1"]
    (task,) = [task for task in task_runs(url, arm["id"]) if task["name"] == "similarity-s1-r1-ppo"]
    assert "reused: " in messages(url, task["id"])
    client = MlflowClient(tracking_uri="sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("toys")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`ia.kind` = 'arm'")
    assert len(runs) == 1
    assert all(run.data.metrics["evaluate/gold_reward"] == 0.25 for run in runs)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")  # nothing disturbs a live display


def test_an_error_of_the_user_is_theirs_and_is_recorded(
    first: Remember, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    Path("fail.txt").write_text("PpoStage")
    with pytest.raises(UserError, match="the toy refuses"):
        run_compare(SMALL.model_copy(update={"seeds": (7,)}))
    Path("fail.txt").unlink()
    failed = [run for run in flow_runs(url) if run["state_type"] == "FAILED"]
    assert sorted(run["name"] for run in failed) == ["compare-similarity-s7", "similarity-s7"]
    tasks = {task["name"]: task for run in failed for task in task_runs(url, run["id"])}
    assert (tasks["similarity-s7-r1-ppo"]["state_type"], tasks["similarity-s7-r1-ppo"]["run_count"]) == ("FAILED", 1)
    assert "Traceback" not in capfd.readouterr().err


class _Flaky(Remember):
    """An observer that fails as a network does, once."""

    fails = 1

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        if node.stage == "sft" and self.fails:
            self.fails -= 1
            raise ConnectionResetError("gone")


def test_what_may_go_away_is_tried_again(first: Remember, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setattr(prefect_driver, "RETRY_SECONDS", (0.0, 0.0))
    flaky = _Flaky()
    run_compare(SMALL, (flaky,))
    assert flaky.fails == 0


class _State:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def result(self, raise_on_failure: bool) -> BaseException:
        return self.error


def _launched(cause: BaseException | None) -> LaunchFailed:
    failure = LaunchFailed("process 1 of 2 failed")
    failure.__cause__ = cause
    return failure


class _Run:
    name, run_count = "sft-s0", 1


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError("x"), True),
        (TimeoutError("x"), True),
        (OSError(5, "Input/output error"), True),
        (OSError(28, "No space left on device"), False),
        (httpx.ConnectError("the hub is away"), True),
        (_launched(OSError(5, "Input/output error")), True),
        (_launched(None), False),
        (FloatingPointError("the loss is NaN"), False),
        (FileNotFoundError(2, "x"), False),
        (OSError("x is not a valid model identifier"), False),
        (UserError("x", where="y", fix="z"), False),
        (ValueError("x"), False),
    ],
)
def test_only_what_may_go_away_is_transient(error: BaseException, again: bool) -> None:
    assert transient(None, _Run, _State(error)) is again  # type: ignore[arg-type]


@pytest.mark.ops
def test_prefect_deploy_takes_the_deployments_and_validates_their_forms(url: str) -> None:
    command = [sys.executable, "-m", "prefect", "deploy", "--all", "--no-prompt"]
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(Path(".prefect").resolve())}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {deployment["name"]: deployment for deployment in ask(url, "/deployments/filter", {})}
    pools = {name: of["work_pool_name"] for name, of in found.items()}
    expected = {"inverse-alignment": "gpu", "compare": "cpu", "stage": "gpu", "stage-cpu": "cpu", "publish": "cpu"}
    assert {name: pools.get(name) for name in expected} == expected
    deployment = found["inverse-alignment"]
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]
    create = f"/deployments/{deployment['id']}/create_flow_run"
    for wrong in ({"rounds": 99}, {"roundz": 1}):
        with pytest.raises(urllib.error.HTTPError, match="409"):
            ask(url, create, {"parameters": {"config": wrong}})
    ask(url, create, {"parameters": {"config": {"rounds": 1}}})


def test_a_worker_runs_the_flow_without_a_display(
    first: Remember, url: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker calls, in this process."""
    monkeypatch.setenv("PREFECT_API_URL", url)
    monkeypatch.setenv("PREFECT_HOME", str(project / ".prefect"))
    server._refresh_prefect()
    result = compare_flow(SMALL)
    assert set(result["comparison"]) == {"kind", "uri", "digest", "parts"}
    APILogHandler().flush()
