"""Masked statistics: meaning, not implementation."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.masked import masked, masked_mean, masked_sum, masked_var, masked_whiten

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@st.composite
def masked_values(draw):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    numbers = st.floats(-10, 10, width=32)
    values = torch.tensor(
        draw(st.lists(st.lists(numbers, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    )
    bits = draw(st.lists(st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    mask = torch.tensor(bits)
    mask[0, :2] = True
    return values.double(), mask


@given(masked_values())
@settings(max_examples=60, deadline=None)
def test_what_is_masked_out_never_matters(case):
    values, mask = case
    poisoned = torch.where(mask, values, torch.full_like(values, float("nan")))
    for function in (masked_sum, masked_mean, masked_var):
        torch.testing.assert_close(function(poisoned, mask), function(values, mask))
    torch.testing.assert_close(masked_whiten(poisoned, mask), masked_whiten(values, mask))


@given(masked_values())
@settings(max_examples=60, deadline=None)
def test_statistics_are_those_of_the_kept_values(case):
    values, mask = case
    kept = values[mask]
    torch.testing.assert_close(masked_sum(values, mask), kept.sum())
    torch.testing.assert_close(masked_mean(values, mask), kept.mean())
    torch.testing.assert_close(masked_var(values, mask), kept.var(correction=0))


def test_whitened_values_have_mean_zero_and_variance_one_where_they_count():
    values = torch.tensor([[3.0, 5.0, 100.0], [7.0, 9.0, -100.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    whitened = masked_whiten(values, mask)
    # kept 3 5 7 9: mean 6, population variance 5
    expected = torch.tensor([[-3.0, -1.0, 0.0], [1.0, 3.0, 0.0]]) / 5**0.5
    torch.testing.assert_close(whitened, expected, **TOLERANCE)


def test_an_inverted_mask_is_noticed():
    values, mask = torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[True, True, False]])
    assert masked_mean(values, mask) != masked_mean(values, ~mask)
    assert masked_mean(values, mask) == 1.5


def test_one_mask_may_serve_every_row():
    values, mask = torch.tensor([[1.0, 2.0, 9.0], [5.0, 4.0, 7.0]]), torch.tensor([True, True, False])
    assert masked_mean(values, mask) == 3.0
    torch.testing.assert_close(masked_mean(values, mask, -1), torch.tensor([1.5, 4.5]))
    assert masked_var(values, mask) == 2.5  # 1 2 5 4 about 3
    torch.testing.assert_close(masked_mean(values, torch.tensor([[True], [False]]), -1)[0], torch.tensor(4.0))
    half = values.to(torch.bfloat16)
    assert masked(half, mask).dtype == masked_mean(half, mask).dtype == torch.bfloat16
    assert masked(values.long(), mask).tolist() == [[1, 2, 0], [5, 4, 0]]


def test_a_row_mean_divides_by_what_counts_in_the_row():
    values = torch.tensor([[2.0, 4.0, 9.0], [6.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.testing.assert_close(masked_mean(values, mask, -1), torch.tensor([3.0, 6.0]))
