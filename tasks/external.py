"""Inputs from outside the store: data files, model folders and hub models, identified by their content."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from inverse_alignment.core.artifact import PENDING, Artifact, digest_of, list_files, sha256_file
from inverse_alignment.core.errors import UserError

WORLD_DATA = "data/advice/pairs.jsonl"
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md")
SETTLED_SECONDS = 2.0  # a younger file may change again within one tick of its clock

_read: ContextVar[bool] = ContextVar("read", default=True)


@contextmanager
def unread() -> Iterator[None]:
    """Inside the block outside inputs are only named: nothing is read, fetched or hashed."""
    token = _read.set(False)
    try:
        yield
    finally:
        _read.reset(token)


def data_file(path: str, where: str, cache: Path) -> Artifact:
    """A data file or folder.

    Args:
        path: relative to the project, or absolute.
        where: the configuration key that names it.
        cache: folder of `.external.json`, which remembers the hashes of files that have not changed.

    Raises:
        UserError: it is missing or empty.
    """
    if not _read.get():
        return Artifact(kind="data", uri=path, digest=PENDING)
    found = Path(path)
    if not found.exists():
        world = path == WORLD_DATA
        raise UserError(
            f"no file or folder at {path}",
            where=where,
            fix="`make data` or `inverse-alignment data make` writes it" if world else f"correct {where}",
        )
    if found.is_file() and found.stat().st_size == 0:
        raise UserError(f"{path} is empty", where=where, fix=f"restore the file or correct {where}")
    return _hashed("data", found, cache)


def model(path: str, revision: str | None, where: str, cache: Path) -> Artifact:
    """A model folder, or a hub model at a pinned revision.

    Raises:
        UserError: there is no such folder, the hub id has no revision, or the hub does not give it.
    """
    if not _read.get():
        uri = path if revision is None else f"hub:{path}@{revision}"
        return Artifact(kind="model", uri=uri, digest=PENDING)
    folder = Path(path)
    if folder.is_dir():
        return _hashed("model", folder, cache)
    if revision is None:
        raise UserError(
            f"no folder '{path}', and a hub id needs a revision",
            where=f"{where}.path",
            fix=f"correct the path, or set {where}.revision to a commit of the hub model",
        )
    return _hashed("model", _snapshot(path, revision, where), cache)


def _snapshot(hub_id: str, revision: str, where: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the hub does not give {hub_id} at {revision}: {first}",
            where=f"{where}.path",
            fix="check id, revision and network, or download it and give the folder",
        ) from error


def _hashed(kind: str, path: Path, cache: Path) -> Artifact:
    """`core.artifact.external`, with a memory for files whose path, size, time and inode have not changed."""
    memory = cache / ".external.json"
    known = _load(memory)
    seen: dict[str, str] = {}

    def sha(file: Path) -> str:
        status = file.stat()
        key = f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
        digest = known.get(key) or sha256_file(file)
        if time.time() - status.st_mtime > SETTLED_SECONDS:
            seen[key] = digest
        return digest

    digest = digest_of({name: sha(path / name) for name in list_files(path)}) if path.is_dir() else sha(path)
    if not seen.keys() <= known.keys():
        _save(memory, seen)
    return Artifact(kind=kind, uri=str(path.resolve()), digest=digest)


def _load(memory: Path) -> dict[str, str]:
    """What is remembered; a damaged memory is as good as none."""
    try:
        values = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _save(memory: Path, seen: dict[str, str]) -> None:
    """Add to the memory, dropping what it said of an earlier state of the same files."""
    paths = {key.rsplit("|", 3)[0] for key in seen}
    kept = {key: value for key, value in _load(memory).items() if key.rsplit("|", 3)[0] not in paths}
    memory.parent.mkdir(parents=True, exist_ok=True)
    temporary = memory.with_name(f"{memory.name}.{os.getpid()}")
    temporary.write_text(json.dumps({**kept, **seen}, indent=0, sort_keys=True))
    temporary.rename(memory)
