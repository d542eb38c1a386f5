"""Bootstrap intervals: distributions of means that are known, the seed, the defaults."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.bootstrap import mean_interval

WAVE = torch.sin(torch.arange(30.0))


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.4, 0.5, 0.5), (0.6, 0.0, 1.0), (0.95, 0.0, 1.0)])
def test_means_of_two_draws_from_two_values(confidence, low, high):
    # the means are 0, ½ and 1 with probability ¼, ½ and ¼
    assert mean_interval(torch.tensor([0.0, 1.0]), 0, confidence) == (0.5, low, high)


def test_means_of_three_draws_from_three_values():
    # the means are 0, 1, 2 and 3 with probability 8, 12, 6 and 1 of 27
    assert mean_interval(torch.tensor([0.0, 0.0, 3.0]), 0, 0.3) == (1.0, 1.0, 1.0)
    assert mean_interval(torch.tensor([0.0, 0.0, 3.0]), 0, 0.9)[1:] == (0.0, 2.0)


def test_the_seed_decides_and_nothing_else():
    torch.manual_seed(1)
    first = mean_interval(WAVE, 3)
    torch.manual_seed(2)
    assert mean_interval(WAVE, 3) == first
    assert mean_interval(WAVE, 4)[1:] != first[1:]


def test_the_defaults():
    assert mean_interval(WAVE, 3) == mean_interval(WAVE, 3, 0.95, 2000)
    assert mean_interval(WAVE, 3) != mean_interval(WAVE, 3, 0.95, 1000)


def test_a_mean_is_taken_in_double_precision():
    assert mean_interval(torch.tensor([2.0**24, 1.0, 1.0]), 0).mean == (2**24 + 2) / 3


def test_no_values_have_no_mean():
    with pytest.raises(ValueError, match="no values"):
        mean_interval(torch.zeros(0), 0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(-5, 5), st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_it_moves_and_stretches_with_its_values(numbers, shift, scale):
    values = torch.tensor(numbers, dtype=torch.float64)
    plain, moved = mean_interval(values, 0, 0.8, 50), mean_interval(values * scale + shift, 0, 0.8, 50)
    assert list(moved) == pytest.approx([number * scale + shift for number in plain], abs=1e-9)
    assert min(numbers) - 1e-9 <= plain.low <= plain.high <= max(numbers) + 1e-9
    turned = mean_interval(-values, 0, 0.8, 50)
    assert list(turned) == pytest.approx([-plain.mean, -plain.high, -plain.low], abs=1e-9)
