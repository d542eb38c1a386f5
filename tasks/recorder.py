"""From what an observer of stages sees to the events of `journal`: which runs there are, and what each of them holds.

One parent run per arm and seed holds the configuration and the headline values of every round; what the arms share has
a parent of its own. A stage that was built is a child run with its parameters, inputs, metrics, small files and models;
a reused one is listed on the parent, with a link to the run that built it.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import METRICS, RECORD, RUNTIME, Artifact
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.core.store import Entry, Store
from tasks.dataset import tracked
from tasks.journal import AnyEvent, Close, Drop, Given, Listed, Made, Note, Open, Pointed, Status
from tasks.run_stage import Node, identify

PARAM_LENGTH = 5999  # MLflow refuses longer ones
TAG_LENGTH = 4999
KEY_LENGTH = 250
LIVE_SECONDS = 15.0
MOST_BYTES = {".json": 256_000, ".jsonl": 256_000, ".md": 256_000, ".txt": 256_000, ".html": 8_000_000}
"""Files of these kinds, up to these sizes, are worth looking at beside the metrics; the others are named by uri."""
SECRET = re.compile(r"token|password|secret|credential|api_?key", re.IGNORECASE)
USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
ROUND = re.compile(r"-r(\d+)(?=-|$)")  # nodes of a round are called <arm>-s<seed>-r<round>-<stage>
OF_ARM = re.compile(r"(?P<arm>.+)-s\d+-r\d+-[a-z-]+")

Registered = Literal["policy", "reward-model"]
Points = tuple[tuple[str, float, int], ...]


@dataclass
class _Open:
    """A stage whose run is open."""

    key: str
    live: Path
    rows: int = 0
    spoke: float = 0.0


class Recorder:
    """An observer that tells `emit` what becomes of every stage.

    Args:
        config: of the whole run.
        journal: prefix of the keys of all runs.
        facts: tags of every run.
        emit: takes the events, in order.
    """

    def __init__(
        self, config: PipelineConfig, journal: str, facts: Mapping[str, str], emit: Callable[[AnyEvent], None]
    ) -> None:
        self.config, self.journal, self.facts, self._emit = config, journal, facts, emit
        self._arm: tuple[str, str, int] | None = None  # key, name and seed of the arm in hand
        self._shared: dict[int | None, str] = {}
        self._stages: dict[str, _Open] = {}
        self._attempts: Counter[str] = Counter()
        self._built: dict[str, str] = {}  # fingerprint -> key of the run that built it
        self._start: dict[int | None, Points] = defaultdict(tuple)  # what every arm of a seed begins with

    def begin_arm(self, name: str, seed: int, config: PipelineConfig) -> None:
        """Open the parent run of one arm and seed."""
        tags = {"ia.kind": "arm", "arm": name, "seed": str(seed)}
        key = self._begin(f"{name}-s{seed}", None, tags, _shown(config), _published(config))
        self._arm = key, name, seed
        if self._start[seed]:
            self._emit(Note(key=key, at=now(), points=self._start[seed]))

    def end_arm(self, status: Status) -> None:
        """Close it, and what is still open below it."""
        if self._arm is not None:
            self._end_stages(status)
            self._emit(Close(key=self._arm[0], at=now(), status=status))
        self._arm = None

    def close(self, status: Status) -> None:
        """Close the parents of shared stages, and whatever is still open."""
        self._end_stages(status)
        for key in self._shared.values():
            self._emit(Close(key=key, at=now(), status=status))
        self._shared = {}

    def judged(
        self, name: str, settings: Mapping[str, Any], points: Points, folder: str = "", files: tuple[str, ...] = ()
    ) -> None:
        """A measurement that no stage made: a run of its own, with its numbers and the files that lie in a folder."""
        key = self._begin(name, None, {"ia.kind": "judged"}, settings, ())
        self._emit(Note(key=key, at=now(), points=points, folder=folder, files=files))
        self._emit(Close(key=key, at=now(), status="FINISHED"))

    def started(self, node: Node, why: str) -> None:
        """See `Observer.started`."""
        tags = {"ia.kind": "stage", "ia.why": why, **self._tags(node)}
        parent = self._parent_of(node)
        inputs = tuple(_given(f"{name}: {of.kind}", name, of) for name, of in sorted(node.inputs.items()))
        key = self._begin(node.name, parent, tags, _plain(node.config), inputs)
        self._stages[node.name] = _Open(key, _live_rows(self.config, node), spoke=time.monotonic())

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """See `Observer.progress`: the rows that a long stage has written since the last look."""
        stage = self._stages.get(node.name)
        if stage is None or time.monotonic() - stage.spoke < LIVE_SECONDS:
            return
        stage.spoke = time.monotonic()
        rows = read_metrics(stage.live)
        if points := points_of(rows[stage.rows :]):
            self._emit(Note(key=stage.key, at=now(), points=points))
        stage.rows = len(rows)

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`."""
        of = str(entry.record["fingerprint"])
        stage = self._stages.pop(node.name, None)
        if stage is not None and entry.reused:  # another process built it while this one waited
            self._emit(Drop(key=stage.key, at=now()))
        elif stage is not None:
            self._built[of] = stage.key
            self._note_result(stage, node, entry, seconds)
        parent = self._parent_of(node)
        self._list_on_parent(parent, node, entry)
        self._note_models(self._built.get(of, parent), node, entry)
        if stage is not None and not entry.reused:
            self._emit(Close(key=stage.key, at=now(), status="FINISHED"))

    def failed(self, node: Node, error: BaseException) -> None:
        """See `Observer.failed`."""
        if stage := self._stages.pop(node.name, None):
            message = redacted(f"{type(error).__name__}: {error}")[:TAG_LENGTH]
            self._emit(Note(key=stage.key, at=now(), tags={"ia.error": message}))
            self._emit(Close(key=stage.key, at=now(), status=status_of(error)))

    def measured(self, values: Mapping[str, float], step: int) -> None:
        """Values of the machine, for every stage that runs."""
        points = tuple((key_of(f"system/{name}"), float(value), step) for name, value in values.items())
        for stage in list(self._stages.values()):
            self._emit(Note(key=stage.key, at=now(), points=points))

    def _note_result(self, stage: _Open, node: Node, entry: Entry, seconds: float) -> None:
        folder = Path(entry.artifact.uri)
        headline = [(key_of(f"headline/{name}"), value, 0) for name, value in numbers(entry.metrics)]
        tags = {
            "artifact.fingerprint": str(entry.record["fingerprint"]),
            "artifact.digest": entry.artifact.digest,
            "artifact.uri": redacted(entry.artifact.uri),
            "ia.reused": "false",
        }
        evaluated = node.inputs.get("policy") if node.stage == "evaluate" else None
        self._emit(Note(key=stage.key, at=now(), rows_of=str(folder / METRICS), rows_from=stage.rows))
        self._emit(
            Note(
                key=stage.key,
                at=now(),
                points=(*headline, ("seconds", seconds, 0)),
                about=evaluated.digest if evaluated else None,
                tags=tags,
                folder=str(folder),
                files=tuple(_small_files(folder)),
            )
        )

    def _list_on_parent(self, parent: str, node: Node, entry: Entry) -> None:
        step = round_of(node)
        points = tuple((key_of(f"{node.stage}/{name}"), value, step) for name, value in numbers(entry.metrics))
        if self._arm is None and node.stage == "evaluate":
            self._start[node.seed] += points
        if points:
            self._emit(Note(key=parent, at=now(), points=points))
        of = str(entry.record["fingerprint"])
        tags = {**self._tags(node), "artifact.fingerprint": of, "ia.reused": str(entry.reused).lower()}
        given = _given(node.name, node.stage, entry.artifact, tags)
        self._emit(
            Listed(key=parent, at=now(), given=given, node=node.name, fingerprint=of, built_by=self._built.get(of))
        )

    def _note_models(self, key: str, node: Node, entry: Entry) -> None:
        """Tell of the model that a stage has made, and who is in office now."""
        of, parts = str(entry.record["fingerprint"]), entry.artifact.parts
        tags = {**self._tags(node), "artifact.fingerprint": of, "artifact.digest": entry.artifact.digest}

        def made(registered: Registered, part: str, kept: bool = True) -> None:
            weights, uri = (parts[part], redacted(f"{entry.artifact.uri}/{part}")) if kept else ("", "")
            at = node.name.removesuffix(f"-{node.stage}") if round_of(node) else f"start-s{node.seed}"
            event = Made(
                key=key,
                at=now(),
                registered=registered,
                name=f"{registered}-{at}",
                fingerprint=of,
                weights=weights,
                uri=uri,
                tags=tags,
            )
            self._emit(event)

        match node.stage:
            case "sft" | "ppo" | "direct":
                made("policy", "policy")
                aliases = (f"{tags.get('arm', 'start')}-s{node.seed}",)
                self._emit(Pointed(key=key, at=now(), registered="policy", aliases=aliases, fingerprint=of))
            case "reward_model" if node.name.startswith("reward-s"):
                made("reward-model", "model")
                self._point(key, ("champion",), fingerprint=of)
            case "refresh":
                decision = {name: value for name, value in entry.metrics.items() if value is not None}
                tags |= {
                    f"gate.{name}": str(decision[name]) for name in ("gain", "low", "accepted") if name in decision
                }
                if decision.get("refreshed", True):  # otherwise nobody was trained
                    accepted = bool(decision.get("accepted", True))
                    made("reward-model", "model", kept=accepted)
                    self._decide(key, tags.get("arm", "start"), node, of, accepted)

    def _decide(self, key: str, arm: str, node: Node, of: str, accepted: bool) -> None:
        """The gate's decision: the newest candidate is the challenger; accepted, it is the champion too."""
        names = {role: (role, f"{role}-{arm}-s{node.seed}") for role in ("champion", "challenger")}
        self._point(key, names["challenger"], fingerprint=of)
        if accepted:
            self._point(key, names["champion"], fingerprint=of)
        else:
            self._point(key, names["champion"], weights=node.inputs["reward"].digest)

    def _point(self, key: str, aliases: tuple[str, ...], *, fingerprint: str = "", weights: str = "") -> None:
        self._emit(
            Pointed(
                key=key, at=now(), registered="reward-model", aliases=aliases, fingerprint=fingerprint, weights=weights
            )
        )

    def _begin(
        self,
        name: str,
        parent: str | None,
        tags: Mapping[str, str],
        values: Mapping[str, Any],
        inputs: tuple[Given, ...],
    ) -> str:
        self._attempts[name] += 1
        again = f"#{self._attempts[name]}" if self._attempts[name] > 1 else ""
        key = f"{self.journal}/{name}{again}"
        all_tags = {name: str(text)[:TAG_LENGTH] for name, text in {**self.facts, **_flow_run(), **tags}.items()}
        shown = {key_of(name): text for name, text in params(flatten(values))}
        self._emit(Open(key=key, at=now(), name=name, parent=parent, tags=all_tags, params=shown, inputs=inputs))
        return key

    def _parent_of(self, node: Node) -> str:
        if self._arm is not None:
            return self._arm[0]
        if node.seed not in self._shared:
            name = "shared" if node.seed is None else f"shared-start-s{node.seed}"
            tags = {"ia.kind": "shared", **({} if node.seed is None else {"seed": str(node.seed)})}
            self._shared[node.seed] = self._begin(name, None, tags, _shown(self.config), _published(self.config))
        return self._shared[node.seed]

    def _tags(self, node: Node) -> dict[str, str]:
        tags = {"node": node.name, "stage": node.stage, "round": str(round_of(node))}
        if node.seed is not None:
            tags["seed"] = str(node.seed)
        if self._arm is not None:
            tags["arm"] = self._arm[1]
        elif match := OF_ARM.fullmatch(node.name):
            tags["arm"] = match["arm"]
        return tags

    def _end_stages(self, status: Status) -> None:
        for stage in self._stages.values():
            self._emit(Close(key=stage.key, at=now(), status="KILLED" if status == "FINISHED" else status))
        self._stages = {}


def facts_of(config: PipelineConfig) -> dict[str, str]:
    """Tags that all runs of a process share: which code, which data, which configuration."""
    commit = _commit()
    found = {given.tags["dvc.md5"] for given in _published(config)}
    return {
        **({"git.commit": commit, "mlflow.source.git.commit": commit.removesuffix("-dirty")} if commit else {}),
        **({"data.md5": ",".join(sorted(found))} if found else {}),
        "config.digest": config.digest(),
        "mlflow.source.name": "inverse-alignment",
    }


def points_of(rows: list[dict[str, float | None]]) -> Points:
    """The finite values of rows of metrics, at their steps."""
    return tuple(
        (key_of(name), float(value), int(row["step"] or 0))
        for row in rows
        for name, value in row.items()
        if name != "step" and value is not None and _is_number(value)
    )


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
            yield name, redacted(str(value))[:PARAM_LENGTH]


def numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers of nested metrics, under names MLflow takes; true counts as 1."""
    for name, value in flatten(metrics).items():
        if _is_number(value):
            yield key_of(name), float(value)


def key_of(name: str) -> str:
    """A name that MLflow takes: letters, digits, `_ - . / :` and spaces."""
    return re.sub(r"[^\w\-./: ]", "_", name.replace("@", "_at_"), flags=re.ASCII)[:KEY_LENGTH]


def round_of(node: Node) -> int:
    """The round a node belongs to, counted from 1 as in the report; 0 is the start that all arms share."""
    found = ROUND.findall(node.name)
    return int(found[-1]) if found else 0


def status_of(error: BaseException | None) -> Status:
    """A cancel and Ctrl-C are no `Exception`."""
    if error is None:
        return "FINISHED"
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def redacted(text: str) -> str:
    """Without a login in an address."""
    return USERINFO.sub("***@", text)


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def _shown(config: PipelineConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"arms", "seeds"})


def _plain(config: Any) -> dict[str, Any]:
    return config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config or {})


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def _given(name: str, context: str, of: Artifact, tags: Mapping[str, str] | None = None) -> Given:
    found = tracked(Path(of.uri))
    dvc = {"dvc.md5": found.md5, "dvc.path": found.path} if found else {}
    return Given(
        name=name, context=context, uri=redacted(of.uri), digest=of.digest, kind=of.kind, tags={**dvc, **(tags or {})}
    )


def _published(config: PipelineConfig) -> tuple[Given, ...]:
    """The DVC-tracked datasets that a configuration reads, each once."""
    found = {of.path: of for source in config.data.sources if (of := tracked(Path(source.path)))}
    return tuple(
        Given(name=of.path, context="data", uri=of.path, digest=of.md5, kind="dvc",
              tags={"dvc.md5": of.md5, "dvc.path": of.path})
        for of in found.values()
    )  # fmt: skip


def _live_rows(config: PipelineConfig, node: Node) -> Path:
    """Where a running stage writes its rows."""
    store = Store(Path("artifacts" if "://" in config.store else config.store).resolve())
    return store.partial(node.stage, identify(node)) / METRICS


def _small_files(folder: Path) -> list[str]:
    """Names of the files that are worth a look: records, samples, pages; never weights."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and path.name != METRICS
        and (path.name in (RECORD, RUNTIME) or path.stat().st_size <= MOST_BYTES.get(path.suffix, -1))
    )


def _commit() -> str:
    """The commit of the working directory, with `-dirty` where files differ from it; empty outside of git."""
    call = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _flow_run() -> dict[str, str]:
    """The Prefect flow run that this happens in; Prefect is asked only where it is loaded."""
    if "prefect" not in sys.modules:
        return {}
    from prefect.runtime import flow_run

    return {"prefect.flow_run_id": str(flow_run.id)} if flow_run.id else {}
