"""Where everything is known: what the answers of an aligned policy say of the reward that it was aligned with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inverse_alignment.core.seeding import derive_seed, uniforms
from inverse_alignment.maths.grouping import order_agreement, within_group_correlation
from inverse_alignment.maths.variational import RewardPosterior
from inverse_alignment.models.tqr import TokenBeliefs
from inverse_alignment.reward.recover import RecoverObjective
from inverse_alignment.world.tabular import TabularPolicy, TabularProblem, make_problem, sequence_index

PROBLEM = make_problem(4)
PROMPTS, ANSWERS = PROBLEM.reward.shape


def loss(objective: RecoverObjective, rewards: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
    """Of a table of rewards, on pairs of answers that are given as places in it, (2, n)."""
    means = rewards.flatten()[pairs.flatten()].unsqueeze(-1)
    beliefs = TokenBeliefs(means, means, RewardPosterior(means, means))
    (total,) = objective(beliefs, torch.ones_like(means, dtype=torch.bool), weights)
    return total.value / total.amount


def fitted(objective: RecoverObjective, pairs: Tensor, weights: Tensor) -> Tensor:
    """The table that explains pairs best; a little decay, since what was never seen has no reward."""
    rewards = torch.zeros(PROMPTS, ANSWERS, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([rewards], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = loss(objective, rewards, pairs, weights) + 1e-6 * (rewards**2).sum()
        found.backward()
        return found

    optimiser.step(closure)
    return rewards.detach()


def every_pair(policy: TabularPolicy, problem: TabularProblem = PROBLEM) -> tuple[Tensor, Tensor]:
    """All pairs of answers to a prompt, with the probability that the policy gives one and the reference the other."""
    aligned, reference = (each.log_prob_table().detach().exp() for each in (policy, problem.reference))
    places = torch.arange(PROMPTS * ANSWERS).reshape(PROMPTS, ANSWERS)
    pairs = [torch.cartesian_prod(row, row).T for row in places]
    return torch.cat(pairs, -1), (aligned.unsqueeze(-1) * reference.unsqueeze(-2)).flatten() / PROMPTS


def sampled(policy: TabularPolicy, count: int) -> tuple[Tensor, Tensor]:
    """Pairs of independent samples."""
    prompts = torch.arange(PROMPTS).repeat(count)
    sides = []
    for name, each in (("aligned", policy), ("reference", PROBLEM.reference)):
        noise = torch.from_numpy(uniforms([derive_seed("recover", name)], len(prompts) * policy.length))
        answers = sequence_index(each.sample(prompts, noise.reshape(-1, policy.length)), policy.vocabulary)
        sides.append(prompts * ANSWERS + answers)
    return torch.stack(sides), torch.ones(len(prompts), dtype=torch.float64)


def cosine(rewards: Tensor, true: Tensor = PROBLEM.reward) -> float:
    keys = [str(prompt) for prompt in range(PROMPTS) for _ in range(ANSWERS)]
    return within_group_correlation(rewards.flatten().numpy(), true.flatten().numpy(), keys)


def test_of_all_answers_the_logistic_loss_makes_the_reward_of_which_the_policy_is_the_optimum() -> None:
    found = fitted(RecoverObjective(), *every_pair(PROBLEM.optimum()))
    assert cosine(found) > 0.9999
    centred = [table - table.mean(-1, keepdim=True) for table in (PROBLEM.beta * found, PROBLEM.reward)]
    torch.testing.assert_close(*centred, rtol=0, atol=0.02)


def test_the_more_answers_the_nearer() -> None:
    found = [cosine(fitted(RecoverObjective(), *sampled(PROBLEM.optimum(), count))) for count in (30, 300, 30_000)]
    assert found == sorted(found) and found[-1] > 0.99


def test_a_hinge_finds_an_order_and_not_the_reward() -> None:
    found = fitted(RecoverObjective("hinge"), *every_pair(PROBLEM.optimum()))
    keys = [str(prompt) for prompt in range(PROMPTS) for _ in range(ANSWERS)]
    assert order_agreement(found.flatten().numpy(), PROBLEM.reward.flatten().numpy(), keys) > 0.85
    assert 0.9 < cosine(found) < 0.99


def test_a_policy_that_was_not_aligned_has_no_reward() -> None:
    """Negative control."""
    found = fitted(RecoverObjective(), *every_pair(PROBLEM.reference))
    assert found.abs().max() < 1e-6
    assert abs(cosine(fitted(RecoverObjective(), *sampled(PROBLEM.reference, 300)))) < 0.3


def test_what_a_reward_says_of_prompts_alone_cannot_be_recovered() -> None:
    shifted = TabularProblem(PROBLEM.reference, PROBLEM.reward + torch.tensor([[3.0], [-1.0], [0.5]]), PROBLEM.beta)
    found = fitted(RecoverObjective(), *every_pair(shifted.optimum()))
    torch.testing.assert_close(found, fitted(RecoverObjective(), *every_pair(PROBLEM.optimum())), rtol=0, atol=1e-5)
    assert cosine(found, shifted.reward) > 0.9999


@pytest.mark.parametrize("kind", ["logistic", "hinge"])
def test_the_losses_are_bounded_and_the_one_of_the_released_code_is_not(kind: str) -> None:
    """That one is -d where d > 0 and -2 d elsewhere."""
    pairs, weights = torch.tensor([[0, 1], [2, 3]]), torch.ones(2, dtype=torch.float64)
    rewards = torch.zeros(PROMPTS, ANSWERS, dtype=torch.float64)
    rewards[0, :4] = torch.tensor([2.0, 3.0, 0.0, 1.0])
    gaps = rewards[0, :2] - rewards[0, 2:4]
    assert (-10 * gaps).mean() < (-gaps).mean() < 0
    assert all(loss(RecoverObjective(kind), scale * rewards, pairs, weights) >= 0 for scale in (1.0, 10.0, 1e6))
