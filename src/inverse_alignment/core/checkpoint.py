"""Checkpoints that are either whole or absent: written aside, sealed with hashes, renamed into place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from inverse_alignment.core.artifact import list_files, sha256_file

SEAL = "seal.json"
KEEP = 2


def fsync_tree(folder: Path) -> None:
    """Force the files below a folder, and the entries of every folder of the tree, to disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(parent))


def fsync_folder(folder: Path) -> None:
    """Force the entries of a folder (a rename into it) to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(folder: Path) -> None:
    """Write the manifest that makes a folder a valid checkpoint: every file with its sha256."""
    files = {name: sha256_file(folder / name) for name in list_files(folder) if name != SEAL}
    fsync_tree(folder)
    temporary = folder / f"{SEAL}.tmp"
    with temporary.open("w") as file:
        file.write(json.dumps(files, sort_keys=True))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / SEAL)
    fsync_folder(folder)


def is_sealed(folder: Path) -> bool:
    """Whether a folder is a whole checkpoint: its manifest is there and every hash agrees."""
    try:
        files: dict[str, str] = json.loads((folder / SEAL).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return all((folder / name).is_file() and sha256_file(folder / name) == sha for name, sha in files.items())


def save(root: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write a checkpoint for `step` below `root`; older ones than the newest two are removed after it is whole.

    Folders of later steps are removed too: whoever saves `step` now went on from an earlier one, because they are
    damaged.
    """
    target, temporary = root / f"checkpoint-{step}", root / f".checkpoint-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    seal(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    fsync_folder(root)
    prune(root, step)
    return target


def prune(root: Path, step: int) -> None:
    """Once the checkpoint of `step` is whole: remove the later ones, and all but the newest two of the others."""
    older = [found for found in steps(root) if found <= step]
    for gone in [found for found in steps(root) if found > step] + older[:-KEEP]:
        shutil.rmtree(root / f"checkpoint-{gone}")


def steps(root: Path) -> list[int]:
    """Steps that have a checkpoint folder below `root`, whole or not, ascending."""
    found = (path.name.removeprefix("checkpoint-") for path in root.glob("checkpoint-*"))
    return sorted(int(text) for text in found if text.isdigit())


def newest(root: Path) -> Path | None:
    """The newest whole checkpoint below `root`, or None. A damaged one is passed over for the one before it."""
    for step in reversed(steps(root)):
        folder = root / f"checkpoint-{step}"
        if is_sealed(folder):
            return folder
    return None
