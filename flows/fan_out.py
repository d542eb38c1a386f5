"""Arms × seeds side by side: each is a run of the deployment `stage`, in a process and on a device of its own.

The runs share nothing but the artifact store: what every arm starts from is made first, then each arm's last stage is
asked for, with all that it needs, and in the end everything is there and is set side by side here. A cancel of this run
cancels them: submitted to another process, each hears it in its main thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import prefect
from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from flows.compare import compare
from flows.scheduled import compare_name, executing
from inverse_alignment.config import PipelineConfig
from tasks.prefect_driver import publish
from tasks.run_stage import draw, driving
from tasks.services import mlflow_page

POLL_SECONDS = 2.0


@flow(name="fan-out", flow_run_name=compare_name, persist_result=False)
def fan_out_flow(
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - the form's defaults
    deployment: str = "stage/stage",
) -> dict[str, Any]:
    """Run every arm for every seed as a run of its own, as many at once as workers have room for.

    Args:
        config: what params.yaml holds; what is left out has its default.
        deployment: whose runs they are; its work pool decides where.
    """
    with executing(config) as execution, driving(execution.driver):
        for nodes in waves(config):
            _run_all(deployment, nodes, config)
        comparison = compare(config)
        publish(comparison, mlflow_page(config.tracking.mlflow_uri, Path()))
    return {"comparison": comparison.model_dump(mode="json")}


def waves(config: PipelineConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The nodes that may run side by side: the start of every seed, then the end of every arm and seed."""
    names = [node.name for node in draw(lambda: compare(config)) if node.stage == "evaluate"]
    starts = [f"start-s{seed}" for seed in config.seeds]
    ends = [f"{arm}-s{seed}-r{config.rounds}-evaluate" for seed in config.seeds for arm in config.arms]
    assert {*starts, *ends} <= set(names), (starts, ends, names)
    return tuple(starts), tuple(ends)


def _run_all(deployment: str, nodes: Sequence[str], config: PipelineConfig) -> None:
    """Run these nodes side by side.

    Raises:
        RuntimeError: some did not complete; what the others have made is in the store.
    """
    values = config.model_dump(mode="json")
    runs: list[FlowRun] = []
    try:
        for node in nodes:
            parameters = {"node": node, "config": values}
            submitted: Any = run_deployment(deployment, parameters=parameters, flow_run_name=node, timeout=0)
            runs.append(submitted)
        while not all(_is_final(run) for run in runs):
            time.sleep(POLL_SECONDS)
            runs = _read(runs)
    except BaseException:
        _cancel(runs)
        raise
    if failed := [run for run in runs if run.state is None or not run.state.is_completed()]:
        how = ", ".join(f"{run.name} {run.state_name}" for run in failed)
        raise RuntimeError(f"{len(failed)} of {len(runs)} runs did not complete: {how}")


def _read(runs: Sequence[FlowRun]) -> list[FlowRun]:
    with prefect.get_client(sync_client=True) as client:
        return [run if _is_final(run) else client.read_flow_run(run.id) for run in runs]


def _cancel(runs: Sequence[FlowRun]) -> None:
    with prefect.get_client(sync_client=True) as client:
        for run in _read(runs):
            if not _is_final(run):
                client.set_flow_run_state(run.id, Cancelling(message="The run that asked for it ends."))


def _is_final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()
