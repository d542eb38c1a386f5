"""What of the data DVC tracks, and whether it is the published bytes. Nothing here imports DVC."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from inverse_alignment.core.artifact import list_files
from inverse_alignment.core.errors import UserError

LARGE_BYTES = 1 << 30


@dataclass(frozen=True)
class Tracked:
    """A file or folder that DVC tracks: where it lies, from the working directory, and DVC's name of its bytes."""

    path: str
    md5: str


def tracked(path: Path) -> Tracked | None:
    """What of DVC's a path lies in, with the md5 of the bytes that are there now; None if DVC tracks nothing there.

    Of more than a gigabyte the recorded md5 is taken where the sizes agree, and None where they do not.
    """
    here = path.absolute()
    for folder in (here, *here.parents):
        record = folder.parent / f"{folder.name}.dvc"
        if folder.name and record.is_file() and folder.exists():
            out = yaml.safe_load(record.read_text(encoding="utf-8"))["outs"][0]
            md5 = _md5_now(folder, out)
            return Tracked(_shown(folder), md5) if md5 else None
    return None


def _md5_now(place: Path, out: dict[str, Any]) -> str | None:
    files = [place] if place.is_file() else [place / name for name in list_files(place)]
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    size = sum(stamp[1] for stamp in stamps)
    if size > LARGE_BYTES:
        return str(out["md5"]) if size == out.get("size") else None
    return _md5_of(place, stamps)


@lru_cache(maxsize=64)
def _md5_of(place: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """The md5 of bytes that have not changed since they were read, if the stamps have not."""
    return _md5(place) if place.is_file() else dvc_digest(place)


def _shown(path: Path) -> str:
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


def require_published(dvc_file: Path) -> bool:
    """Refuse a folder that differs from what its `.dvc` file records; False if there is no such file.

    Raises:
        UserError: other bytes, more files or fewer.
    """
    if not dvc_file.exists():
        return False
    out = yaml.safe_load(dvc_file.read_text(encoding="utf-8"))["outs"][0]
    folder = dvc_file.parent / out["path"]
    if dvc_digest(folder) != out["md5"]:
        raise UserError(
            f"{folder}/ does not hold the published bytes",
            where=f"{dvc_file}, md5 {out['md5']}",
            fix=f"move your own files out of {folder}/, or record them with `dvc commit -f {dvc_file.name}`",
        )
    return True


def take_into_cache(dvc_file: Path) -> None:
    """Give DVC's cache the folder, so that `dvc status` has nothing to say of a fresh clone without a remote.

    Nothing happens where the cache has it, or where there is no DVC repository. `dvc commit` writes the same record
    again: the bytes have been checked against it.
    """
    name = yaml.safe_load(dvc_file.read_text(encoding="utf-8"))["outs"][0]["md5"]
    root = dvc_file.resolve().parent
    if not (root / ".dvc").is_dir() or (root / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]).exists():
        return
    call = [sys.executable, "-m", "dvc", "commit", "--quiet", "--force", dvc_file.name]
    subprocess.run(call, cwd=root, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})


def dvc_digest(folder: Path) -> str:
    """DVC's name of a folder: md5 of the JSON list of its files' md5, by path.

    md5 is DVC's choice of a name, not a safeguard.
    """
    files = [{"md5": _md5(folder / name), "relpath": name} for name in list_files(folder)]
    return f"{_hex(json.dumps(files, sort_keys=True).encode())}.dir"


def _md5(path: Path) -> str:
    return _hex(path.read_bytes())


def _hex(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
