"""`dvc.yaml`, rendered from the graph, and the records that its stages write."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inverse_alignment.core.artifact import PENDING, RUNTIME
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.fingerprint import source_files
from inverse_alignment.core.store import Entry
from inverse_alignment.report.comparison import FILE as COMPARISON
from inverse_alignment.report.comparison import Comparison, load
from inverse_alignment.stages.compare import CompareStage
from inverse_alignment.stages.registry import STAGES
from tasks.run_stage import Node, Stages, upstream

DVC_FILE = "dvc.yaml"
RECORDS = "pipeline"
MACHINES = f"{RECORDS}/machines.json"
ROUNDS = f"{RECORDS}/rounds.csv"
SELECTION = "selection.jsonl"
MEASURES: Mapping[str, str] = {
    "gold_reward": "Gold reward",
    "rm_score": "Score of the reward model",
    "kl_to_sft": "KL to the SFT policy, nats",
    "on_policy_accuracy_after": "Accuracy of the reward model on the policy's own answers",
}
"""What `dvc plots` draws, by its name in an evaluation."""
RENDER = "inverse-alignment dvc"
HEADER = f"""\
# Rendered by `{RENDER}` from params.yaml: do not edit, render again.
# Each stage asks the artifact store; what lies there is reused, whoever made it.
"""
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "tokenizers": ("data", "models"),
    "aggregate": ("arms", "data", "evaluation", "models", "selection", "sft"),
    "sft": ("sft", "models"),
    "rollout": ("rollout", "models"),
    "reward_model": ("reward", "models"),
    "token_reward": ("token_reward", "models"),
    "select": ("selection", "models"),
    "refresh": ("refresh", "models"),
    "ppo": ("ppo", "models"),
    "direct": ("optimise", "models"),
    "evaluate": ("evaluation", "models"),
    "compare": (
        *(
            "arms",
            "data",
            "evaluation",
            "models",
            "optimise",
            "ppo",
            "reference_sample",
            "refresh",
            "reward",
            "rollout",
        ),
        *("rounds", "seeds", "selection", "sft", "token_reward"),
    ),
}
"""Which sections of params.yaml a stage's configuration is made of."""
OF_ARM = ("rollout", "select", "refresh", "ppo", "direct")
"""Stages whose section an arm may override."""
_ROUND = re.compile(r"(?P<arm>.+)-s\d+-r\d+-[a-z]+")


def render(nodes: Sequence[Node], root: Path, stages: Stages = STAGES) -> str:
    """The text of dvc.yaml for a drawn graph; paths are relative to `root`."""
    body = {"stages": {node.name: _stage(node, root, stages) for node in nodes}, "plots": _plots(nodes)}
    return HEADER + yaml.dump(body, sort_keys=False, width=120, allow_unicode=True, Dumper=_Plain)


def check(text: str, path: Path) -> None:
    """Refuse a dvc.yaml that is not what would be rendered now.

    Raises:
        UserError: it is missing or stale.
    """
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        what = "is stale" if path.exists() else "is missing"
        raise UserError(f"{path.name} {what}", where=str(path), fix=f"run `{RENDER}` and commit the result")


def require_same_graph(nodes: Sequence[Node], path: Path) -> None:
    """Refuse to run one stage of a graph that dvc.yaml does not show; a missing dvc.yaml shows nothing wrong.

    Raises:
        UserError: params.yaml now asks for other nodes or edges.
    """
    if not path.exists():
        return
    rendered = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("stages", {})
    shown = {name: {dep for dep in stage["deps"] if _is_record(dep)} for name, stage in rendered.items()}
    drawn = {node.name: {record_path(name) for name in upstream(node)} for node in nodes}
    if shown != drawn:
        differs = sorted({*shown} ^ {*drawn}) or sorted(name for name in drawn if shown[name] != drawn[name])
        raise UserError(
            f"params.yaml asks for another graph than dvc.yaml shows, first at '{differs[0]}'",
            where=str(path),
            fix=f"render it again with `{RENDER}`",
        )


def record_path(node: str) -> str:
    """Where a node's record lies, relative to the project."""
    return f"{RECORDS}/{node}.json"


def ids_path(node: str) -> str:
    """Where the ids of the pairs that a selection kept lie, relative to the project."""
    return f"{RECORDS}/{node}.ids"


def record(node: Node, entry: Entry) -> dict[str, Any]:
    """What DVC keeps of a finished node: canonical fields alone, so that running twice changes nothing."""
    return {
        "node": node.name,
        "stage": node.stage,
        "fingerprint": entry.record["fingerprint"],
        "digest": entry.artifact.digest,
        "parts": dict(entry.artifact.parts),
        "inputs": {name: artifact.digest for name, artifact in node.inputs.items()},
        "metrics": entry.metrics,
    }


def write_record(node: Node, entry: Entry, root: Path) -> Path:
    """Write a node's record below `root`, and which kind of machine made it; returns the record's path.

    The record of a selection has the ids of the pairs beside it, one a line; that of the comparison the table that
    `dvc plots` draws. All of it is small and stays in git.
    """
    folder, path = Path(entry.artifact.uri), root / record_path(node.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(record(node, entry), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    if (folder / SELECTION).exists():
        rows = (folder / SELECTION).read_text(encoding="utf-8").splitlines()
        _write(root / ids_path(node.name), "".join(f"{json.loads(row)['id']}\n" for row in rows))
    if (folder / COMPARISON).exists():
        _write(root / ROUNDS, _rounds(load(folder)))
    with (path.parent / "machines.lock.tmp").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remember(node.name, entry, root / MACHINES)
    return path


def _remember(node: str, entry: Entry, path: Path) -> None:
    """Bytes that are the recorded ones were made where that was first said: repeating changes nothing."""
    machines = read_machines(path)
    digest = entry.artifact.digest
    if machines.get(node, {}).get("digest") == digest:
        return
    machine = machine_of(Path(entry.artifact.uri))
    kept = {name: facts for name, facts in machines.items() if name != node}
    if machine is not None:
        kept[node] = {**machine, "digest": digest}
    if kept != machines:
        _write(path, json.dumps(kept, indent=1, sort_keys=True) + "\n")


def read_machines(path: Path) -> dict[str, dict[str, Any]]:
    """Which kind of machine made the bytes of each recorded node, where that is known."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def machine_of(folder: Path) -> dict[str, Any] | None:
    """On which kind of processor, with how many threads and on which GPU an artifact was made; None if not recorded."""
    path = folder / RUNTIME
    facts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not facts.get("cpu"):
        return None
    return {"cpu": facts["cpu"], "threads": facts["runtime"]["threads"], "gpu": facts["gpu"]}


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.lock.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def sections(node: Node) -> list[str]:
    """The sections of params.yaml that a node's configuration comes from."""
    found = list(SECTIONS[node.stage])
    if node.name.startswith("reference-s"):
        found[0] = "reference_sample"
    elif (match := _ROUND.fullmatch(node.name)) and node.stage in OF_ARM:
        found.append(f"arms.{match['arm']}")
    return sorted(found)


def _plots(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """A chart for each measure, with a line for every arm over the rounds; the table is written with the comparison."""
    arms = next((node.config.arms for node in nodes if isinstance(node.config, CompareStage)), ())
    return [
        {
            measure: {
                "x": "round",
                "y": {ROUNDS: [f"{measure} {arm}" for arm in arms]},
                "title": f"{title}, by round; mean over seeds",
            }
        }
        for measure, title in MEASURES.items()
    ]


def _rounds(comparison: Comparison) -> str:
    """A row for each round, with the mean over seeds of every measure of every arm."""
    lines = [["round", *(f"{measure} {arm}" for measure in MEASURES for arm in comparison.arms)]]
    for number in range(1, comparison.rounds + 1):
        row = [str(number)]
        for measure in MEASURES:
            for arm in comparison.arms:
                found = [
                    getattr(round_.evaluation, measure)
                    for run in comparison.runs
                    for round_ in run.rounds
                    if run.arm == arm and round_.round == number
                ]
                known = [value for value in found if value is not None]
                row.append(repr(sum(known) / len(known)) if known else "")
        lines.append(row)
    return "".join(f"{','.join(line)}\n" for line in lines)


class _Plain(yaml.SafeDumper):
    """Lists indented below their key, as people write them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _stage(node: Node, root: Path, stages: Stages) -> dict[str, Any]:
    code = {_relative(path, root) for path in source_files(stages[node.stage].module)}
    outside = {
        artifact.uri for artifact in node.inputs.values() if artifact.digest == PENDING and _is_path(artifact.uri)
    }
    beside = {"select": [ids_path(node.name)], "compare": [ROUNDS]}.get(node.stage)
    return {
        "cmd": f"inverse-alignment stage {node.name}",
        "deps": [*sorted(record_path(name) for name in upstream(node)), *sorted(outside), *sorted(code)],
        "params": sections(node),
        **({"outs": [{name: {"cache": False}} for name in beside]} if beside else {}),
        "metrics": [{record_path(node.name): {"cache": False}}],
    }


def _relative(path: Path, root: Path) -> str:
    resolved, base = path.resolve(), root.resolve()
    return resolved.relative_to(base).as_posix() if resolved.is_relative_to(base) else str(resolved)


def _is_path(uri: str) -> bool:
    return not uri.startswith(("pending:", "hub:"))


def _is_record(dep: str) -> bool:
    return dep.startswith(f"{RECORDS}/") and dep.endswith(".json")
