"""MetaRM's difference loss: by hand, without offset, growing with the scale, and where its gradient points."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.spread import score_spread


def table(seed, prompts=3, answers=4):
    return torch.randn(prompts, answers, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_answers_have_half_their_gap():
    assert score_spread(torch.tensor([[1.0, 4.0]])).item() == 1.5  # 2/4 · 3
    assert score_spread(torch.tensor([[4.0, 1.0], [0.0, 0.0]])).item() == 0.75


@given(st.integers(0, 10**6), st.floats(0.1, 5), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_it_knows_no_offset_of_a_prompt_and_grows_with_the_scale(seed, scale, offset):
    scores = table(seed)
    shifted = scale * scores + offset * torch.arange(3.0, dtype=torch.float64).unsqueeze(-1)
    torch.testing.assert_close(score_spread(shifted), scale * score_spread(scores))


def test_its_gradient_pulls_the_best_up_and_the_worst_down():
    scores = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    score_spread(scores).backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-2.0, 0.0, 2.0]], dtype=torch.float64) * 2 / 9)
    equal = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    score_spread(equal).backward()
    assert not equal.grad.any()  # nothing says which way


@pytest.mark.parametrize("shape", [(2, 1), (0, 3), (3,)])
def test_without_two_answers_there_is_no_spread(shape):
    with pytest.raises(ValueError, match="two answers or more"):
        score_spread(torch.zeros(shape))
