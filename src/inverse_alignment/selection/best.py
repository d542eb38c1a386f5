"""The best rows of many: one rule for equal scores, whoever looks at which part."""

from __future__ import annotations

import numpy as np


def best(values: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """The k rows of largest value, best first; of equal values the row with the smaller tie number. Time linear in n.

    The best of all rows are among the best of each part, for any parts.

    Args:
        values: (n,), none NaN.
        ties: (n,) distinct numbers.
        k: at most n.
    """
    if not k:
        return np.empty(0, dtype=np.int64)
    bound = np.partition(values, len(values) - k)[len(values) - k]  # the k-th largest
    above, equal = np.flatnonzero(values > bound), np.flatnonzero(values == bound)
    short = k - len(above)
    rows = np.concatenate([above, equal[np.argpartition(ties[equal], short - 1)[:short]]])
    ranked: np.ndarray = rows[np.lexsort((ties[rows], -values[rows]))]
    return ranked
