"""Ratios and weights of answers: by hand, at their ends, and where exponentials of whole answers would underflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inverse_alignment.maths.density_ratio import (
    effective_sample_size,
    implicit_margin,
    likelihood_log_weights,
    mean_one_weights,
    pair_log_weights,
    relative_log_ratio,
)

numbers = st.lists(st.floats(-50, 50), min_size=1, max_size=8).map(np.array)


def test_relative_ratios_by_hand():
    # π = 0.2, π_ref = 0.1: log(0.2 / (0.25 · 0.2 + 0.75 · 0.1)) = log 1.6; π = 0.1, π_ref = 0.2: log(0.1 / 0.175)
    found = relative_log_ratio(np.log([0.2, 0.1]), np.log([0.1, 0.2]), 0.25)
    np.testing.assert_allclose(found, [math.log(1.6), math.log(0.1 / 0.175)], rtol=1e-12)


@given(numbers, st.floats(0.01, 0.99))
def test_the_ratio_is_plain_without_a_relative_part_and_bounded_with_one(log_ratios, relative):
    policy = log_ratios - 40.0
    np.testing.assert_allclose(relative_log_ratio(policy, np.full(len(policy), -40.0), 0.0), log_ratios, atol=1e-12)
    bounded = relative_log_ratio(policy, np.full(len(policy), -40.0), relative)
    assert (bounded <= -math.log(relative) + 1e-12).all()
    apart = abs(log_ratios) > 1e-6
    assert (np.sign(bounded) == np.sign(log_ratios))[apart].all()  # likelier stays likelier
    assert (abs(bounded) <= 1e-6)[~apart].all()


def test_long_answers_keep_their_ratio_where_exponentials_have_none():
    """OCRM's released code exponentiates: at -100 nats it says -12.1 where the log-ratio is 2.24."""
    policy = np.array([-10.0, -100.0, -1000.0])
    plain = relative_log_ratio(policy, policy - 2.5, 0.1)
    np.testing.assert_allclose(plain, np.full(3, 1.749410), atol=1e-6)  # -log(0.1 + 0.9 exp(-2.5))
    ours, theirs = np.float32(policy[1:]), np.float32(policy[1:] - 2.5)
    with np.errstate(divide="ignore"):
        released = np.log(np.exp(ours) + np.float32(1e-36)) - np.log(
            np.float32(0.1) * np.exp(ours) + np.float32(0.9) * np.exp(theirs) + np.float32(1e-36)
        )
    assert abs(released - plain[1:]).max() > 1  # negative control


@pytest.mark.parametrize("relative", [-0.1, 1.0, float("nan")])
def test_a_relative_part_that_is_no_share_is_refused(relative):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        relative_log_ratio(np.zeros(1), np.zeros(1), relative)


def test_pair_weights_by_hand():
    chosen, rejected = np.array([1.0, -2.0]), np.array([0.5, 1.0])
    assert pair_log_weights(chosen, rejected, 0.1).tolist() == pytest.approx([0.15, -0.1])
    assert likelihood_log_weights(-chosen, rejected - 0.75).tolist() == [-1.25, 0.0]  # never above weight 1


def test_weights_have_mean_one_and_the_ratios_of_their_exponentials():
    weights = mean_one_weights(np.log([1.0, 2.0, 6.0]) + 500.0)
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3, 2.0], rtol=1e-12)
    assert mean_one_weights(np.array([0.0, -2000.0])).tolist() == [2.0, 0.0]
    assert mean_one_weights(np.array([-1e6])).tolist() == [1.0]


@given(numbers, st.floats(-1000, 1000))
def test_the_effective_size_is_that_of_kish_and_knows_no_scale(log_weights, shift):
    weights = np.exp(log_weights - log_weights.max())
    size = effective_sample_size(log_weights + shift)
    assert size == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-9)
    assert 1 - 1e-9 <= size <= len(log_weights) + 1e-9


def test_the_effective_size_at_its_ends():
    assert effective_sample_size(np.zeros(7)) == 7
    assert effective_sample_size(np.array([0.0, -1000.0])) == 1
    assert effective_sample_size(np.log([1.0, 3.0])) == pytest.approx(1.6)  # 16 / 10
    assert effective_sample_size(np.empty(0)) == 0


def test_the_implicit_margin_by_hand():
    # ½ [(-1 + 2) - (-3 + 1)]
    found = implicit_margin(np.array([-1.0]), np.array([-2.0]), np.array([-3.0]), np.array([-1.0]), 0.5)
    assert found.tolist() == [1.5]
    same = np.array([-4.0, -5.0])
    assert implicit_margin(same, same, same * 2, same * 2, 0.1).tolist() == [0.0, 0.0]  # a policy that is its reference
