"""Statistics over runs: cut ends, ties, strata that stay apart, against scipy and against known distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, trim_mean

from inverse_alignment.maths.runs import (
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    probability_of_improvement,
)

scores = st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=9).map(np.array)
WAVE = np.sin(np.arange(20.0))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=13).map(np.array))
@settings(max_examples=60, deadline=None)
def test_the_interquartile_mean_is_a_quarter_trimmed_mean(values):
    assert interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25), abs=1e-12)


def test_an_outlier_at_either_end_is_cut():
    plain = interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0]))
    assert plain == interquartile_mean(np.array([-1e9, 2.0, 1e9, 1.0])) == 1.5
    assert interquartile_mean(np.array([-1e9, 1e9, 2.0])) == pytest.approx(2 / 3)  # too few to cut


def test_it_is_taken_over_the_last_axis_in_double_precision():
    table = np.array([[4.0, 1.0, 2.0, 3.0], [8.0, 8.0, 0.0, 0.0]])
    assert interquartile_mean(table).tolist() == [2.5, 4.0]
    single = np.array([0.0, 2.0**24, 1.0, 1.0, 2.0**24, 2.0**24], dtype=np.float32)
    assert float(interquartile_mean(single)) == (2 * 2**24 + 2) / 4


@given(st.lists(scores, min_size=1, max_size=3), st.data())
@settings(max_examples=40, deadline=None)
def test_improvement_is_mann_and_whitneys_statistic(first, data):
    second = [data.draw(scores) for _ in first]
    wins = [mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(first, second, strict=True)]
    found = probability_of_improvement(first, second)
    assert found == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    assert found + probability_of_improvement(second, first) == pytest.approx(1)
    assert probability_of_improvement(first, first) == 0.5


def test_improvement_weighs_strata_alike_and_compares_inside_them():
    # 1 in the first, ½ in the second; across strata the first would lose to the second
    first, second = [np.array([1.0]), np.array([5.0, 5.0, 5.0])], [np.array([0.0, -1.0]), np.array([5.0])]
    assert probability_of_improvement(first, second) == 0.75
    assert probability_of_improvement([first[1], first[0]], second) == 0.5


def test_means_of_two_draws_from_two_scores():
    # the means are 0, ½ and 1 with probability ¼, ½ and ¼
    pair = np.array([0.0, 1.0])
    assert interquartile_interval([pair], 0, 0.4) == (0.5, 0.5, 0.5)
    assert interquartile_interval([pair], 0, 0.6) == (0.5, 0.0, 1.0)


def test_runs_are_resampled_inside_their_stratum():
    # one run a stratum: there is nothing to resample. As one stratum, the same scores have an interval.
    alone = [np.array([0.0]), np.array([1.0]), np.array([5.0])]
    assert interquartile_interval(alone, 0) == (2.0, 2.0, 2.0)
    together = interquartile_interval([np.array([0.0, 1.0, 5.0])], 0)
    assert together.mean == 2.0 and together.low == 0.0 and together.high == 5.0
    assert improvement_interval(alone, [scores + 1 for scores in alone], 0) == (0.0, 0.0, 0.0)


def test_the_interval_is_of_the_interquartile_mean_of_all_strata():
    strata = [np.array([0.0, 0.0, 0.0]), np.array([7.0])]
    assert interquartile_interval(strata, 0) == (0.0, 0.0, 0.0)


def test_improvement_of_two_draws():
    # of 0 and 2 against 1: none, one or both draws are higher, with probability ¼, ½ and ¼
    first, second = [np.array([0.0, 2.0])], [np.array([1.0])]
    assert improvement_interval(first, second, 0, 0.4) == (0.5, 0.5, 0.5)
    assert improvement_interval(first, second, 0, 0.6) == (0.5, 0.0, 1.0)
    assert improvement_interval(second, first, 0, 0.6) == (0.5, 0.0, 1.0)  # the second is resampled as well


def test_improvement_in_strata_is_averaged_draw_by_draw():
    # two coins of 0, ½ and 1: their mean is 0 or 1 with probability 1/16 each
    first, second = [np.array([0.0, 2.0])] * 2, [np.array([1.0])] * 2
    assert improvement_interval(first, second, 0, 0.84) == (0.5, 0.25, 0.75)
    assert improvement_interval(first, second, 0, 0.95) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    "interval",
    [
        lambda *more: interquartile_interval([WAVE], *more),
        lambda *more: improvement_interval([WAVE], [-WAVE + 0.1], *more),
    ],
)
def test_the_seed_decides_and_the_defaults_are_as_said(interval):
    np.random.seed(1)
    first = interval(3)
    np.random.seed(2)
    assert interval(3) == first == interval(3, 0.95, 2000)
    assert interval(4)[1:] != first[1:] and interval(3, 0.95, 1000)[1:] != first[1:]
    assert interval(3, 0.9).low > first.low and interval(3, 0.9).high < first.high


def test_results_are_plain_numbers():
    single, other = [np.float32([0.0, 1.0])], [np.float32([0.5])]
    found = [*interquartile_interval(single, 0), *improvement_interval(single, other, 0)]
    assert {type(number) for number in [*found, probability_of_improvement(single, other)]} == {float}


def test_what_is_not_there_is_refused():
    empty, one = np.array([]), np.array([1.0])
    with pytest.raises(ValueError, match="without scores"):
        interquartile_interval([one, empty], 0)
    with pytest.raises(ValueError, match="without scores"):
        improvement_interval([one], [empty], 0)
    for pair in ([one], [empty]), ([empty], [one]):
        with pytest.raises(ValueError, match="without scores"):
            probability_of_improvement(*pair)
    with pytest.raises(ValueError, match="concatenate"):
        interquartile_interval([], 0)
    with pytest.raises(ValueError, match="stack"):
        probability_of_improvement([], [])
    with pytest.raises(ValueError, match="zip"):
        probability_of_improvement([one, one], [one])
    with pytest.raises(ValueError, match="zip"):
        improvement_interval([one], [one, one], 0)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        strata = [generator.normal(shift, 1.0, 12) for shift in (-1.0, 0.0, 1.0)]
        found = interquartile_interval(strata, seed, resamples=400)
        hits += found.low <= 0 <= found.high
    assert 0.88 < hits / 300 < 0.985
