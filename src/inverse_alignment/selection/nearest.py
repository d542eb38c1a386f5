"""How near each of many vectors comes to the nearest of others, without ever holding all their products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from inverse_alignment.core.blocks import blocks
from inverse_alignment.core.protocols import Embed

ROWS, COLUMNS = 2048, 4096
"""Products that exist at one time: 32 MiB. Constants, since other shapes of a product have other last digits."""


def nearest(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`max_j ⟨a_i, y_j⟩`, for unit vectors the cosine with the nearest: (n, d) and (m, d) to (n,).

    Raises:
        ValueError: there are no others.
    """
    if not len(others):
        raise ValueError("nothing is near where nothing is")
    found = np.full(len(vectors), -np.inf, dtype=vectors.dtype)
    for row in range(0, len(vectors), ROWS):
        rows = slice(row, row + ROWS)
        for column in range(0, len(others), COLUMNS):
            products = vectors[rows] @ others[column : column + COLUMNS].T
            np.maximum(found[rows], products.max(1), out=found[rows])
    return found


def nearest_of_key(
    vectors: np.ndarray, keys: Sequence[str], others: np.ndarray, of_key: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The same among the others of a row's own key; NaN where it has none.

    Args:
        keys: key of each row.
        of_key: rows of `others` under their key, see `rows_of`.
    """
    found = np.full(len(vectors), np.nan, dtype=np.float32)
    for key, rows in rows_of(keys).items():
        if key in of_key:
            found[rows] = (vectors[rows] @ others[of_key[key]].T).max(1)
    return found


def rows_of(keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The rows of each key."""
    found: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(key, []).append(row)
    return {key: np.array(rows) for key, rows in found.items()}


def embedded(texts: Sequence[str], embed: Embed, most_bytes: int, folder: Path | None) -> np.ndarray:
    """Embeddings (n, d) of texts: in memory, or in a file of a folder that is mapped into it where they take more.

    Args:
        folder: None: they stay in memory whatever they take.
    """
    done, found = 0, None
    for block in blocks(texts, str):
        vectors = embed(block)
        if found is None:
            found = room((len(texts), vectors.shape[1]), most_bytes, folder)
        found[done : done + len(block)] = vectors
        done += len(block)
    return embed([]) if found is None else found


def room(shape: tuple[int, int], most_bytes: int, folder: Path | None, name: str = "vectors") -> np.ndarray:
    """Room for a table of float32, in memory or, where it takes more than that, in a file of a folder."""
    if folder is None or 4 * shape[0] * shape[1] <= most_bytes:
        return np.empty(shape, dtype=np.float32)
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
