"""How many CPU threads the arithmetic of a stage takes: torch's, and those of the products of matrices."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Inside the block arithmetic takes so many threads; 0 leaves it to the libraries.

    A product of matrices is cut up for its threads, and another cut has other last digits: equal bytes need equal
    numbers of threads. torch keeps the number.
    """
    if not threads:
        yield
        return
    from threadpoolctl import threadpool_limits

    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    with threadpool_limits(threads):
        yield
