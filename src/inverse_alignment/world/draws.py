"""Random choices that are the same bytes on every Python and platform: each is a sha256 of what it is for."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import TypeVar

from inverse_alignment.core.seeding import derive_seed

T = TypeVar("T")


class Draws:
    """A stream of choices named by a key; two streams with the same key make the same choices.

    Python's `random` and NumPy's generators promise no stable stream for choices and shuffles across versions; a
    counter hashed with the key does.
    """

    def __init__(self, *key: str | int) -> None:
        self._key, self._count = key, 0

    def uniform(self) -> float:
        """A number in [0, 1) with 53 random bits."""
        self._count += 1
        return (derive_seed(*self._key, self._count) >> 10) / 2**53

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[int(self.uniform() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of the items, item i with probability weights[i] / sum(weights)."""
        remaining = self.uniform() * fsum(weights)
        for item, weight in zip(items, weights, strict=True):
            remaining -= weight
            if remaining < 0:
                return item
        return items[-1]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order."""
        keys = [self.uniform() for _ in items]
        return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]
