"""Values along a run's way: between points, at them, before the first and never."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.trajectories import at_first_reach, running_means

KL, GOLD = [0.0, 1.0, 3.0, 2.0, 4.0], [0.5, 0.7, 1.1, 0.9, -1.0]


@pytest.mark.parametrize(
    ("level", "expected"), [(0.0, 0.5), (0.5, 0.6), (1.0, 0.7), (2.5, 1.0), (3.0, 1.1), (3.5, -0.525)]
)
def test_by_hand(level, expected):
    # 3.5 lies between the points (2, 0.9) and (4, -1), three quarters of the way
    assert at_first_reach(KL, GOLD, level) == pytest.approx(expected)


def test_the_first_reach_counts_though_it_falls_again():
    assert at_first_reach([0.0, 2.0, 0.0, 2.0], [0.0, 1.0, 5.0, 9.0], 1.0) == 0.5
    assert type(at_first_reach(np.array([0.0, 2.0]), np.array([0.0, 1.0]), 1.0)) is float


def test_what_is_never_reached_has_no_value():
    assert at_first_reach(KL, GOLD, 4.1) is None
    assert at_first_reach([], [], 0.0) is None


def test_a_start_beyond_the_level_counts_as_it_is():
    assert at_first_reach([2.0, 4.0], [7, 9], 1.0) == 7.0
    assert type(at_first_reach([2.0, 4.0], [7, 9], 1.0)) is float


def test_a_point_without_a_value_is_refused():
    with pytest.raises(ValueError, match="zip"):
        at_first_reach([1.0], [], 1.0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9)), min_size=1, max_size=8), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_it_lies_between_the_points_around_it(points, level):
    along, values = [float(at) for at, _ in points], [float(value) for _, value in points]
    found = at_first_reach(along, values, level)
    reached = next((place for place, at in enumerate(along) if at >= level), None)
    if reached is None:
        assert found is None
    else:
        around = values[max(0, reached - 1) : reached + 1]
        assert min(around) - 1e-9 <= found <= max(around) + 1e-9
        assert at_first_reach([at + 2.0 for at in along], values, level + 2) == pytest.approx(found)


def test_running_means_by_hand():
    assert running_means([1.0, 3.0, 8.0, 0.0], 2) == [2.0, 5.5, 4.0]
    assert running_means([1.0, 3.0, 8.0], 1) == [1.0, 3.0, 8.0]
    assert running_means([1.0, 3.0, 8.0], 3) == [4.0]
    assert running_means([1.0, 3.0], 5) == [2.0]
    assert running_means([], 3) == []
    assert type(running_means([1, 2], 2)[0]) is float
