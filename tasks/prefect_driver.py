"""The driver that makes every stage a Prefect task run.

`Tracked` decorates another driver and shapes nothing: without it the same flow runs the same stages. Tasks are called
directly, in the main thread, because only there does a cancel reach the code. Prefect's cache is off and nothing is
persisted: the artifact store is the one mechanism of reuse, and a reused stage is a quick task run that says so.
"""

from __future__ import annotations

import errno
import json
import logging
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import prefect
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler, PrefectConsoleHandler
from prefect.tasks import Task

from inverse_alignment.core.artifact import Artifact
from inverse_alignment.core.store import Entry
from inverse_alignment.report.card import PAGE as CARD
from inverse_alignment.report.comparison import PAGE, Comparison, load
from inverse_alignment.report.table import cells, columns, gate_cell
from inverse_alignment.stages.registry import STAGES
from tasks.launch import LaunchFailed
from tasks.run_stage import Driver, Node, Stages, observing
from tasks.slots import Slots

if TYPE_CHECKING:
    from inverse_alignment.report.canvas import Picture

RETRY_SECONDS = (5.0, 30.0)
PROGRESS_SECONDS = 15.0  # between two lines, and two updates of a bar
SETTLE_SECONDS = 20.0
TRANSIENT = {  # besides those that Python gives a class of their own: ConnectionError, TimeoutError
    errno.EAGAIN,
    errno.EBUSY,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ESTALE,
}
FINAL = ["COMPLETED", "FAILED", "CANCELLED", "CRASHED"]
ROUND_FIELDS = ("gold_reward", "rm_score", "kl_to_sft", "on_policy_accuracy_before", "on_policy_accuracy_after")

log = logging.getLogger(__name__)


class RunLog:
    """An observer that writes into the log of the Prefect task run it is called in, and has the slots meanwhile."""

    def __init__(self, slots: Slots, stages: Stages = STAGES) -> None:
        self.slots, self.stages = slots, stages
        self._spoke = 0.0
        self._bar = ProgressBar()

    def started(self, node: Node, why: str) -> None:
        """See `Observer.started`."""
        self._bar = ProgressBar()
        if self.stages[node.stage].gpu:
            self._spoke = time.monotonic() - PROGRESS_SECONDS
            self.slots.acquire(node.name, lambda seconds, holder: self._wait(node, seconds, holder))
        self._spoke = time.monotonic()
        self._say("building: %s", why)

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """See `Observer.progress`; one line, and one look at the bar, in `PROGRESS_SECONDS`."""
        if time.monotonic() - self._spoke > PROGRESS_SECONDS:
            self._spoke = time.monotonic()
            shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            self._say("%d of %d %s  %s", done, total, unit, shown)
            self._bar.show(node, 100.0 * done / max(1, total), f"{done} of {total} {unit}  {shown}")

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`."""
        self.slots.release()
        self._bar.finish(node)
        how = "reused" if entry.reused else f"built in {seconds:.1f} s"
        self._say("%s: %s, fingerprint %s, digest %s", how, entry.artifact.uri, *_identity(entry))
        if entry.metrics:
            self._say("%s", json.dumps(entry.metrics, sort_keys=True)[:2000])

    def failed(self, node: Node, error: BaseException) -> None:
        """See `Observer.failed`; Prefect itself records what is raised."""
        self.slots.release()

    def _wait(self, node: Node, seconds: float, holder: str) -> None:
        if time.monotonic() - self._spoke >= PROGRESS_SECONDS:
            self._spoke = time.monotonic()
            self._say("waits for the device, which %s has, since %.0f s", holder, seconds)
            self._bar.show(node, 0.0, f"waits for the device, which {holder} has, since {seconds:.0f} s")

    def _say(self, message: str, *values: object) -> None:
        if prefect.runtime.task_run.id is not None:
            get_run_logger().info(message, *values)


class ProgressBar:
    """The progress artifact of a stage, made when there is something to show; a server that is away costs it."""

    def __init__(self) -> None:
        self._artifact: UUID | None = None
        self._lost = False

    def show(self, node: Node, percent: float, text: str) -> None:
        """Set the bar, and the text below it."""
        if self._lost or prefect.runtime.task_run.id is None:
            return
        text = f"{node.name}: {text}"
        try:
            if self._artifact is None:
                key = f"progress-{node.stage.replace('_', '-')}"
                self._artifact = create_progress_artifact(percent, key=key, description=text)  # type: ignore[assignment]
            else:
                update_progress_artifact(self._artifact, percent, text)
        except (httpx.HTTPError, OSError, PrefectException) as error:
            self._lost = True
            log.warning("the progress of %s is not shown any more: %s", node.name, error)

    def finish(self, node: Node) -> None:
        """Fill the bar, if there is one."""
        if self._artifact is not None:
            self.show(node, 100.0, "done")


class Tracked:
    """A driver that runs each stage of another driver inside a Prefect task named after the stage.

    Args:
        inner: what really runs the stages; an `Execute`.
        slots: taken for a stage that has to be built and wants an accelerator.
        ahead: what a `run_stage.Ahead` has done of this very flow.
        stages: the table of stages.
    """

    def __init__(
        self,
        inner: Driver,
        slots: Slots,
        ahead: Mapping[str, tuple[Artifact, float]] | None = None,
        stages: Stages = STAGES,
    ) -> None:
        self.inner, self.slots, self.stages = inner, slots, stages
        self.ahead = dict(ahead or {})
        self.task_runs: list[str] = []
        self._made: dict[str, State[Any]] = {}  # by uri: what later stages depend on

    def run(self, node: Node) -> Artifact:
        """See `Driver.run`. An error is the stage's own; Prefect wraps nothing around it."""
        made: list[Artifact] = []

        def stage(node_name: str, seed: int | None, inputs: dict[str, str]) -> dict[str, str]:
            self.task_runs.append(str(prefect.runtime.task_run.id))
            artifact = self._run(node)
            made.append(artifact)
            return {"kind": artifact.kind, "digest": artifact.digest}

        try:
            state: State[Any] = self._task(node, stage)(
                node.name,
                node.seed,
                {name: artifact.digest for name, artifact in node.inputs.items()},
                wait_for=self._upstream(node),
                return_state=True,
            )
        finally:
            self.slots.release()
        if not made or not state.is_completed():
            state.result()  # raises what the stage raised
        self._made[made[-1].uri] = state
        return made[-1]

    def settle(self, seconds: float = SETTLE_SECONDS) -> int:
        """Wait until the server has written the end of every task run; how many it has not.

        Task runs reach the server as events, which it writes down in its own time: one that is ended too early has
        never heard of them.
        """
        APILogHandler().flush()
        deadline = time.monotonic() + seconds
        ids = sorted(set(self.task_runs))
        while missing := len(ids) - _count_final(ids):
            if time.monotonic() > deadline:
                log.warning("the Prefect server has not recorded %d task runs", missing)
                break
            time.sleep(0.1)
        return missing

    def _run(self, node: Node) -> Artifact:
        if node.name not in self.ahead:
            with observing(RunLog(self.slots, self.stages)), warnings_in_log():
                return self.inner.run(node)
        artifact, seconds = self.ahead[node.name]
        get_run_logger().info(
            "done in %.1f s before the Prefect server was there: %s, digest %s",
            seconds,
            artifact.uri,
            artifact.digest,
        )
        return artifact

    def _task(self, node: Node, body: Callable[..., dict[str, str]]) -> Task[..., dict[str, str]]:
        spec = self.stages[node.stage]
        return Task(
            body,
            name=node.stage,
            task_run_name=node.name.replace("{", "{{").replace("}", "}}"),
            # no tags: for each tagged task the client asks the server about limits, which takes up to 2 s with SQLite
            description=f"The stage in {spec.module}, on {'an accelerator' if spec.gpu else 'the CPU'}",
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=len(RETRY_SECONDS),
            retry_delay_seconds=list(RETRY_SECONDS),
            retry_condition_fn=transient,
        )

    def _upstream(self, node: Node) -> list[State[Any]]:
        """The task runs whose artifacts, or parts of them, this node takes."""
        uris = {made for artifact in node.inputs.values() for made in self._made if _within(artifact.uri, made)}
        return [self._made[uri] for uri in sorted(uris)]


class _Console(logging.Handler):
    """Prints to whatever `sys.stderr` is at that moment, so that a live display can print above itself.

    What a run raises is shown by whoever called it; the engine's own report of it is left to the API's log.
    """

    def emit(self, record: logging.LogRecord) -> None:
        engine = record.name.startswith(("prefect.flow_runs", "prefect.task_runs"))
        if not (engine and record.levelno >= logging.ERROR):
            sys.stderr.write(f"{self.format(record)}\n")


@contextmanager
def quiet_console() -> Iterator[None]:
    """Prefect's log goes to its API; people see warnings and errors only."""
    root = logging.getLogger()
    before = [handler for handler in root.handlers if isinstance(handler, PrefectConsoleHandler)]
    console = _Console(logging.WARNING)
    console.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for handler in before:
        root.removeHandler(handler)
    root.addHandler(console)
    try:
        yield
    finally:
        root.removeHandler(console)
        for handler in before:
            root.addHandler(handler)


@contextmanager
def warnings_in_log() -> Iterator[None]:
    """Warnings of ours, as that a stage is tried again, stand in the log of the run they concern."""
    handler = APILogHandler(level=logging.WARNING)
    handler.addFilter(lambda record: prefect.runtime.flow_run.id is not None)
    loggers = [logging.getLogger(name) for name in ("tasks", "inverse_alignment")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def publish(artifact: Artifact, mlflow: str) -> None:
    """What a comparison found as artifacts of the Prefect run: a row per arm and round, every round, where to look.

    Args:
        artifact: of the stage `compare`.
        mlflow: address of the page that compares runs, or the command that opens it.
    """
    comparison = load(Path(artifact.uri))
    for name, picture in pictures_of(comparison).items():
        create_image_artifact(data_url(picture), key=f"inverse-alignment-{name}", description=picture.title)
    create_table_artifact(rounds_table(comparison), key="inverse-alignment-rounds", description=comparison.title)
    create_markdown_artifact(
        f"{comparison_text(comparison)}\n{links_text(artifact, mlflow)}",
        key="inverse-alignment-comparison",
        description=comparison.title,
    )


def pictures_of(comparison: Comparison) -> dict[str, Picture]:
    """The pictures of the report that people look at first: rewards by step and by KL, and what the gates decided."""
    from inverse_alignment.report import figures

    found = {"rewards-by-step": figures.rewards_by_step(comparison)[0]}
    found |= {"rewards-by-kl": figures.rewards_by_kl(comparison)[0]}
    return found | ({"gates": figures.gates(comparison)} if any(map(comparison.refreshes, comparison.arms)) else {})


def data_url(picture: Picture) -> str:
    """A picture in its own address: Prefect's page asks nobody for it."""
    from inverse_alignment.report.canvas import standalone

    return f"data:image/svg+xml;base64,{b64encode(standalone(picture).encode()).decode()}"


def comparison_text(comparison: Comparison) -> str:
    """What the report says first, the table at the end of a run and the rounds' alarms, as markdown."""
    from inverse_alignment.report.mismatch import alarms, four_answers

    head = ("arm", "round", *columns(comparison), "gate")
    starts = [start.evaluation for start in comparison.starts]
    rows = [("SFT start", "0", *cells(comparison, starts), "")] if starts else []
    for arm in comparison.arms:
        for index in range(comparison.rounds):
            rounds = [run.rounds[index] for run in comparison.of_arm(arm)]
            shown = cells(comparison, [round_.evaluation for round_ in rounds])
            rows.append((arm, str(index + 1), *shown, gate_cell(rounds)))
    lines = [head, ("---",) * len(head), *rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    answers = "\n".join(f"- **{question}** {answer}" for question, answer in four_answers(comparison))
    found = "\n".join(f"- {alarm.arm}, {alarm.where}: {alarm.text}" for alarm in alarms(comparison))
    audits = f"\n### What the rounds' own audits found\n\n{found}\n" if found else ""
    return f"## {comparison.title}\n\n{answers}\n\n{table}\n{audits}"


def links_text(artifact: Artifact, mlflow: str) -> str:
    """Where the report, the data card and MLflow are. A browser opens no file from a page of the web, hence no link."""
    folder = Path(artifact.uri).resolve()
    where = f"[{mlflow}]({mlflow})" if mlflow.startswith("http") else f"`{mlflow}`"
    return f"- report: `{folder / PAGE}`\n- data card: `{folder / CARD}`\n- MLflow: {where}\n"


def rounds_table(comparison: Comparison) -> list[dict[str, Any]]:
    """Every round of every arm and seed as a flat row."""
    return [
        {
            "arm": run.arm,
            "seed": run.seed,
            "round": round_.round,
            **{name: _rounded(getattr(round_.evaluation, name)) for name in ROUND_FIELDS},
            "accepted": round_.gate.accepted if round_.gate and round_.gate.refreshed else None,
            "selected": json.dumps(round_.selection.selected_by_source) if round_.selection else None,
        }
        for run in comparison.runs
        for round_ in run.rounds
    ]


def transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure may go away by itself: the network, a server or a disk, never bad input, NaN or a bug.

    Memory that ran out is no matter of waiting: `Execute` itself tries again with less at once.
    """
    error = state.result(raise_on_failure=False)
    passing = _passing(error)
    if passing and task_run.run_count <= len(RETRY_SECONDS):
        log.warning("%s failed and is tried again: %s", task_run.name, error)
    return passing


def _passing(error: object) -> bool:
    if isinstance(error, LaunchFailed):
        error = error.__cause__  # what a process of a launched stage met
    if isinstance(error, httpx.TransportError):  # of the hub and of vLLM's server; no `OSError`
        return not isinstance(error, httpx.UnsupportedProtocol)
    return isinstance(error, OSError) and (
        isinstance(error, (ConnectionError, TimeoutError))
        or error.errno in TRANSIENT
        or (error.errno is None and type(error).__module__.partition(".")[0] in ("urllib", "requests"))
    )


def _identity(entry: Entry) -> tuple[str, str]:
    return entry.record["fingerprint"], entry.artifact.digest


def _within(uri: str, whole: str) -> bool:
    return uri == whole or uri.startswith(f"{whole}/")


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _count_final(ids: list[str]) -> int:
    """How many of these task runs the server knows to have ended."""
    if not ids:
        return 0
    query = {"task_runs": {"id": {"any_": ids}, "state": {"type": {"any_": FINAL}}}}
    try:
        with prefect.get_client(sync_client=True) as client:
            return int(client.request("POST", "/task_runs/count", json=query).json())
    except (OSError, ValueError, httpx.HTTPError):
        return 0
