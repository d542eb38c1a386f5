"""What was computed once and may be needed again: numbers by the digest of everything that decides them.

It saves time and nothing else. A file of it is written at once or not at all, is believed only if its own checksum and
the digests in it are right, and is dropped otherwise; whoever has no cache computes the same numbers.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]
PART = ".part"


class DiskCache:
    """Arrays in `root`, one safetensors file per `space` (who computed) and `unit` (of what).

    Several processes may share it: equal keys mean equal numbers, and a file appears by one rename. A device that is
    full, or a folder that cannot be written, only makes it useless.

    Attributes:
        hits: units that were found.
        misses: units that were not.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self.root, self.most_bytes = root, most_bytes
        self.hits = self.misses = 0

    def get(self, space: str, unit: str) -> Arrays | None:
        """The arrays of a unit; None where they are not known, or not to be trusted."""
        path = self._path(space, unit)
        arrays = _read(path, _key(space, unit))
        if arrays is None:
            self.misses += 1
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        self.hits += 1
        with suppress(OSError):
            os.utime(path)  # what is used stays longest
        return arrays

    def put(self, space: str, unit: str, arrays: Arrays) -> None:
        """Keep the arrays of a unit, if there is room."""
        from safetensors.numpy import save

        path = self._path(space, unit)
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PART}")
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(save(whole, {"key": _key(space, unit), "sha256": _checksum(whole)}))
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def prune(self) -> int:
        """Remove what was used longest ago until the rest fits; returns the bytes removed."""
        found = []
        for path in self.root.rglob("*.safetensors*"):
            with suppress(OSError):  # another process may prune too
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        excess, removed = sum(size for _, size, _ in found) - self.most_bytes, 0
        for _, size, path in sorted(found):
            if removed >= excess:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                removed += size
        return removed

    def _path(self, space: str, unit: str) -> Path:
        return self.root / space[:32] / f"{unit[:40]}.safetensors"


def _key(space: str, unit: str) -> str:
    return f"{space}/{unit}"


def _read(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The arrays of a file whose checksum and key are right; None otherwise."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            said = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):
        return None
    return arrays if said.get("key") == key and said.get("sha256") == _checksum(arrays) else None


def _checksum(arrays: Arrays) -> str:
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        found.update(array.tobytes())
    return found.hexdigest()
