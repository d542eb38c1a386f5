"""Processes that train one model together: who is there, and the few things they say to each other.

All processes hold the same weights and run the same code on their own share of the rows; sums over all of them make it
the same computation as one process would do. Light: torch is imported only where processes really talk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Group(Protocol):
    """The processes of one training. A method is for all of them to call, in the same order.

    Attributes:
        rank: place of this process, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    def add(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes; all then hold the same bits."""

    def gather(self, rows: Sequence[Any]) -> list[Any]:
        """The JSON rows of all processes, in the order of their ranks."""

    def agree(self, answer: bool) -> bool:
        """What the first process answers."""

    def wait(self) -> None:
        """Go on when all processes have come here."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def add(self, *tensors: Tensor) -> None:
        """See `Group.add`."""

    def gather(self, rows: Sequence[Any]) -> list[Any]:
        """See `Group.gather`."""
        return list(rows)

    def agree(self, answer: bool) -> bool:
        """See `Group.agree`."""
        return answer

    def wait(self) -> None:
        """See `Group.wait`."""


class Together:
    """The default process group of torch.distributed. What is said is numbers and JSON, never pickles."""

    def __init__(self) -> None:
        from torch import distributed

        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._device = "cuda" if distributed.get_backend() == "nccl" else "cpu"

    def add(self, *tensors: Tensor) -> None:
        """See `Group.add`."""
        from torch import distributed

        for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()

    def gather(self, rows: Sequence[Any]) -> list[Any]:
        """See `Group.gather`."""
        import torch
        from torch import distributed

        mine = torch.frombuffer(bytearray(json.dumps(list(rows)).encode()), dtype=torch.uint8).to(self._device)
        sizes = torch.zeros(self.size, dtype=torch.int64, device=self._device)
        sizes[self.rank] = len(mine)
        self.add(sizes)
        padded = torch.zeros(int(sizes.max()), dtype=torch.uint8, device=self._device)
        padded[: len(mine)] = mine
        given = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(given, padded)
        texts = [bytes(got[:size].tolist()).decode() for got, size in zip(given, sizes.tolist(), strict=True)]
        return [row for text in texts for row in json.loads(text)]

    def agree(self, answer: bool) -> bool:
        """See `Group.agree`."""
        return bool(self.gather([answer])[0])

    def wait(self) -> None:
        """See `Group.wait`."""
        self.gather([])


def group() -> Group:
    """The processes that this one trains with: those of torch.distributed, if it was started."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return Together()
    return Alone()


def shares(of: Group, *mine: Tensor) -> list[float]:
    """`n · x_i / Σ x_i` of each number, for n processes: 1 for one process.

    Times this, means over the rows of each process have the mean over all rows as their mean, and so have gradients.
    """
    import torch

    own = torch.stack([number.detach().float() for number in mine])
    total = own.clone()
    of.add(total)
    shared: list[float] = (of.size * own / total).tolist()
    return shared


def contiguous(of: Group, rows: int) -> slice:
    """The share of some rows that this process works on, in one piece; the shares differ by at most one row."""
    return slice(rows * of.rank // of.size, rows * (of.rank + 1) // of.size)


def dealt(of: Group, sizes: Sequence[int]) -> list[int]:
    """The rows that this process works on, dealt out in the order of their sizes: shares of like number and size.

    Sizes that are equal are dealt in the order of the rows, so that every process knows the share of every other.
    """
    return sorted(range(len(sizes)), key=lambda row: (sizes[row], row))[of.rank :: of.size]
