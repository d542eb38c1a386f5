"""Checkpoints that are either whole or absent: written aside, sealed with hashes, renamed into place."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import list_files, sha256_file

SEAL = "seal.json"
KEEP = 2
ROWS = "*.jsonl"
"""Files beside the checkpoints that only grow: rows of metrics, answers. What they held is part of a checkpoint."""

log = logging.getLogger(__name__)


def fsync_tree(folder: Path) -> None:
    """Force the files below a folder, and the entries of every folder of the tree, to disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _fsync_file(Path(parent) / name)
        fsync_folder(Path(parent))


def fsync_folder(folder: Path) -> None:
    """Force the entries of a folder (a rename into it) to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def save(root: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write a checkpoint for `step` below `root`; older ones than the newest two are removed after it is whole.

    Folders of later steps are removed too: whoever saves `step` now went on from an earlier one, because they are
    damaged.
    """
    target, temporary, aside = (root / name for name in (_name(step), f".{_name(step)}.tmp", f".{_name(step)}.old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    _seal(temporary, root, step)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    temporary.rename(target)
    _keep(root, step)
    return target


def adopt(root: Path, step: int) -> None:
    """Make a folder `checkpoint-<step>` that somebody else wrote below `root` a valid checkpoint, as `save` does."""
    _seal(root / _name(step), root, step)
    _keep(root, step)


def _name(step: int) -> str:
    return f"checkpoint-{step}"


def _seal(folder: Path, root: Path, step: int) -> None:
    """Write the manifest that makes a folder a valid checkpoint: every file with its size and sha256, on disk before.

    The rows beside the checkpoint are in it as far as they go, and so is the step: another checkpoint's folder under
    this name is no checkpoint.
    """
    rows = sorted(path for path in root.glob(ROWS) if path.is_file())
    for path in rows:
        _fsync_file(path)
    fsync_tree(folder)
    manifest = {
        "step": step,
        "files": {name: _facts(folder / name) for name in list_files(folder) if name != SEAL},
        "rows": {path.name: _facts(path) for path in rows},
    }
    temporary = folder / f"{SEAL}.tmp"
    with temporary.open("w") as file:
        file.write(json.dumps(manifest, sort_keys=True))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / SEAL)
    fsync_folder(folder)


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _keep(root: Path, step: int) -> None:
    """Once the checkpoint of `step` is whole: remove the later ones, all but the newest two, and what a kill left."""
    fsync_folder(root)
    older = [found for found in steps(root) if found <= step]
    for gone in [found for found in steps(root) if found > step] + older[:-KEEP]:
        shutil.rmtree(root / _name(gone))
    for left in root.glob(".checkpoint-*"):
        shutil.rmtree(left)


def damage(root: Path, step: int) -> str | None:
    """What is wrong with the checkpoint of `step`, its file named; None if it is whole."""
    folder = root / _name(step)
    manifest = _read_seal(folder / SEAL)
    if isinstance(manifest, str):
        return manifest
    if manifest["step"] != step:
        return f"{SEAL} is that of step {manifest['step']}"
    found, sealed = {name for name in list_files(folder) if name != SEAL}, manifest["files"]
    if other := sorted(found ^ set(sealed)):
        return f"{other[0]} {'is missing' if other[0] in sealed else 'does not belong to it'}"
    for name, facts in sealed.items():
        if wrong := _differs(folder / name, facts, whole=True):
            return f"{name} {wrong}"
    for name, facts in manifest["rows"].items():
        if wrong := _differs(root / name, facts, whole=False):
            return f"{name} beside it {wrong}"
    return None


def _read_seal(path: Path) -> dict[str, Any] | str:
    """The manifest, or why there is none."""
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return f"{SEAL} is missing: it was never finished"
    except ValueError:
        return f"{SEAL} is not JSON"
    whole = isinstance(manifest, dict) and {"step", "files", "rows"} <= set(manifest)
    return manifest if whole else f"{SEAL} is not the manifest of a checkpoint"


def _differs(path: Path, facts: dict[str, Any], whole: bool) -> str | None:
    """How a file differs from what was sealed: all of it, or as far as it went then."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size < facts["bytes"] or (whole and size > facts["bytes"]):
        return f"has {size} bytes instead of {facts['bytes']}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = facts["bytes"]
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return None if digest.hexdigest() == facts["sha256"] else "holds other bytes than were sealed"


def steps(root: Path) -> list[int]:
    """Steps that have a checkpoint folder below `root`, whole or not, ascending."""
    found = (path.name.removeprefix("checkpoint-") for path in root.glob("checkpoint-*"))
    return sorted(int(text) for text in found if text.isdigit())


def newest(root: Path) -> Path | None:
    """The newest whole checkpoint below `root`, or None.

    A damaged one is passed over for the one before it, which is said, and set aside: it must not be counted among the
    two that are kept.
    """
    passed: list[tuple[int, str]] = []
    whole: Path | None = None
    for step in reversed(steps(root)):
        wrong = damage(root, step)
        if wrong is None:
            whole = root / _name(step)
            break
        passed.append((step, wrong))
    instead = f"going on from {whole.name}" if whole else "starting over"
    for step, wrong in passed:
        log.warning("%s is passed over: %s; %s (%s)", _name(step), wrong, instead, root)
        aside = root / f".{_name(step)}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(FileNotFoundError):  # another process of the same training was first
            (root / _name(step)).rename(aside)
    return whole
