"""What every selector returns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison


@dataclass(frozen=True)
class Selection:
    """Rows of a pool that a selector kept.

    Attributes:
        indices: (k,) distinct rows of the pool, ascending.
        weights: (k,) positive weights.
        scores: (k,) the selector's scores; NaN where it has none.

    Raises:
        ValueError: shapes disagree, a row occurs twice, or a weight is not positive.
    """

    indices: np.ndarray
    weights: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        if not self.indices.shape == self.weights.shape == self.scores.shape or self.indices.ndim != 1:
            raise ValueError(f"shapes {self.indices.shape}, {self.weights.shape}, {self.scores.shape} must be one (k,)")
        if len(self.indices) > 1 and not (np.diff(self.indices) > 0).all():
            raise ValueError("indices must be distinct and ascending")
        if not (self.weights > 0).all():
            raise ValueError("weights must be positive")

    def __len__(self) -> int:
        return len(self.indices)


def require_at_most(k: int, pool: int, what: str, key: str) -> None:
    """Refuse to pick more pairs than there are.

    Raises:
        UserError: k is larger than the pool.
    """
    if k > pool:
        raise UserError(
            f"k is {k}, but only {pool} pairs {what}",
            where=key,
            fix=f"set {key} to at most {pool}, or add preference data",
        )


def shares(pool: Sequence[Comparison], selection: Selection | None = None) -> dict[str, dict[str, int]]:
    """How many answers each source policy wrote, and pairs each annotator labelled, in a pool or the selected part."""
    pairs = pool if selection is None else [pool[i] for i in selection.indices]
    sources: Counter[str] = Counter()
    for pair in pairs:
        sources.update([pair.provenance.source_chosen, pair.provenance.source_rejected])
    annotators = Counter(pair.provenance.annotator for pair in pairs)
    return {"source": dict(sorted(sources.items())), "annotator": dict(sorted(annotators.items()))}
