"""What happened, where people compare it: the events of a run in MLflow. The only importer of mlflow.

What a stage does becomes events (`recorder`); they go into a file first (`journal`), and a thread of its own takes them
to MLflow: a run waits for no server. MLflow is never the only copy of anything, so its failure is one warning and the
run goes on; `inverse-alignment mirror` writes later what is missing. Runs are named by key, never taken from the
"active run".
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.core.store import Entry
from tasks.journal import (
    FOLDER,
    AnyEvent,
    Close,
    Drop,
    Given,
    Journal,
    Listed,
    Made,
    Note,
    Open,
    Pointed,
    Status,
    Writer,
)
from tasks.processes import runs
from tasks.recorder import Points, Recorder, facts_of, points_of, redacted, status_of
from tasks.run_stage import Node

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Run

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a server that is down is soon known to be
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
PARAMS_A_CALL = 100
METRICS_A_CALL = 1000
DIGEST_LENGTH = 36
END_SECONDS = 60.0  # longest wait at the end of a run for events that MLflow has not taken yet
KILLED_SECONDS = 5.0  # the same where somebody ends the run
SYSTEM_SECONDS = 10.0
DECIDED = "ia.decided."  # tag of a registered model: when an alias was last moved

T = TypeVar("T")
log = logging.getLogger(__name__)


class MlflowLineage:
    """An observer of stages that mirrors what it sees into an MLflow experiment.

    Args:
        uri: of the tracking store.
        experiment: its name there.
        config: of the whole run.
    """

    def __init__(self, uri: str, experiment: str, config: PipelineConfig) -> None:
        self.uri = uri
        self.broken = False  # nothing is recorded any more
        writer = Writer.here(experiment)
        self._journal = Journal(journals_of(config), writer)
        self._post = _Post(uri, writer)
        self._recorder = Recorder(config, writer.journal, {}, self._tell)
        self._lock = threading.Lock()
        self._system = _System(self._measured) if config.tracking.system_metrics else None
        self._safely(lambda: self._begin(config, writer))

    def _begin(self, config: PipelineConfig, writer: Writer) -> None:
        process = {"ia.host": writer.host, "ia.pid": str(writer.pid), "ia.pid_start": str(writer.pid_start)}
        self._recorder.facts = {**facts_of(config), **process, "ia.journal": writer.journal}
        self._post.start()

    def arm(self, name: str, seed: int, config: PipelineConfig) -> AbstractContextManager[None]:
        """The parent run of one arm and seed, for the duration of a block."""
        return self._arm(name, seed, config)

    @contextmanager
    def _arm(self, name: str, seed: int, config: PipelineConfig) -> Iterator[None]:
        self._safely(lambda: self._recorder.begin_arm(name, seed, config))
        status: Status = "FINISHED"
        try:
            yield
        except BaseException as error:
            status = status_of(error)
            raise
        finally:
            self._safely(lambda: self._recorder.end_arm(status))

    def __enter__(self) -> MlflowLineage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(status_of(error))

    def close(self, status: Status = "FINISHED") -> None:
        """End the parents of shared stages and whatever is still open, and give MLflow time to take it."""
        if self._system:
            self._system.stop()
        self._safely(lambda: self._recorder.close(status))
        self.flush(KILLED_SECONDS if status == "KILLED" else END_SECONDS)

    def flush(self, seconds: float = END_SECONDS) -> None:
        """Wait until MLflow has everything that was told so far; a slow one is a warning."""
        if not self._post.wait(seconds):
            log.warning(
                "MLflow at %s has not taken %d events in %.0f s; `inverse-alignment mirror` writes what is missing",
                redacted(self.uri),
                self._post.waiting(),
                seconds,
            )

    def started(self, node: Node, why: str) -> None:
        """See `Observer.started`: opens the stage's run."""
        self._safely(lambda: self._recorder.started(node, why))
        if self._system:
            self._system.start()

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """See `Observer.progress`: what a long stage has measured since the last look."""
        self._safely(lambda: self._recorder.progress(node, done, total, unit, values))

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`: closes the stage's run, and lists the stage on its parent."""
        self._safely(lambda: self._recorder.finished(node, entry, seconds))

    def failed(self, node: Node, error: BaseException) -> None:
        """See `Observer.failed`."""
        self._safely(lambda: self._recorder.failed(node, error))

    def judged(
        self, name: str, settings: Mapping[str, Any], points: Points, folder: str = "", files: tuple[str, ...] = ()
    ) -> None:
        """See `Recorder.judged`."""
        self._safely(lambda: self._recorder.judged(name, settings, points, folder, files))

    def _measured(self, values: Mapping[str, float], step: int) -> None:
        self._safely(lambda: self._recorder.measured(values, step))

    def _tell(self, event: AnyEvent) -> None:
        with self._lock:
            self._journal.append(event)
            self._post.put(event)

    def _safely(self, tell: Callable[[], None]) -> None:
        """The first exception is a warning; after it nothing is recorded, and the run goes on."""
        if self.broken:
            return
        try:
            tell()
        except Exception as error:
            self.broken = True
            log.warning("this run goes on, and nothing more of it is recorded for MLflow: %s", _said(error))


def tracker(config: PipelineConfig) -> MlflowLineage | None:
    """The tracker that a configuration asks for; None where tracking is switched off."""
    uri = config.tracking.mlflow_uri
    return MlflowLineage(uri, config.tracking.experiment, config) if uri else None


def journals_of(config: PipelineConfig) -> Path:
    """Where the journals of a configuration's store lie: on this machine, even if the store does not."""
    return Path("artifacts" if "://" in config.store else config.store).resolve() / FOLDER


class _Post:
    """Takes events to MLflow in a thread of its own; after a first failure it takes none."""

    def __init__(self, uri: str, writer: Writer) -> None:
        self.uri, self.writer = uri, writer
        self._events: queue.SimpleQueue[AnyEvent] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._told = self._taken = 0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Load what is heavy in the thread that asks, where no other import is under way, then begin."""
        _load_mlflow(self.uri)
        self._thread.start()

    def put(self, event: AnyEvent) -> None:
        """Take an event in."""
        with self._idle:
            self._told += 1
        self._events.put(event)

    def wait(self, seconds: float) -> bool:
        """Whether everything was taken, or given up, within so many seconds."""
        with self._idle:
            return self._idle.wait_for(lambda: self._taken == self._told or not self._thread.is_alive(), seconds)

    def waiting(self) -> int:
        """How many events are not taken yet."""
        return self._told - self._taken

    def _work(self) -> None:
        store: MlflowStore | None = None
        failed = False
        try:
            store = MlflowStore(self.uri, self.writer.experiment)
        except Exception as error:
            failed = self._give_up(error)
        while True:
            event = self._events.get()
            if store and not failed:
                try:
                    store.apply(event)
                except Exception as error:
                    failed = self._give_up(error)
            with self._idle:
                self._taken += 1
                self._idle.notify_all()

    def _give_up(self, error: Exception) -> bool:
        log.warning(
            "MLflow at %s failed; this run goes on without it, `inverse-alignment mirror` writes it there later: %s",
            redacted(self.uri),
            _said(error),
        )
        return True


class MlflowStore:
    """Writes events into an MLflow experiment. Applying them twice changes nothing.

    Args:
        uri: of the tracking store.
        experiment: its name; made if it is not there.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        _load_mlflow(uri)
        from mlflow import MlflowClient

        self.uri = uri
        with _creating(uri):  # several processes creating one database at once crash
            self._client: MlflowClient = MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = self._client.get_experiment_by_name(experiment)
            self.experiment_id = (
                found.experiment_id
                if found
                else self._client.create_experiment(experiment, artifact_location=_artifact_location(uri))
            )
            self._close_killed_runs()
        self.made = 0  # runs that were not there
        self._ids: dict[str, str] = {}  # of open runs, by key
        self._complete: set[str] = set()  # keys of runs that need nothing more
        self._models: dict[str, str] = {}  # by digest of the weights

    def apply(self, event: AnyEvent) -> None:
        """Make an event true of the store."""
        if event.key in self._complete and not isinstance(event, Pointed):
            return
        match event:
            case Open():
                self._open(event)
            case Note():
                self._note(event)
            case Listed():
                self._list(event)
            case Made():
                self._register(event)
            case Pointed():
                self._point(event)
            case Close():
                self._tag(event.key, {"ia.closed": str(event.at)})
                self._client.set_terminated(self._ids[event.key], event.status, event.at)
            case Drop():
                for run in self._search(f"tags.`ia.key` = '{event.key}'"):
                    self._client.delete_run(run.info.run_id)

    def _open(self, event: Open) -> None:
        from mlflow.entities import LoggedModelInput, Param

        tags = {**event.tags, "ia.key": event.key}
        if event.parent is not None:
            tags["mlflow.parentRunId"] = self._ids[event.parent]
        if found := self._search(f"tags.`ia.key` = '{event.key}'"):
            run = found[0]
            if "ia.closed" in run.data.tags:
                self._complete.add(event.key)
        else:
            run = self._client.create_run(self.experiment_id, event.at, tags, event.name)
            self.made += 1
        self._ids[event.key] = run.info.run_id
        if event.key in self._complete:
            return
        for chunk in _chunks([Param(name, text) for name, text in event.params.items()], PARAMS_A_CALL):
            self._client.log_batch(run.info.run_id, params=chunk)
        models = [LoggedModelInput(of) for of in self._given_models(event.inputs)]
        if event.inputs:
            self._client.log_inputs(run.info.run_id, [_dataset(given) for given in event.inputs], models)

    def _given_models(self, inputs: Sequence[Given]) -> list[str]:
        digests = dict.fromkeys(given.digest for given in inputs if given.kind.endswith((".policy", ".model")))
        return [model for digest in digests if (model := self._model_of(digest))]

    def _model_of(self, weights: str) -> str | None:
        """The model with these weights, if the store knows it."""
        if weights and weights not in self._models:
            found = self._logged_models(f"tags.`weights.digest` = '{weights}'")
            if found:
                self._models[weights] = found[0].model_id
        return self._models.get(weights)

    def _note(self, event: Note) -> None:
        from mlflow.entities import Metric, RunTag

        run_id = self._ids[event.key]
        points = list(event.points)
        if event.rows_of is not None:
            points += points_of(read_metrics(Path(event.rows_of))[event.rows_from :])
        model = self._model_of(event.about) if event.about else None
        metrics = [
            Metric(name, value, event.at, step, model_id=model, run_id=run_id if model else None)
            for name, value, step in points
        ]
        tags = [RunTag(name, text) for name, text in event.tags.items()]
        for chunk in _chunks(metrics, METRICS_A_CALL):
            self._client.log_batch(run_id, metrics=chunk)
        if tags:
            self._client.log_batch(run_id, tags=tags)
        for name in event.files:
            file = Path(event.folder) / name
            if file.is_file():  # a store that was cleaned since has only the record to offer
                self._client.log_artifact(run_id, str(file))

    def _list(self, event: Listed) -> None:
        """A stage on its parent: as a dataset, with a link to the run that built it."""
        built_by = self._ids.get(event.built_by) if event.built_by else self._producer(event.fingerprint)
        tags = {**event.given.tags, "ia.built_by": built_by or "not in this MLflow store"}
        given = event.given.model_copy(update={"tags": tags})
        if built_by:
            self._tag(event.key, {f"ia.built_by.{event.node}": built_by})
        self._client.log_inputs(self._ids[event.key], [_dataset(given)])

    def _producer(self, fingerprint: str) -> str | None:
        """The finished run that built the artifact of this fingerprint, if this store has it."""
        found = self._search(f"tags.`artifact.fingerprint` = '{fingerprint}' and tags.`ia.kind` = 'stage'")
        return found[0].info.run_id if found else None

    def _register(self, event: Made) -> None:
        """The model as a LoggedModel, an output of its run, and a version of its registered model."""
        from mlflow.entities import LoggedModelOutput

        found = self._logged_models(f"tags.`artifact.fingerprint` = '{event.fingerprint}'")
        model = self._finished(found[0] if found else self._create_model(event))
        run = self._client.get_run(self._ids[event.key])
        outputs = run.outputs.model_outputs if run.outputs else []
        if model.source_run_id == run.info.run_id and model.model_id not in [each.model_id for each in outputs]:
            self._client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
        if event.weights:
            self._models[event.weights] = model.model_id
        if self._version(event.registered, event.fingerprint) is None:
            tags = {**event.tags, **_weights(event)}
            with _resolving(self.uri):
                self._client.create_model_version(
                    event.registered, f"models:/{model.model_id}", run.info.run_id, tags, model_id=model.model_id
                )

    def _create_model(self, event: Made) -> LoggedModel:
        """A model whose weights lie elsewhere: named by uri and digest, nothing is copied."""
        tags = {**event.tags, **_weights(event), "mlflow.model.isExternal": "true"}
        run_id = self._ids[event.key]
        return self._client.create_logged_model(
            self.experiment_id, event.name, run_id, tags, model_type=event.registered
        )

    def _finished(self, model: LoggedModel) -> LoggedModel:
        """With the description that the registry asks for in place of weights."""
        from mlflow.models.utils import get_external_mlflow_model_spec

        if model.status == "READY":
            return model
        with tempfile.TemporaryDirectory() as folder:
            get_external_mlflow_model_spec(model).save(str(Path(folder) / "MLmodel"))
            self._client.log_model_artifacts(model.model_id, folder)
        return self._client.finalize_logged_model(model.model_id, "READY")

    def _version(self, registered: str, fingerprint: str = "", weights: str = "") -> str | None:
        """The newest version with that fingerprint or those weights."""
        from mlflow.exceptions import MlflowException

        tag, value = ("artifact.fingerprint", fingerprint) if fingerprint else ("weights.digest", weights)
        found = self._client.search_model_versions(f"name = '{registered}' and tag.`{tag}` = '{value}'")
        if not found:
            with suppress(MlflowException):  # it is there already
                self._client.create_registered_model(registered)
        return max((str(each.version) for each in found), key=int, default=None)

    def _point(self, event: Pointed) -> None:
        """Move aliases, unless a later decision has moved them already."""
        version = self._version(event.registered, event.fingerprint, event.weights)
        if version is None:
            return
        decided = self._client.get_registered_model(event.registered).tags
        for alias in event.aliases:
            if int(decided.get(f"{DECIDED}{alias}", "0")) <= event.at:
                self._client.set_registered_model_alias(event.registered, alias, version)
                self._client.set_registered_model_tag(event.registered, f"{DECIDED}{alias}", str(event.at))

    def _logged_models(self, query: str) -> list[LoggedModel]:
        return list(self._client.search_logged_models([self.experiment_id], filter_string=query, max_results=1))

    def _tag(self, key: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._ids[key], tags=[RunTag(name, text) for name, text in tags.items()])

    def _search(self, query: str, most: int = 1) -> list[Run]:
        order = ["attributes.start_time DESC"]
        return list(self._client.search_runs([self.experiment_id], query, max_results=most, order_by=order))

    def _close_killed_runs(self) -> None:
        """Runs that a killed process of this machine left running are ended as KILLED."""
        query = f"attributes.status = 'RUNNING' and tags.`ia.host` = '{socket.gethostname()}'"
        for run in self._search(query, 1000):
            tags = run.data.tags
            if not runs(int(tags.get("ia.pid", "0")), float(tags.get("ia.pid_start", "0"))):
                self._client.set_terminated(run.info.run_id, "KILLED")


class _System:
    """Samples the machine while stages run, under MLflow's names."""

    def __init__(self, tell: Callable[[Mapping[str, float], int], None]) -> None:
        self._tell = tell
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)

    def start(self) -> None:
        """Begin, if that has not happened yet."""
        if not self._thread.is_alive() and not self._end.is_set():
            self._thread.start()

    def stop(self) -> None:
        """Sample no more."""
        self._end.set()

    def _work(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(ImportError, RuntimeError):  # no GPU here, or nothing to ask it with
            monitors.append(GPUMonitor())
        step = 0
        while True:
            values: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
                monitor.clear_metrics()
            self._tell(values, step)
            step += 1
            if self._end.wait(SYSTEM_SECONDS):
                return


def _load_mlflow(uri: str) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow.entities
    import mlflow.models.utils

    if not uri.startswith("http"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    for chatty in ("mlflow", "alembic"):  # "Creating initial MLflow database tables..."
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _weights(event: Made) -> dict[str, str]:
    if not event.weights:
        return {"weights": "not kept: the gate refused them"}
    return {"weights.digest": event.weights, "weights.uri": event.uri}


def _dataset(given: Given) -> DatasetInput:
    """An MLflow dataset by reference, its digest cut to the length MLflow has room for."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    source = CodeDatasetSource(tags={"ia.uri": given.uri, "ia.kind": given.kind})
    dataset = MetaDataset(source=source, name=given.name[:500], digest=given.digest[:DIGEST_LENGTH])  # type: ignore[abstract]
    tags = {"mlflow.data.context": given.context, "ia.digest": given.digest, "ia.uri": given.uri, "ia.kind": given.kind}
    return DatasetInput(
        dataset._to_mlflow_entity(), [InputTag(name, text[:500]) for name, text in {**tags, **given.tags}.items()]
    )


def _said(error: Exception) -> str:
    return " ".join(redacted(f"{type(error).__name__}: {error}").split())[:300]


@contextmanager
def _resolving(uri: str) -> Iterator[None]:
    """The registry of a database resolves `models:/ID` by the process's default store, not by the client's."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before


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
