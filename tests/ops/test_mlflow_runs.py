"""What people find in MLflow: where a run came from, which data and weights it touched, and who is in office."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import prefect  # noqa: F401  (a flow's id is asked for only where Prefect is loaded)
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from inverse_alignment.config import DataConfig, PipelineConfig
from inverse_alignment.core.artifact import external
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.store import Store
from inverse_alignment.data.sources import JsonlSource
from tasks import recorder
from tasks.dataset import dvc_digest
from tasks.run_stage import Execute, Node
from tests.ops.gated_stages import GATED, Gated
from tests.ops.mlflow_view import config_for, go, lineage_of, runs_of, view


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with a published dataset."""
    root = tmp_path_factory.mktemp("project")
    (root / "data" / "toy").mkdir(parents=True)
    (root / "data" / "toy" / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    (root / "data.dvc").write_text(f"outs:\n- md5: {dvc_digest(root / 'data')}\n  path: data\n")
    (root / ".gitignore").write_text("*.db*\nstore\nmlruns\n")
    for call in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *call], cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def tracked(project: Path) -> tuple[PipelineConfig, dict[str, Run]]:
    """A run of that project, with a gate that accepts and then refuses, inside a Prefect flow run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("PREFECT__FLOW_RUN_ID", "4f1cbd3e-0c5c-4b7e-9d56-0a5a60b2e7a1")
        source = JsonlSource(name="toy", path="data/toy/pairs.jsonl")
        config = config_for(f"sqlite:///{project / 'mlflow.db'}", project / "store", system_metrics=True)
        config = config.model_copy(update={"data": DataConfig(sources=(source,))})
        with lineage_of(config) as lineage:
            inputs = {"source.toy": external("data", Path(source.path))}
            run = Execute(Store(Path(config.store)), RuntimeConfig(), (lineage,), GATED).run
            run(Node("aggregate", "aggregate", inputs, Gated()))
            go(config, lineage)
        return config, {run.info.run_name: run for run in runs_of(config.tracking.mlflow_uri)}


def test_tags_say_which_code_data_arm_seed_round_and_flow(project: Path, tracked: Any) -> None:
    _, runs = tracked
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, text=True, check=True)
    every = {
        "git.commit": head.stdout.strip(),
        "data.md5": dvc_digest(project / "data"),
        "prefect.flow_run_id": "4f1cbd3e-0c5c-4b7e-9d56-0a5a60b2e7a1",
    }
    for run in runs.values():
        assert every.items() <= run.data.tags.items(), run.info.run_name
    stage = runs["random-s0-r2-ppo"].data.tags
    assert {"arm": "random", "seed": "0", "round": "2", "stage": "ppo"}.items() <= stage.items()
    record = project / "store" / "ppo" / stage["artifact.fingerprint"] / "artifact.json"
    assert stage["artifact.digest"] in record.read_text()
    assert {"arm": "random", "seed": "0"}.items() <= runs["random-s0"].data.tags.items()


def test_datasets_carry_the_md5_of_dvc(project: Path, tracked: Any) -> None:
    _, runs = tracked
    md5 = dvc_digest(project / "data")
    (published,) = runs["random-s0"].inputs.dataset_inputs[:1]
    assert (published.dataset.name, published.dataset.digest) == ("data", md5)
    (given,) = runs["aggregate"].inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in given.tags}
    assert (tags["dvc.md5"], tags["dvc.path"], tags["mlflow.data.context"]) == (md5, "data", "source.toy")
    assert tags["ia.digest"] == external("data", project / "data/toy/pairs.jsonl").digest
    subsets = [given for given in runs["random-s0"].inputs.dataset_inputs if given.dataset.name.endswith("-select")]
    made = {runs[given.dataset.name].data.tags["artifact.digest"] for given in subsets}
    assert {tag.value for given in subsets for tag in given.tags if tag.key == "ia.digest"} == made and len(made) == 2


def test_changed_data_have_another_md5_than_their_record(project: Path, tmp_path: Path) -> None:
    import shutil

    from tasks.dataset import tracked as tracked_data

    shutil.copytree(project / "data", tmp_path / "data")
    shutil.copy(project / "data.dvc", tmp_path)
    same = tracked_data(tmp_path / "data" / "toy" / "pairs.jsonl")
    assert same is not None and same.md5 in (tmp_path / "data.dvc").read_text()
    (tmp_path / "data" / "toy" / "pairs.jsonl").write_text('{"prompt": "another"}\n')
    changed = tracked_data(tmp_path / "data")
    assert changed is not None and changed.md5 == dvc_digest(tmp_path / "data") != same.md5
    assert tracked_data(tmp_path) is None


def test_small_files_are_there_and_weights_are_not(project: Path, tracked: Any) -> None:
    config, runs = tracked
    client = MlflowClient(tracking_uri=config.tracking.mlflow_uri)
    files = {file.path for file in client.list_artifacts(runs["random-s0-r1-ppo"].info.run_id)}
    assert files == {"artifact.json", "runtime.json", "samples.jsonl"}


def test_models_are_linked_to_runs_data_and_measurements(project: Path, tracked: Any) -> None:
    config, runs = tracked
    client = MlflowClient(tracking_uri=config.tracking.mlflow_uri)
    seen = view(config.tracking.mlflow_uri)
    by_name = {key.partition("/")[2]: run for key, run in seen["runs"].items()}
    assert by_name["random-s0-r2-ppo"]["models in"] == ["policy-random-s0-r1", "reward-model-random-s0-r1"]
    assert by_name["random-s0-r2-ppo"]["models out"] == ["policy-random-s0-r2"]
    key, tags, ready = seen["models"]["policy-random-s0-r2"]
    assert key.endswith("/random-s0-r2-ppo") and ready
    assert Path(tags["weights.uri"], "weights.txt").read_text() == "policy random-s0-r2"
    assert tags["weights.digest"] == external("policy", Path(tags["weights.uri"])).digest
    _, refused, _ = seen["models"]["reward-model-random-s0-r2"]
    assert "weights.digest" not in refused and refused["gate.accepted"] == "False"
    (model,) = [
        each
        for each in client.search_logged_models([runs["sft-s0"].info.experiment_id])
        if each.name == "policy-random-s0-r2"
    ]
    measured = {(metric.key, metric.value, metric.run_id) for metric in model.metrics}
    assert ("headline/gold_reward", 0.5, runs["random-s0-r2-evaluate"].info.run_id) in measured


def of_version(client: MlflowClient, name: str, alias: str) -> str:
    return str(client.get_model_version_by_alias(name, alias).tags["node"])


def test_the_gate_moves_champion_and_challenger(tracked: Any) -> None:
    config, _ = tracked
    client = MlflowClient(config.tracking.mlflow_uri, config.tracking.mlflow_uri)
    for suffix in ("", "-random-s0"):
        assert of_version(client, "reward-model", f"champion{suffix}") == "random-s0-r1-refresh"
        assert of_version(client, "reward-model", f"challenger{suffix}") == "random-s0-r2-refresh"
    refused = client.get_model_version_by_alias("reward-model", "challenger")
    assert refused.tags["weights"] == "not kept: the gate refused them"
    assert of_version(client, "policy", "random-s0") == "random-s0-r2-ppo"
    assert of_version(client, "policy", "start-s0") == "sft-s0"
    assert client.get_model_version_by_alias("policy", "random-s0").source.startswith("models:/m-")


@pytest.mark.ops
def test_a_decision_that_is_mirrored_late_moves_nothing_back(tmp_path: Path, project: Path) -> None:
    """The same project in two stores; what the older says is written after the newer."""
    from tasks.journal import read_journals
    from tasks.mirror import mirror

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for store, accepted in (("older", (True, True)), ("newer", (False,))):
        config = config_for(f"sqlite:///{tmp_path / store}.db", tmp_path / store)
        with lineage_of(config) as lineage:
            go(config, lineage, accepted)
        time.sleep(0.01)
    for store in ("newer", "older", "newer"):
        mirror(read_journals(tmp_path / store / ".journal"), uri)
        client = MlflowClient(uri, uri)
        assert of_version(client, "reward-model", "champion") == "reward-s0"
        assert of_version(client, "reward-model", "challenger") == "random-s0-r1-refresh"


@pytest.mark.ops
def test_the_machine_is_measured_where_that_is_asked_for(tracked: Any, tmp_path: Path) -> None:
    _, runs = tracked
    measured = {name for run in runs.values() for name in run.data.metrics if name.startswith("system/")}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= measured
    config = config_for(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "store")
    with lineage_of(config) as lineage:
        go(config, lineage)
    plain = runs_of(config.tracking.mlflow_uri)
    assert not [name for run in plain for name in run.data.metrics if name.startswith("system/")]


def test_rows_of_a_long_stage_arrive_while_it_runs_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LIVE_SECONDS", 0.0)
    live = tmp_path / "metrics.jsonl"
    monkeypatch.setattr(recorder, "_live_rows", lambda config, node: live)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = config_for(uri, tmp_path / "store")
    node = Node("random-s0-r1-ppo", "ppo", {}, Gated(text="live"), 0)
    client = MlflowClient(tracking_uri=uri)

    def steps() -> list[int]:
        (run,) = [run for run in runs_of(uri) if run.info.run_name == node.name]
        return [point.step for point in client.get_metric_history(run.info.run_id, "loss")]

    with lineage_of(config) as lineage:
        lineage.started(node, "never built")
        report = FileReport(live, lambda *told: lineage.progress(node, *told))
        for step in range(2):
            report.log(step, {"loss": 1.0 / (step + 1)})
            report.progress(step + 1, 3, "steps")
        lineage.flush()
        assert steps() == [0, 1]
        entry = Execute(Store(tmp_path / "store"), RuntimeConfig(), (), GATED).entry(node)
        lineage.finished(node, entry, 1.0)
        lineage.flush()
        assert steps() == [0, 1, 2]


def test_recording_takes_the_run_less_than_a_hundredth_of_a_second_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten thousand rows none is read by the thread that trains; MLflow's own thread does that."""
    from tasks.lineage import MlflowStore

    config = config_for(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "store")
    node = Node("random-s0-r1-ppo", "ppo", {}, Gated(rows=10_000), 0)
    entry = Execute(Store(tmp_path / "store"), RuntimeConfig(), (), GATED).entry(node)
    monkeypatch.setattr(MlflowStore, "apply", lambda store, event: None)
    lineage = lineage_of(config)
    spent = []
    for _ in range(5):
        began = time.thread_time()
        lineage.started(node, "never built")
        lineage.finished(node, entry, 1.0)
        spent.append(time.thread_time() - began)
    assert min(spent) < 0.01
    lineage.close()
