"""Linear Bradley-Terry rewards: known optima, another package's Laplace posterior, gradients by differentiation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.linear_reward import (
    fit_linear_reward,
    gap_variance,
    gradient_agreement,
    pair_curvature,
    spread_gradient,
)

CHOSEN = np.array([[1.0, 0.5, -1.0], [0.25, 2.0, 0.0], [-0.5, 1.0, 1.5], [2.0, -1.0, 0.5], [0.0, 0.75, -0.25]])
REJECTED = np.array([[0.0, 0.5, 1.0], [1.25, -1.0, 0.5], [0.5, 1.0, -1.5], [-2.0, 0.0, 0.25], [1.0, 0.25, 0.75]])
PAIRS, HEAD, SURE = CHOSEN - REJECTED, np.array([0.5, -0.25, 1.0]), np.ones(5)


def table(seed: int, rows: int = 60, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Pairs whose labels come from a linear reward, and that reward."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    truth, pairs = generator.normal(size=width), generator.normal(size=(rows, width))
    right = generator.random(rows) < 1 / (1 + np.exp(-pairs @ truth))
    return pairs * np.where(right, 1.0, -1.0)[:, None], truth


def test_the_fit_of_one_feature_by_hand():
    """Three of four pairs prefer +1: σ(w) = ¾ without a prior; with one, 4 (¾ - σ(w)) = λ (w - w_0)."""
    pairs = np.array([[1.0], [1.0], [1.0], [-1.0]])
    (w,) = fit_linear_reward(pairs, np.ones(4), 1e-9, np.zeros(1))
    assert w == pytest.approx(math.log(3), rel=1e-7)
    (w,) = fit_linear_reward(pairs, np.ones(4), 2.0, np.array([0.5]))
    assert 4 * (0.75 - 1 / (1 + math.exp(-w))) == pytest.approx(2 * (w - 0.5), abs=1e-9)
    (w,) = fit_linear_reward(pairs[[0, 3]], np.array([3.0, 1.0]), 1e-9, np.zeros(1))  # weights count like copies
    assert w == pytest.approx(math.log(3), rel=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 30.0]))
def test_the_fit_is_where_the_gradient_is_zero(seed, prior):
    pairs, _ = table(seed)
    weights = np.arange(len(pairs)) % 3 * 1.0
    centre = np.array([1.0, -1.0, 0.0, 2.0])
    w = torch.tensor(fit_linear_reward(pairs, weights, prior, centre), requires_grad=True)
    gaps = torch.tensor(pairs) @ w
    value = (torch.tensor(weights) * torch.nn.functional.logsigmoid(gaps)).sum()
    value = value - prior / 2 * ((w - torch.tensor(centre)) ** 2).sum()
    (slope,) = torch.autograd.grad(value, w)
    assert slope.abs().max() < 1e-5


def test_a_far_start_and_separable_pairs_are_no_obstacle():
    w = fit_linear_reward(np.array([[50.0], [80.0]]), np.ones(2), 0.01, np.array([-500.0]))
    assert np.isfinite(w).all()
    slope = sum(d / (1 + math.exp(min(w[0] * d, 700))) for d in (50.0, 80.0)) - 0.01 * (w[0] + 500)
    assert abs(slope) < 1e-4


@pytest.mark.parametrize("prior", [0.0, -1.0, float("nan")])
def test_a_fit_needs_a_prior(prior):
    with pytest.raises(ValueError, match="must be positive"):
        fit_linear_reward(PAIRS, SURE, prior, HEAD)


def test_posterior_of_laplace_torch():
    """What laplace-torch 0.3 gives: Laplace(model, "reward_modeling", "all", "full", prior_precision=0.5)."""
    precision = pair_curvature(PAIRS, PAIRS @ HEAD, SURE, 0.5)
    expected = [
        [2.104489654856, -0.727527939907, -0.237984928305],
        [-0.727527939907, 1.739629442308, -0.275445165083],
        [-0.237984928305, -0.275445165083, 1.900883842101],
    ]
    np.testing.assert_allclose(precision, expected, atol=1e-11)
    found = gap_variance(PAIRS, precision)
    np.testing.assert_allclose(
        found, [2.375271534481, 5.209878417054, 4.952270612505, 8.054184112294, 1.138697965334], atol=1e-10
    )


def test_curvature_is_the_second_derivative():
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)

    def loss(w):
        return -(weights * torch.nn.functional.logsigmoid(torch.tensor(PAIRS) @ w)).sum() + 0.35 * (w**2).sum()

    expected = torch.autograd.functional.hessian(loss, torch.tensor(HEAD)).numpy()
    np.testing.assert_allclose(pair_curvature(PAIRS, PAIRS @ HEAD, weights.numpy(), 0.7), expected, rtol=1e-10)


def test_one_weight_by_hand_and_against_the_exact_posterior():
    precision = pair_curvature(np.array([[2.0]]), np.array([0.0]), np.ones(1), 3.0)  # ½ · ½ · 4 + 3
    assert precision.tolist() == [[4.0]]
    assert gap_variance(np.array([[2.0], [4.0]]), precision).tolist() == pytest.approx([1.0, 4.0])  # grows as δ²
    pairs, _ = table(3, rows=200, width=1)
    (w,) = fit_linear_reward(pairs, np.ones(200), 1.0, np.zeros(1))
    grid = np.linspace(w - 3, w + 3, 4001)
    log_posterior = -np.logaddexp(0, -pairs @ grid[None, :]).sum(0) - grid**2 / 2
    mass = np.exp(log_posterior - log_posterior.max())
    mean = (mass * grid).sum() / mass.sum()
    variance = (mass * (grid - mean) ** 2).sum() / mass.sum()
    laplace = gap_variance(np.ones((1, 1)), pair_curvature(pairs, pairs[:, 0] * w, np.ones(200), 1.0))[0]
    assert laplace == pytest.approx(variance, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_more_pairs_never_make_less_sure_and_a_strong_prior_makes_sure(seed):
    pairs, truth = table(seed)
    gaps = pairs @ truth
    few = gap_variance(pairs, pair_curvature(pairs[:20], gaps[:20], np.ones(20), 1.0))
    many = gap_variance(pairs, pair_curvature(pairs, gaps, np.ones(60), 1.0))
    assert (many <= few + 1e-9).all() and (many < few).any()
    assert gap_variance(pairs, pair_curvature(pairs, gaps, np.ones(60), 1e9)).max() < 1e-6
    nothing = gap_variance(pairs, pair_curvature(pairs[:0], gaps[:0], np.ones(0), 2.0))
    np.testing.assert_allclose(nothing, (pairs**2).sum(1) / 2, rtol=1e-9)  # the prior's


def test_pairs_that_are_decided_teach_nothing():
    assert pair_curvature(PAIRS, np.full(5, 1000.0), SURE, 0.5).tolist() == (0.5 * np.eye(3)).tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_spread_gradient_is_the_derivative(seed, answers):
    generator = np.random.Generator(np.random.Philox(key=seed))
    features, w = generator.normal(size=(answers, 3)), torch.tensor(generator.normal(size=3), requires_grad=True)
    scores = torch.tensor(features) @ w
    spread = sum(abs(scores[i] - scores[j]) for i in range(answers) for j in range(i + 1, answers)) * 2 / answers**2
    (expected,) = torch.autograd.grad(spread, w)
    np.testing.assert_allclose(spread_gradient(features, scores.detach().numpy()), expected.numpy(), atol=1e-12)
    shifted = spread_gradient(features, scores.detach().numpy() + 7.0)  # J knows no constant
    np.testing.assert_allclose(shifted, expected.numpy(), atol=1e-12)


def test_the_spread_gradient_by_hand():
    features, scores = np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]]), np.array([2.0, -1.0, 0.0])
    # pulls 2, -2, 0; two ninths
    np.testing.assert_allclose(spread_gradient(features, scores), [4 / 9, -4 / 9], rtol=1e-12)
    assert spread_gradient(features, np.zeros(3)).tolist() == [0.0, 0.0]


def test_agreement_is_a_step_along_the_direction():
    direction = np.array([0.3, -2.0, 0.7])
    found = gradient_agreement(PAIRS, PAIRS @ HEAD, direction)
    w = torch.tensor(HEAD, requires_grad=True)
    for pair, expected in zip(PAIRS, found, strict=True):
        (slope,) = torch.autograd.grad(torch.nn.functional.logsigmoid(torch.tensor(pair) @ w), w)
        assert float(slope @ torch.tensor(direction)) == pytest.approx(expected, rel=1e-10)
    each = gradient_agreement(PAIRS, PAIRS @ HEAD, np.tile(direction, (5, 1)))
    np.testing.assert_allclose(each, found, rtol=1e-12)


# --- the sign flip ----------------------------------------------------------------------------------------------------


def gauss(x, mean):
    return -0.5 * (x - mean) ** 2 - 0.5 * math.log(2 * math.pi)


def slope(log_weights) -> float:
    """Slope of a linear reward on pairs from N(0, 1) whose labels follow f(x) = x - x²/2, under weights."""
    grid = np.linspace(-6, 6, 241)
    a, b = (side.ravel() for side in np.meshgrid(grid, grid))
    mass = np.exp(gauss(a, 0) + gauss(b, 0) + log_weights(a, b))
    preferred = 1 / (1 + np.exp(-((a - a**2 / 2) - (b - b**2 / 2))))
    return float(fit_linear_reward((a - b)[:, None], mass / mass.sum() * preferred * 1e6, 1e-6, np.zeros(1))[0])


def test_pooled_pairs_say_up_where_the_policy_needs_down_and_weights_say_so():
    """OCRM (arXiv 2507.15507): the reward that is best on all pairs points the wrong way where the policy is.

    In the limit of many pairs; 4,000 of them give 0.77 and -0.12, with standard deviations of 0.03 and 0.08.
    """
    assert slope(lambda a, b: 0 * a) == pytest.approx(0.7603, abs=2e-4)
    ratio = lambda x: gauss(x, 1.2) - gauss(x, 0)  # noqa: E731
    assert slope(lambda a, b: ratio(a) + ratio(b)) == pytest.approx(-0.1407, abs=2e-4)
    assert slope(lambda a, b: 0.01 * (ratio(a) + ratio(b))) > 0.7  # tempered as OCRM does it, hardly anything is left
