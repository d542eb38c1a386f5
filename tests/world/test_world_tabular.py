"""The enumerable problem: its optimum, KL and gradient against definitions, perturbations and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.seeding import uniforms
from inverse_alignment.world.tabular import (
    TabularPolicy,
    TabularProblem,
    expected_reward,
    kl_divergence,
    make_problem,
    objective,
    optimum_log_probs,
    prefix_index,
    sequence_index,
    sequences,
)


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-10)


def other_policy(problem: TabularProblem, seed: int) -> TabularPolicy:
    shape = problem.reference.logits.shape
    noise = torch.from_numpy(uniforms([seed], shape.numel())).reshape(shape)
    return TabularPolicy(4 * noise - 2, problem.reference.length)


def test_sequences_and_indices_by_hand() -> None:
    assert sequences(2, 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert sequence_index(sequences(3, 4), 3).tolist() == list(range(81))
    # Prefixes over {0, 1}: () = 0; (0) = 1, (1) = 2; (0,0) = 3, (0,1) = 4, (1,0) = 5, (1,1) = 6.
    assert prefix_index(torch.tensor([[0, 1, 0], [1, 0, 1], [1, 1, 1]]), 2).tolist() == [
        [0, 1, 4],
        [0, 2, 5],
        [0, 2, 6],
    ]


def test_log_prob_by_hand() -> None:
    # One prompt, V = T = 2. P(0) = 1/4; after 0: P(0) = 1/2; after 1: P(0) = 1/5.
    rows = torch.tensor([[[1.0, 3.0], [1.0, 1.0], [1.0, 4.0]]], dtype=torch.float64).log()
    policy = TabularPolicy(rows, length=2)
    expected = torch.tensor([[1 / 8, 1 / 8, 3 / 20, 12 / 20]], dtype=torch.float64)
    assert_equal(policy.log_prob_table().exp(), expected)
    assert policy.logits.dtype == torch.float64


def test_probabilities_sum_to_one_and_round_trip() -> None:
    policy = make_problem(1).reference
    table = policy.log_prob_table()
    assert_equal(table.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    again = TabularPolicy.from_log_probs(table, policy.vocabulary, policy.length)
    assert_equal(again.log_prob_table(), table)


def test_optimum_by_hand() -> None:
    # Uniform reference over two one-token answers, rewards 0 and β log 3: odds 1 : 3, value β log 2.
    problem = TabularProblem(
        TabularPolicy(torch.zeros(1, 1, 2), 1), torch.tensor([[0.0, 0.5 * math.log(3)]], dtype=torch.float64), 0.5
    )
    assert_equal(problem.optimum().log_prob_table().exp(), torch.tensor([[0.25, 0.75]]).double())
    assert problem.value().item() == pytest.approx(0.5 * math.log(2), abs=1e-10)


@given(seed=st.integers(0, 10**6), beta=st.floats(0.05, 20))
@settings(max_examples=30, deadline=None)
def test_optimum_satisfies_its_first_order_conditions(seed: int, beta: float) -> None:
    problem = make_problem(seed, beta=beta)
    best = problem.optimum()
    # r - β log(π*/π_ref) is the same for every response: the multiplier of Σ π = 1, and here β log Z(x).
    level = problem.reward - beta * (best.log_prob_table() - problem.reference.log_prob_table())
    assert_equal(level, level[:, :1].expand_as(level))
    assert level.mean().item() == pytest.approx(problem.value().item(), abs=1e-10)
    assert problem.objective(best).item() == pytest.approx(problem.value().item(), abs=1e-10)
    assert problem.gradient(best).abs().max() < 1e-10
    assert problem.gradient(problem.reference).abs().max() > 1e-3  # control: elsewhere it does not vanish


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_shortfall_of_any_policy_is_beta_times_its_kl_from_the_optimum(seed: int) -> None:
    problem, policy = make_problem(seed), other_policy(make_problem(seed), seed + 1)
    gap = problem.value() - problem.objective(policy)
    kl = kl_divergence(policy.log_prob_table(), problem.optimum().log_prob_table()).mean()
    assert gap.item() > 0
    assert gap.item() == pytest.approx(problem.beta * kl.item(), abs=1e-10)


def test_small_perturbations_of_the_optimum_are_worse() -> None:
    problem = make_problem(3)
    best = problem.optimum()
    for seed in range(20):
        moved = TabularPolicy(best.logits + 0.05 * other_policy(problem, seed).logits, best.length)
        assert problem.objective(moved) < problem.value()


def test_kl_identities() -> None:
    problem = make_problem(5)
    p, q = other_policy(problem, 1), problem.reference
    log_p, log_q = p.log_prob_table(), q.log_prob_table()
    assert_equal(kl_divergence(log_p, log_p), torch.zeros(3, dtype=torch.float64))
    assert (kl_divergence(log_p, log_q) > 0).all()
    assert not torch.allclose(kl_divergence(log_p, log_q), kl_divergence(log_q, log_p))
    # Chain rule: KL over sequences = Σₜ E_{y<t ~ p} KL of the next token.
    every = sequences(p.vocabulary, p.length)
    for x in range(3):
        rows = prefix_index(every, p.vocabulary)
        log_a, log_b = p.logits[x, rows].log_softmax(-1), q.logits[x, rows].log_softmax(-1)
        per_token = (log_a.exp() * (log_a - log_b)).sum(-1)
        chain = (log_p[x].exp().unsqueeze(-1) * per_token).sum()
        assert chain.item() == pytest.approx(kl_divergence(log_p, log_q)[x].item(), abs=1e-10)


def test_kl_by_hand_with_an_impossible_answer() -> None:
    # KL((1, 0) || (1/4, 3/4)) = log 4; the zero contributes nothing.
    log_p = torch.tensor([[1.0, 0.0]]).log().double()
    log_q = torch.tensor([[0.25, 0.75]]).double().log()
    assert kl_divergence(log_p, log_q).item() == pytest.approx(math.log(4), abs=1e-10)
    assert expected_reward(log_q, torch.tensor([[2.0, -2.0]]).double()).item() == pytest.approx(-1.0, abs=1e-10)


def test_gradient_against_autograd_and_finite_differences() -> None:
    problem = make_problem(7, prompts=2)
    policy = other_policy(problem, 2)
    exact = problem.gradient(policy)
    problem.objective(policy).backward()
    assert policy.logits.grad is not None
    assert_equal(exact, policy.logits.grad)
    step = 1e-5
    for cell in range(0, policy.logits.numel(), 7):
        nudge = torch.zeros(policy.logits.numel(), dtype=torch.float64)
        nudge[cell] = step
        up = TabularPolicy(policy.logits + nudge.view_as(policy.logits), policy.length)
        down = TabularPolicy(policy.logits - nudge.view_as(policy.logits), policy.length)
        slope = (problem.objective(up) - problem.objective(down)) / (2 * step)
        assert exact.flatten()[cell].item() == pytest.approx(slope.item(), abs=1e-8)


def test_gradient_without_the_kl_term_is_another_one() -> None:
    problem = make_problem(7, prompts=2)
    policy = other_policy(problem, 2)
    free = TabularProblem(problem.reference, problem.reward, 1e-9).gradient(policy)
    assert (free - problem.gradient(policy)).abs().max() > 1e-2


def test_gradient_ascent_reaches_the_optimum() -> None:
    problem = make_problem(11, prompts=2, vocabulary=2, length=2, beta=1.0)
    policy = TabularPolicy(problem.reference.logits, 2)
    for _ in range(400):
        policy = TabularPolicy(policy.logits + 4.0 * problem.gradient(policy), 2)
    kl = kl_divergence(policy.log_prob_table(), problem.optimum().log_prob_table())
    assert kl.max().item() < 1e-8


def test_limits_of_beta() -> None:
    problem = make_problem(13)
    reference = problem.reference.log_prob_table()
    dear = optimum_log_probs(reference, problem.reward, 1e9)
    torch.testing.assert_close(dear.exp(), reference.exp(), rtol=0, atol=1e-8)
    cheap = optimum_log_probs(reference, problem.reward, 1e-5)
    torch.testing.assert_close(expected_reward(cheap, problem.reward), problem.reward.max(-1).values, rtol=0, atol=1e-6)
    assert cheap.argmax(-1).tolist() == problem.reward.argmax(-1).tolist()
    # In between, a lower price of KL buys more reward.
    rewards = [
        expected_reward(optimum_log_probs(reference, problem.reward, b), problem.reward).mean() for b in (4, 1, 0.25)
    ]
    assert rewards == sorted(rewards)


def test_samples_follow_the_policy() -> None:
    policy = make_problem(17, prompts=1).reference
    n = 20_000
    uniform = torch.from_numpy(uniforms([5], n * policy.length)).reshape(n, policy.length)
    tokens = policy.sample(torch.zeros(n, dtype=torch.int64), uniform)
    counts = sequence_index(tokens, policy.vocabulary).bincount(minlength=27)
    probabilities = policy.log_prob_table().detach()[0].exp()
    deviation = (counts / n - probabilities) / (probabilities * (1 - probabilities) / n).sqrt()
    assert deviation.abs().max() < 4  # standard errors, 27 cells
    assert torch.equal(tokens[:10], policy.sample(torch.zeros(10, dtype=torch.int64), uniform[:10]))


def test_the_largest_uniform_stays_inside_the_vocabulary() -> None:
    policy = make_problem(19).reference
    tokens = policy.sample(torch.arange(3), torch.full((3, 3), 1 - 2**-53, dtype=torch.float64))
    assert tokens.max().item() == 2


def test_objective_is_reward_minus_priced_kl() -> None:
    problem = make_problem(23)
    log_p, reference = other_policy(problem, 3).log_prob_table(), problem.reference.log_prob_table()
    by_loop = 0.0
    for x in range(3):
        for y in range(27):
            p = log_p[x, y].exp().item()
            by_loop += p * (problem.reward[x, y] - problem.beta * (log_p[x, y] - reference[x, y])).item() / 3
    assert objective(log_p, reference, problem.reward, problem.beta).item() == pytest.approx(by_loop, abs=1e-10)


def test_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="logits must be"):
        TabularPolicy(torch.zeros(1, 2, 2), 2)
    with pytest.raises(ValueError, match="reward must be"):
        TabularProblem(TabularPolicy(torch.zeros(1, 1, 2), 1), torch.zeros(1, 3), 1.0)
    with pytest.raises(ValueError, match="beta must be positive"):
        TabularProblem(TabularPolicy(torch.zeros(1, 1, 2), 1), torch.zeros(1, 2), 0.0)
