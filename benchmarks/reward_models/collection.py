"""The pairs of a unit: some to learn from, others at other prompts to be judged by."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from benchmarks.reward_models.plan import WORLD, Sizes, Unit
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.data.read import read
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.world.text import generate

TEST_SHARE = 4
"""One prompt of the world in so many is held out."""


class Pairs(NamedTuple):
    """Disjoint in prompts."""

    train: list[Comparison]
    test: list[Comparison]


def pairs_of(unit: Unit, sizes: Sizes, folder: Path | None) -> Pairs:
    """A draw of a seed from the data's own splits; of the world, the world of that seed.

    Raises:
        UserError: there is no such file.
    """
    if unit.data == WORLD:
        found = generate(sizes.world.model_copy(update={"seed": unit.seed}))
        held = {pair.prompt.key for pair in found if not derive_seed("held out", pair.prompt.key) % TEST_SHARE}
        train = [pair for pair in found if pair.prompt.key not in held]
        test = [pair for pair in found if pair.prompt.key in held]
    else:
        every = _read(unit.data, folder)
        train, test = ([pair for pair in every if pair.provenance.split == split] for split in ("train", "test"))
    return Pairs(
        _ordered(train, "train", unit.seed)[: sizes.train_pairs],
        _spread(_ordered(test, "test", unit.seed))[: sizes.test_pairs],
    )


def _read(name: str, folder: Path | None) -> list[Comparison]:
    path = (folder or Path()) / "pairs" / f"{name}.jsonl.gz"
    if folder is None or not path.is_file():
        raise UserError(f"no pairs of {name}", where=f"--data, {path}", fix="give the folder that holds pairs/")
    return [row for row in read(JsonlSource(name=name, path=str(path))) if isinstance(row, Comparison)]


def _ordered(pairs: list[Comparison], purpose: str, seed: int) -> list[Comparison]:
    return sorted(pairs, key=lambda pair: derive_seed("reward models", purpose, seed, pair.id))


def _spread(pairs: list[Comparison]) -> list[Comparison]:
    """One pair of every prompt before a second one of any: prompts are the independent units."""
    seen: dict[str, int] = {}
    places = []
    for pair in pairs:
        seen[pair.prompt.key] = place = seen.get(pair.prompt.key, -1) + 1
        places.append(place)
    return [pairs[i] for i in sorted(range(len(pairs)), key=places.__getitem__)]
