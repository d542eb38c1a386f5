"""What an MLflow store holds, without what may differ between two of them: ids and places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from inverse_alignment.config import PipelineConfig, TrackingConfig
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.store import Store
from tasks.lineage import MlflowLineage, tracker
from tasks.run_stage import Execute, Node
from tests.ops.gated_stages import GATED, Gated

DATA = Artifact(kind="preferences", uri="/nowhere/data", digest="d" * 64)


def config_for(uri: str, store: Path, **changes: Any) -> PipelineConfig:
    """A configuration that tracks into one store."""
    return PipelineConfig(
        store=str(store), tracking=TrackingConfig(mlflow_uri=uri, experiment="toys", **changes), rounds=2
    )


def lineage_of(config: PipelineConfig) -> MlflowLineage:
    """The tracker of a configuration that has one."""
    made = tracker(config)
    assert made is not None
    return made


def go(config: PipelineConfig, lineage: MlflowLineage, accepted: tuple[bool, ...] = (True, False)) -> None:
    """A shared start, and the arm `random` whose gate decides as told, a round each."""
    run = Execute(Store(Path(config.store)), RuntimeConfig(), (lineage,), GATED).run
    sft = run(Node("sft-s0", "sft", {"preferences": DATA}, Gated(text="sft"), 0))
    reward = run(Node("reward-s0", "reward_model", {"preferences": DATA}, Gated(text="first"), 0))
    policy, model = sft.part("policy"), reward.part("model")
    run(Node("start-s0", "evaluate", {"policy": policy, "reward": model}, Gated(), 0))
    with lineage.arm("random", 0, config.for_arm("random")):
        for number, decision in enumerate(accepted, start=1):
            at = f"random-s0-r{number}"
            subset = run(Node(f"{at}-select", "select", {"preferences": DATA}, Gated(text=at), 0))
            gated = Gated(text=at, accepted=decision)
            refreshed = run(Node(f"{at}-refresh", "refresh", {"reward": model, "selection": subset}, gated, 0))
            model = refreshed.part("model")
            ppo = run(Node(f"{at}-ppo", "ppo", {"policy": policy, "reward": model}, Gated(text=at), 0))
            policy = ppo.part("policy")
            run(Node(f"{at}-evaluate", "evaluate", {"policy": policy, "reward": model}, Gated(text=at), 0))


def runs_of(uri: str, experiment: str = "toys") -> list[Run]:
    """All runs that were not deleted, oldest first."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    order = ["attributes.start_time ASC"]
    runs = client.search_runs([found.experiment_id], "", ViewType.ACTIVE_ONLY, order_by=order)
    return [client.get_run(run.info.run_id) for run in runs]  # a search does not say which models a run used


def view(uri: str) -> dict[str, Any]:
    """Runs by key, models by name and the registry, with run ids replaced by keys."""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    runs = runs_of(uri)
    keys = {run.info.run_id: run.data.tags["ia.key"] for run in runs}
    found = client.get_experiment_by_name("toys")
    registered = client.search_registered_models()
    models = client.search_logged_models([found.experiment_id])
    names = {model.model_id: model.name for model in models}
    versions = [
        version for name in ("policy", "reward-model") for version in client.search_model_versions(f"name='{name}'")
    ]
    return {
        "runs": {keys[run.info.run_id]: _run(client, run, keys, names) for run in runs},
        "models": {
            model.name: [keys[model.source_run_id], _ours(model.tags), model.status == "READY"] for model in models
        },
        "versions": sorted([v.name, int(v.version), keys[v.run_id], sorted(v.tags.items())] for v in versions),
        "aliases": {
            each.name: {
                alias: int(version) for alias, version in client.get_registered_model(each.name).aliases.items()
            }
            for each in registered
        },
    }


def _ours(tags: dict[str, str]) -> dict[str, str]:
    """Without what MLflow adds by itself: a database kept elsewhere says who and where."""
    return {name: text for name, text in tags.items() if not name.startswith("mlflow.")}


def _run(client: MlflowClient, run: Run, keys: dict[str, str], names: dict[str, str]) -> dict[str, Any]:
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    tags = {name: keys.get(text, text) for name, text in run.data.tags.items() if name != "mlflow.user"}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "times": [run.info.start_time, run.info.end_time],
        "params": run.data.params,
        "tags": tags,
        "metrics": {name: sorted((p.step, p.value, p.timestamp) for p in points) for name, points in history.items()},
        "datasets": sorted(
            [
                given.dataset.name,
                given.dataset.digest,
                sorted((tag.key, keys.get(tag.value, tag.value)) for tag in given.tags),
            ]
            for given in run.inputs.dataset_inputs
        ),
        "models in": sorted(names[given.model_id] for given in run.inputs.model_inputs),
        "models out": sorted(names[made.model_id] for made in (run.outputs.model_outputs if run.outputs else [])),
        "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
    }
