"""How many CPU threads the arithmetic of a stage takes: torch's, and those of the products of matrices."""

from __future__ import annotations

import sys


def limit_threads(threads: int) -> None:
    """Let arithmetic take so many threads from now on; 0 leaves it to the libraries.

    A product of matrices is cut up for its threads, and another cut has other last digits: equal bytes need equal
    numbers of threads. It holds for the whole process, in which other stages may be under way.
    """
    if not threads:
        return
    from threadpoolctl import threadpool_limits

    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    threadpool_limits(threads)
