"""The same flows under Prefect: recorded, cancellable, scheduled. Decorators add here, they do not shape.

`run_compare` is what `inverse-alignment run` calls: it shares or starts a server, tells the displays it is given, and
mirrors the run into MLflow. `compare_flow`, `stage_flow` and `publish_flow` are entrypoints of deployments
(`prefect.yaml`): a worker calls them with a configuration that the server has validated, and nobody watches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.compare import compare
from flows.direct import arm as one_arm
from flows.inverse_alignment import Round, Start
from flows.publish import lines
from flows.publish import publish as make_dataset
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.core.store import open_store
from tasks.flow_process import claim, close_stale_runs, owned_by_worker
from tasks.lineage import MlflowLineage, tracker
from tasks.prefect_driver import Tracked, publish, quiet_console
from tasks.run_stage import Ahead, Driver, Execute, Observer, Remember, UpTo, ancestors, draw, driving, observing
from tasks.server import SharedServer
from tasks.services import mlflow_page
from tasks.slots import Slots


@dataclass(frozen=True)
class Execution:
    """How the flows of this process run their stages, and what follows them."""

    driver: Driver
    lineage: MlflowLineage | None

    def arm(self, name: str, seed: int, config: PipelineConfig) -> AbstractContextManager[None]:
        """What follows one arm and seed."""
        return self.lineage.arm(name, seed, config.for_arm(name)) if self.lineage else nullcontext()


_execution: ContextVar[Execution | None] = ContextVar("execution", default=None)


def compare_name() -> str:
    """The arms and seeds of the flow run of this context."""
    config = flow_run.parameters.get("config")
    if isinstance(config, Mapping):
        config = PipelineConfig.model_validate(config)
    config = config or PipelineConfig()
    return f"compare-{'-'.join(config.arms)}-s{'-'.join(str(seed) for seed in config.seeds)}"


@flow(name="compare", flow_run_name=compare_name, persist_result=False)
def compare_flow(config: PipelineConfig = PipelineConfig()) -> dict[str, Any]:  # noqa: B008 - the form's defaults
    """Run every arm for every seed from one shared start, and set them side by side.

    Args:
        config: what params.yaml holds; what is left out has its default.
    """
    with executing(config) as execution, driving(execution.driver):
        comparison = compare(config, run_arm=_run_arm)
        publish(comparison, mlflow_page(config.tracking.mlflow_uri, Path()))
    return {"comparison": comparison.model_dump(mode="json")}


@flow(name="stage", flow_run_name="{node}", persist_result=False)
def stage_flow(node: str, config: PipelineConfig = PipelineConfig()) -> dict[str, Any]:  # noqa: B008 - as above
    """Run one stage of the plan and what it needs; what is there already is reused.

    Args:
        node: its name in the plan, as `inverse-alignment plan` lists them, for example `none-s0-r1-ppo`.
        config: what params.yaml holds; what is left out has its default.
    """
    needed = ancestors(draw(lambda: compare(config)), node)
    remember = Remember()
    with executing(config) as execution, observing(remember), driving(UpTo(node, needed, execution.driver)):
        compare(config)
    return {"artifact": remember.entries[node][1].artifact.model_dump(mode="json")}


@flow(name="publish", flow_run_name="publish-{name}", persist_result=False)
def publish_flow(
    name: str,
    node: str = "aggregate",
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - as above
) -> dict[str, Any]:
    """Make a dataset that DVC tracks from the pooled set, or from the pairs that a round has selected.

    Args:
        name: what to call the dataset: lower-case letters, digits, dashes and dots.
        node: a finished node of the stage aggregate or select, for example `similarity-s0-r3-select`.
        config: what params.yaml holds; what is left out has its default.
    """
    made = make_dataset(name, node, lambda: compare(config), config)
    said = lines(name, made)
    for line in said:
        get_run_logger().info("%s", line)
    create_markdown_artifact("\n".join(said), key="inverse-alignment-published", description=name)
    return {"folder": str(made.folder), "md5": made.md5, "pairs": made.pairs, "new": made.new}


@flow(name="inverse-alignment", flow_run_name="{arm}-s{seed}", persist_result=False, validate_parameters=False)
def arm_flow(config: PipelineConfig, arm: str, seed: int, start: Start) -> list[Round]:
    """Refresh the reward model where the policy now is, optimise the policy against it, and again: one arm.

    Args:
        config: the whole configuration; the arm's differences are applied to it.
        arm: a name in `config.arms`.
        seed: of everything random in this arm.
        start: what all arms of this seed share.
    """
    execution = _execution.get()
    assert execution is not None, "an arm runs inside compare_flow, which makes its start"
    claim()
    with execution.arm(arm, seed, config):
        return list(one_arm(config, arm, seed, start))


def _run_arm(config: PipelineConfig, arm: str, seed: int, start: Start) -> tuple[Round, ...]:
    return tuple(arm_flow(config, arm, seed, start))


def run_compare(
    config: PipelineConfig,
    observers: Sequence[Observer] = (),
    server: SharedServer | None = None,
    ahead: Ahead | None = None,
) -> Artifact:
    """Run `compare_flow` here and now, with a Prefect server of the project where none is configured.

    Args:
        config: what to run.
        observers: displays that are told about every stage.
        server: one whose `begin` was called, to overlap its start-up with more; it is released here.
        ahead: what of this flow was run before, told to the same observers; None: its light stages run now.

    Raises:
        UserError: a stage refuses its input, or the server does not start.
    """
    execute = Execute(open_store(config.store), config.runtime, tuple(observers))
    ahead = ahead or Ahead(execute).walk(lambda: compare(config))
    server = server or SharedServer(Path.cwd()).begin()
    try:
        with _recording(config) as lineage:
            if lineage:
                ahead.later.tell(lineage)
                execute = replace(execute, observers=(*execute.observers, lineage))
            server.wait()
            tracked = Tracked(execute, Slots(config.runtime), ahead.done)
            token = _execution.set(Execution(tracked, lineage))
            try:
                with quiet_console(), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                    # nobody listens: this server goes with the run, and every flow would wait for its last beat
                    return Artifact.model_validate(compare_flow(config)["comparison"])
            finally:
                _execution.reset(token)
                tracked.settle()
    finally:
        server.release()


@contextmanager
def executing(config: PipelineConfig) -> Iterator[Execution]:
    """What `run_compare` has set up; under a worker, which has not called it, the same without displays.

    The flow run is known to be of this process from here on, and those of dead processes are ended.
    """
    claim()
    close_stale_runs()
    if execution := _execution.get():
        yield execution
        return
    with owned_by_worker(), _recording(config) as lineage:
        execute = Execute(open_store(config.store), config.runtime, (lineage,) if lineage else ())
        execution = Execution(Tracked(execute, Slots(config.runtime)), lineage)
        token = _execution.set(execution)
        try:
            yield execution
        finally:
            _execution.reset(token)


@contextmanager
def _recording(config: PipelineConfig) -> Iterator[MlflowLineage | None]:
    """The tracker of the configuration; its open runs end as the block ends."""
    lineage = tracker(config)
    if lineage is None:
        yield None
        return
    with lineage:
        yield lineage
