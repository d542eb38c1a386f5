"""The expensive things, depended on by interface: generation, scoring, embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from inverse_alignment.core.records import Prompt

if TYPE_CHECKING:
    import numpy as np


class Score(Protocol):
    """A reward model as everyone but its trainer sees it."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
        """Scores of the responses, float64 of shape (n,), in the model's own units."""


class Embed(Protocol):
    """A sentence encoder."""

    @property
    def name(self) -> str:
        """What encoder this is, for people and for cache keys."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """L2-normalised embeddings, float32 of shape (n, d); an empty text maps to the zero vector."""


class Gold(Protocol):
    """A reward that is right by construction; only evaluation may hold one."""

    def __call__(self, prompt: Prompt, response: str) -> float:
        """The exact reward of any text."""
