"""Inputs from outside the store: data files, datasets and models, local or of the hub, identified by their content.

Of a hub repository only files of safe types at one pinned commit are fetched, and these files alone bear identity: a
cache that other programs have filled with more gives the same digest.
"""

from __future__ import annotations

import glob
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from inverse_alignment.core.artifact import PENDING, Artifact, digest_of, list_files, sha256_file
from inverse_alignment.core.errors import UserError

if TYPE_CHECKING:
    from inverse_alignment.data.sources import DatasetRef

WORLD_DATA = "data/advice/pairs.jsonl"
HUB = "hub:"  # what the uri of an input begins with that lies on the hub alone
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md")
CARDS = ("README.md", "dataset_infos.json")  # `datasets` reads both beside the data
TABLES = ("parquet", "jsonl", "ndjson", "json", "csv", "tsv", "arrow")
TABLE_FILES = tuple(f"*.{table}{packed}" for table in TABLES for packed in ("", ".gz", ".bz2", ".xz", ".zst"))
COMMIT = re.compile("[0-9a-f]{40}")
ANSWER_SECONDS = 5.0  # the longest wait for the hub's first word
SETTLED_SECONDS = 2.0  # a younger file may change again within one tick of its clock

_mode: ContextVar[Literal["fetch", "local", "unread"]] = ContextVar("mode", default="fetch")


@contextmanager
def unread() -> Iterator[None]:
    """Inside the block outside inputs are only named: nothing is read, fetched or hashed."""
    with _reading("unread"):
        yield


@contextmanager
def local() -> Iterator[None]:
    """Inside the block nothing is fetched: what lies on this machine, the hub's cache included, is hashed.

    What a run would have to download is pending, with the uri `hub:ID@REVISION`.
    """
    with _reading("local"):
        yield


@contextmanager
def _reading(mode: Literal["local", "unread"]) -> Iterator[None]:
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


def data_file(path: str, where: str, cache: Path) -> Artifact:
    """A data file or folder.

    Args:
        path: relative to the project, or absolute.
        where: the configuration key that names it.
        cache: folder of `.external.json`, which remembers the hashes of files that have not changed.

    Raises:
        UserError: it is missing or empty.
    """
    if _mode.get() == "unread":
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
    """A model folder, or a hub model at a pinned commit.

    Args:
        path: a folder, or a hub id.
        revision: the commit of a hub id.
        where: the configuration section that names it.
        cache: see `data_file`.

    Raises:
        UserError: there is no such folder, the hub id has no commit, or the hub does not give it in safetensors.
    """
    repository = _Repository("model", path, revision, f"{where}.path", f"{where}.revision")
    if _mode.get() == "unread":
        return repository.named()
    folder = Path(path)
    if folder.is_dir():
        return _hashed("model", folder, cache, _visible(folder))
    return repository.fetched(MODEL_FILES, ("*.safetensors",), "safetensors weights", cache)


def dataset(path: str, reference: DatasetRef, where: str, cache: Path) -> Artifact:
    """A dataset that the `datasets` library reads: a folder, or a hub dataset at a pinned commit.

    With `reference.data_dir` only the files below it are fetched and bear identity.

    Args:
        path: a folder, or a hub id.
        reference: which part of it.
        where: the configuration section of the source.
        cache: see `data_file`.

    Raises:
        UserError: there is no such folder or part of it, the hub id has no commit, or the hub does not give tables.
    """
    repository = _Repository("dataset", path, reference.revision, f"{where}.path", f"{where}.dataset.revision")
    if _mode.get() == "unread":
        return repository.named()
    below = "".join(f"{part}/" for part in PurePosixPath(reference.data_dir or "").parts)
    folder = Path(path)
    if folder.is_file():
        raise UserError(
            f"{path} is a file, not a dataset",
            where=f"{where}.path",
            fix="remove `dataset`, or name the file's own format: jsonl, json or parquet",
        )
    if folder.is_dir():
        names = [name for name in _visible(folder) if name.startswith(below)]
        if not names:
            raise UserError(
                f"{path} holds no files{f' below {below}' if below else ''}",
                where=f"{where}.dataset.data_dir" if below else f"{where}.path",
                fix="correct it: a folder of .parquet, .jsonl, .json or .csv files",
            )
        return _hashed("data", folder, cache, names)
    inside = glob.escape(below)
    tables = tuple(f"{inside}{pattern}" for pattern in TABLE_FILES)
    found = f"tables (parquet, jsonl, json, csv or arrow){f' below {below}' if below else ''}"
    return repository.fetched((*tables, *(f"{inside}{card}" for card in CARDS)), tables, found, cache)


@dataclass(frozen=True)
class _Repository:
    """A repository of the hub as the configuration names it.

    Attributes:
        kind: what the hub calls it.
        hub_id: owner and name.
        revision: the commit.
        id_key: the configuration key of `hub_id`.
        revision_key: the configuration key of `revision`.
    """

    kind: Literal["model", "dataset"]
    hub_id: str
    revision: str | None
    id_key: str
    revision_key: str

    def named(self) -> Artifact:
        """Its name alone, before anything is known of its bytes."""
        uri = self.hub_id if self.revision is None else f"{HUB}{self.hub_id}@{self.revision}"
        return Artifact(kind=self._artifact_kind, uri=uri, digest=PENDING)

    def fetched(self, patterns: Sequence[str], needed: Sequence[str], what: str, cache: Path) -> Artifact:
        """Its files that match `patterns`, downloaded unless the mode forbids it; then it may stay pending.

        Args:
            patterns: which files to fetch and to hash, as globs over whole paths.
            needed: at least one file must match these.
            what: these in words.
            cache: see `data_file`.

        Raises:
            UserError: it has no commit, the hub does not give it, or it holds nothing of what is needed.
        """
        self._require_commit()
        snapshot = self._cached(patterns, needed)
        if _mode.get() == "local":
            return self.named() if snapshot is None else self._artifact(snapshot, patterns, cache)
        if snapshot is None:
            self._require_answer()
            snapshot = self._downloaded(patterns)
        else:  # as far as the cache of an older client tells
            with _without_bars():
                snapshot = self._downloaded(patterns)
        if not _holds(snapshot, needed):
            raise UserError(
                f"the hub's {self.kind} {self.hub_id} holds no {what} at {self.revision}",
                where=self.id_key,
                fix="choose another, or convert it and give the folder; pickles are not fetched and scripts not run",
            )
        return self._artifact(snapshot, patterns, cache)

    def _require_commit(self) -> None:
        if self.revision is None:
            raise UserError(
                f"no folder '{self.hub_id}', and a hub id needs a revision",
                where=self.id_key,
                fix=f"correct the path, or set {self.revision_key} to a commit of the hub {self.kind}",
            )
        if not COMMIT.fullmatch(self.revision):
            raise UserError(
                f"'{self.revision}' is no commit, and what it names may change between two runs",
                where=self.revision_key,
                fix=f"give the 40 hexadecimal digits that the history of {self.hub_id} on the hub shows",
            )

    def _cached(self, patterns: Sequence[str], needed: Sequence[str]) -> Path | None:
        """Its folder in the hub's cache on this machine, if that lacks nothing that is known to be missing."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = self._snapshot(patterns, local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        except ValueError as error:  # not of the form owner/name
            raise self._refusal(error) from error
        return folder if _holds(folder, needed) else None

    def _require_answer(self) -> None:
        """Ask the hub once: a download that cannot begin is retried for 20 s and more before it fails."""
        from huggingface_hub import HfApi

        try:
            HfApi().repo_info(self.hub_id, repo_type=self.kind, revision=self.revision, timeout=ANSWER_SECONDS)
        except Exception as error:  # see `_downloaded`
            raise self._refusal(error) from error

    def _downloaded(self, patterns: Sequence[str]) -> Path:
        """Its folder in the hub's cache after what it lacked was downloaded."""
        try:
            return self._snapshot(patterns, local_files_only=False)
        except Exception as error:  # the hub's client, its transport and the disk each raise types of their own
            raise self._refusal(error) from error

    def _snapshot(self, patterns: Sequence[str], local_files_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                self.hub_id,
                repo_type=self.kind,
                revision=self.revision,
                allow_patterns=list(patterns),
                local_files_only=local_files_only,
            )
        )

    def _artifact(self, folder: Path, patterns: Sequence[str], cache: Path) -> Artifact:
        names = [name for name in list_files(folder) if _matches(name, patterns)]
        return _hashed(self._artifact_kind, folder, cache, names)

    def _refusal(self, error: Exception) -> UserError:
        """What went wrong with the hub, in one sentence, and what to do about it."""
        from huggingface_hub import errors

        folder = f"download it elsewhere and give the folder in {self.id_key}"
        match error:
            case errors.GatedRepoError():
                what, fix = "is gated", f"accept its terms on the hub and log in with `hf auth login`, or {folder}"
            case errors.RepositoryNotFoundError():
                what, fix = "is not on the hub, or is private", f"correct {self.id_key}, or log in: `hf auth login`"
            case errors.RevisionNotFoundError():
                what, fix = f"has no commit {self.revision}", f"correct {self.revision_key}"
            case errors.HFValidationError():
                what, fix = "is neither a folder here nor a hub id", f"correct {self.id_key}"
            case errors.OfflineModeIsEnabled():
                what, fix = "is not downloaded, and HF_HUB_OFFLINE forbids it", f"unset HF_HUB_OFFLINE, or {folder}"
            case _:
                first = next(iter(str(error).strip().splitlines()), type(error).__name__)
                what, fix = f"cannot be downloaded: {first}", f"check the network and run again, or {folder}"
        key = self.revision_key if isinstance(error, errors.RevisionNotFoundError) else self.id_key
        return UserError(f"the {self.kind} {self.hub_id} {what}", where=key, fix=fix)

    @property
    def _artifact_kind(self) -> str:
        return "model" if self.kind == "model" else "data"


@contextmanager
def _without_bars() -> Iterator[None]:
    """Inside the block the hub's client draws no progress bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _visible(folder: Path) -> list[str]:
    """The files of a folder without hidden ones, which no library reads: a clone's history, a download's notes."""
    return [name for name in list_files(folder) if "/." not in f"/{name}"]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _holds(folder: Path, patterns: Sequence[str]) -> bool:
    return any(_matches(name, patterns) for name in list_files(folder) if name not in CARDS)


def _hashed(kind: str, path: Path, cache: Path, names: Sequence[str] | None = None) -> Artifact:
    """`core.artifact.external`, with a memory for files whose path, size, time and inode have not changed.

    Of a folder only the files in `names` are hashed, if given.
    """
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

    files = list_files(path) if names is None and path.is_dir() else names
    digest = sha(path) if files is None else digest_of({name: sha(path / name) for name in files})
    if not seen.keys() <= known.keys():
        _save(memory, seen)
    return Artifact(kind=kind, uri=str(path.resolve()), digest=digest)


def _load(memory: Path) -> dict[str, str]:
    """What is remembered; a damaged memory is as good as none."""
    try:
        values = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _save(memory: Path, seen: dict[str, str]) -> None:
    """Add to the memory, dropping what it said of an earlier state of the same files.

    Where that cannot be written (a full device, a store that is only read) the files are hashed again next time.
    """
    paths = {key.rsplit("|", 3)[0] for key in seen}
    kept = {key: value for key, value in _load(memory).items() if key.rsplit("|", 3)[0] not in paths}
    temporary = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**kept, **seen}, indent=0, sort_keys=True))
        temporary.rename(memory)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
