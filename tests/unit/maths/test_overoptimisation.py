"""Gao's curves: peaks against a search, planted coefficients recovered, and what cannot be told is refused."""

import math
from functools import partial

import numpy as np
import pytest

from inverse_alignment.maths.overoptimisation import (
    best_of_n_divergence,
    best_of_n_peak,
    best_of_n_terms,
    fit_curve,
    obstacle,
    policy_peak,
    policy_terms,
)

PLANTED = np.array([1.2, 0.5])
DISTANCES = np.linspace(0.2, 6.0, 30)
EACH = np.arange(30)


def one(value):
    return np.array([float(value)])


@pytest.mark.parametrize(
    ("terms", "peak"),
    [
        (best_of_n_terms, best_of_n_peak),
        (policy_terms, policy_peak),
        (partial(policy_terms, refreshes=3), partial(policy_peak, refreshes=3)),
    ],
)
def test_the_peak_is_where_the_curve_is_highest(terms, peak):
    fine = np.linspace(0.0, 15.0, 150_001)
    found = float(peak(one(1.2), one(0.5))[0])
    assert found == pytest.approx(fine[np.argmax(terms(fine) @ PLANTED)], abs=1e-4)


def test_heights_of_the_peaks():
    # a²/(4b) and b d*
    assert (best_of_n_terms(best_of_n_peak(one(1.2), one(0.5))) @ PLANTED)[0] == pytest.approx(1.44 / 2)
    top = policy_peak(one(1.2), one(0.5), 4)
    assert (policy_terms(top, 4) @ PLANTED)[0] == pytest.approx(0.5 * top[0])


def test_refreshes_add_what_the_law_says():
    # k reward models, each over d/k: k (d/k)(a - b log(d/k)), a gain of b d log k
    once, thrice = policy_terms(DISTANCES) @ PLANTED, policy_terms(DISTANCES, 3) @ PLANTED
    np.testing.assert_allclose(thrice - once, 0.5 * DISTANCES * math.log(3), atol=1e-12)
    np.testing.assert_allclose(thrice, 3 * (policy_terms(DISTANCES / 3) @ PLANTED), atol=1e-12)


def test_curves_begin_at_zero():
    each = policy_terms(DISTANCES, np.array([1, 3] * (len(DISTANCES) // 2)))  # one k a point
    assert (each[::2] == policy_terms(DISTANCES)[::2]).all() and (each[1::2] == policy_terms(DISTANCES, 3)[1::2]).all()
    assert policy_terms(np.zeros(2), 2).tolist() == best_of_n_terms(np.zeros(2)).tolist() == [[0, 0], [0, 0]]
    assert best_of_n_divergence(np.ones(1))[0] == 0


def test_curves_without_a_peak():
    a, b = np.array([1.0, 1.0, -1.0, -1.0, -3.0, 800.0]), np.array([0.0, -0.5, -0.5, 0.0, 0.5, 1.0])
    assert best_of_n_peak(a, b).tolist() == [math.inf, math.inf, math.inf, math.inf, 0.0, 400.0]
    found = policy_peak(a, b)
    assert np.isinf(found[[0, 1, 2, 3, 5]]).all() and found[4] == pytest.approx(math.exp(-7))
    assert policy_peak(one(700), one(1.0))[0] == pytest.approx(math.exp(699))
    assert math.isinf(policy_peak(one(1.0), one(1e-300))[0])


@pytest.mark.parametrize(
    ("terms", "peak"), [(best_of_n_terms, best_of_n_peak), (policy_terms, policy_peak)], ids=["best of n", "ppo"]
)
def test_planted_coefficients_are_recovered(terms, peak):
    noise = 0.05 * np.random.default_rng(0).normal(size=30)
    exact, noisy = (fit_curve(terms(DISTANCES), terms(DISTANCES) @ PLANTED + e, EACH, peak, 0) for e in (0.0, noise))
    assert exact.a == pytest.approx((1.2,) * 3) and exact.b == pytest.approx((0.5,) * 3)
    assert exact.residual == pytest.approx(0, abs=1e-12)
    assert exact.peak == pytest.approx((float(peak(one(1.2), one(0.5))[0]),) * 3)
    assert noisy.a.low < 1.2 < noisy.a.high and noisy.b.low < 0.5 < noisy.b.high
    assert 0 < noisy.b.high - noisy.b.low < 0.1 and 0.03 < noisy.residual < 0.07
    assert noisy.peak.low < exact.peak.mean < noisy.peak.high


def test_a_proxy_that_is_gold_has_no_peak():
    fit = fit_curve(policy_terms(DISTANCES), DISTANCES**1.5, EACH, policy_peak, 0)
    assert fit.b.high < 0 and fit.peak == (math.inf,) * 3


def test_a_peak_that_some_draws_lack_has_an_infinite_end():
    gold = DISTANCES + np.random.default_rng(1).normal(size=30)
    fit = fit_curve(policy_terms(DISTANCES), gold, EACH, policy_peak, 0)
    assert fit.b.low < 0 < fit.b.high and fit.peak.high == math.inf and math.isfinite(fit.peak.low)


def by_drawing(terms, gold, units, peak, seed, confidence, resamples):
    """The same by `lstsq` on the rows of each draw."""
    names = np.unique(units)

    def solved(rows):
        return np.linalg.lstsq(terms[rows], gold[rows], rcond=None)[0]

    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    draws = [solved(np.concatenate([np.flatnonzero(units == names[place]) for place in draw])) for draw in drawn]
    a, b = np.array(draws).T
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    return [np.quantile(values, ends, method="inverted_cdf").tolist() for values in (a, b, peak(a, b))]


def test_draws_are_fits_of_whole_units():
    gold = policy_terms(DISTANCES) @ PLANTED + 0.1 * np.random.default_rng(2).normal(size=30)
    units = 3 * (np.arange(30) % 7) - 5
    fit = fit_curve(policy_terms(DISTANCES), gold, units, policy_peak, 4, 0.8, 200)
    expected = by_drawing(policy_terms(DISTANCES), gold, units, policy_peak, 4, 0.8, 200)
    (a, b), (squares,), *_ = np.linalg.lstsq(policy_terms(DISTANCES), gold, rcond=None)
    assert (fit.a.mean, fit.b.mean, fit.residual) == pytest.approx((a, b, math.sqrt(squares / 30)))
    for found, ends in zip(fit[:3], expected, strict=True):
        assert [found.low, found.high] == pytest.approx(ends, rel=1e-9)
    assert all(type(number) is float for number in (*fit.a, *fit.b, *fit.peak, fit.residual))


def test_runs_are_the_units_where_there_are_runs():
    """Negative control: the same run told ten times is not ten runs, but ten times as many points."""
    gold = policy_terms(DISTANCES) @ PLANTED + 0.1 * np.random.default_rng(2).normal(size=30)
    terms, told = np.tile(policy_terms(DISTANCES), (10, 1)), np.tile(gold, 10)
    once = fit_curve(policy_terms(DISTANCES), gold, EACH, policy_peak, 0).a
    together = fit_curve(terms, told, np.tile(EACH, 10), policy_peak, 0).a
    apart = fit_curve(terms, told, np.arange(300), policy_peak, 0).a
    assert together == pytest.approx(once)
    assert 2.5 < (once.high - once.low) / (apart.high - apart.low) < 4  # √10


def test_confidence_and_seed_are_used():
    gold = policy_terms(DISTANCES) @ PLANTED + 0.1 * np.random.default_rng(2).normal(size=30)
    wide, narrow, other = (
        fit_curve(policy_terms(DISTANCES), gold, EACH, policy_peak, seed, level).b
        for seed, level in ((0, 0.95), (0, 0.5), (1, 0.95))
    )
    assert wide.low < narrow.low < narrow.high < wide.high and wide != other
    assert wide == fit_curve(policy_terms(DISTANCES), gold, EACH, policy_peak, 0).b


def test_a_draw_of_one_distance_has_a_value():
    terms = policy_terms(np.array([0.5, 1.0, 2.0, 4.0]))
    fit = fit_curve(terms, terms @ PLANTED, np.arange(4), policy_peak, 0)
    assert all(map(math.isfinite, (*fit.a, *fit.b)))


@pytest.mark.parametrize(
    ("distances", "why"),
    [
        ([0.0, 1.0, 2.0, 3.0], "3 of the 4 different distances"),
        ([1.0, 1.0, 2.0, 2.0, 3.0], "3 of the 4"),
        ([2.0, 2.01, 2.02, 2.03], "between 2 and 2 are too close"),
        ([], "0 of the 4"),
    ],
)
def test_what_cannot_be_told_is_refused(distances, why):
    terms = policy_terms(np.array(distances))
    assert why in obstacle(terms)
    with pytest.raises(ValueError, match="no curve: "):
        fit_curve(terms, np.zeros(len(terms)), np.arange(len(terms)), policy_peak, 0)


def test_four_distances_far_apart_are_enough():
    assert obstacle(policy_terms(np.array([0.0, 0.5, 1.0, 1.5, 2.0]))) == ""
    assert obstacle(best_of_n_terms(np.array([10.0, 40.0, 70.0, 100.0]))) == ""  # whatever the scale
    # columns of equal length at an angle: the ratio is √((1 + c)/(1 - c)) with cosine c
    assert obstacle(np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]])) == ""
