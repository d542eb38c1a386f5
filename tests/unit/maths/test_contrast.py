"""Maximum-likelihood inverse RL on a bandit: the fixed point of the contrast loss, and where it does not move."""

from __future__ import annotations

import pytest
import torch

from inverse_alignment.maths.pairwise import bradley_terry_loss, contrast_loss
from inverse_alignment.world.tabular import optimum_log_probs

BETA, PENALTY = 0.5, 0.2
DEMO = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64).log()


def pairs(demo, policy):
    """Every (demonstration, answer of the policy) with its probability."""
    chosen, rejected = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    return chosen.reshape(-1), rejected.reshape(-1), torch.outer(demo, policy).reshape(-1)


def gradient(reward, demo, policy, loss=contrast_loss):
    reward = reward.detach().requires_grad_()
    chosen, rejected, weights = pairs(demo, policy)
    loss(reward[chosen], reward[rejected], weights).backward()
    return reward.grad


def logistic(chosen, rejected, weights):
    return bradley_terry_loss(chosen, rejected, weights, torch.zeros_like(chosen), torch.ones_like(chosen))


def test_the_gradient_is_the_policy_less_the_demonstrations():
    reward = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    policy = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    torch.testing.assert_close(gradient(reward, DEMO, policy), policy - DEMO)


def fitted(loss):
    """Rounds of: the best policy for the reward, a step on the pairs of demonstrations and its answers."""
    reward = torch.zeros(3, dtype=torch.float64)
    for _ in range(2000):
        policy = optimum_log_probs(UNIFORM, reward, BETA).exp()
        reward = reward - 0.1 * (gradient(reward, DEMO, policy, loss) / BETA + PENALTY * reward)
    return reward, optimum_log_probs(UNIFORM, reward, BETA).exp()


def test_rounds_end_where_demonstrations_less_policy_are_the_penalised_reward():
    reward, policy = fitted(contrast_loss)
    torch.testing.assert_close((DEMO - policy) / BETA, PENALTY * reward, rtol=1e-8, atol=1e-8)
    expected = torch.tensor([0.90266, 0.04867, 0.04867], dtype=torch.float64)
    torch.testing.assert_close(policy, expected, rtol=0, atol=1e-5)


def test_the_logistic_loss_of_the_same_pairs_ends_elsewhere_and_on_the_same_side():
    _, policy = fitted(logistic)
    assert policy.argmax() == 0 and 1 / 3 < policy[0] < 0.9 and policy[1] == pytest.approx(float(policy[2]))


@pytest.mark.parametrize("loss", [contrast_loss, logistic])
def test_a_policy_that_demonstrates_learns_nothing_from_itself(loss):
    policy = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    flat = torch.full((3,), 0.7, dtype=torch.float64)
    torch.testing.assert_close(gradient(flat, policy, policy, loss), torch.zeros(3, dtype=torch.float64))
    assert gradient(flat, DEMO, policy, loss).abs().max() > 0.1


def test_it_falls_for_ever_along_a_direction_that_tells_the_two_apart():
    chosen, rejected, weights = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.5]), torch.tensor([1.0, 3.0])
    one, hundred = (float(contrast_loss(scale * chosen, scale * rejected, weights)) for scale in (1.0, 100.0))
    assert one == -1.375 and hundred == pytest.approx(100 * one)  # -(1 + 3 · 1.5) / 4
