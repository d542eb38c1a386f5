"""What flows between stages: a small, frozen, JSON reference to bytes that are addressed by content."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

PENDING = "pending"
RECORD = "artifact.json"  # written last: without it a folder is not an artifact
RUNTIME = "runtime.json"  # where and how it ran; bears no identity
METRICS = "metrics.jsonl"


class Artifact(BaseModel):
    """A reference to the output of a stage, or to a file or folder from outside.

    `digest` is the identity: sha256 over names and contents. `uri` only says where a copy lies. `parts` are the named
    subfolders that a consumer may depend on alone, each with a digest of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    uri: str
    digest: str
    parts: dict[str, str] = {}

    @property
    def pending(self) -> bool:
        """Whether this is only planned: its stage has not run, so its digest is not known."""
        return self.digest == PENDING

    def part(self, name: str) -> Artifact:
        """The named subfolder as an artifact of its own.

        Raises:
            KeyError: this artifact has no such part.
        """
        return Artifact(kind=f"{self.kind}.{name}", uri=f"{self.uri}/{name}", digest=self.parts[name])


def pending(kind: str, node: str, parts: Iterable[str]) -> Artifact:
    """The artifact a planned node will make."""
    return Artifact(kind=kind, uri=f"pending:{node}", digest=PENDING, parts=dict.fromkeys(parts, PENDING))


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value: sorted keys, no spaces, floats by `repr`.

    Raises:
        TypeError: the value has no stable form (a path, a set, a callable, NaN or infinity, a non-string key).
    """
    _require_stable(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _require_stable(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{where} is {value}, which JSON cannot hold")
    if value is None or isinstance(value, (str, bool, int, float)):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}, which is not a string")
            _require_stable(item, f"{where}.{key}")
        return
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_stable(item, f"{where}[{index}]")
        return
    raise TypeError(f"{where} is a {type(value).__name__}, which has no stable form")


def sha256_text(text: str) -> str:
    """Hex sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative POSIX paths of all files below a folder, sorted."""
    return sorted(
        (Path(parent) / name).relative_to(folder).as_posix() for parent, _, names in os.walk(folder) for name in names
    )


def digest_of(files: Mapping[str, str]) -> str:
    """Digest of a folder: sha256 over `relative path, sha256` lines in path order."""
    return sha256_text("".join(f"{name}\0{files[name]}\n" for name in sorted(files)))


def subtree(files: Mapping[str, str], part: str) -> dict[str, str]:
    """The files below `part/`, their paths made relative to it."""
    prefix = f"{part}/"
    return {name.removeprefix(prefix): sha for name, sha in files.items() if name.startswith(prefix)}


def external(kind: str, path: Path) -> Artifact:
    """A file or folder from outside the store, identified by its content.

    Raises:
        FileNotFoundError: nothing lies at `path`.
    """
    if path.is_dir():
        digest = digest_of({name: sha256_file(path / name) for name in list_files(path)})
    else:
        digest = sha256_file(path)
    return Artifact(kind=kind, uri=str(path.resolve()), digest=digest)
