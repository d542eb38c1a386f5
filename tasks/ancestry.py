"""From any artifact back to the bytes it comes from, by the records of the store alone: no tracker, no config."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import RECORD
from inverse_alignment.core.errors import UserError

LEAST_PREFIX = 6
WEIGHTS = "model"
"""The part of a refresh that is in office."""
ORDER = ("selection", "rollouts", "reward", "preferences", "policy", "state", "tokenizers")
"""Inputs in the order in which people ask for them: which reward model, from which subset, near which answers."""


@dataclass(frozen=True)
class Made:
    """An artifact of the store, as its record has it."""

    folder: Path
    record: dict[str, Any]

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return str(self.record["identity"]["stage"])

    @property
    def fingerprint(self) -> str:
        """Its name in the store."""
        return str(self.record["fingerprint"])

    @property
    def inputs(self) -> dict[str, str]:
        """The digest of every input by its name, the most asked for first."""
        given: dict[str, str] = self.record["identity"]["inputs"]
        return dict(sorted(given.items(), key=lambda item: (_place(item[0]), item[0])))

    @property
    def digests(self) -> dict[str, str]:
        """Whole and parts: digest -> name of the part, empty for the whole."""
        return {self.record["digest"]: "", **{digest: part for part, digest in self.record["parts"].items()}}


@dataclass(frozen=True)
class Origin:
    """Where one input comes from.

    Attributes:
        name: of the input.
        digest: of its bytes.
        made: the artifact it is, or is a part of; None for what no record of the store has made.
        part: the name of the part, empty for the whole.
        kept_by: how many refreshes were refused and left these very weights in office.
    """

    name: str
    digest: str
    made: Made | None
    part: str = ""
    kept_by: int = 0

    @property
    def is_data(self) -> bool:
        """Whether these are bytes from outside: a source of preferences."""
        return self.made is None and self.name.startswith("source.")


class Records:
    """All records of a local store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_fingerprint: dict[str, Made] = {}
        self._by_digest: dict[str, list[Made]] = defaultdict(list)
        for path in sorted(root.glob(f"[!.]*/*/{RECORD}")):
            try:
                made = Made(path.parent, json.loads(path.read_bytes()))
                digests = made.digests
            except (ValueError, KeyError):
                continue  # half a record is none
            self.by_fingerprint[made.fingerprint] = made
            for digest in digests:
                self._by_digest[digest].append(made)

    def named(self, name: str) -> Made:
        """An artifact by its folder, a folder of one of its parts, or the beginning of its fingerprint.

        Raises:
            UserError: there is none, or several begin so.
        """
        folder = Path(name).resolve()
        for place in (folder, folder.parent):
            if (place / RECORD).is_file() and place.name in self.by_fingerprint:
                return self.by_fingerprint[place.name]
        found = [key for key in self.by_fingerprint if len(name) >= LEAST_PREFIX and key.startswith(name)]
        if len(found) != 1:
            what = f"{len(found)} artifacts begin with {name}" if found else f"no artifact {name}"
            raise UserError(
                what,
                where=str(self.root),
                fix="give a node of the plan, an artifact's folder, or more of its fingerprint",
            )
        return self.by_fingerprint[found[0]]

    def origins(self, made: Made) -> list[Origin]:
        """Where the inputs of an artifact come from."""
        return [self._origin(name, digest, made) for name, digest in made.inputs.items()]

    def _origin(self, name: str, digest: str, consumer: Made) -> Origin:
        """Weights that a refused refresh left in office come from where they were trained.

        A refresh hands on the answers that it looked at too: these come from where they were sampled.
        """
        having = [made for made in self._by_digest.get(digest, ()) if made.fingerprint != consumer.fingerprint]
        trained = [made for made in having if digest not in made.inputs.values()]
        if not trained:
            return Origin(name, digest, None)
        seed = consumer.record["identity"]["seed"]
        made = min(trained, key=lambda each: (each.record["identity"]["seed"] != seed, each.fingerprint))
        handed_on = [other for other in having if digest in other.inputs.values()]
        kept_by = sum(other.digests[digest] == WEIGHTS for other in handed_on)
        return Origin(name, digest, made, made.digests[digest], kept_by)

    def walk(self, start: Made) -> Iterator[tuple[Made, list[Origin]]]:
        """Every artifact that one comes from, itself first, each once, with the origins of its inputs."""
        seen = {start.fingerprint}
        todo = [start]
        while todo:
            made = todo.pop(0)
            origins = self.origins(made)
            yield made, origins
            for origin in origins:
                if origin.made and origin.made.fingerprint not in seen:
                    seen.add(origin.made.fingerprint)
                    todo.append(origin.made)


def _place(name: str) -> int:
    known = name.removeprefix("reference_")
    return ORDER.index(known) if known in ORDER else len(ORDER)
