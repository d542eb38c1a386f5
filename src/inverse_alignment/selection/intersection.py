"""What several selectors agree on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.selection.keep import heavy_rows
from inverse_alignment.selection.selection import Selection


def intersect(selections: Sequence[Selection], key: str) -> Selection:
    """The rows that every selection keeps, their weights multiplied and scaled to mean 1. Scores have no common unit.

    Raises:
        UserError: there is no such row.
    """
    rows = reduce(np.intersect1d, (each.indices for each in selections))
    if not len(rows):
        sizes = ", ".join(str(len(each)) for each in selections)
        raise UserError(
            f"no pair is kept by all of the selectors, which keep {sizes}",
            where=f"{key}.of",
            fix="keep more pairs in each, or combine other selectors",
        )
    log_weights = sum(np.log(each.weights[np.searchsorted(each.indices, rows)]) for each in selections)
    rows, weights = heavy_rows(rows, np.asarray(log_weights))
    return Selection(rows.astype(np.int64), weights, np.full(len(rows), np.nan))
