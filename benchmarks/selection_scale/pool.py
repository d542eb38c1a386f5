"""A pool of pairs that are vectors: written in shards, mapped into memory one shard at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from inverse_alignment.core.seeding import derive_seed

ROWS = 50_000
"""Pairs of a shard: 150 MB with 384 dimensions."""
DIMENSIONS = 384
POLICY = "policy"
AT_ONCE = 10_000
TABLE = 2**16
"""Distinct random rows; a vector is the sum of two of them, so that making a million is not the benchmark."""


class VectorPool:
    """Unit vectors of the answers of many pairs: chosen and rejected, (2, rows, d) float32 in each shard.

    Args:
        folder: where the shards are.
    """

    def __init__(self, folder: Path, pairs: int) -> None:
        self.folder, self.pairs = folder, pairs

    @property
    def shards(self) -> list[range]:
        """The rows of each shard."""
        return [range(start, min(start + ROWS, self.pairs)) for start in range(0, self.pairs, ROWS)]

    def write(self) -> None:
        """Make all shards; a vector depends on its row alone."""
        table = _table()
        for number, rows in enumerate(self.shards):
            shape = (2, len(rows), DIMENSIONS)
            mapped = np.lib.format.open_memmap(self._path(number), mode="w+", dtype=np.float32, shape=shape)
            for start in range(0, len(rows), AT_ONCE):
                some = np.array(rows[start : start + AT_ONCE])
                for side in (0, 1):
                    mapped[side, start : start + AT_ONCE] = vectors(2 * some + side, table)
            del mapped

    def shard(self, number: int) -> np.ndarray:
        """A shard, mapped; its pages are given back with it."""
        return np.load(self._path(number), mmap_mode="r")

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04}.npy"


class RowEncoder:
    """`Embed` whose texts are row numbers and a side, `12:0`, or numbers of the policy's answers, `policy:3`.

    A real encoder costs thousands of times more than what is measured here; its vectors lie in the cache in a second
    round, where those of a block of rows lie together as here.
    """

    name = "rows"

    def __init__(self, pool: VectorPool, policy: np.ndarray) -> None:
        self._pool, self._policy = pool, policy
        self._number, self._mapped = -1, np.empty((2, 0, DIMENSIONS), dtype=np.float32)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embed.__call__`; texts of a call are the policy's, or one side of neighbours and then the other.

        Raises:
            ValueError: they are not.
        """
        if texts and texts[0].startswith(POLICY):
            return self._policy[[int(text.partition(":")[2]) for text in texts]]
        half = len(texts) // 2
        first = int(texts[0].partition(":")[0])
        if (texts[0], texts[half], texts[-1]) != (f"{first}:0", f"{first}:1", f"{first + half - 1}:1"):
            raise ValueError(f"{texts[0]}, {texts[half]} and {texts[-1]} are not two sides of {half} neighbours")
        found = np.empty((2, half, DIMENSIONS), dtype=np.float32)
        done = 0
        while done < half:
            number, row = divmod(first + done, ROWS)
            if number != self._number:
                self._number, self._mapped = number, self._pool.shard(number)
            some = self._mapped[:, row : row + half - done]
            found[:, done : done + some.shape[1]] = some
            done += some.shape[1]
        return found.reshape(-1, DIMENSIONS)


def policy_vectors(samples: int) -> np.ndarray:
    """Embedded answers of the policy, (m, d) float32, of a table of their own."""
    return vectors(np.arange(samples), _table(POLICY))


def vectors(rows: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Unit vectors (n, d) of row numbers."""
    first, second = rows % TABLE, (rows // TABLE * 40_503 + rows * 7 + 1) % TABLE
    found = table[first] + table[second]
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def _table(name: str = "pool") -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=derive_seed("selection scale", name)))
    return generator.standard_normal((TABLE, DIMENSIONS), dtype=np.float32)


def texts(rows: range, side: int) -> Iterator[str]:
    """The texts that `RowEncoder` knows, as they are asked for."""
    return (f"{row}:{side}" for row in rows)
