"""KL estimators against the exact KL, summed over all symbols; entropy; the bounds of the adaptive controller."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.kl import exact_kl, k1, k2, k3, next_kl_coefficient
from inverse_alignment.maths.surrogate import token_entropy


@st.composite
def pairs(draw):
    """Logits of two categorical distributions over 2 to 9 symbols."""
    size = draw(st.integers(2, 9))
    numbers = st.lists(st.floats(-8, 8), min_size=size, max_size=size)
    return torch.tensor(draw(numbers)).double(), torch.tensor(draw(numbers)).double()


def expectation(logits, values):
    """E over the distribution that the logits stand for, summed over all symbols."""
    return float((logits.softmax(-1) * values).sum())


@given(pairs())
@settings(max_examples=60, deadline=None)
def test_k1_and_k3_have_the_exact_kl_as_their_mean(pair):
    logits, other = pair
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    exact = exact_kl(logits, other).item()
    assert expectation(logits, k1(log_p, log_q)) == pytest.approx(exact, abs=1e-10)
    assert expectation(logits, k3(log_p, log_q)) == pytest.approx(exact, abs=1e-10)


@given(pairs())
@settings(max_examples=60, deadline=None)
def test_signs_and_zeros(pair):
    log_p, log_q = (logits.log_softmax(-1) for logits in pair)
    d = k1(log_p, log_q)
    assert (k3(log_p, log_q) >= 0).all() and (k2(log_p, log_q) >= 0).all()
    torch.testing.assert_close(k1(log_q, log_p), -d)
    torch.testing.assert_close(k2(log_q, log_p), k2(log_p, log_q))
    assert (k3(log_p, log_q)[d.abs() > 1e-3] > 0).all()
    assert not k3(log_p, log_p).any() and not k2(log_p, log_p).any() and not k1(log_p, log_p).any()


@given(pairs(), st.floats(-30, 30))
@settings(max_examples=60, deadline=None)
def test_exact_kl_is_zero_for_equal_distributions_and_positive_otherwise(pair, shift):
    logits, other = pair
    distance = (logits.softmax(-1) - other.softmax(-1)).abs().sum().item()
    assert exact_kl(logits, other).item() >= distance**2 / 2 - 1e-12  # Pinsker's inequality
    assert exact_kl(logits, logits + shift).item() == pytest.approx(0.0, abs=1e-12)  # the same distribution
    torch.testing.assert_close(exact_kl(logits + shift, other), exact_kl(logits, other), rtol=1e-9, atol=1e-12)


@given(pairs(), st.sampled_from([1e-2, 1e-3]))
@settings(max_examples=40, deadline=None)
def test_k2_is_the_kl_to_leading_order(pair, size):
    logits, direction = pair
    near = logits + size * direction
    log_p, log_q = logits.log_softmax(-1), near.log_softmax(-1)
    exact, estimate = exact_kl(logits, near).item(), expectation(logits, k2(log_p, log_q))
    largest = (log_p - log_q).abs().max().item()
    assert abs(estimate - exact) <= largest**3 / 5 + 1e-14  # both are d²/2, and the next term is d³/6
    assert ((k2(log_p, log_q) - k3(log_p, log_q)).abs() <= largest**3 / 5 + 1e-14).all()


def test_far_away_k2_is_biased_and_so_is_every_estimate_from_samples_of_the_other_distribution():
    logits, other = torch.tensor([0.0, 3.0]).double(), torch.tensor([3.0, 0.0]).double()
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    assert exact_kl(logits, other).item() == pytest.approx(2.715445, abs=1e-6)  # 3 (e³ - 1) / (e³ + 1)
    assert expectation(logits, k2(log_p, log_q)) == pytest.approx(4.5)  # |d| = 3 for both symbols
    assert expectation(other, k1(log_p, log_q)) == pytest.approx(-2.715445, abs=1e-6)
    assert expectation(other, k3(log_p, log_q)) > 10


@given(pairs())
@settings(max_examples=40, deadline=None)
def test_entropy_lies_between_none_and_that_of_the_uniform_distribution(pair):
    logits, other = pair
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    entropy, most = token_entropy(logits).item(), torch.tensor(len(logits)).double().log().item()
    assert -1e-12 <= entropy <= most + 1e-12
    # H(p) + KL(p || q) is the cross entropy; with q uniform, log v
    assert entropy + exact_kl(logits, other).item() == pytest.approx(-expectation(logits, log_q), abs=1e-10)
    assert entropy + exact_kl(logits, torch.zeros_like(logits)).item() == pytest.approx(most, abs=1e-10)
    assert entropy == pytest.approx(-expectation(logits, log_p), abs=1e-10)


def test_kl_and_entropy_are_taken_over_the_last_dimension():
    logits = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]]).double()
    other = logits.flip(1)
    assert exact_kl(logits, other).shape == token_entropy(logits).shape == (1, 2)
    for t in range(2):
        assert exact_kl(logits, other)[0, t].item() == exact_kl(logits[0, t], other[0, t]).item()
        assert token_entropy(logits)[0, t].item() == token_entropy(logits[0, t]).item()


positive = st.floats(1e-3, 1e3)


@given(positive, st.floats(-10, 1e4), positive, st.integers(0, 100), st.integers(100, 10_000))
@settings(max_examples=100, deadline=None)
def test_the_controller_moves_at_most_a_fifth_of_its_horizon_and_the_right_way(coefficient, kl, target, rows, horizon):
    changed = next_kl_coefficient(coefficient, kl, target, horizon, rows)
    largest = 0.2 * rows / horizon
    assert coefficient * (1 - largest) * (1 - 1e-12) <= changed <= coefficient * (1 + largest) * (1 + 1e-12)
    assert (changed - coefficient) * (kl - target) >= 0
    if kl >= 1.2 * target or kl <= 0.8 * target:  # it is clipped from there on
        sign = 1 if kl > target else -1
        assert changed == pytest.approx(coefficient * (1 + sign * largest), rel=1e-12)
    assert next_kl_coefficient(coefficient, target, target, horizon, rows) == coefficient
