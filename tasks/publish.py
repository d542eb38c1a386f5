"""A pooled set or a selected subset as a dataset of its own: rows, card and statistics, a version that DVC tracks.

The rows are in the format that `data.sources` reads. Nothing in the files depends on time or place, so that publishing
the same set again is the same version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import (
    SPLITS,
    Comparison,
    Demonstration,
    Example,
    Judgement,
    Prompt,
    iter_jsonl,
)
from inverse_alignment.core.store import Entry
from inverse_alignment.data.aggregate import FILES, STATISTICS

FOLDER = "published"
NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
PAIRS, CARD, ORIGIN = "pairs.jsonl", "README.md", "origin.json"


@dataclass(frozen=True)
class Published:
    """A version of a dataset: where it lies, DVC's name of its bytes, its pairs, and whether it is a new one."""

    folder: Path
    md5: str
    pairs: int
    new: bool


def publish_set(name: str, node: str, preferences: Entry, root: Path) -> Published:
    """Publish everything that was pooled, split by split.

    Raises:
        UserError: the name cannot name a dataset, or DVC refuses.
    """
    source = Path(preferences.artifact.uri)
    statistics = json.loads((source / STATISTICS).read_text(encoding="utf-8"))

    def write(folder: Path) -> list[Comparison]:
        pairs = [pair for split in SPLITS for pair in iter_jsonl(source / f"{split}.jsonl", Comparison)]
        _write_rows(folder / PAIRS, (_flat(pair) for pair in pairs))
        for kind, file in FILES.items():
            if (source / file).is_file() and (source / file).stat().st_size:
                _write_rows(folder / file, (_flat(row) for row in iter_jsonl(source / file, kind)))
        return pairs

    return _publish(name, node, preferences, root, write, {"of_the_pool": statistics})


def publish_subset(name: str, node: str, selection: Entry, preferences: Entry, root: Path) -> Published:
    """Publish the pairs that a selection kept, with its weights and scores.

    Raises:
        UserError: the name cannot name a dataset, or DVC refuses.
    """
    kept = [json.loads(line) for line in (Path(selection.artifact.uri) / "selection.jsonl").read_text().splitlines()]
    audit = json.loads((Path(selection.artifact.uri) / "audit.json").read_text(encoding="utf-8"))

    def write(folder: Path) -> list[Comparison]:
        pool = {pair.id: pair for pair in iter_jsonl(Path(preferences.artifact.uri) / "train.jsonl", Comparison)}
        pairs = [pool[row["id"]] for row in kept]
        rows = (
            {**_flat(pair), "weight": pair.weight * row["weight"], "score": row["score"]}
            for pair, row in zip(pairs, kept, strict=True)
        )
        _write_rows(folder / PAIRS, rows)
        return pairs

    return _publish(name, node, selection, root, write, {"of_the_selection": audit})


def require_dvc(name: str, root: Path) -> None:
    """Refuse what DVC could not track, before anything is written.

    Raises:
        UserError: the name cannot name a dataset, or there is no DVC repository.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"'{name}' cannot name a dataset", where="NAME", fix="use lower-case letters, digits, dashes and dots"
        )
    if not (root / ".dvc").is_dir():
        raise UserError("there is no DVC repository", where=str(root.resolve()), fix="run `dvc init` in a checkout")


def _publish(
    name: str,
    node: str,
    entry: Entry,
    root: Path,
    write: Callable[[Path], list[Comparison]],
    more: Mapping[str, Any],
) -> Published:
    require_dvc(name, root)
    folder = root / FOLDER / name
    scratch = folder.with_name(f".{name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        pairs = write(scratch)
        statistics = {**describe(pairs), **more}
        origin = {
            "node": node,
            "stage": entry.record["identity"]["stage"],
            "fingerprint": entry.record["fingerprint"],
            "digest": entry.artifact.digest,
            "inputs": entry.record["identity"]["inputs"],
        }
        _write_json(scratch / STATISTICS, statistics)
        _write_json(scratch / ORIGIN, origin)
        (scratch / CARD).write_text(card(name, statistics, origin), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    before = _recorded(root, name)
    _dvc_add(folder, root)
    return Published(folder, _recorded(root, name), len(pairs), before != _recorded(root, name))


def describe(pairs: Sequence[Comparison]) -> dict[str, Any]:
    """What a set is made of: counts by dataset, policy, annotator, licence and split; whether the longer wins."""
    words = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
    unequal = [chosen > rejected for chosen, rejected in words if chosen != rejected]
    origins = [pair.provenance for pair in pairs]
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt.key for pair in pairs}),
        "by_dataset": _counts(origin.dataset for origin in origins),
        "by_policy": _counts(name for origin in origins for name in (origin.source_chosen, origin.source_rejected)),
        "by_annotator": _counts(origin.annotator for origin in origins),
        "by_licence": _counts(origin.licence for origin in origins),
        "by_split": _counts(str(origin.split) for origin in origins),
        "longer_wins": round(sum(unequal) / len(unequal), 4) if unequal else None,
        "words_chosen": round(sum(chosen for chosen, _ in words) / len(words), 2) if words else None,
        "words_rejected": round(sum(rejected for _, rejected in words) / len(words), 2) if words else None,
    }


def card(name: str, statistics: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """The dataset's card: what it is, where it comes from, how to read it."""
    licences = sorted(statistics["by_licence"])
    head = yaml.safe_dump({"pretty_name": name, "license": licences}, sort_keys=False)
    rows = [
        f"| {label} | {', '.join(f'{key}: {count}' for key, count in statistics[field].items())} |"
        for field, label in (
            ("by_dataset", "pairs by dataset"),
            ("by_policy", "answers by policy"),
            ("by_annotator", "pairs by annotator"),
            ("by_licence", "pairs by licence"),
            ("by_split", "pairs by split"),
        )
    ]
    inputs = [f"| input `{key}` | `{digest}` |" for key, digest in sorted(origin["inputs"].items())]
    longer = statistics["longer_wins"]
    lines = [
        f"---\n{head}---",
        f"# {name}",
        f"{statistics['pairs']} preferences on {statistics['prompts']} prompts"
        f"{'' if longer is None else f'; the longer answer wins in {longer:.1%} of those of unequal length'}. "
        f"Made by the stage `{origin['stage']}` as `{origin['node']}`.",
        "## What it is made of",
        "\n".join(["| | |", "|---|---|", *rows]),
        "## Where it comes from",
        "\n".join(
            [
                "| | |",
                "|---|---|",
                f"| artifact | `{origin['fingerprint']}` |",
                f"| digest | `{origin['digest']}` |",
                *inputs,
            ]
        ),
        "## How to read it",
        "One JSON object a line: `prompt`, `chosen`, `rejected`, who wrote and judged them, and the `weight` of the "
        f"pair in a loss. Under `data.sources`: `{{format: jsonl, name: {name}, path: {FOLDER}/{name}/{PAIRS}}}`.",
    ]
    return "\n\n".join(lines) + "\n"


def _flat(row: Example) -> dict[str, Any]:
    """A record in the columns of docs/data-format.md."""
    values = row.model_dump(mode="json", exclude={"prompt", "provenance", "response"})
    if isinstance(row, Demonstration | Judgement):
        values["completion"] = row.response
    origin = row.provenance.model_dump(mode="json", exclude={"original_id"})
    return {"id": row.id, "prompt": _asked(row.prompt), **values, **origin}


def _asked(prompt: Prompt) -> Any:
    messages = [message.model_dump(mode="json") for message in prompt.messages]
    return messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else messages


def _write_rows(path: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _counts(names: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _recorded(root: Path, name: str) -> str:
    """DVC's name of the version that is recorded; empty if there is none."""
    path = root / FOLDER / f"{name}.dvc"
    return str(yaml.safe_load(path.read_text(encoding="utf-8"))["outs"][0]["md5"]) if path.exists() else ""


def _dvc_add(folder: Path, root: Path) -> None:
    call = [sys.executable, "-m", "dvc", "add", "--quiet", str(folder.relative_to(root))]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(call, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(
            f"DVC did not take the dataset: {said[0] if said else 'no reason given'}",
            where=str(folder),
            fix=f"see what `dvc add {folder.relative_to(root)}` says",
        )
