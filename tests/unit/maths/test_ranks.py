"""Rank correlation against scipy, ties, constants, and rows that belong together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from inverse_alignment.maths.ranks import average_ranks, rank_correlation, rank_correlation_interval

lists = st.integers(2, 9).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(-3, 3), min_size=n, max_size=n).map(np.array) for _ in range(2)))
)


@given(lists)
@settings(max_examples=60, deadline=None)
def test_it_is_spearmans(pair):
    first, second = pair
    assert average_ranks(first).tolist() == rankdata(first).tolist()
    found = rank_correlation(first, second)
    if len(set(first.tolist())) == 1 or len(set(second.tolist())) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_only_order_counts():
    values = np.array([0.1, 0.5, 0.2, 3.0])
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1)
    assert rank_correlation(values, -(values**3)) == pytest.approx(-1)


def test_rows_of_a_unit_are_drawn_together():
    # two units that agree within and differ across: every draw holds one of three sets of rows
    first, second = np.array([0.0, 1.0, 5.0, 6.0]), np.array([1.0, 0.0, 6.0, 5.0])
    found = rank_correlation_interval(first, second, np.array([0, 0, 7, 7]), 0)
    assert found == pytest.approx((0.6, -1.0, 0.6))


def test_confidence_and_seed_are_used():
    first = np.arange(12.0)
    second = first + 4 * np.random.default_rng(0).normal(size=12)
    wide, narrow, other = (
        rank_correlation_interval(first, second, np.arange(12), seed, level)
        for seed, level in ((0, 0.95), (0, 0.5), (1, 0.95))
    )
    assert wide and narrow and other
    assert wide.low < narrow.low < narrow.high < wide.high and wide != other and wide.mean == narrow.mean


def test_constants_have_none_and_constant_draws_are_left_out():
    assert rank_correlation_interval(np.ones(3), np.arange(3.0), np.arange(3), 0) is None
    found = rank_correlation_interval(np.arange(3.0), np.arange(3.0), np.arange(3), 0)
    assert found == pytest.approx((1.0, 1.0, 1.0))


def test_draws_are_correlations_of_whole_units():
    first, second = np.random.default_rng(1).integers(0, 5, size=(2, 20)).astype(float)
    units = 2 * (np.arange(20) % 6) - 3
    drawn, generator = [], np.random.default_rng(5)
    for _ in range(100):
        rows = [np.flatnonzero(units == 2 * place - 3) for place in generator.integers(6, size=6)]
        drawn.append(spearmanr(first[np.concatenate(rows)], second[np.concatenate(rows)]).statistic)
    found = rank_correlation_interval(first, second, units, 5, 0.8, 100)
    assert found == pytest.approx((rank_correlation(first, second), *np.quantile(drawn, [0.1, 0.9])), abs=1e-9)
    assert found is not None and all(type(number) is float for number in found)
