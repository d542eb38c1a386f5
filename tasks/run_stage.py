"""The single door between a flow and its stages: one call, several drivers.

A flow calls `run_stage`; what happens is up to the driver of the moment: `Execute` builds or reuses, `Plan` says what a
run would do, `Graph` only draws, `UpTo` runs one node and what it needs. Light: nothing here imports Prefect, MLflow or
torch, and a stage's module is imported only when it has to run.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import math
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from inverse_alignment.core.artifact import METRICS, PENDING, RUNTIME, Artifact, pending
from inverse_alignment.core.blocks import in_order
from inverse_alignment.core.configuration import Section, identity_of
from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.fingerprint import code_digest, fingerprint, identity, versions
from inverse_alignment.core.metrics import FileReport, never
from inverse_alignment.core.protocols import Spread
from inverse_alignment.core.store import Entry, Store
from inverse_alignment.core.workers import RayWorkers
from inverse_alignment.stages.registry import STAGES, StageSpec
from tasks import external, launch
from tasks.memory import forget_peaks, peaks
from tasks.signals import GRACE_SECONDS, deferred_sigterm
from tasks.threads import limit_threads

Stages = Mapping[str, StageSpec]
PLANNED = ("pending", "node")  # schemes of the artifacts that `Graph` and `Plan` hand out
CACHE = ".cache"
"""Folder of the store for what later stages need not compute again."""
HELPED = ("select", "refresh")
"""The stages that look at many texts with an encoder or a frozen policy."""
VECTORS = ("amx_tile", "avx512_bf16", "avx512f", "avx2", "avx")
"""Flags of a processor that decide how many numbers it adds at once, the widest first."""
HALVINGS = 4
"""How often a stage that runs out of memory is tried again, each time with half as much at once."""
IN_PARTS = ("rollout", "reward_model", "token_reward", "select", "refresh", "ppo", "direct", "evaluate")
"""The stages that read one of the sizes that `smaller` halves."""
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|can't allocate memory|STATUS_ALLOC_FAILED")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """One stage in one place of the graph: its name there, its named inputs and its configuration."""

    name: str
    stage: str
    inputs: Mapping[str, Artifact]
    config: Section
    seed: int | None = None


class Driver(Protocol):
    """What becomes of the stages that a flow asks for."""

    def run(self, node: Node) -> Artifact:
        """The node's artifact, made, found, or only planned."""


class Observer(Protocol):
    """Who is told about stages while they run: a display, a tracker.

    A reused node is reported by `finished` alone, with `entry.reused`.
    """

    def started(self, node: Node, why: str) -> None:
        """The node has to run, and why."""

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """`done` of `total` units of work are finished; `values` are the newest metrics."""

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """The artifact is there, built or reused."""

    def failed(self, node: Node, error: BaseException) -> None:
        """The node ended with an error, or was interrupted."""


_driver: ContextVar[Driver | None] = ContextVar("driver", default=None)
_observers: ContextVar[tuple[Observer, ...]] = ContextVar("observers", default=())


@contextmanager
def driving(driver: Driver) -> Iterator[None]:
    """Let `driver` decide what becomes of the stages that the block asks for."""
    token = _driver.set(driver)
    try:
        yield
    finally:
        _driver.reset(token)


@contextmanager
def observing(*observers: Observer) -> Iterator[None]:
    """Tell these observers, besides its own, about every node that an `Execute` runs inside the block."""
    token = _observers.set((*_observers.get(), *observers))
    try:
        yield
    finally:
        _observers.reset(token)


def run_stage(
    node_name: str, stage: str, inputs: Mapping[str, Artifact], config: Section, seed: int | None = None
) -> Artifact:
    """Ask the driver of the moment for a stage's artifact."""
    driver = _driver.get()
    if driver is None:
        raise RuntimeError(f"no driver for {node_name}: call the flow inside `with driving(...)`")
    return driver.run(Node(node_name, stage, dict(inputs), config, seed))


def identify(node: Node, stages: Stages = STAGES) -> dict[str, Any]:
    """Everything that decides the bytes of a node's artifact; every input must be known."""
    spec = stages[node.stage]
    digests = {name: artifact.digest for name, artifact in node.inputs.items()}
    return identity(
        node.stage, code_digest(spec.module), identity_of(node.config), node.seed, digests, versions(spec.packages)
    )


def producer(artifact: Artifact) -> str | None:
    """The node that makes a planned artifact; None for one from outside."""
    scheme, _, rest = artifact.uri.partition(":")
    return rest.partition("/")[0] if scheme in PLANNED else None


def to_download(node: Node) -> list[str]:
    """What a run would fetch from the hub for a node, as `owner/name@commit` with seven digits, each once."""
    uris = [artifact.uri for artifact in node.inputs.values() if artifact.pending]
    found = [uri.removeprefix(external.HUB).rpartition("@") for uri in uris if uri.startswith(external.HUB)]
    return list(dict.fromkeys(f"{hub_id}@{commit[:7]}" for hub_id, _, commit in found))


def upstream(node: Node) -> list[str]:
    """The nodes whose artifacts a planned node takes, each once, in the order of its inputs."""
    return list(dict.fromkeys(name for artifact in node.inputs.values() if (name := producer(artifact))))


def ancestors(nodes: Sequence[Node], target: str) -> frozenset[str]:
    """The nodes that `target` needs, directly or not.

    Raises:
        UserError: there is no such node.
    """
    by_name = {node.name: node for node in nodes}
    if target not in by_name:
        raise UserError(f"no node '{target}' in the plan", where="stage", fix=nearest(target, list(by_name)))
    seen: set[str] = set()
    todo = upstream(by_name[target])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += upstream(by_name[name])
    return frozenset(seen)


@dataclass(frozen=True)
class Execute:
    """Reuses what the store has and builds what it lacks, in this process or where the runtime's launcher says.

    Raises:
        UserError: the launcher cannot work.
    """

    store: Store
    runtime: RuntimeConfig
    observers: tuple[Observer, ...] = ()
    stages: Stages = field(default_factory=lambda: STAGES)

    def __post_init__(self) -> None:
        launch.check(self.runtime)

    def run(self, node: Node) -> Artifact:
        """See `Driver.run`."""
        return self.entry(node).artifact

    def entry(self, node: Node) -> Entry:
        """The node's artifact with its record.

        Raises:
            UserError: the stage refuses its inputs or its configuration.
        """
        spec, observers = self.stages[node.stage], (*self.observers, *_observers.get())
        of_node = identify(node, self.stages)
        began = time.perf_counter()

        def build(out: Path, partial: Path) -> Mapping[str, Any]:
            why = why_to_run(self.store, node.stage, of_node)
            for observer in observers:
                observer.started(node, why)
            runtime = self.runtime
            for less in halved(runtime) if node.stage in IN_PARTS else ():
                try:
                    return self._build(node, spec, out, partial, observers, runtime)
                except (MemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    log.warning(
                        "%s ran out of memory, and is tried again with half as much at once: %s", node.name, less
                    )
                _clear(out)  # not before the error, whose traceback holds the tensors, is forgotten
                runtime = less
            return self._build(node, spec, out, partial, observers, runtime)

        try:
            entry = self.store.materialise(node.stage, spec.kind, spec.parts, of_node, build)
        except BaseException as error:
            for observer in observers:
                observer.failed(node, error)
            raise
        for observer in observers:
            observer.finished(node, entry, time.perf_counter() - began)
        return entry

    def _build(
        self,
        node: Node,
        spec: StageSpec,
        out: Path,
        partial: Path,
        observers: tuple[Observer, ...],
        runtime: RuntimeConfig,
    ) -> Mapping[str, Any]:
        live = partial / METRICS  # survives a kill, beside the checkpoints that it belongs to
        if {path.name for path in partial.iterdir()} <= {METRICS}:
            live.unlink(missing_ok=True)  # rows of an attempt that left no checkpoint to go on from

        def listen(done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
            for observer in observers:
                observer.progress(node, done, total, unit, values)

        began, told = time.perf_counter(), forget_peaks()
        inputs = {name: self.store.local(artifact) for name, artifact in node.inputs.items()}
        launched = launch.launches(runtime, node.stage)
        grace = launch.STOP_SECONDS + 2.0 if launched else GRACE_SECONDS
        with deferred_sigterm(grace) if spec.resumes else nullcontext(never) as asked_to_stop:
            report = FileReport(live, listen, asked_to_stop)
            context = self._context(node, out, partial, report, runtime)
            metrics: Mapping[str, Any]
            if launched:
                metrics = launch.build(spec.module, inputs, node.config, context, listen, asked_to_stop)
            else:
                metrics = _build_here(spec, inputs, node.config, context)
        if live.exists():
            shutil.copyfile(live, out / METRICS)  # a copy: killed before the artifact appears, its rows are still there
        held = peaks() if told and not launched else {}  # a launched stage's memory is that of its own processes
        facts = {**_circumstances(runtime, time.perf_counter() - began), **held}
        (out / RUNTIME).write_text(json.dumps(facts, indent=1, sort_keys=True))
        return {name: _finite(value) for name, value in metrics.items()}

    def _context(
        self, node: Node, out: Path, partial: Path, report: FileReport, runtime: RuntimeConfig
    ) -> StageContext:
        context = StageContext(out, partial, report, runtime, node.seed or 0)
        if node.stage not in HELPED:
            return context
        return helped(context, node.inputs, self.store)


def helped(context: StageContext, inputs: Mapping[str, Artifact], store: Store) -> StageContext:
    """The context with what saves time, and changes nothing else: a cache, and who embeds and scores."""
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    context = replace(context, digests=digests, spread=spread_of(context.runtime))
    if not context.runtime.cache_gib:
        return context
    from inverse_alignment.core.cache import DiskCache

    cache = DiskCache(store.root / CACHE, round(context.runtime.cache_gib * 2**30))
    cache.prune()
    return replace(context, cache=cache)


def spread_of(runtime: RuntimeConfig) -> Spread:
    """Who embeds and scores."""
    match runtime.selection_workers:
        case RayWorkers() as workers:
            from tasks.ray_workers import OnRay

            return OnRay(workers, runtime.threads)
        case _:
            return in_order


def halved(runtime: RuntimeConfig) -> Iterator[RuntimeConfig]:
    """The same runtime with half as much at once, a quarter, and so on: rows and tokens that bear no identity."""
    for _ in range(HALVINGS):
        sizes = ("training_tokens", "generation_rows", "scoring_rows")
        less = runtime.model_copy(update={name: max(1, getattr(runtime, name) // 2) for name in sizes})
        if less == runtime:
            return
        yield (runtime := less)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host, here or in a launched process."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"))
    )


def _clear(out: Path) -> None:
    """Nothing of a failed attempt stays, neither in its folder nor in the memory of the device."""
    for path in out.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    gc.collect()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


def _build_here(
    spec: StageSpec, inputs: Mapping[str, Path], config: Section, context: StageContext
) -> Mapping[str, Any]:
    for package in {"torch", "numpy"}.intersection(spec.packages):  # there is nothing to limit before they are there
        importlib.import_module(package)
    limit_threads(context.runtime.threads)
    metrics: Mapping[str, Any] = importlib.import_module(spec.module).build(inputs, config, context)
    return metrics


def why_to_run(store: Store, stage: str, of_node: Mapping[str, Any]) -> str:
    """Why an identity has to run, and whether it goes on from partial state."""
    partial = store.partial(stage, of_node)
    resumes = partial.is_dir() and any(path.name != METRICS for path in partial.iterdir())
    return store.why_missing(stage, of_node) + ("; continues where it was stopped" if resumes else "")


def _circumstances(runtime: RuntimeConfig, seconds: float) -> dict[str, Any]:
    """Where and how a stage ran, without naming the host."""
    torch = sys.modules.get("torch")
    return {
        "seconds": round(seconds, 3),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_kind(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else None,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
        "runtime": runtime.model_dump(mode="json"),
    }


def cpu_kind(described: str | None = None) -> str:
    """The processor's model and what it can do at once, where the system tells: libraries choose by it in which order
    they sum. Names alone are too coarse: clouds call several generations `AMD EPYC`.

    Args:
        described: the text of /proc/cpuinfo; None: that of this machine.
    """
    if described is None:
        with suppress(OSError):
            described = Path("/proc/cpuinfo").read_text()
    facts: dict[str, str] = {}
    for line in (described or "").splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    numbers = [f"{word} {facts[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in facts]
    widest = next((flag for flag in VECTORS if flag in facts.get("flags", "").split()), None)
    return ", ".join([facts["model name"], *numbers, *([widest] if widest else [])])


def _finite(value: Any) -> Any:
    """JSON has no NaN: a metric that is not finite becomes null, at any depth."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Graph:
    """Draws the graph: records nodes and edges, looks at no store and knows no digest."""

    def __init__(self, stages: Stages = STAGES) -> None:
        self.stages = stages
        self.nodes: list[Node] = []

    def run(self, node: Node) -> Artifact:
        """See `Driver.run`."""
        self.nodes.append(node)
        spec = self.stages[node.stage]
        return pending(spec.kind, node.name, spec.parts)


Status = Literal["reuse", "run", "depends"]


@dataclass(frozen=True)
class Planned:
    """What a run would do with one node, and why."""

    node: Node
    status: Status
    why: str
    entry: Entry | None = None


class Plan:
    """Says what a run would do, and builds nothing.

    A node whose inputs are known is *reuse* or *run*; past the first miss digests are not known, and it *depends* on
    that miss. A node that is bound to equal an earlier one is reuse as well. Nothing is downloaded for a plan: a node
    that lacks only inputs of the hub is *run*.
    """

    def __init__(self, store: Store, stages: Stages = STAGES) -> None:
        self.store = store
        self.stages = stages
        self.planned: dict[str, Planned] = {}
        self._first: dict[str, str] = {}  # symbolic fingerprint -> the first node that has it
        self._same_as: dict[str, str] = {}  # node -> the first node with its symbolic fingerprint
        self._downloads: list[str] = []  # what earlier nodes have named as not downloaded

    @property
    def nodes(self) -> list[Node]:
        """All nodes in the order of the flow; inputs made by other nodes name them in their `uri`."""
        return [item.node for item in self.planned.values()]

    @property
    def missing(self) -> list[Planned]:
        """What is not there yet, in the order of the flow."""
        return [item for item in self.planned.values() if item.status != "reuse"]

    def counts(self) -> dict[Status, int]:
        """How many nodes have each status."""
        found: dict[Status, int] = {"reuse": 0, "run": 0, "depends": 0}
        for item in self.planned.values():
            found[item.status] += 1
        return found

    def run(self, node: Node) -> Artifact:
        """See `Driver.run`."""
        item = self._plan(node)
        self.planned[node.name] = item
        if item.entry is None:
            spec = self.stages[node.stage]
            return pending(spec.kind, node.name, spec.parts)
        return item.entry.artifact.model_copy(update={"uri": f"node:{node.name}"})

    def _plan(self, node: Node) -> Planned:
        earlier = self._twin(node)
        waits = next((self._same_as[name] for name in self._pending(node)), None)
        absent = to_download(node)
        entry = None
        if waits is None and not absent:
            of_node = identify(node, self.stages)
            entry = self.store.find(node.stage, of_node)
        if entry is not None:
            return Planned(node, "reuse", "", entry)
        if earlier is not None:
            return Planned(node, "reuse", f"same as {earlier}")
        if waits is not None:
            lacks = self._not_here([each for each in absent if each not in self._downloads])
            return Planned(node, "depends", f"depends on {waits}; {lacks}" if lacks else f"depends on {waits}")
        return Planned(node, "run", self._not_here(absent) or why_to_run(self.store, node.stage, of_node))

    def _not_here(self, downloads: Sequence[str]) -> str:
        """That these are not on this machine, in one sentence; empty if there are none."""
        self._downloads += downloads
        return f"{' and '.join(downloads)} {'are' if downloads[1:] else 'is'} not downloaded yet" if downloads else ""

    @staticmethod
    def _pending(node: Node) -> list[str]:
        return [name for artifact in node.inputs.values() if artifact.pending and (name := producer(artifact))]

    def _twin(self, node: Node) -> str | None:
        """The earlier node with the same stage, configuration, seed and inputs, if there is one."""
        inputs = {name: self._symbol(artifact) for name, artifact in node.inputs.items()}
        key = fingerprint(identity(node.stage, "", identity_of(node.config), node.seed, inputs, {}))
        first = self._first.setdefault(key, node.name)
        self._same_as[node.name] = first
        return None if first == node.name else first

    def _symbol(self, artifact: Artifact) -> str:
        """A digest, or what stands for one that is not known yet."""
        name = producer(artifact)
        if artifact.digest != PENDING:
            return artifact.digest
        if name is None:
            return artifact.uri
        return f"{self._same_as[name]}/{artifact.uri.partition('/')[2]}"


@dataclass(frozen=True)
class UpTo:
    """Runs `target` and the nodes it needs; the others stay planned."""

    target: str
    ancestors: frozenset[str]
    inner: Driver
    stages: Stages = field(default_factory=lambda: STAGES)

    def run(self, node: Node) -> Artifact:
        """See `Driver.run`."""
        if node.name == self.target or node.name in self.ancestors:
            return self.inner.run(node)
        spec = self.stages[node.stage]
        return pending(spec.kind, node.name, spec.parts)


@dataclass
class Remember:
    """An observer that keeps the entry of every finished node."""

    entries: dict[str, tuple[Node, Entry]] = field(default_factory=dict)

    def started(self, node: Node, why: str) -> None:
        """Nothing to keep yet."""

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """Nothing to keep yet."""

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`."""
        self.entries[node.name] = (node, entry)

    def failed(self, node: Node, error: BaseException) -> None:
        """Nothing to keep."""


@dataclass
class Later:
    """An observer that keeps what it is told, for one that comes later."""

    told: list[Callable[[Observer], None]] = field(default_factory=list)

    def started(self, node: Node, why: str) -> None:
        """See `Observer.started`."""
        self.told.append(lambda observer: observer.started(node, why))

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """Not kept: it is over when somebody comes."""

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`."""
        self.told.append(lambda observer: observer.finished(node, entry, seconds))

    def failed(self, node: Node, error: BaseException) -> None:
        """See `Observer.failed`."""
        self.told.append(lambda observer: observer.failed(node, error))

    def tell(self, observer: Observer) -> None:
        """Tell another observer all of it."""
        for call in self.told:
            call(observer)


Flow = Callable[[], Any]
"""A flow with its configuration applied, ready to be driven."""


class _Heavy(BaseException):
    """Thrown through a flow to end its head start; no error, hence not an `Exception`."""


class Ahead:
    """Runs the light first stages of a flow before there is a server or a tracker: what refuses bad data is quick.

    What it ran is not repeated: `Tracked` makes a task run of it that says when it was done.
    """

    def __init__(self, execute: Execute) -> None:
        self.later = Later()
        self.done: dict[str, tuple[Artifact, float]] = {}
        self._execute = replace(execute, observers=(*execute.observers, self.later))

    def walk(self, flow: Flow) -> Ahead:
        """Run a flow up to the first stage that wants an accelerator.

        Raises:
            UserError: a stage refuses its inputs or its configuration.
        """
        with suppress(_Heavy), driving(self):
            flow()
        return self

    def run(self, node: Node) -> Artifact:
        """See `Driver.run`."""
        if self._execute.stages[node.stage].gpu:
            raise _Heavy
        began = time.monotonic()
        artifact = self._execute.run(node)
        self.done[node.name] = (artifact, time.monotonic() - began)
        return artifact


def draw(flow: Flow, stages: Stages = STAGES) -> list[Node]:
    """The nodes of a flow, without reading data or looking at a store."""
    graph = Graph(stages)
    with driving(graph), external.unread():
        flow()
    return graph.nodes


def plan(flow: Flow, store: Store, stages: Stages = STAGES) -> Plan:
    """What a run of the flow would do. Reads what lies on this machine, and downloads nothing."""
    planner = Plan(store, stages)
    with driving(planner), external.local():
        flow()
    return planner


def run_up_to(flow: Flow, target: str, execute: Execute) -> tuple[Node, Entry]:
    """Run one node and what it needs; the node as it ran, and its entry.

    Raises:
        UserError: the flow has no such node.
    """
    needed = ancestors(draw(flow, execute.stages), target)
    remember = Remember()
    with driving(UpTo(target, needed, execute, execute.stages)), observing(remember):
        flow()
    return remember.entries[target]
