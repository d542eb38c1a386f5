"""The selectors every other one has to beat."""

from __future__ import annotations

import numpy as np

from inverse_alignment.selection.selection import Selection, require_at_most


def select_random(pool: int, k: int, seed: int) -> Selection:
    """k rows drawn uniformly without replacement.

    Raises:
        UserError: k is larger than the pool.
    """
    require_at_most(k, pool, "are in the train split", "selection.k")
    generator = np.random.Generator(np.random.Philox(key=seed))
    indices = np.sort(generator.choice(pool, size=k, replace=False)).astype(np.int64)
    return Selection(indices, np.ones(k), np.full(k, np.nan))


def select_all(pool: int) -> Selection:
    """Every row."""
    return Selection(np.arange(pool, dtype=np.int64), np.ones(pool), np.full(pool, np.nan))
