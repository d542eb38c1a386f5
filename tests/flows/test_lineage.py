"""What MLflow holds after a run: parents, children, parameters, inputs and metrics; and nothing it could break."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from inverse_alignment.config import PipelineConfig, TrackingConfig
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from tasks.lineage import MlflowLineage, tracker
from tasks.recorder import flatten, key_of, params, round_of
from tasks.run_stage import Execute, Node
from tests.flows.quick_stages import QUICK

ROOT = Path(__file__).parents[2]


class Inner(Section):
    """A nested section."""

    rate: float = 0.5
    names: tuple[str, ...] = ("a", "b")


class Toy(Section):
    """A configuration with what MLflow dislikes."""

    inner: Inner = Inner()
    long: str = "x" * 9000
    hub_token: str = "hush"
    store: str = "s3://user:hush@bucket/x"


KILLED = """
import os, signal, sys
from inverse_alignment.config import PipelineConfig, TrackingConfig
from tasks.lineage import tracker
config = PipelineConfig(tracking=TrackingConfig(mlflow_uri=sys.argv[1], experiment=sys.argv[2]))
lineage = tracker(config)
with lineage.arm("none", 0, config):
    lineage.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""

SFT = Node("sft-s0", "sft", {"preferences": Artifact(kind="data", uri="/data", digest="d" * 64)}, Toy(), 0)


def ppo(arm: str, index: int, start: Artifact) -> Node:
    return Node(f"{arm}-s0-r{index}-ppo", "ppo", {"policy": start.part("policy")}, Toy(inner=Inner(rate=index)), 0)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module, made by two processes at the same moment, which MLflow alone does not survive."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")
    both = [subprocess.Popen([sys.executable, "-c", code, uri, "x"], cwd=ROOT) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    return uri


@pytest.fixture
def tracked(database: str, request: pytest.FixtureRequest) -> PipelineConfig:
    return PipelineConfig(tracking=TrackingConfig(mlflow_uri=database, experiment=request.node.name))


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lineage_of(config: PipelineConfig) -> MlflowLineage:
    made = tracker(config)
    assert made is not None
    return made


def execute(store: Path, lineage: MlflowLineage) -> Execute:
    return Execute(Store(store), RuntimeConfig(), (lineage,), QUICK)


def runs_of(config: PipelineConfig) -> dict[str, Run]:
    client = MlflowClient(tracking_uri=config.tracking.mlflow_uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return {run.info.run_name: run for run in found}


def history(config: PipelineConfig, run: Run, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri=config.tracking.mlflow_uri)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def go(config: PipelineConfig, store: Path) -> None:
    """A shared start, and an arm of two rounds."""
    with lineage_of(config) as lineage:
        run = execute(store, lineage).run
        start = run(SFT)
        run(Node("start-s0", "evaluate", {}, Inner(), 0))
        with lineage.arm("random", 0, config.for_arm("random")):
            run(ppo("random", 1, start))
            run(ppo("random", 2, start))


def test_a_run_is_a_parent_per_arm_and_a_child_per_stage(tracked: PipelineConfig, tmp_path: Path) -> None:
    go(tracked, tmp_path / "store")
    runs = runs_of(tracked)
    assert set(runs) == {
        "shared-start-s0", "sft-s0", "start-s0", "random-s0", "random-s0-r1-ppo", "random-s0-r2-ppo"
    }  # fmt: skip
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    arm, child = runs["random-s0"], runs["random-s0-r2-ppo"]
    assert child.data.tags["mlflow.parentRunId"] == arm.info.run_id
    assert runs["sft-s0"].data.tags["mlflow.parentRunId"] == runs["shared-start-s0"].info.run_id
    assert mlflow.active_run() is None

    assert child.data.params["inner.rate"] == "2.0"
    assert child.data.params["inner.names"] == "['a', 'b']"
    assert len(child.data.params["long"]) == 5999
    assert "hub_token" not in child.data.params
    assert child.data.params["store"] == "s3://***@bucket/x"
    assert arm.data.params["selection.type"] == "random"
    assert arm.data.params["rounds"] == "3"

    record = Store(tmp_path / "store").root / "ppo" / child.data.tags["artifact.fingerprint"] / "artifact.json"
    assert child.data.tags["artifact.digest"] in record.read_text()
    assert child.data.tags["ia.why"].startswith("config.inner.rate")
    wanted = {
        "node": "random-s0-r2-ppo",
        "stage": "ppo",
        "ia.reused": "false",
        "seed": "0",
        "arm": "random",
        "round": "2",
    }
    assert wanted.items() <= child.data.tags.items()

    (given,) = runs["sft-s0"].inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("preferences: data", "d" * 36)
    assert {tag.key: tag.value for tag in given.tags}["ia.digest"] == "d" * 64
    assert {entry.dataset.name for entry in arm.inputs.dataset_inputs} == {"random-s0-r1-ppo", "random-s0-r2-ppo"}


def test_metrics_of_the_artifact_and_headlines_by_round(tracked: PipelineConfig, tmp_path: Path) -> None:
    go(tracked, tmp_path / "store")
    runs = runs_of(tracked)
    child, arm = runs["random-s0-r1-ppo"], runs["random-s0"]
    assert history(tracked, child, "loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert child.data.metrics["top_at_1"] == 0.5
    assert not any("broken" in name for name in child.data.metrics)
    assert child.data.metrics["headline/by_source.plain"] == 3
    assert history(tracked, arm, "ppo/gold_reward") == [(1, 0.25), (2, 0.25)]
    assert history(tracked, arm, "ppo/accepted") == [(1, 1.0), (2, 1.0)]
    assert history(tracked, arm, "evaluate/gold_reward") == [(0, 0.25)]  # where every arm starts
    assert "ppo/nothing" not in arm.data.metrics


def test_reused_stages_are_listed_and_linked_but_not_run(tracked: PipelineConfig, tmp_path: Path) -> None:
    go(tracked, tmp_path / "store")
    built = runs_of(tracked)["random-s0-r2-ppo"]
    again = tracked.model_copy(update={"rounds": 2})
    with lineage_of(again) as lineage:
        run = execute(tmp_path / "store", lineage).run
        start = run(SFT)
        with lineage.arm("similarity", 0, again.for_arm("similarity")):
            run(ppo("random", 2, start))
    runs = runs_of(tracked)
    arm = runs["similarity-s0"]
    assert not [run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == arm.info.run_id]
    assert history(tracked, arm, "ppo/gold_reward") == [(2, 0.25)]
    (listed,) = arm.inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in listed.tags}
    assert (tags["ia.reused"], tags["ia.built_by"]) == ("true", built.info.run_id)
    assert tags["artifact.fingerprint"] == built.data.tags["artifact.fingerprint"]
    assert arm.data.tags["ia.built_by.random-s0-r2-ppo"] == built.info.run_id


def test_failures_and_cancels_end_their_runs(tracked: PipelineConfig, tmp_path: Path) -> None:
    Path("fail.txt").write_text("Toy")
    with pytest.raises(UserError), lineage_of(tracked) as lineage, lineage.arm("none", 0, tracked.for_arm("none")):
        execute(tmp_path / "store", lineage).run(SFT)
    assert {name: run.info.status for name, run in runs_of(tracked).items()} == {
        "none-s0": "FAILED",
        "sft-s0": "FAILED",
    }
    assert "the toy refuses" in runs_of(tracked)["sft-s0"].data.tags["ia.error"]
    with pytest.raises(KeyboardInterrupt), lineage_of(tracked) as lineage, lineage.arm("all", 0, tracked):
        lineage.started(SFT, "never built")
        raise KeyboardInterrupt
    assert runs_of(tracked)["all-s0"].info.status == "KILLED"
    assert runs_of(tracked)["sft-s0"].info.status == "KILLED"


def test_runs_of_a_killed_process_are_closed_at_the_next_start(tracked: PipelineConfig) -> None:
    where = [tracked.tracking.mlflow_uri, tracked.tracking.experiment]
    killed = subprocess.run([sys.executable, "-c", KILLED, *where], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert runs_of(tracked)["none-s0"].info.status == "RUNNING"
    with lineage_of(tracked) as lineage, lineage.arm("random", 0, tracked):
        lineage.flush()
        lineage_of(tracked).flush()  # another run at the same time leaves living ones alone
        assert {name: run.info.status for name, run in runs_of(tracked).items()} == {
            "none-s0": "KILLED",
            "random-s0": "RUNNING",
        }


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/", "file:./mlruns", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_tracker_that_fails_is_one_warning(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    config = PipelineConfig(tracking=TrackingConfig(mlflow_uri=uri))
    go(config, tmp_path / "store")
    warnings = [record.getMessage() for record in caplog.records if record.name == "tasks.lineage"]
    assert len(warnings) == 1
    assert "this run goes on without it" in warnings[0]
    assert len(list((tmp_path / "store").glob("*/*/artifact.json"))) == 4


def test_a_database_that_is_lost_half_way_does_not_stop_the_run(
    tracked: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with lineage_of(tracked) as lineage:
        run = execute(tmp_path / "store", lineage).run
        start = run(SFT)
        monkeypatch.setattr(MlflowClient, "create_run", lambda *a, **k: 1 / 0)
        with lineage.arm("none", 0, tracked):
            run(ppo("none", 1, start))
            run(ppo("none", 2, start))
    assert [record.name for record in caplog.records].count("tasks.lineage") == 1


def test_tracking_can_be_switched_off() -> None:
    assert tracker(PipelineConfig(tracking=TrackingConfig(mlflow_uri=""))) is None


def test_names_and_values_that_mlflow_takes() -> None:
    assert key_of("recall@10/α β?") == "recall_at_10/_ __"
    assert flatten({"a": {"b": [1, 2]}, "c": [{"d": 1}], "e": {}}) == {"a.b": [1, 2], "c.0.d": 1, "e": {}}
    shown = dict(params({"a.password": "x", "max_tokens": 3, "uri": "postgresql://me:pw@host/db"}))
    assert shown == {"max_tokens": "3", "uri": "postgresql://***@host/db"}
    policy = Artifact(kind="sft", uri="u", digest="d", parts={"policy": "p"})
    assert (round_of(SFT), round_of(ppo("r7-x", 3, policy))) == (0, 3)


def test_importing_it_imports_no_mlflow() -> None:
    code = "import sys, tasks.lineage; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
