"""How much of a reference an unfinished sequence already has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def prefix_f1(tokens: Sequence[int], reference: Sequence[int]) -> list[float]:
    """F1 between the bags of tokens of a reference and of what stood before each token: (t,), the first one 0.

    `F1_t = 2 |y_<t ∩ z| / (|y_<t| + |z|)`, where a token counts as often as it stands in both. It rises with every
    token of the reference z that is written, and falls with every other one. Of no prefix and no reference it is 0.
    """
    left, shared, values = Counter(reference), 0, []
    for written, token in enumerate(tokens):
        values.append(2 * shared / max(written + len(reference), 1))
        shared += left[token] > 0
        left[token] -= 1
    return values
