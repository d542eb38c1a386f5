"""Long lists in pieces that the content decides: what is computed together, kept together and sent elsewhere together.

A number that a model or a matrix product gives for a row may differ in its last digits with the rows beside it. Hence
rows are computed in blocks, and a block holds the same rows whoever computes it, in however many processes, and
whatever is known already: results are equal to the bit. A block ends at a row whose own content says so, so rows that
are added to a list change the blocks they come into and no other.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
MEAN, MOST = 512, 2048
"""Rows of a block: on average, if the rows are distinct, and at most."""


def blocks(rows: Iterable[T], text: Callable[[T], str], mean: int = MEAN, most: int = MOST) -> Iterator[list[T]]:
    """The rows in blocks, in order; nothing but the current block is held.

    Args:
        text: what of a row decides whether a block ends with it.
        mean: one distinct text in so many ends a block.
        most: rows after which a block ends whatever they say.
    """
    block: list[T] = []
    for row in rows:
        block.append(row)
        if len(block) == most or zlib.crc32(text(row).encode()) % mean == mean - 1:  # 0 would be every empty text
            yield block
            block = []
    if block:
        yield block


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in order, each made in a thread while the one before it is used."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        making = iter(items)
        coming: Future[Any] = thread.submit(next, making, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, making, end)
            yield item


def digest(texts: Iterable[str]) -> str:
    """Hex sha256 over some texts and where each of them ends."""
    found = hashlib.sha256()
    for text in texts:
        of_text = text.encode()
        found.update(len(of_text).to_bytes(8, "little"))
        found.update(of_text)
    return found.hexdigest()


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """See `core.protocols.Spread`: here, one after the other."""
    return map(work, items)
