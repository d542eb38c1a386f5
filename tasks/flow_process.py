"""The process that a flow run lives in: it does not outlive its worker, and no run outlives its process.

A worker that is killed takes nobody with it: its flow would train on without an owner, beside the one that the next
worker starts. So a flow run looks at the processes it was started by, and stops itself as a cancel would. A flow run
whose own process was killed stays "Running" on the server for ever, and with a concurrency limit keeps all later ones
waiting. So every run is labelled with its process, and whoever comes next on that machine ends those of the dead.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import prefect
import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.states import Cancelled, Crashed, State

from tasks.processes import runs

LOOK_SECONDS = 1.0
HOST, PID, START = "inverse-alignment.host", "inverse-alignment.pid", "inverse-alignment.pid-start"
OPEN = [StateType.RUNNING, StateType.CANCELLING]
A_PAGE = 200

log = logging.getLogger(__name__)


def claim() -> None:
    """Label the flow run of this context with this process."""
    labels: dict[str, bool | int | float | str] = {HOST: socket.gethostname(), PID: os.getpid()}
    labels[START] = psutil.Process().create_time()
    with prefect.get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(str(prefect.runtime.flow_run.id)), labels)


def close_stale_runs() -> list[str]:
    """End the runs that processes of this machine have left open when they were killed; the names of the flow runs."""
    with prefect.get_client(sync_client=True) as client:
        stale = [run for run in _open_flow_runs(client) if _is_stale(run.labels)]
        for run in stale:
            client.set_flow_run_state(run.id, _end_of(run), force=True)
            _close_task_runs(client, run)
    return [str(run.name) for run in stale]


@contextmanager
def owned_by_worker() -> Iterator[None]:
    """Inside the block this process gets a SIGTERM if the worker that it was started by dies.

    The worker reads what it prints through a pipe. From here on a pipe without a reader costs the line, and not, as
    with Prefect's console, the process, which has a checkpoint to write and an end to report.
    """
    _print_to_nobody_if_need_be()
    owners = _owners()
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            if not all(runs(owner.pid, owner.create_time()) for owner in owners):
                _silence()
                log.warning("the worker of this run has died: the run stops, and can go on under the next one")
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watch = threading.Thread(target=look, name="owned-by-worker", daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def _print_to_nobody_if_need_be() -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            handler.console.on_broken_pipe = _silence  # type: ignore[method-assign]


def _silence() -> None:
    """Let what is printed go nowhere, whoever prints it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _owners() -> list[psutil.Process]:
    """The processes between this one and its worker, and the worker; the parent alone where no worker is found."""
    parents = psutil.Process().parents()
    for index, parent in enumerate(parents):
        if {"worker", "start"} <= set(_command(parent)):
            return parents[: index + 1]
    return parents[:1]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _open_flow_runs(client: SyncPrefectClient) -> list[FlowRun]:
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": OPEN}}})
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=wanted, limit=A_PAGE, offset=len(found)):
        found += page
    return found


def _is_stale(labels: dict[str, Any]) -> bool:
    if labels.get(HOST) != socket.gethostname():
        return False
    return not runs(int(labels[PID]), float(labels[START]))


def _end_of(run: FlowRun) -> State[Any]:
    if run.state is not None and run.state.is_cancelling():
        return Cancelled(message="Its process is gone.")
    return Crashed(message="Its process is gone; another run goes on from its checkpoints.")


def _close_task_runs(client: SyncPrefectClient, run: FlowRun) -> None:
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    wanted = TaskRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING, StateType.PENDING]}}})
    for task in client.read_task_runs(flow_run_filter=of_run, task_run_filter=wanted, limit=A_PAGE):
        client.set_task_run_state(task.id, Crashed(message="Its process is gone."), force=True)
