"""Best of n against the mean over all subsets, ties broken at random, and the two ends."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.best_of_n import best_of_n

rows = st.integers(1, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(-9, 9)), min_size=n, max_size=n), min_size=1, max_size=3
    )
)


def over_subsets(scores, values, n):
    """The mean over all subsets of size n and all orders that break ties."""
    found = []
    for order in permutations(range(len(scores))):
        for subset in combinations(order, n):
            found.append(values[max(subset, key=lambda i: scores[i])])  # max takes the first of equals
    return sum(found) / len(found)


@given(rows, st.data())
@settings(max_examples=40, deadline=None)
def test_it_is_the_mean_over_all_subsets(table, data):
    n = data.draw(st.integers(1, len(table[0])))
    scores, values = (np.array([[cell[k] for cell in row] for row in table], dtype=float) for k in (0, 1))
    expected = np.mean([over_subsets(s, v, n) for s, v in zip(scores, values, strict=True)])
    found = best_of_n(scores, values, n)
    assert found == pytest.approx(expected, abs=1e-9) and type(found) is float


def test_one_is_the_mean_and_all_is_the_best():
    scores, values = np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 1.0]]), np.array([[6.0, 0.0, 3.0], [3.0, 3.0, 9.0]])
    assert best_of_n(scores, values, 1) == 4.0
    assert best_of_n(scores, values, 3) == 4.5  # 0 and 9
    assert best_of_n(scores, values, 2) == pytest.approx((1.0 + 7.0) / 2)  # (0 + 0 + 3) / 3, (9 + 9 + 3) / 3


def test_scores_that_know_nothing_pick_nothing():
    values = np.array([[1.0, 2.0, 6.0]])
    for n in (1, 2, 3):
        assert best_of_n(np.zeros((1, 3)), values, n) == pytest.approx(3.0)


@pytest.mark.parametrize("n", [0, 4])
def test_a_size_that_cannot_be_is_refused(n):
    with pytest.raises(ValueError, match="best of"):
        best_of_n(np.zeros((1, 3)), np.zeros((1, 3)), n)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="scores of"):
        best_of_n(np.zeros((1, 3)), np.zeros((2, 3)), 1)
    with pytest.raises(ValueError, match="scores of"):
        best_of_n(np.zeros((1, 3)), np.zeros((1, 4)), 1)
