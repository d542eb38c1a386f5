"""AVRIL where Q and reward are known: what a Boltzmann demonstrator's actions say of both, and what shuffled ones do.

The reward is of the state, as in AVRIL's released code by default, and the next state is certain, as it is of tokens.
Q is the one that AVRIL holds a demonstrator to have, `Q(s, a) = R(s) + γ E[Q(s', a')]` with a' from its own policy
`softmax(β Q)`. Everything is a table, so that only the objective limits what is found.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.maths.variational import (
    RewardPosterior,
    boltzmann_log_policy,
    correlation,
    demonstration_evidence,
)

STATES, ACTIONS, GAMMA = 12, 3, 0.7
WORLDS = range(3)


class World(NamedTuple):
    """A deterministic decision process and its demonstrator.

    Attributes:
        following: the next state of each action, int64 (s, a).
        reward: (s,), of standard deviation 1 / β.
        values: Q of the demonstrator, (s, a).
        beta: β.
    """

    following: Tensor
    reward: Tensor
    values: Tensor
    beta: float

    @property
    def policy(self) -> Tensor:
        """B(a | s; Q), (s, a)."""
        return (self.beta * self.values).softmax(-1)


class Found(NamedTuple):
    """What AVRIL made of demonstrations: Q (s, a) and the mean of the reward (s,)."""

    values: Tensor
    reward: Tensor


class Outcome(NamedTuple):
    """How good that is.

    Attributes:
        away: mean distance in variation from the demonstrator's policy.
        uniform: that of a policy that knows nothing.
        reward, values: correlations with the true ones.
    """

    away: float
    uniform: float
    reward: float
    values: float


def make_world(seed: int, beta: float) -> World:
    generator = torch.Generator().manual_seed(derive_seed("avril", "world", seed))
    following = torch.rand(STATES, STATES, generator=generator).argsort(-1)[:, :ACTIONS]
    reward = torch.randn(STATES, generator=generator, dtype=torch.float64) / beta
    values = torch.zeros(STATES, ACTIONS, dtype=torch.float64)
    for _ in range(200):
        expected = ((beta * values).softmax(-1) * values).sum(-1)
        values = reward.unsqueeze(-1) + GAMMA * expected[following]
    return World(following, reward, values, beta)


def demonstrations(world: World, seed: int) -> tuple[Tensor, Tensor]:
    """States and actions of 2000 ways of 4 steps from anywhere, int64 (2000, 4) each."""
    generator = torch.Generator().manual_seed(derive_seed("avril", "demonstrations", seed))
    state = torch.randint(STATES, (2000,), generator=generator)
    ways = []
    for _ in range(4):
        action = torch.multinomial(world.policy[state], 1, generator=generator).squeeze(-1)
        ways.append((state, action))
        state = world.following[state, action]
    states, actions = zip(*ways, strict=True)
    return torch.stack(states, -1), torch.stack(actions, -1)


def avril(states: Tensor, actions: Tensor, beta: float) -> Found:
    """Tables of Q, and of mean and log σ of the reward, that make the demonstrations evident; λ = 1, as in its code.

    Equal transitions are one row with a weight. The tables hold β Q, β μ and log β σ, all zero at first.
    """
    moves = torch.stack([states[:, :-1], actions[:, :-1], states[:, 1:], actions[:, 1:]], -1).flatten(0, 1)
    moves, times = moves.unique(dim=0, return_counts=True)
    s, a = moves[:, [0, 2]], moves[:, [1, 3]]
    values, mean, log_std = (
        torch.zeros(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((STATES, ACTIONS), (STATES,), (STATES,))
    )
    optimiser = torch.optim.Adam([values, mean, log_std], lr=0.1)
    shift = torch.tensor(beta).log()
    for _ in range(200):
        log_policy = boltzmann_log_policy(values / beta, beta)[s, a]
        posterior = RewardPosterior(mean[s] / beta, log_std[s] - shift)
        evidence = demonstration_evidence(
            log_policy, values[s, a] / beta, posterior, torch.ones_like(s, dtype=torch.bool), 1.0, GAMMA, 1.0
        )
        optimiser.zero_grad()
        (-(times * evidence.total).sum() / times.sum()).backward()
        optimiser.step()
    return Found(values.detach() / beta, mean.detach() / beta)


def outcome(world: World, states: Tensor, found: Found) -> Outcome:
    """Compared where the demonstrator goes, as often as it goes there."""
    visits = states.flatten().bincount(minlength=STATES) / states.numel()

    def away(policy: Tensor) -> float:
        return (visits * (policy - world.policy).abs().sum(-1)).sum().item() / 2

    return Outcome(
        away((world.beta * found.values).softmax(-1)),
        away(torch.full_like(world.policy, 1 / ACTIONS)),
        correlation(found.reward, world.reward).item(),
        correlation(found.values.flatten(), world.values.flatten()).item(),
    )


def shuffled(actions: Tensor, seed: int) -> Tensor:
    """The same actions, each at another place."""
    generator = torch.Generator().manual_seed(derive_seed("avril", "shuffle", seed))
    return actions.flatten()[torch.randperm(actions.numel(), generator=generator)].view_as(actions)


def mean_of(outcomes: list[Outcome]) -> Outcome:
    return Outcome(*torch.tensor(outcomes).mean(0).tolist())


@pytest.fixture(scope="module")
def outcomes() -> tuple[list[Outcome], list[Outcome]]:
    """Per world, of the demonstrations and of the same with shuffled actions."""
    told, control = [], []
    for seed in WORLDS:
        world = make_world(seed, 20.0)
        states, actions = demonstrations(world, seed)
        told.append(outcome(world, states, avril(states, actions, world.beta)))
        control.append(outcome(world, states, avril(states, shuffled(actions, seed), world.beta)))
    return told, control


def test_q_is_what_the_demonstrator_holds_to_be_true() -> None:
    world = make_world(0, 20.0)
    expected = (world.policy * world.values).sum(-1)[world.following]
    torch.testing.assert_close(world.values - GAMMA * expected, world.reward.unsqueeze(-1).expand(-1, ACTIONS))


def test_policy_reward_and_values_of_the_demonstrator_are_found(outcomes: tuple[list[Outcome], list[Outcome]]) -> None:
    for told in outcomes[0]:
        assert told.away < 0.25 * told.uniform
        assert told.reward > 0.8
        assert told.values > 0.9
    assert mean_of(outcomes[0]).reward > 0.9


def test_shuffled_actions_say_nothing(outcomes: tuple[list[Outcome], list[Outcome]]) -> None:
    control = mean_of(outcomes[1])
    assert control.away > 0.9 * control.uniform
    assert abs(control.reward) < 0.5 and abs(control.values) < 0.5
    assert all(control.reward < told.reward - 0.2 for control, told in zip(outcomes[1], outcomes[0], strict=True))


def test_in_large_units_of_reward_the_same_demonstrations_leave_a_policy_that_is_too_flat() -> None:
    """The prior has the variance 1, and what residuals vary costs as much as it is: so the unit of Q matters.

    The demonstrators are the same, actions and all; only rewards are twenty times as large and β as small.
    """
    small, large = make_world(0, 20.0), make_world(0, 1.0)
    torch.testing.assert_close(small.policy, large.policy)
    states, actions = demonstrations(large, 0)
    found = outcome(large, states, avril(states, actions, large.beta))
    assert found.away > 0.5 * found.uniform
    assert found.away > 4 * outcome(small, states, avril(states, actions, small.beta)).away
