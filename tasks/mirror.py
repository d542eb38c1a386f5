"""Write into an MLflow store what the journals say and it lacks: a server that was away loses nothing.

Every run is found again by its key, so that mirroring twice writes nothing the second time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inverse_alignment.core.errors import UserError
from tasks.journal import Journalled
from tasks.lineage import MlflowStore
from tasks.recorder import redacted


@dataclass(frozen=True)
class Mirrored:
    """How many journals were read, how many of them are of runs that go on now, and how many runs were written."""

    journals: int
    running: int
    runs: int


def mirror(journals: Iterable[Journalled], uri: str) -> Mirrored:
    """Bring a store to where the journals are. What a process that still runs has written is left to it.

    Args:
        journals: oldest first.
        uri: of the MLflow store; each journal names its experiment.

    Raises:
        UserError: the store does not answer, or refuses.
    """
    try:
        return _mirror(journals, uri)
    except Exception as error:
        raise UserError(
            f"MLflow failed: {' '.join(redacted(f'{type(error).__name__}: {error}').split())[:300]}",
            where=f"tracking.mlflow_uri={redacted(uri)}",
            fix="start the server, or correct the address; the same command writes what is missing then",
        ) from error


def _mirror(journals: Iterable[Journalled], uri: str) -> Mirrored:
    stores: dict[str, MlflowStore] = {}
    read = running = 0
    for journal in journals:
        if journal.goes_on():
            running += 1
            continue
        read += 1
        experiment = journal.writer.experiment
        if experiment not in stores:
            stores[experiment] = MlflowStore(uri, experiment)
        for event in journal.whole():
            stores[experiment].apply(event)
    return Mirrored(read, running, sum(store.made for store in stores.values()))
