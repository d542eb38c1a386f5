"""Who wrote what: the collection as it is read, the writers to imitate, and the data of one unit.

Light: nothing here imports torch.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.seeding import derive_seed

Row = dict[str, Any]
PAIRS, ANSWERS = "pairs/alpaca_eval.jsonl.gz", "responses/alpaca_eval.jsonl.gz"
RECOGNISED_BY = 12
"""Validation prompts by whose answers a policy is recognised."""
COPIED = ("id", "prompt", "chosen", "rejected", "source_chosen", "source_rejected", "annotator", "margin", "split")


class Sizes(Section):
    """How much of the collection is used, and who may be a target."""

    targets: int = Field(ge=1, description="writers to imitate")
    least_pairs: int = Field(ge=1, description="train pairs of a writer who may be a target")
    references: tuple[str, ...] = Field(description="writers that all others were compared with; never a target")
    pairs: int = Field(ge=1, description="pairs of pool and gate together")
    validation_pairs: int = Field(ge=1, description="pairs on which the first reward model is looked at")
    test_pairs: int = Field(ge=1, description="most test pairs of each kind and target")
    nearest: int = Field(ge=1, description="writers that count as the target's nearest")
    nearness_prompts: int = Field(ge=1, description="validation prompts on whose answers nearness is measured")


@dataclass(frozen=True)
class Collection:
    """Preference pairs with the writers of both answers, and every writer's answer to every prompt."""

    pairs: list[Row]
    answers: list[Row]


def read(data: Path) -> Collection:
    """The two files of AlpacaEval below `data`.

    Raises:
        UserError: one of them is missing.
    """
    return Collection(_rows(data / PAIRS), _rows(data / ANSWERS))


def _rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise UserError("there is no such file", where=str(path), fix=f"give a folder with {PAIRS} and {ANSWERS}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def writers(pair: Row) -> tuple[str, str]:
    """Who wrote the two answers of a pair."""
    return pair["source_chosen"], pair["source_rejected"]


def targets(collection: Collection, sizes: Sizes) -> list[str]:
    """The writers to imitate: of those with enough train pairs, evenly spaced by the median length of their answers.

    Raises:
        UserError: too few writers have so many pairs.
    """
    counts = Counter(name for pair in collection.pairs if pair["split"] == "train" for name in writers(pair))
    found = [name for name, count in counts.items() if count >= sizes.least_pairs and name not in sizes.references]
    if len(found) < sizes.targets:
        raise UserError(
            f"only {len(found)} writers have {sizes.least_pairs} train pairs",
            where="collection.targets",
            fix=f"set collection.targets to at most {len(found)}, or collection.least_pairs lower",
        )
    lengths: dict[str, list[int]] = {name: [] for name in found}
    for answer in collection.answers:
        if answer["source"] in lengths:
            lengths[answer["source"]].append(len(answer["response"]))
    order = sorted(found, key=lambda name: (statistics.median(lengths[name]), name))
    step = (len(order) - 1) / max(1, sizes.targets - 1)
    return [order[int(place * step)] for place in range(sizes.targets)]


def held_out(near: Mapping[str, Mapping[str, float]], references: Names[str]) -> dict[str, str]:
    """For each target a writer that is kept out of every pool: the nearest that is nearer to no other target.

    It is neither a target nor a reference itself.

    Args:
        near: how near all others are to each target.

    Raises:
        UserError: there is none.
    """
    best: dict[str, tuple[float, str]] = {}
    for name in sorted({other for of in near.values() for other in of}):
        if name in near or name in references:
            continue
        target = max(near, key=lambda each: near[each][name])
        best[target] = max(best.get(target, (-1.0, "")), (near[target][name], name))
    if missing := sorted(near.keys() - best.keys()):
        raise UserError(
            f"no writer is nearer to {missing[0]} than to the other targets",
            where="collection.targets",
            fix="set collection.targets lower",
        )
    return {target: best[target][1] for target in near}


def shows(prompt_id: str, seed: int) -> bool:
    """Whether a train prompt shows how a writer writes; the pairs of the others are the pool."""
    return derive_seed("real: prompt shows", seed, prompt_id) % 2 == 0


def kind_of(pair: Row, target: str, out: str) -> str:
    """What a test pair says of a target: `target`, `held_out` (the target wrote neither answer) or `others`."""
    names = writers(pair)
    return "target" if target in names else "held_out" if out in names else "others"


def sample(rows: Iterable[Row], count: int, *purpose: str | int) -> list[Row]:
    """At most `count` rows, the same ones in whatever order they come."""
    return sorted(rows, key=lambda row: derive_seed(*purpose, row["id"]))[:count]


def demonstrations(collection: Collection, out: Names[str], seed: int) -> list[Row]:
    """Everybody's answers to the train prompts that show; nothing of the writers that are held out."""
    return [
        {"prompt": row["prompt"], "completion": row["response"], "source": row["source"], "split": "train"}
        for row in collection.answers
        if row["split"] == "train" and row["source"] not in out and shows(row["prompt_id"], seed)
    ]


def pairs(collection: Collection, held: dict[str, str], sizes: Sizes, seed: int) -> list[Row]:
    """Pool and gate, validation and test pairs of one seed; only test pairs have answers of held-out writers.

    Args:
        held: the held-out writer of each target.
    """
    out = set(held.values())
    within = [pair for pair in collection.pairs if not out.intersection(writers(pair))]
    pool = [pair for pair in within if pair["split"] == "train" and not shows(pair["prompt_id"], seed)]
    validation = [pair for pair in within if pair["split"] == "validation"]
    test = {pair["id"]: pair for target, name in held.items() for pair in tests(collection, target, name, sizes)}
    rows = [
        *sample(pool, sizes.pairs, "real: pool", seed),
        *sample(validation, sizes.validation_pairs, "real: validation", seed),
        *test.values(),
    ]
    return [{name: row[name] for name in COPIED} for row in rows]


def tests(collection: Collection, target: str, out: str, sizes: Sizes) -> list[Row]:
    """The test pairs on which reward models are judged for one target: so many of each kind, the same for all seeds."""
    test = [pair for pair in collection.pairs if pair["split"] == "test"]
    return [
        pair
        for kind in ("target", "held_out", "others")
        for pair in sample((p for p in test if kind_of(p, target, out) == kind), sizes.test_pairs, "real: test", kind)
    ]


def validation(collection: Collection) -> tuple[tuple[str, str, str], ...]:
    """Writer, prompt and answer of a few validation rows of everybody, by which a policy is recognised."""
    prompts = sorted({row["prompt_id"] for row in collection.answers if row["split"] == "validation"})
    few = set(prompts[:RECOGNISED_BY])
    return tuple(
        (row["source"], row["prompt"], row["response"]) for row in collection.answers if row["prompt_id"] in few
    )


def write(folder: Path, files: dict[str, list[Row]]) -> None:
    """Write tables into a new folder, all or none; a folder that is there stays."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, rows in files.items():
        (scratch / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.rename(scratch, folder)
