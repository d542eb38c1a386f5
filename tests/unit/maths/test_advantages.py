"""Generalised advantage estimation: hand numbers, the loop written out, limits, mixtures, padding."""

import pytest
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


def by_loop(rewards, values, gamma, lam):
    """One episode in Python numbers, from the last step to the first."""
    advantages, following, after = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        following = reward + gamma * after - value + gamma * lam * following
        after = value
        advantages.insert(0, following)
    return advantages


@given(st.lists(episodes(), min_size=1, max_size=4), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_padded_batch_is_its_episodes_one_by_one(cases, gamma, lam):
    lengths = [rewards.shape[1] for rewards, _ in cases]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    rewards, values = (torch.full(mask.shape, float("nan")).double() for _ in range(2))
    for row, (paid, said) in enumerate(cases):
        rewards[row, : lengths[row]], values[row, : lengths[row]] = paid[0], said[0]
    result = generalised_advantages(rewards, values, mask, gamma, lam)
    for row, (paid, said) in enumerate(cases):
        expected = by_loop(paid[0].tolist(), said[0].tolist(), gamma, lam)
        found = result.advantages[row].tolist()
        assert found[: lengths[row]] == pytest.approx(expected, abs=1e-10)
        assert not any(found[lengths[row] :])
        assert result.returns[row, : lengths[row]].tolist() == pytest.approx(
            [advantage + value for advantage, value in zip(expected, said[0].tolist(), strict=True)], abs=1e-10
        )


@given(episodes(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_neighbours_differ_by_the_td_residual(case, gamma, lam):
    rewards, values = case
    mask = torch.ones_like(rewards, dtype=torch.bool)
    found = generalised_advantages(rewards, values, mask, gamma, lam).advantages
    residuals = generalised_advantages(rewards, values, mask, gamma, 0.0).advantages
    after = torch.cat([found[:, 1:], torch.zeros(1, 1).double()], -1)
    torch.testing.assert_close(found - gamma * lam * after, residuals)


@given(episodes(), st.floats(0, 1), st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_it_is_the_geometric_mixture_of_n_step_returns(case, gamma, lam):
    rewards, values = case
    mask = torch.ones_like(rewards, dtype=torch.bool)
    found = generalised_advantages(rewards, values, mask, gamma, lam).returns[0, 0].item()
    length = rewards.shape[1]
    paid, said = rewards[0].tolist(), [*values[0].tolist(), 0.0]
    steps = [
        sum(gamma**k * paid[k] for k in range(n)) + gamma**n * said[n] for n in range(1, length + 1)
    ]  # look n steps ahead, then believe the critic; after the end there is nothing more to come
    mixed = sum((1 - lam) * lam ** (n - 1) * steps[n - 1] for n in range(1, length)) + lam ** (length - 1) * steps[-1]
    assert found == pytest.approx(mixed, abs=1e-9)


@given(episodes(), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_critic_that_is_right_leaves_no_advantage(case, gamma, lam):
    rewards, _ = case
    mask = torch.ones_like(rewards, dtype=torch.bool)
    right = generalised_advantages(rewards, torch.zeros_like(rewards), mask, gamma, 1.0).returns
    result = generalised_advantages(rewards, right, mask, gamma, lam)
    torch.testing.assert_close(result.advantages, torch.zeros_like(rewards))
    torch.testing.assert_close(result.returns, right)
