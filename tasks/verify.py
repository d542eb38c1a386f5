"""Does a recorded pipeline come out again? Every node is built anew in an empty store and held against its record.

On the kind of processor, with the threads, that made the record, the bytes must be the same. Elsewhere floating-point
sums run in another order, and what counts is the metrics, within `TOLERANCES`: fixed here, before anything is rebuilt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.store import Entry
from tasks.dvc_file import MACHINES, RECORDS, machine_of, read_machines, record, record_path
from tasks.recorder import flatten
from tasks.run_stage import Execute, Flow, Node, Remember, UpTo, ancestors, draw, driving, observing


@dataclass(frozen=True)
class Tolerance:
    """How far a value may lie from the recorded one: `absolute + relative * |recorded|`."""

    absolute: float
    relative: float = 0.0

    def allows(self, recorded: float, rebuilt: float) -> bool:
        """Whether the rebuilt value reproduces the recorded one."""
        return abs(rebuilt - recorded) <= self.absolute + self.relative * abs(recorded)

    def __str__(self) -> str:
        parts = [f"{self.absolute:g}" if self.absolute else "", f"{self.relative:.0%}" if self.relative else ""]
        return " + ".join(part for part in parts if part) or "equal"


EQUAL = Tolerance(0.0)
TOLERANCES: tuple[tuple[str, Tolerance], ...] = (
    (r"(tokenizers|aggregate|token_reward)/.*(vocabulary|pairs|rows)", EQUAL),
    (
        r".*/(accepted|refreshed|gate|(gradient_)?steps?|own_answers|drift_answers|pool|selected|pairs_seen|replayed|answers|parameters|demonstrations|\w*pairs)",
        EQUAL,
    ),
    (r".*(accuracy\w*|share|longer_wins\w*)", Tolerance(0.05)),
    (r".*(gold_reward)", Tolerance(0.1)),
    (r".*(kl_to_sft|kl)", Tolerance(0.25, 0.1)),
    (r".*(rm_score)", Tolerance(0.25)),
    (r".*(tokens|response_tokens)", Tolerance(0.0, 0.1)),
    (r".*/(gain|low|detectable)", Tolerance(0.02)),
    (r".*", Tolerance(1e-3, 0.02)),
)
"""By `stage/metric`, first match; for machines of another kind. Decisions and counts must be the same everywhere."""

Status = Literal["same bytes", "within tolerances", "differs"]


@dataclass(frozen=True)
class Row:
    """One metric of a node, recorded and rebuilt."""

    metric: str
    recorded: Any
    rebuilt: Any
    tolerance: Tolerance
    reproduced: bool


@dataclass(frozen=True)
class Verdict:
    """What became of one node, and by which rule."""

    node: str
    stage: str
    status: Status
    why: str
    rows: tuple[Row, ...]


def verify(flow: Flow, root: Path, execute: Execute, nodes: Sequence[str] = ()) -> Iterator[Verdict]:
    """Build nodes anew and judge each of them, and what they need, by its record.

    Args:
        flow: the recorded pipeline.
        root: the project, whose `pipeline/` holds the records.
        execute: has an empty store.
        nodes: which to verify; none for all.

    Raises:
        UserError: the store is not empty, a node does not exist or has no record.
    """
    if list(execute.store.root.glob("[!.]*/*")):
        raise UserError("the store is not empty", where=str(execute.store.root), fix="name a folder that is not there")
    drawn = draw(flow, execute.stages)
    wanted = tuple(nodes) or tuple(node.name for node in drawn)
    needed = needed_for(drawn, nodes)
    records = {node.name: read_record(root, node.name) for node in drawn if node.name in needed}
    machines = read_machines(root / MACHINES)
    remember = Remember()
    with driving(UpTo(wanted[-1], needed, execute, execute.stages)), observing(remember):
        flow()
    for name, kept in records.items():
        node, entry = remember.entries[name]
        yield judge(node, entry, kept, machines.get(name))


def needed_for(drawn: Sequence[Node], nodes: Sequence[str]) -> frozenset[str]:
    """These nodes with all they need; every node where none is named.

    Raises:
        UserError: a node does not exist.
    """
    wanted = tuple(nodes) or tuple(node.name for node in drawn)
    return frozenset(wanted).union(*(ancestors(drawn, name) for name in wanted))


def read_record(root: Path, name: str) -> dict[str, Any]:
    """A node's committed record.

    Raises:
        UserError: there is none.
    """
    path = root / record_path(name)
    if not path.exists():
        known = [each.stem for each in (root / RECORDS).glob("*.json") if each.name != Path(MACHINES).name]
        raise UserError(
            f"'{name}' has no record",
            where=str(path),
            fix=nearest(name, known) if known else "record the pipeline with `dvc repro`",
        )
    return dict(json.loads(path.read_text(encoding="utf-8")))


def judge(node: Node, entry: Entry, kept: Mapping[str, Any], machine: Mapping[str, Any] | None) -> Verdict:
    """Hold a rebuilt node against its record.

    Args:
        node: as it ran.
        entry: what was built.
        kept: the record.
        machine: which kind made which bytes; None if that is not known.
    """
    made = record(node, entry)
    here = machine_of(Path(entry.artifact.uri))
    known = machine is not None and machine["digest"] == kept["digest"]
    same_kind = machine is not None and known and here == {name: machine[name] for name in ("cpu", "threads", "gpu")}
    same_bytes = made["digest"] == kept["digest"]
    rows = tuple(_compared(node.stage, kept["metrics"], made["metrics"], exact=same_kind or same_bytes))
    status: Status = "differs"
    if all(row.reproduced for row in rows):
        status = "same bytes" if same_bytes else "differs" if same_kind else "within tolerances"
    if same_bytes:
        why = "the digest is the recorded one"
    elif same_kind:
        why = f"the same kind of machine must give the same bytes; {_first_cause(made, kept)}"
    elif machine is None or not known:
        why = "it is not recorded on which kind of machine this was made"
    else:
        why = f"recorded on another kind of machine: {', '.join(str(machine[name]) for name in ('cpu', 'threads'))}"
    return Verdict(node.name, node.stage, status, why, rows)


def _first_cause(made: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """Whether a node differs by itself, or because what it was given does."""
    other = sorted(name for name, digest in made["inputs"].items() if kept["inputs"].get(name) != digest)
    if other:
        return f"its input {other[0]} has other bytes"
    if made["fingerprint"] != kept["fingerprint"]:
        return "its code, configuration or versions are not the recorded ones"
    return "its inputs are the recorded ones"


def _compared(stage: str, kept: Mapping[str, Any], made: Mapping[str, Any], exact: bool) -> Iterator[Row]:
    before, after = flatten(kept), flatten(made)
    for name in sorted({*before, *after}):
        tolerance = EQUAL if exact else tolerance_of(f"{stage}/{name}")
        recorded, rebuilt = before.get(name), after.get(name)
        reproduced = recorded == rebuilt and (name in before) == (name in after)
        if isinstance(recorded, int | float) and isinstance(rebuilt, int | float):
            reproduced = type(recorded) is type(rebuilt) and tolerance.allows(recorded, rebuilt)
        yield Row(name, recorded, rebuilt, tolerance, reproduced)


def tolerance_of(name: str) -> Tolerance:
    """The tolerance of `stage/metric` on another kind of machine."""
    return next(tolerance for pattern, tolerance in TOLERANCES if re.fullmatch(pattern, name))
