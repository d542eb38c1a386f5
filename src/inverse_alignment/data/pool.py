"""A file of pairs as a sequence that is read as it is looked at: a million pairs in memory would take 4 GB."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar, overload

import numpy as np

from inverse_alignment.core.records import Comparison, Split, parsed
from inverse_alignment.data.aggregate import split_file

T = TypeVar("T")
WINDOW = 8192
"""Pairs that are held at one time, some 30 MB."""


def open_split(folder: Path, split: Split) -> Pool:
    """The pairs of one split of a preference set.

    Raises:
        UserError: the file is missing, or a line that is looked at is damaged.
    """
    return Pool(split_file(folder, split))


class Pool(Sequence[Comparison]):
    """The pairs of a file, by number; 8 bytes a pair are held, and the pairs around the one that was last iterated to.

    Raises:
        UserError: a line that is looked at is not a valid pair.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            lengths = np.fromiter((len(line) for line in file), dtype=np.int64)
        self._begins = np.concatenate([[0], np.cumsum(lengths)])
        self._held: tuple[int, list[Comparison]] = (0, [])

    def __len__(self) -> int:
        return len(self._begins) - 1

    @overload
    def __getitem__(self, at: int) -> Comparison: ...
    @overload
    def __getitem__(self, at: slice) -> list[Comparison]: ...
    def __getitem__(self, at: int | slice) -> Comparison | list[Comparison]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        row = range(len(self))[at]
        start, held = self._held
        return held[row - start] if start <= row < start + len(held) else self._read(row, row + 1)[0]

    def __iter__(self) -> Iterator[Comparison]:
        return (self.near(row) for row in range(len(self)))

    def near(self, row: int) -> Comparison:
        """A pair, whose neighbours are then held: they will be asked for next."""
        start, held = self._held
        if not start <= row < start + len(held):
            start = row - row % WINDOW
            held = self._read(start, min(start + WINDOW, len(self)))
            self._held = start, held
        return held[row - start]

    def column(self, of: Callable[[Comparison], T]) -> Column[T]:
        """One thing about every pair, as lazily; columns that are iterated side by side read the file once."""
        return Column(self, of)

    def _read(self, start: int, end: int) -> list[Comparison]:
        with self._path.open("rb") as file:
            file.seek(self._begins[start])
            return [parsed(file.readline(), Comparison, self._path, row + 1) for row in range(start, end)]


class Column(Sequence[T], Generic[T]):
    """One thing about every pair of a pool."""

    def __init__(self, pool: Pool, of: Callable[[Comparison], T]) -> None:
        self._pool, self._of = pool, of

    def __len__(self) -> int:
        return len(self._pool)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self._of(pair) for pair in self._pool[at]]
        return self._of(self._pool[at])

    def __iter__(self) -> Iterator[T]:
        return map(self._of, self._pool)
