"""Generalised advantage estimation: hand numbers, limits, padding."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.advantages import generalised_advantages


def test_golden_numbers():
    # γ = 0.5, λ = 0.5. δ_2 = 4 - 3 = 1; δ_1 = 2 + .5·3 - 2 = 1.5; δ_0 = 1 + .5·2 - 1 = 1
    # A_2 = 1; A_1 = 1.5 + .25·1 = 1.75; A_0 = 1 + .25·1.75 = 1.4375
    result = generalised_advantages(
        torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool), 0.5, 0.5
    )
    torch.testing.assert_close(result.advantages, torch.tensor([[1.4375, 1.75, 1.0]]))
    torch.testing.assert_close(result.returns, torch.tensor([[2.4375, 3.75, 4.0]]))


@st.composite
def episodes(draw):
    length = draw(st.integers(1, 7))
    numbers = st.lists(st.floats(-5, 5, width=32), min_size=length, max_size=length)
    return torch.tensor([draw(numbers)]).double(), torch.tensor([draw(numbers)]).double()


@given(episodes(), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_lambda_one_is_the_discounted_return_minus_the_value(case, gamma):
    rewards, values = case
    mask = torch.ones_like(rewards, dtype=torch.bool)
    result = generalised_advantages(rewards, values, mask, gamma, 1.0)
    for t in range(rewards.shape[1]):
        future = sum(gamma**k * rewards[0, t + k] for k in range(rewards.shape[1] - t))
        torch.testing.assert_close(result.advantages[0, t], future - values[0, t])


@given(episodes(), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_lambda_zero_is_the_td_residual(case, gamma):
    rewards, values = case
    mask = torch.ones_like(rewards, dtype=torch.bool)
    result = generalised_advantages(rewards, values, mask, gamma, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros(1, 1, dtype=values.dtype)], -1)
    torch.testing.assert_close(result.advantages, rewards + gamma * following - values)


@given(episodes(), st.floats(0, 1), st.floats(0, 1), st.integers(1, 4), st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_padding_changes_nothing(case, gamma, lam, after, before):
    rewards, values = case
    mask = torch.ones_like(rewards, dtype=torch.bool)
    bare = generalised_advantages(rewards, values, mask, gamma, lam)

    def padded(tensor, fill):
        return torch.nn.functional.pad(tensor, (before, after), value=fill)

    result = generalised_advantages(padded(rewards, 9.0), padded(values, -7.0), padded(mask, False), gamma, lam)
    end = before + rewards.shape[1]
    torch.testing.assert_close(result.advantages[:, before:end], bare.advantages)
    torch.testing.assert_close(result.returns[:, before:end], bare.returns)
    assert not result.advantages[:, end:].any() and not result.returns[:, :before].any()


def test_a_mask_read_the_wrong_way_round_gives_another_answer():
    rewards, values = torch.tensor([[0.0, 1.0, 5.0]]), torch.zeros(1, 3)
    mask = torch.tensor([[True, True, False]])
    right = generalised_advantages(rewards, values, mask, 1.0, 1.0).advantages
    wrong = generalised_advantages(rewards, values, ~mask, 1.0, 1.0).advantages
    torch.testing.assert_close(right, torch.tensor([[1.0, 1.0, 0.0]]))
    assert not torch.equal(right, wrong)
