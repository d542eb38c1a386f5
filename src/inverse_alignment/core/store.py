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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import RECORD, RUNTIME, Artifact, digest_of, list_files, sha256_file, subtree
from inverse_alignment.core.checkpoint import fsync_folder, fsync_tree
from inverse_alignment.core.errors import UserError, no_room
from inverse_alignment.core.fingerprint import fingerprint

STAMP = ".verified.json"  # size and mtime of each file when its hash was last seen to agree
SCHEMA = 1
FULL_BYTES = 1 << 16  # less free than this, and a failed write needs no other reason

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

        Raises:
            UserError: nothing can be written at the store's place, or there is no room left.
        """
        key = fingerprint(identity)
        scratch = self.root / ".scratch" / key
        with self._locked(stage, key):
            try:
                with self._refusing_a_full_device(stage):
                    if found := self.find(stage, identity):
                        return found
                    partial = self.partial(stage, identity)
                    shutil.rmtree(scratch, ignore_errors=True)
                    scratch.mkdir(parents=True)
                    partial.mkdir(parents=True, exist_ok=True)
                    metrics = build(scratch, partial)
                    record = _record(scratch, kind, parts, key, identity, metrics)
                    entry = self._publish(scratch, stage, key, record)
                shutil.rmtree(partial, ignore_errors=True)
                return entry
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

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
    def _locked(self, stage: str, key: str) -> Iterator[None]:
        """An OS lock, freed by the kernel when its owner dies; a plain lock file would outlive `kill -9`."""
        folder = self.root / ".locks"
        try:
            with self._refusing_a_full_device(stage):
                folder.mkdir(parents=True, exist_ok=True)
                file = (folder / key).open("w")
        except OSError as error:
            raise _unwritable(self.root, error.strerror or str(error)) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _refusing_a_full_device(self, stage: str) -> Iterator[None]:
        """Say it in three lines when a device or quota is full; every other error passes."""
        try:
            yield
        except Exception as error:
            free = shutil.disk_usage(_above(self.root)).free
            full = no_room(error)
            likely = isinstance(error, (OSError, RuntimeError)) and free < FULL_BYTES  # torch's writer gives no reason
            if isinstance(error, UserError) or not (full or likely):
                raise
            raise _without_room(full, self.root, stage, free) from error


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
        try:
            with self._refusing_a_full_device(stage):
                for name in [*record["files"], RECORD]:
                    (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                    self.files.get_file(f"{remote}/{name}", str(scratch / name))
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

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
    """The store at a local folder, or at an fsspec URL such as `s3://bucket/prefix` with a cache in `artifacts/`.

    Raises:
        UserError: no folder can be written there, or nothing here speaks the URL's protocol.
    """
    if "://" not in location:
        return Store(_writable(Path(location).resolve()))
    cache = _writable(Path("artifacts").resolve())
    try:
        return RemoteStore(location, cache)
    except (ValueError, ImportError) as error:  # of fsspec: no such protocol, or its package is not installed
        raise UserError(
            f"no file system for the artifact store: {error}",
            where=f"store={location}",
            fix="name a folder, or a URL whose fsspec package is installed",
        ) from error


def _above(root: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(folder for folder in (root, *root.parents) if folder.exists())


def _writable(root: Path) -> Path:
    """The folder, if it can be written, or made where there is none yet; nothing is made."""
    above = _above(root)
    if not above.is_dir():
        raise _unwritable(root, f"{above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise _unwritable(root, f"{above} may not be written")
    return root


def _unwritable(root: Path, why: str) -> UserError:
    return UserError(
        f"the artifact store cannot be written: {why}",
        where=f"store={root}",
        fix="set store to a folder you may write, for example --set store=artifacts",
    )


def _without_room(full: BaseException | None, root: Path, stage: str, free: int) -> UserError:
    """The device of the store is full, or that of another file, if the error names one."""
    at = Path(full.filename).resolve() if isinstance(full, OSError) and isinstance(full.filename, str) else root
    own = at.is_relative_to(root)
    return UserError(
        f"no room left on the device, in stage {stage}",
        where=f"store={root}, {free / 1e6:.1f} MB free" if own else str(at),
        fix=f"free space there{', or set store to a folder with room' if own else ''}; what is finished stays, "
        "and the same command goes on",
    )


_SHOWN = 80
"""Characters of a value that are shown of a change: a list of sources would fill the screen."""


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
    if isinstance(value, str) and len(value) >= 32:  # a digest
        return f"{text[1:9]}…"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


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
    """Remember when the files were seen to agree; where that cannot be written, they are hashed again next time."""
    temporary = folder / f"{STAMP}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps({name: _stamp(folder / name) for name in files}))
        temporary.rename(folder / STAMP)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
