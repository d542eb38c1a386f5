"""What a code costs, and how far out it is: by hand, and against sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inverse_alignment.maths.bottleneck import chi_squared_tail, mahalanobis_squared, standard_normal_divergence


def test_divergence_by_hand_and_zero_of_the_prior_alone():
    zeros = torch.zeros(1, 3)
    assert float(standard_normal_divergence(zeros, zeros)) == 0.0
    mean, log_variance = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    expected = 0.5 * 4 + 0.5 * (np.e - 1 - 1)
    assert float(standard_normal_divergence(mean, log_variance)) == pytest.approx(expected)
    normal = torch.distributions.Normal
    library = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(standard_normal_divergence(mean, log_variance), library)


def test_the_mean_of_divergences_is_more_than_that_of_the_mean_code():
    """The released code of InfoRM takes the latter: codes that are far apart would cost nothing."""
    mean, log_variance = torch.tensor([[3.0], [-3.0]]), torch.zeros(2, 1)
    assert float(standard_normal_divergence(mean, log_variance).mean()) == pytest.approx(4.5)
    assert float(standard_normal_divergence(mean.mean(0, keepdim=True), log_variance[:1])) == 0.0


def test_distances_know_the_spread_in_every_direction():
    points = np.array([[3.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    assert mahalanobis_squared(points, np.zeros(2), np.diag([9.0, 1.0])).tolist() == [1.0, 9.0, 10 / 9]
    turned = np.array([[2.0, 1.0], [1.0, 2.0]])
    np.testing.assert_allclose(
        mahalanobis_squared(points, np.ones(2), turned),
        [(p - 1) @ np.linalg.inv(turned) @ (p - 1) for p in points],
        atol=1e-12,
    )


def test_tails_of_a_gaussian():
    np.testing.assert_allclose(chi_squared_tail(np.array([0.0, 2.0, 10.0]), 2), np.exp([0.0, -1.0, -5.0]))
    assert chi_squared_tail(np.array([3.841458820694124]), 1)[0] == pytest.approx(0.05)
    covariance = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    drawn = np.random.default_rng(0).multivariate_normal(np.ones(3), covariance, 20_000)
    tails = chi_squared_tail(mahalanobis_squared(drawn, np.ones(3), covariance), 3)
    assert (tails < 0.01).mean() == pytest.approx(0.01, abs=0.003) and tails.mean() == pytest.approx(0.5, abs=0.01)
    moved = chi_squared_tail(mahalanobis_squared(drawn + 6.0, np.ones(3), covariance), 3)
    assert (moved < 0.01).mean() > 0.9
