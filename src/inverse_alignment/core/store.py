"""The artifact store: the one mechanism of reuse.

An output lies at `<root>/<stage>/<fingerprint>/` with `artifact.json` written last; no record, no artifact. Building
happens in scratch, under an OS lock per fingerprint, and appears by one rename. Partial training state lives under
`<root>/.partial/<stage>/<fingerprint>/`, so that a killed stage continues.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import RECORD, RUNTIME, Artifact, digest_of, list_files, sha256_file, subtree
from inverse_alignment.core.checkpoint import fsync_folder, fsync_tree
from inverse_alignment.core.fingerprint import fingerprint

STAMP = ".verified.json"  # size and mtime of each file when its hash was last seen to agree
SCHEMA = 1

Build = Callable[[Path, Path], Mapping[str, Any]]
"""Writes a stage's files into its first argument, keeps partial state in the second, returns headline metrics."""


@dataclass(frozen=True)
class Entry:
    """A finished artifact with its record."""

    artifact: Artifact
    record: dict[str, Any]
    reused: bool

    @property
    def metrics(self) -> dict[str, Any]:
        """Headline metrics of the stage that made it."""
        return dict(self.record["metrics"])


class Store:
    """Artifacts in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, stage: str, identity: Mapping[str, Any]) -> Entry | None:
        """The artifact of this identity if its record exists and every file agrees with it; None otherwise."""
        folder = self.root / stage / fingerprint(identity)
        record = _read_record(folder)
        if record is None or not _verify(folder, record["files"]):
            return None
        return Entry(_reference(folder, record), record, reused=True)

    def materialise(
        self, stage: str, kind: str, parts: tuple[str, ...], identity: Mapping[str, Any], build: Build
    ) -> Entry:
        """Return the artifact of this identity, building it if it is not there.

        Two processes that want the same artifact build it once: the second waits for the first. A folder whose files
        no longer agree with its record is set aside and built again.
        """
        key = fingerprint(identity)
        with self._locked(key):
            if found := self.find(stage, identity):
                return found
            scratch, partial = self.root / ".scratch" / key, self.partial(stage, identity)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            partial.mkdir(parents=True, exist_ok=True)
            metrics = build(scratch, partial)
            record = _record(scratch, kind, parts, key, identity, metrics)
            entry = self._publish(scratch, stage, key, record)
            shutil.rmtree(partial, ignore_errors=True)
            return entry

    def partial(self, stage: str, identity: Mapping[str, Any]) -> Path:
        """Where a stage of this identity keeps its checkpoints until it is finished."""
        return self.root / ".partial" / stage / fingerprint(identity)

    def local(self, artifact: Artifact) -> Path:
        """A local path with the artifact's bytes."""
        return Path(artifact.uri)

    def why_missing(self, stage: str, identity: Mapping[str, Any]) -> str:
        """Why this identity has to run: the fields in which it differs from the nearest artifact of its stage."""
        found = [_read_record(path.parent) for path in sorted((self.root / stage).glob(f"*/{RECORD}"))]
        records = [record for record in found if record is not None]
        if (self.root / stage / fingerprint(identity) / RECORD).exists():
            return "its files were changed or removed"
        if not records:
            return "never built"
        differences = [changed_fields(record["identity"], identity) for record in records]
        nearest = min(differences, key=len)
        return "; ".join(nearest[:3]) + (f"; and {len(nearest) - 3} more" if len(nearest) > 3 else "")

    def _publish(self, scratch: Path, stage: str, key: str, record: dict[str, Any]) -> Entry:
        target = self.root / stage / key
        if target.exists():  # damaged: `find` refused it
            aside = self.root / ".damaged" / f"{stage}-{key}"
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            target.rename(aside)
        (scratch / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
        fsync_tree(scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(target)
        fsync_folder(target.parent)
        _write_stamp(target, record["files"])
        return Entry(_reference(target, record), record, reused=False)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """An OS lock, freed by the kernel when its owner dies; a plain lock file would outlive `kill -9`."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / key).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class RemoteStore(Store):
    """Artifacts under an fsspec URL, with a local folder as cache and scratch.

    `artifact.json` is uploaded last and is the commit; the first writer wins, so a duplicate build is harmless: the
    second takes the first one's bytes in place of its own.
    """

    def __init__(self, url: str, cache: Path) -> None:
        import fsspec

        super().__init__(cache)
        self.url = url.rstrip("/")
        self.files, self.base = fsspec.core.url_to_fs(self.url)

    def find(self, stage: str, identity: Mapping[str, Any]) -> Entry | None:
        """See `Store.find`; an artifact that only the remote has is fetched."""
        if found := super().find(stage, identity):
            return found
        key = fingerprint(identity)
        if not self.files.exists(f"{self.base}/{stage}/{key}/{RECORD}"):
            return None
        self._fetch(stage, key)
        return super().find(stage, identity)

    def _fetch(self, stage: str, key: str) -> None:
        remote, target = f"{self.base}/{stage}/{key}", self.root / stage / key
        record = json.loads(self.files.cat_file(f"{remote}/{RECORD}"))
        scratch = self.root / ".scratch" / f"{key}.fetch"
        shutil.rmtree(scratch, ignore_errors=True)
        for name in [*record["files"], RECORD]:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(f"{remote}/{name}", str(scratch / name))
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(target)

    def _publish(self, scratch: Path, stage: str, key: str, record: dict[str, Any]) -> Entry:
        entry = super()._publish(scratch, stage, key, record)
        remote, local = f"{self.base}/{stage}/{key}", self.root / stage / key
        if self.files.exists(f"{remote}/{RECORD}"):
            self._fetch(stage, key)
            return super().find(stage, record["identity"]) or entry
        for name in [*record["files"], RECORD]:  # the record last
            self.files.makedirs(f"{remote}/{name}".rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(local / name), f"{remote}/{name}")
        return entry


def open_store(location: str) -> Store:
    """The store at a local folder, or at an fsspec URL such as `s3://bucket/prefix` with a cache in `artifacts/`."""
    return RemoteStore(location, Path("artifacts").resolve()) if "://" in location else Store(Path(location).resolve())


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The leaves in which two identities differ, as `config.kl_coef: 0.05 -> 0.1`."""
    found: list[str] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changed_fields(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {_short(before)} -> {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return f"{text[1:9]}…" if isinstance(value, str) and len(value) >= 32 else text


def _record(
    folder: Path,
    kind: str,
    parts: tuple[str, ...],
    key: str,
    identity: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    files = {name: sha256_file(folder / name) for name in list_files(folder) if name not in (RECORD, RUNTIME)}
    return {
        "schema": SCHEMA,
        "kind": kind,
        "fingerprint": key,
        "digest": digest_of(files),
        "parts": {part: digest_of(subtree(files, part)) for part in parts},
        "files": files,
        "identity": dict(identity),
        "metrics": dict(metrics),
    }


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a folder; None if there is none that can be read."""
    record = _read_mapping(folder / RECORD)
    return record if record is not None and record.get("schema") == SCHEMA else None


def _read_mapping(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is absent or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _reference(folder: Path, record: Mapping[str, Any]) -> Artifact:
    return Artifact(kind=record["kind"], uri=str(folder), digest=record["digest"], parts=record["parts"])


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _write_stamp(folder: Path, files: Mapping[str, str]) -> None:
    temporary = folder / f"{STAMP}.{os.getpid()}"
    temporary.write_text(json.dumps({name: _stamp(folder / name) for name in files}))
    temporary.rename(folder / STAMP)


def _verify(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether every file is as recorded. A file is hashed again only if size or time changed since the last look."""
    stamps = _read_mapping(folder / STAMP) or {}
    fresh = True
    for name, sha in files.items():
        path = folder / name
        if not path.is_file():
            return False
        if stamps.get(name) != _stamp(path):
            fresh = False
            if sha256_file(path) != sha:
                return False
    if not fresh:
        _write_stamp(folder, files)
    return True
