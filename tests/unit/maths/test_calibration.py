"""Calibration by hand, and of pairs whose labels are drawn as the scores say, or more or less surely."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inverse_alignment.evaluation.calibration import calibration_of
from inverse_alignment.maths.calibration import expected_calibration_error, fitted_temperature, reliability, tempered


def logit(p):
    return np.log(p / (1 - p))


def labelled(count, sharpness, seed=0):
    """Gaps of pairs whose labels follow `σ(sharpness · Δ)`."""
    generator = np.random.default_rng(seed)
    gaps = generator.normal(0, 2, count)
    right = generator.random(count) < 1 / (1 + np.exp(-sharpness * np.abs(gaps)))
    return np.where(right, np.abs(gaps), -np.abs(gaps))


def test_a_table_by_hand():
    # confidences 0.6, 0.6, 0.9 and a tie of ½; right: yes, no, yes, half
    table = reliability(np.array([logit(0.6), -logit(0.6), logit(0.9), 0.0]), bins=2)
    np.testing.assert_allclose(table.confidence, [1.7 / 3, 0.9])
    np.testing.assert_allclose(table.accuracy, [0.5, 1.0])
    assert table.pairs.tolist() == [3, 1]
    assert expected_calibration_error(table) == pytest.approx((3 * (1.7 / 3 - 0.5) + 0.1) / 4)
    sparse = reliability(np.array([50.0, -logit(0.95)]), bins=4)
    assert sparse.pairs.tolist() == [0, 0, 0, 2] and np.isnan(sparse.accuracy[0])
    assert expected_calibration_error(sparse) == pytest.approx(0.475)
    ten = reliability(np.array([logit(0.62), logit(0.77), 0.0]))
    assert ten.pairs.tolist() == [1, 0, 1, 0, 0, 1, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="at least one pair"):
        reliability(np.array([]))


def test_a_temperature_by_hand():
    # three of four right at a gap of 2: σ(2 / T) = ¾
    gaps = np.array([2.0, 2.0, 2.0, -2.0])
    assert fitted_temperature(gaps) == pytest.approx(2 / np.log(3))
    assert fitted_temperature(-gaps) == np.inf


def test_each_half_is_tempered_by_the_other():
    gaps = np.array([2.0, 1.0, 2.0, 1.0, 2.0, 1.0, -2.0, -1.0])  # even numbers: T = 2 / log 3; odd: 1 / log 3
    expected = np.log(3) * np.array([2.0, 0.5, 2.0, 0.5, 2.0, 0.5, -2.0, -0.5])
    np.testing.assert_allclose(tempered(gaps), expected)
    np.testing.assert_allclose(tempered(np.array([3.0, 0.0])), [3.0, 0.0])  # nothing to fit the first one by
    assert tempered(np.array([3.0, 0.0, 3.0, 1.0]))[0] > 3.0  # one pair is enough


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 3.0])
def test_what_is_planted_is_found(sharpness):
    gaps = labelled(20_000, sharpness)
    found = calibration_of(gaps)
    assert found.temperature == pytest.approx(1 / sharpness, rel=0.06)
    assert found.ece_tempered < 0.02
    if sharpness == 1.0:
        assert found.ece < 0.02 and abs(found.log_likelihood - found.log_likelihood_tempered) < 1e-3
    else:  # over- or underconfident
        assert found.ece > 0.08 and found.log_likelihood_tempered > found.log_likelihood + 0.02
    assert sum(row["pairs"] for row in found.bins) == 20_000
    json.dumps(found.bins)


def test_a_model_that_is_wrong_more_often_than_right_has_no_temperature():
    found = calibration_of(-labelled(2000, 1.0))
    assert found.temperature is None and found.log_likelihood_tempered == pytest.approx(np.log(0.5))
    assert calibration_of(np.zeros(5)) is None
