"""What a run says along its way: its value at equal KL, and the steps it took to a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def at_first_reach(along: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """The value where `along` first reaches `level`, linear between the two points around it; None if it never does.

    Points are in the order in which a run passed them, and `along` may fall again. With KL along the way and gold as
    values it is gold at equal KL; with gold along the way and steps as values, the steps to a gold threshold.

    Raises:
        ValueError: there are more points than values, or the other way round.
    """
    points = list(zip(along, values, strict=True))
    for place, (at, value) in enumerate(points):
        if at >= level:
            if place == 0:
                return float(value)
            before, value_before = points[place - 1]
            share = (level - before) / (at - before)
            return float(value_before + share * (value - value_before))
    return None


def running_means(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and the `window` - 1 after it: n values to n - `window` + 1, or to their one mean if fewer.

    Applied to the coordinates of a noisy way alike, it gives points of the same way with less noise.
    """
    width = min(window, len(values))
    return [float(np.mean(values[start : start + width])) for start in range(len(values) - width + 1)] if values else []
