"""Correlations with length by hand, and what their loss pulls at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inverse_alignment.maths.disentangle import head_overlap, length_loss, pearson_correlation


def test_correlation_is_numpys_and_zero_of_a_constant():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, generator=generator).double(), torch.randn(9, generator=generator).double()
    assert float(pearson_correlation(x, y)) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert float(pearson_correlation(3 * x + 1, x)) == pytest.approx(1.0)
    assert float(pearson_correlation(-x, x)) == pytest.approx(-1.0)
    assert float(pearson_correlation(1e-3 * x, 1e-3 * y)) == pytest.approx(np.corrcoef(x, y)[0, 1])  # no scale
    flat = torch.ones(9, dtype=torch.float64, requires_grad=True)
    nothing = pearson_correlation(flat, x)
    (nothing + flat.sum()).backward()
    assert float(nothing) == 0.0 and (flat.grad == 1).all()  # nothing is learned from it, and nothing is lost


def test_it_is_least_where_one_head_knows_length_and_the_other_nothing_of_it():
    tokens = torch.tensor([1.0, 2.0, 3.0, 4.0])
    blind = torch.tensor([1.0, -1.0, -1.0, 1.0])  # no correlation with length
    assert float(length_loss(blind, 2 * tokens, tokens)) == pytest.approx(-1.0)
    assert float(length_loss(tokens, blind, tokens)) == pytest.approx(1.0)
    assert float(length_loss(-tokens, blind, tokens)) == pytest.approx(1.0)  # short answers are no better a sign
    assert float(length_loss(tokens, -tokens, tokens)) == pytest.approx(2.0)


def test_overlap_of_heads():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, -2.0])
    assert float(head_overlap(a, b)) == 0.0
    assert float(head_overlap(a, -2 * a)) == pytest.approx(1.0)
    assert float(head_overlap(a, a + 1.5 * b)) == pytest.approx(0.5**0.5)
