"""MMD: unbiased, its known value for two Gaussians, and a bandwidth that no repetition breaks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inverse_alignment.maths.drift import median_bandwidth, mmd_squared


def sample(count, shift=0.0, seed=0, width=1):
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def gaussian_mmd(shift, bandwidth, width=1):
    """Of N(0, 1) and N(shift, 1) in each of `width` dimensions: kernels of Gaussians are Gaussian integrals."""
    scale = bandwidth / (bandwidth + 2)
    return 2 * scale ** (width / 2) * (1 - math.exp(-width * shift**2 / (2 * (bandwidth + 2))))


@pytest.mark.parametrize(("shift", "width"), [(0.0, 1), (0.5, 1), (2.0, 1), (1.0, 3)])
def test_it_estimates_what_is_known_of_two_gaussians(shift, width):
    found = [
        mmd_squared(sample(200, 0.0, seed, width), sample(150, shift, 1000 + seed, width), 1.5) for seed in range(60)
    ]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - gaussian_mmd(shift, 1.5, width)) < 4 * error
    assert shift or min(found) < 0 < max(found)  # unbiased: below zero too where nothing differs


def test_by_hand():
    first, second = np.array([[0.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 0.0], [2.0, 2.0], [0.0, 1.0]])
    # squared distances: within 4; within 8, 1, 5; across 0, 8, 1, 4, 4, 1; bandwidth 2 divides by 4
    across = 1 + math.exp(-2) + 2 * math.exp(-0.25) + 2 * math.exp(-1)
    expected = math.exp(-1) + (math.exp(-2) + math.exp(-0.25) + math.exp(-1.25)) / 3 - across / 3
    assert mmd_squared(first, second, 2.0) == pytest.approx(expected, abs=1e-12)
    assert mmd_squared(second, first, 2.0) == pytest.approx(expected, abs=1e-12)


def test_only_distances_count():
    first, second = sample(40, 0.0, 1, 3), sample(50, 0.7, 2, 3)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    found = mmd_squared(first, second, 1.0)
    assert mmd_squared(first @ turn + 5, second @ turn + 5, 1.0) == pytest.approx(found, abs=1e-10)


def test_distances_of_single_precision_are_taken_in_double():
    # far from the origin, squares of single precision would drown the distances
    first, second = ((sample(30, 50.0, seed, 3)).astype(np.float32) for seed in (1, 2))
    doubles = first.astype(np.float64), second.astype(np.float64)
    expected = mmd_squared(*doubles, 1.0)
    for mixed in ((first, second), (first, doubles[1]), (doubles[0], second)):
        assert mmd_squared(*mixed, 1.0) == pytest.approx(expected, abs=1e-12)
    assert median_bandwidth(first) == median_bandwidth(doubles[0])


def test_a_mean_apart_counts_and_so_does_a_spread_apart():
    plain, wide = sample(300, 0.0, 0), 3 * sample(300, 0.0, 1)
    assert mmd_squared(plain, wide, 1.0) > 0.1
    assert mmd_squared(plain, sample(300, 2.0, 2), 1.0) > 0.1


def test_a_single_point_is_no_sample():
    for sizes in ((1, 3), (3, 1)):
        with pytest.raises(ValueError, match=f"got {sizes[0]} and {sizes[1]}"):
            mmd_squared(*(np.zeros((size, 2)) for size in sizes), 1.0)
    assert mmd_squared(np.zeros((2, 2)), np.zeros((2, 2)), 1.0) == pytest.approx(0.0)


def test_the_bandwidth_is_half_the_median_of_squared_distances_of_points_that_differ():
    assert median_bandwidth(np.array([[0.0], [1.0], [3.0]])) == 2.0  # 1, 9, 4
    repeated = np.array([[0.0]] * 50 + [[2.0]])  # all but fifty pairs are equal
    assert median_bandwidth(repeated) == 2.0
    assert median_bandwidth(np.zeros((4, 2))) == 1.0 == median_bandwidth(np.zeros((1, 2)))
    points = sample(60, 0.0, 5, 2)
    assert median_bandwidth(3 * points) == pytest.approx(9 * median_bandwidth(points))


def test_nearly_equal_points_are_never_at_a_negative_distance():
    points = np.full((3, 5), 1e4) + 1e-6 * np.arange(15).reshape(3, 5)
    assert median_bandwidth(points) > 0
    assert mmd_squared(points, points, 1e-12) <= 1.0  # a kernel is at most 1
