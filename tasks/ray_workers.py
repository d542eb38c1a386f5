"""Work on the workers of a Ray cluster. The only importer of ray, which the extra `ray` of this project installs.

Ray pickles what it sends between its own processes; nothing of that is written into the store or read from a file. The
nodes of a cluster need this project installed, and see policies and encoders under the same paths as this machine.
"""

from __future__ import annotations

import importlib
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.workers import RayWorkers
from tasks.threads import limit_threads

T = TypeVar("T")
R = TypeVar("R")
ANSWER_SECONDS = 5.0
AHEAD = 2
"""Items that each worker is given before the first of them is done."""


class OnRay:
    """`core.protocols.Spread` by Ray: each worker is sent the work once, then items in turn.

    Args:
        threads: of each worker, as `runtime.threads` says: the same number gives the same bits as this process.
    """

    def __init__(self, workers: RayWorkers, threads: int) -> None:
        self._workers, self._threads = workers, threads

    def __call__(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Spread`.

        Raises:
            UserError: there is no Ray or no such cluster, it is too small, or the work refuses an item.
        """
        ray = connected(self._workers)
        shared = ray.put(work)
        actor = ray.remote(num_cpus=1, num_gpus=self._workers.gpus)(_Worker)
        team = [actor.remote(shared, self._threads) for _ in range(self._workers.workers)]
        try:
            waiting: deque[Any] = deque()
            for number, item in enumerate(items):
                if len(waiting) == AHEAD * len(team):
                    yield _result(ray, waiting.popleft())
                waiting.append(team[number % len(team)].do.remote(item))
            while waiting:
                yield _result(ray, waiting.popleft())
        finally:
            for member in team:
                ray.kill(member)


class _Worker:
    """Lives in a process of its own, with a copy of the work."""

    def __init__(self, work: Callable[[Any], Any], threads: int) -> None:
        self._work, self._threads = work, threads

    def do(self, item: Any) -> Any:
        """The work of one item."""
        limit_threads(self._threads)
        return self._work(item)


def connected(workers: RayWorkers) -> Any:
    """Ray, connected to the cluster; one that this process started ends with it.

    Raises:
        UserError: there is no Ray or no such cluster, or it is too small.
    """
    where = "runtime.selection_workers"
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "Ray is not installed",
            where=f"{where}.type=ray",
            fix="pip install -c constraints.txt -e '.[ray]', or set runtime.selection_workers.type=none",
        ) from error
    if not ray.is_initialized():
        here = workers.address == "local"
        more: dict[str, Any] = {"num_cpus": workers.workers, "include_dashboard": False} if here else {}
        try:
            _knock(workers.address)
            ray.init(address=workers.address, log_to_driver=False, logging_level="ERROR", **more)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"no Ray cluster answers: {error}", where=f"{where}.address", fix="start it, or set address to local"
            ) from error
    has = ray.cluster_resources()
    for resource, wanted in (("CPU", workers.workers), ("GPU", workers.gpus * workers.workers)):
        if wanted > has.get(resource, 0):
            raise UserError(
                f"{workers.workers} workers want {wanted:g} {resource}s, but the cluster has {has.get(resource, 0):g}",
                where=f"{where}.workers",
                fix="ask for fewer workers, or for a smaller share of a GPU",
            )
    return ray


def _knock(address: str) -> None:
    """Whether anybody listens at host:port; Ray itself would wait for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what the work itself has raised
