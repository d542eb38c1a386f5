"""What happened, where people compare it: the artifact records mirrored into MLflow. The only importer of mlflow.

One parent run per arm and seed holds the configuration and the headline values of every round; what the arms share has
a parent of its own. A stage that was built is a child run with its parameters, inputs and metrics; a reused one is
listed on the parent, with a link to the run that built it. Runs are named by id, never taken from the "active run".

MLflow is never the only copy of anything, so its failure is one warning and the run goes on.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import math
import os
import re
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import psutil
from pydantic import BaseModel

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import METRICS, Artifact
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.core.store import Entry
from tasks.run_stage import Node

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a server that is down must not hold a run up for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
PARAM_LENGTH = 5999  # MLflow refuses longer ones
PARAMS_A_CALL = 100
METRICS_A_CALL = 1000
DIGEST_LENGTH = 36
KEY_LENGTH = 250
SAME_START_SECONDS = 2.0
SECRET = re.compile(r"token|password|secret|credential|api_?key", re.IGNORECASE)
USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
ROUND = re.compile(r"-r(\d+)(?=-|$)")  # nodes of a round are called <arm>-s<seed>-r<round>-<stage>

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


def _never_fails(
    method: Callable[Concatenate[MlflowLineage, P], None],
) -> Callable[Concatenate[MlflowLineage, P], None]:
    """A method whose first exception is a warning; after it the tracker is silent."""

    @functools.wraps(method)
    def guarded(self: MlflowLineage, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.broken:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.broken = True
            log.warning(
                "MLflow at %s failed; this run goes on without it, its records are in the artifact store: %s: %s",
                _redacted(self.uri),
                type(error).__name__,
                " ".join(_redacted(str(error)).split())[:300],
            )

    return guarded


class MlflowLineage:
    """An observer of stages that mirrors what it sees into an MLflow experiment."""

    def __init__(self, uri: str, experiment: str, config: PipelineConfig) -> None:
        self.uri, self.experiment, self.config = uri, experiment, config
        self.broken = False
        self._client: MlflowClient
        self._experiment_id = ""
        self._parent: str | None = None  # of the arm in hand
        self._shared: dict[int | None, str] = {}
        self._children: dict[str, str] = {}  # open stage runs by node name
        self._start: dict[int | None, list[Metric]] = defaultdict(list)  # what every arm of a seed begins with
        self._open()

    @_never_fails
    def _open(self) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for chatty in ("mlflow", "alembic"):  # "Creating initial MLflow database tables..."
            logging.getLogger(chatty).setLevel(logging.WARNING)

        with _creating(self.uri):  # several processes creating one database at once crash
            self._client = MlflowClient(tracking_uri=self.uri)
            found = self._client.get_experiment_by_name(self.experiment)
            self._experiment_id = (
                found.experiment_id
                if found
                else self._client.create_experiment(self.experiment, artifact_location=_artifact_location(self.uri))
            )
            self._close_killed_runs()

    def arm(self, name: str, seed: int, config: PipelineConfig) -> AbstractContextManager[None]:
        """The parent run of one arm and seed, for the duration of a block."""
        return self._arm(name, seed, config)

    @contextmanager
    def _arm(self, name: str, seed: int, config: PipelineConfig) -> Iterator[None]:
        self._begin_arm(name, seed, config)
        try:
            yield
        except BaseException as error:
            self._end_arm(_status(error))
            raise
        self._end_arm("FINISHED")

    @_never_fails
    def _begin_arm(self, name: str, seed: int, config: PipelineConfig) -> None:
        tags = {"ia.arm": name, "ia.seed": str(seed)}
        self._parent = self._create(f"{name}-s{seed}", {"ia.kind": "arm", **tags})
        self._log_params(self._parent, flatten(config.model_dump(mode="json", exclude={"arms", "seeds"})))
        for chunk in _chunks(self._start[seed], METRICS_A_CALL):
            self._client.log_batch(self._parent, metrics=chunk)

    @_never_fails
    def _end_arm(self, status: str) -> None:
        if self._parent is not None:
            self._end_children(status)
            self._client.set_terminated(self._parent, status)
        self._parent = None

    def __enter__(self) -> MlflowLineage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_status(error))

    @_never_fails
    def close(self, status: str = "FINISHED") -> None:
        """End the parents of shared stages, and whatever is still open."""
        self._end_children(status)
        for run_id in self._shared.values():
            self._client.set_terminated(run_id, status)
        self._shared = {}

    @_never_fails
    def started(self, node: Node, why: str) -> None:
        """See `Observer.started`: opens the stage's run."""
        run_id = self._create(
            node.name,
            {"ia.kind": "stage", "ia.why": why, **_node_tags(node), "mlflow.parentRunId": self._parent_of(node)},
        )
        self._children[node.name] = run_id
        self._log_params(run_id, flatten(_plain(node.config)))
        if node.inputs:
            inputs = [_dataset(f"{name}: {of.kind}", name, of, {}) for name, of in sorted(node.inputs.items())]
            self._client.log_inputs(run_id, inputs)

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """See `Observer.progress`: metrics are mirrored from the artifact, which has them all."""

    @_never_fails
    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`: closes the stage's run, and lists the stage on its parent."""
        fingerprint = str(entry.record["fingerprint"])
        child = self._children.pop(node.name, None)
        if child is not None and entry.reused:  # another process built it while this one waited
            self._client.delete_run(child)
        elif child is not None:
            self._log_stage(child, node, entry, seconds)
        built_by = child if child is not None and not entry.reused else self._producer(fingerprint)
        self._list_on_parent(self._parent_of(node), node, entry, built_by)

    @_never_fails
    def failed(self, node: Node, error: BaseException) -> None:
        """See `Observer.failed`."""
        if child := self._children.pop(node.name, None):
            message = _redacted(f"{type(error).__name__}: {error}")
            self._client.set_tag(child, "ia.error", message[:PARAM_LENGTH])
            self._client.set_terminated(child, _status(error))

    def _log_stage(self, run_id: str, node: Node, entry: Entry, seconds: float) -> None:
        from mlflow.entities import Metric, RunTag

        rows = read_metrics(Path(entry.artifact.uri) / METRICS)
        now = _now()
        points = [
            Metric(key(name), float(value), now, int(row["step"] or 0))
            for row in rows
            for name, value in row.items()
            if name != "step" and value is not None and _is_number(value)
        ]
        points += [Metric(f"headline/{name}", value, now, 0) for name, value in numbers(entry.metrics)]
        points.append(Metric("seconds", seconds, now, 0))
        for chunk in _chunks(points, METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=chunk)
        tags = {
            "ia.fingerprint": str(entry.record["fingerprint"]),
            "ia.digest": entry.artifact.digest,
            "ia.uri": _redacted(entry.artifact.uri),
            "ia.reused": "false",
        }
        self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        self._client.set_terminated(run_id, "FINISHED")

    def _list_on_parent(self, parent: str, node: Node, entry: Entry, built_by: str | None) -> None:
        from mlflow.entities import Metric, RunTag

        now, step = _now(), round_of(node)
        points = [Metric(key(f"{node.stage}/{name}"), value, now, step) for name, value in numbers(entry.metrics)]
        if self._parent is None and node.stage == "evaluate":
            self._start[node.seed] += points
        link = [RunTag(key(f"ia.built_by.{node.name}"), built_by)] if built_by else []
        for chunk in _chunks(points, METRICS_A_CALL - len(link)) or [[]]:
            self._client.log_batch(parent, metrics=chunk, tags=link)
        facts = {
            **_node_tags(node),
            "ia.fingerprint": str(entry.record["fingerprint"]),
            "ia.reused": str(entry.reused).lower(),
            "ia.built_by": built_by or "not in this MLflow store",
        }
        self._client.log_inputs(parent, [_dataset(node.name, node.stage, entry.artifact, facts)])

    def _parent_of(self, node: Node) -> str:
        if self._parent is not None:
            return self._parent
        if node.seed not in self._shared:
            name = "shared" if node.seed is None else f"shared-start-s{node.seed}"
            run_id = self._create(name, {"ia.kind": "shared", "ia.seed": str(node.seed)})
            self._shared[node.seed] = run_id
            self._log_params(run_id, flatten(self.config.model_dump(mode="json", exclude={"arms", "seeds"})))
        return self._shared[node.seed]

    def _producer(self, fingerprint: str) -> str | None:
        """The finished run that built the artifact of this fingerprint, if this store has it."""
        found = self._search(f"tags.`ia.fingerprint` = '{fingerprint}' and tags.`ia.kind` = 'stage'", 1)
        return found[0].info.run_id if found else None

    def _search(self, query: str, most: int) -> list[Run]:
        order = ["attributes.start_time DESC"]
        return list(self._client.search_runs([self._experiment_id], query, max_results=most, order_by=order))

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        me = {
            "ia.host": socket.gethostname(),
            "ia.pid": str(os.getpid()),
            "ia.pid_start": str(psutil.Process().create_time()),
            "ia.config_digest": self.config.digest(),
        }
        return str(self._client.create_run(self._experiment_id, run_name=name, tags={**tags, **me}).info.run_id)

    def _end_children(self, status: str) -> None:
        for run_id in self._children.values():
            self._client.set_terminated(run_id, "KILLED" if status == "FINISHED" else status)
        self._children = {}

    def _close_killed_runs(self) -> None:
        """Runs that a killed process of this machine left running are ended as KILLED."""
        for run in self._search(f"attributes.status = 'RUNNING' and tags.`ia.host` = '{socket.gethostname()}'", 1000):
            if not _lives(run.data.tags):
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        shown = [Param(key(name), text) for name, text in params(values)]
        for chunk in _chunks(shown, PARAMS_A_CALL):
            self._client.log_batch(run_id, params=chunk)


def tracker(config: PipelineConfig) -> MlflowLineage | None:
    """The tracker that a configuration asks for; None where tracking is switched off."""
    uri = config.tracking.mlflow_uri
    return MlflowLineage(uri, config.tracking.experiment, config) if uri else None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; lists of mappings by index."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def params(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of a flat mapping may be shown: no secrets, no login in an address, nothing longer than MLflow takes."""
    for name, value in values.items():
        if not SECRET.search(name.rpartition(".")[2]) or isinstance(value, (int, float)):
            yield name, _redacted(str(value))[:PARAM_LENGTH]


def numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers of nested metrics, under names MLflow takes; true counts as 1."""
    for name, value in flatten(metrics).items():
        if _is_number(value):
            yield key(name), float(value)


def key(name: str) -> str:
    """A name that MLflow takes: letters, digits, `_ - . / :` and spaces."""
    return re.sub(r"[^\w\-./: ]", "_", name.replace("@", "_at_"), flags=re.ASCII)[:KEY_LENGTH]


def round_of(node: Node) -> int:
    """The round a node belongs to, counted from 1 as in the report; 0 is the start that all arms share."""
    found = ROUND.findall(node.name)
    return int(found[-1]) if found else 0


def _status(error: BaseException | None) -> str:
    """A cancel and Ctrl-C are no `Exception`."""
    if error is None:
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def _redacted(text: str) -> str:
    return USERINFO.sub("***@", text)


def _plain(config: Any) -> dict[str, Any]:
    return config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config or {})


def _node_tags(node: Node) -> dict[str, str]:
    return {"ia.node": node.name, "ia.stage": node.stage, "ia.seed": str(node.seed)}


def _dataset(name: str, context: str, artifact: Artifact, facts: Mapping[str, str]) -> DatasetInput:
    """An artifact as an MLflow dataset: by reference, its digest cut to the length MLflow has room for."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    where = {"ia.uri": _redacted(artifact.uri), "ia.kind": artifact.kind}
    source = CodeDatasetSource(tags=where)
    dataset = MetaDataset(source=source, name=name[:500], digest=artifact.digest[:DIGEST_LENGTH])  # type: ignore[abstract]
    tags = {"mlflow.data.context": context, "ia.digest": artifact.digest, **where, **facts}
    return DatasetInput(dataset._to_mlflow_entity(), [InputTag(name, value[:500]) for name, value in tags.items()])


def _lives(tags: Mapping[str, str]) -> bool:
    try:
        process = psutil.Process(int(tags["ia.pid"]))
        same = abs(process.create_time() - float(tags["ia.pid_start"])) < SAME_START_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError):
        return False


def _database(uri: str) -> Path | None:
    """The file of an SQLite store."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def _artifact_location(uri: str) -> str | None:
    file = _database(uri)
    return (file.parent / "mlruns").as_uri() if file else None


def _creating(uri: str) -> AbstractContextManager[None]:
    file = _database(uri)
    return _locked(file.with_name(f"{file.name}.lock")) if file else nullcontext()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _now() -> int:
    return int(time.time() * 1000)
