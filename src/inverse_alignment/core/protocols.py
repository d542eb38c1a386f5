"""The expensive things, depended on by interface: generation, scoring, embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from inverse_alignment.core.estimates import RewardEstimate
from inverse_alignment.core.records import Prompt

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
R = TypeVar("R")


class Generate(Protocol):
    """A policy that answers prompts, wherever it runs."""

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> Iterator[list[int]]:
        """One sampled answer per prompt and seed, all as token ids; in order, as they become known.

        An answer ends with the end token, which counts as part of it, or is as long as it may be.
        """


class Score(Protocol):
    """A reward model as everyone but its trainer sees it."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Scores of the responses, float64 of shape (n,), in the model's own units."""


class Estimate(Protocol):
    """A reward model that says more than a score: how sure it is, or which tokens earned it."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RewardEstimate:
        """Rewards of the responses, in the model's own units."""


class Embed(Protocol):
    """A sentence encoder."""

    @property
    def name(self) -> str:
        """What encoder this is, for people and for cache keys."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised embeddings, float32 of shape (n, d); an empty text maps to the zero vector."""


class Cache(Protocol):
    """What was computed once; it saves time and decides nothing."""

    def get(self, space: str, unit: str) -> Mapping[str, np.ndarray] | None:
        """The arrays that `space` (a digest of who computed) has for `unit` (a digest of what); None: not known."""

    def put(self, space: str, unit: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep them, if there is room."""


class Spread(Protocol):
    """Whoever does much work of one kind: this process, or many on a cluster."""

    def __call__(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`work` of every item, in the order of the items; a bounded number of them is under way at one time."""


class Gold(Protocol):
    """A reward that is right by construction; only evaluation may hold one."""

    def __call__(self, prompt: Prompt, response: str) -> float:
        """The exact reward of any text."""
