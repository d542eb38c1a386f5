"""AVRIL and AVA: numbers by hand, distributions of torch, optima by descent, and what the sums degenerate into."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from inverse_alignment.maths.variational import (
    Evidence,
    RewardPosterior,
    attention_received,
    boltzmann_log_policy,
    contrastive_return,
    correlation,
    demonstration_evidence,
    last_reward,
    log_contrastive_return,
    optimal_mean,
    preference_evidence,
    prior_divergence,
    residual_log_likelihood,
    return_correlations,
    stationary_variance,
    td_residuals,
    transitions,
    unlikelihood,
    weighted_posterior,
)

NUMBERS = st.floats(-3, 3)
MASK = torch.tensor([True, True, True, False])
NAN = float("nan")


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_divergence_from_the_prior_is_zero_at_the_prior_alone() -> None:
    assert prior_divergence(t(0.0), t(0.0)).item() == 0.0
    assert prior_divergence(t(1.0), t(0.0)).item() == pytest.approx(0.5)
    assert prior_divergence(t(0.0), t(math.log(2))).item() == pytest.approx(1.5 - math.log(2))


@given(NUMBERS, NUMBERS, NUMBERS)
@settings(max_examples=50, deadline=None)
def test_divergence_and_density_are_those_of_torch(mean: float, log_std: float, residual: float) -> None:
    normal = Normal(t(mean), t(log_std).exp())
    divergence = prior_divergence(t(mean), t(log_std))
    torch.testing.assert_close(divergence, kl_divergence(normal, Normal(t(0.0), t(1.0))))
    assert divergence.item() > 0 or max(abs(mean), abs(log_std)) < 1e-7
    found = residual_log_likelihood(t(residual), t(mean), t(log_std))
    torch.testing.assert_close(found, normal.log_prob(t(residual)))


def test_a_choice_counts_if_another_one_follows() -> None:
    mask = torch.tensor([[[False, True, True, False]], [[True, True, True, True]], [[True, False, False, False]]])
    expected = [[[False, True, False, False]], [[True, True, True, False]], [[False, False, False, False]]]
    assert transitions(mask).tolist() == expected


def test_residuals_by_hand() -> None:
    mask = torch.stack([MASK, ~torch.tensor([True, False, False, False])])
    values = torch.stack([t(1.0, 4.0, 2.0, NAN), t(NAN, 1.0, 4.0, 2.0)])
    expected = torch.stack([t(-1.0, 3.0, 0.0, 0.0), t(0.0, -1.0, 3.0, 0.0)])
    torch.testing.assert_close(td_residuals(values.unsqueeze(1), mask.unsqueeze(1), 0.5), expected.unsqueeze(1))


@given(st.lists(NUMBERS, min_size=2, max_size=8), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_residuals_add_up_to_two_ends_and_what_gamma_leaves_of_the_middle(values: list[float], gamma: float) -> None:
    q = t(*values)
    mask = torch.ones_like(q, dtype=torch.bool)
    assert td_residuals(q, mask, 1.0).sum().item() == pytest.approx(values[0] - values[-1])
    left = values[0] + (1 - gamma) * sum(values[1:-1]) - gamma * values[-1]
    assert td_residuals(q, mask, gamma).sum().item() == pytest.approx(left)


def test_a_policy_of_boltzmann_is_not_its_log_policy_times_beta() -> None:
    q = t(0.0, math.log(3))
    torch.testing.assert_close(boltzmann_log_policy(q, 1.0).exp(), t(0.25, 0.75))
    torch.testing.assert_close(boltzmann_log_policy(q, 2.0).exp(), t(0.1, 0.9))
    log_policy = boltzmann_log_policy(q, 1.0)
    torch.testing.assert_close(boltzmann_log_policy(log_policy, 2.0).exp(), t(0.1, 0.9))  # a policy as Q
    assert (2 * log_policy).exp().sum().item() == pytest.approx(0.0625 + 0.5625)  # what AVA prints: no distribution
    rows = torch.stack([torch.stack([q, q.flip(0)])])
    torch.testing.assert_close(boltzmann_log_policy(rows, 1.0).exp().sum(-1), torch.ones(1, 2).double())


def of_one(mean: Tensor, log_std: Tensor, residual: float, consistency: float) -> Tensor:
    """The evidence of one choice with a residual: Q is that and then zero, γ = 1."""
    posterior = RewardPosterior(torch.stack([mean, t(9.0)[0]]), torch.stack([log_std, t(9.0)[0]]))
    mask = torch.tensor([True, True])
    return demonstration_evidence(t(0.0, 0.0), t(residual, 0.0), posterior, mask, 1.0, 1.0, consistency).total


def test_evidence_by_hand() -> None:
    # δ = (1 - ½ · 4, 4 - ½ · 2) = (-1, 3); μ = (0, 1), σ = (1, 2)
    posterior = RewardPosterior(t(0.0, 1.0, 7.0, NAN), t(0.0, math.log(2), 7.0, NAN))
    found = demonstration_evidence(t(-1.0, -3.0, -5.0, NAN), t(1.0, 4.0, 2.0, NAN), posterior, MASK, 0.5, 0.5, 3.0)
    half = math.log(2 * math.pi) / 2
    assert found.log_policy.item() == pytest.approx(0.5 * (-1 - 3))
    assert found.divergence.item() == pytest.approx(0 + (4 + 1 - 1) / 2 - math.log(2))
    assert found.consistency.item() == pytest.approx(3 * (-0.5 - half - 0.5 - math.log(2) - half))
    assert found.total.item() == pytest.approx(-2 - (2 - math.log(2)) + 3 * (-1 - math.log(2) - 2 * half))


def test_evidence_is_of_every_answer() -> None:
    rows = torch.arange(8, dtype=torch.float64).reshape(2, 1, 4) / 4
    mask = torch.stack([MASK, torch.tensor([True, True, True, True])]).unsqueeze(1)
    found = demonstration_evidence(-rows, rows, RewardPosterior(rows, -rows), mask, 0.5, 0.9, 0.5)
    for row in range(2):
        n = 3 + row
        one = rows[row, :, :n]
        alone = demonstration_evidence(-one, one, RewardPosterior(one, -one), mask[row, :, :n], 0.5, 0.9, 0.5)
        for whole, part in zip(found, alone, strict=True):
            assert whole.shape == (2, 1)
            torch.testing.assert_close(whole[row], part)


def code_of_avril(q: Tensor, actions: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """The loss of AVRIL's released code for one trajectory: Q values (t, a), all terms means with the weight one."""
    taken = q.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    mismatch = -Normal(mean[:-1], log_std[:-1].exp()).log_prob(taken[:-1] - taken[1:]).mean()
    variance = log_std[:-1].exp() ** 2
    divergence = (0.5 * (-variance.log() - 1.0 + variance + mean[:-1] ** 2)).mean()
    return -torch.distributions.Categorical(logits=q[:-1]).log_prob(actions[:-1]).mean() + divergence + mismatch


@given(st.integers(0, 10**6), st.integers(2, 6))
@settings(max_examples=25, deadline=None)
def test_with_gamma_beta_and_lambda_one_it_is_the_loss_of_avrils_code(seed: int, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, mean, log_std = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((length, 3), (length,), (length,))
    )
    actions = torch.randint(3, (length,), generator=generator)
    taken = actions.unsqueeze(-1)
    log_policy = boltzmann_log_policy(q, 1.0).gather(-1, taken).squeeze(-1)
    counts = torch.ones(length, dtype=torch.bool)
    posterior = RewardPosterior(mean, log_std)
    found = demonstration_evidence(log_policy, q.gather(-1, taken).squeeze(-1), posterior, counts, 1.0, 1.0, 1.0)
    ours, theirs = -found.total / (length - 1), code_of_avril(q, actions, mean, log_std)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, (q, mean, log_std)), torch.autograd.grad(theirs, (q, mean, log_std)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("consistency", "residual", "std"), [(1.0, 2.0, 0.5), (0.3, -1.5, 1.7), (4.0, 0.7, 1.0)])
def test_descent_on_the_mean_ends_where_the_closed_form_says(consistency: float, residual: float, std: float) -> None:
    mean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    step = 0.5 / (1 + consistency / std**2)
    for _ in range(80):
        (slope,) = torch.autograd.grad(of_one(mean, t(math.log(std))[0], residual, consistency), mean)
        mean = (mean + step * slope).detach().requires_grad_()
    torch.testing.assert_close(mean.detach(), optimal_mean(t(residual), t(std), consistency)[0])


def test_the_optimal_mean_by_hand() -> None:
    torch.testing.assert_close(optimal_mean(t(3.0, -3.0), t(1.0, 2.0), 2.0), t(2.0, -1.0))


@pytest.mark.parametrize(("consistency", "gap"), [(1.0, 0.5), (1.0, -2.0), (0.4, 1.3), (3.0, 0.8), (0.0, 5.0)])
def test_descent_on_the_deviation_ends_where_the_closed_form_says(consistency: float, gap: float) -> None:
    log_std = torch.zeros((), dtype=torch.float64, requires_grad=True)
    mean = t(0.25)[0]
    for _ in range(150):
        (slope,) = torch.autograd.grad(of_one(mean, log_std, 0.25 + gap, consistency), log_std)
        log_std = (log_std + 0.1 * slope.clamp(-2, 2)).detach().requires_grad_()
    found, formula = (2 * log_std).exp().detach(), stationary_variance(t(0.25 + gap), mean, consistency)[0]
    torch.testing.assert_close(found, formula, rtol=1e-6, atol=1e-6)
    if consistency == 1.0:
        assert formula.item() == pytest.approx(abs(gap))
    if consistency == 0.0:
        assert formula.item() == 1.0


def test_the_stationary_variance_by_hand() -> None:
    torch.testing.assert_close(stationary_variance(t(3.0, -3.0, 1.0), t(1.0, 1.0, 1.0), 1.0), t(2.0, 4.0, 0.0))
    # λ = 2: (-1 + √(1 + 8 · 9 / 4)) / 2 = (√19 - 1) / 2; λ = ½: (½ + √(¼ + 2 · 1)) / 2 = 1
    torch.testing.assert_close(stationary_variance(t(1.5), t(0.0), 2.0), t((math.sqrt(19) - 1) / 2))
    torch.testing.assert_close(stationary_variance(t(0.0), t(1.0), 0.5), t(1.0))


def test_small_residuals_are_taken_for_certain_and_above_lambda_one_nothing_is_best() -> None:
    def best_given_std(residual: float, std: float, consistency: float) -> float:
        mean = optimal_mean(t(residual), t(std), consistency)[0]
        return of_one(mean, t(math.log(std))[0], residual, consistency).item()

    widths = [1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0, 1.5]
    small, large, heavy = (
        [best_given_std(residual, std, lam) for std in widths] for residual, lam in [(0.8, 1.0), (2.0, 1.0), (2.0, 2.0)]
    )
    assert small == sorted(small, reverse=True)  # |δ| < 1: the narrower, the better
    assert small[0] == pytest.approx(-(0.8**2) / 2 + 0.5 - math.log(2 * math.pi) / 2)  # and yet bounded
    assert max(large) == large[widths.index(1.0)]  # σ² = |δ| - 1
    assert heavy[0] > heavy[1] + 4 > heavy[2] + 8  # λ > 1: a hundredth of σ is worth log 100


def test_unlikelihood_is_bounded_and_below_the_bound_nothing_is_learned() -> None:
    log_probs = t(-1.0, -30.0, -2.0, NAN).requires_grad_()
    found = unlikelihood(log_probs, MASK, -5.0)
    assert found.item() == 6.0  # 1 and 5; the last token does not count
    found.backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert unlikelihood(torch.full((2, 3, 4), -1e9), MASK, -5.0).tolist() == [[10.0] * 3] * 2
    assert unlikelihood(t(-1.0, -0.25, -2.0, NAN), MASK, -0.5).item() == 0.75
    unbounded = unlikelihood(t(-1.0, -1e9, -2.0, NAN), MASK, -1e12)  # control: what is printed
    assert unbounded.item() == pytest.approx(1 + 1e9)


@pytest.mark.parametrize("floor", [0.0, 0.5, NAN])
def test_a_floor_that_is_not_below_zero_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="below zero"):
        unlikelihood(t(-1.0, -1.0), torch.tensor([True, True]), floor)


def test_preferences_add_the_bounded_unlikelihood_of_the_rejected_answer() -> None:
    chosen = Evidence(t(-1.0), t(2.0), t(-3.0))
    found = preference_evidence(chosen, t(-1.0, -30.0, -2.0, NAN).unsqueeze(0), MASK.unsqueeze(0), 0.5, -5.0)
    assert (found.log_policy.item(), found.divergence.item(), found.consistency.item()) == (2.0, 2.0, -3.0)
    assert found.total.item() == -3.0


def test_returns_are_contrasted_at_the_last_token() -> None:
    chosen, rejected = t(9.0, 9.0, 2.0, NAN).unsqueeze(0), t(-9.0, 1.0, 9.0, 9.0).unsqueeze(0)
    short = torch.tensor([[True, True, False, False]])
    assert last_reward(chosen, MASK.unsqueeze(0)).tolist() == [2.0]
    assert last_reward(rejected, short).tolist() == [1.0]
    stacked = last_reward(torch.stack([chosen, rejected], 1), torch.stack([MASK.unsqueeze(0), short], 1))
    assert stacked.tolist() == [[2.0, 1.0]]
    found = contrastive_return(chosen, MASK.unsqueeze(0), rejected, short)
    assert found.item() == pytest.approx(0.7310585786300049)  # σ(1)
    logged = log_contrastive_return(chosen, MASK.unsqueeze(0), rejected, short)
    assert logged.item() == pytest.approx(-0.3132616875182228)
    with pytest.raises(ValueError, match="no True position"):
        contrastive_return(chosen, MASK.unsqueeze(0), rejected, torch.zeros_like(short))


def test_the_printed_contrast_gives_up_on_a_pair_that_is_far_wrong_and_its_logarithm_does_not() -> None:
    one, wrong = torch.ones(1, 1, dtype=torch.bool), t(-20.0).unsqueeze(0).requires_grad_()
    (printed,) = torch.autograd.grad(contrastive_return(wrong, one, torch.zeros_like(wrong), one), wrong)
    (logged,) = torch.autograd.grad(log_contrastive_return(wrong, one, torch.zeros_like(wrong), one), wrong)
    assert 0 < printed.item() < 1e-8 and logged.item() == pytest.approx(1.0)


def test_attention_by_hand() -> None:
    # q · k of the first query: 0 and log 3; of the second: 0 and 0. The third position does not count.
    queries, keys = t(1.0, 0.0, NAN).reshape(1, 3, 1), t(0.0, math.log(3), NAN).reshape(1, 3, 1)
    mask = torch.tensor([[True, True, False]])
    expected = t((0.25 + 0.5) / 2, (0.75 + 0.5) / 2, 0.0).unsqueeze(0)
    torch.testing.assert_close(attention_received(queries, keys, mask), expected)
    stacked = attention_received(queries.expand(2, 5, 3, 1), keys.expand(2, 5, 3, 1), mask)
    torch.testing.assert_close(stacked, expected.expand(2, 5, 3))


def test_attention_adds_up_to_one_and_is_equal_where_keys_are() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, :, 2:] = False
    found = attention_received(queries, keys, mask)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3).double())
    assert found.min().item() == 0.0 and found[mask].min().item() > 0.0
    same = attention_received(queries, torch.zeros_like(keys), mask)
    torch.testing.assert_close(same[0], t(0.5, 0.5, 0.0, 0.0).expand(3, 4))
    torch.testing.assert_close(same[1], t(0.25, 0.25, 0.25, 0.25).expand(3, 4))
    assert attention_received(queries[0, 0], keys[0, 0], torch.zeros(4, dtype=torch.bool)).isnan().all()
    huge = attention_received(t(1.0, 1.0).unsqueeze(-1), t(0.0, -1e30).unsqueeze(-1), torch.tensor([True, True]))
    torch.testing.assert_close(huge, t(1.0, 0.0))


def test_equal_weights_change_no_mean_and_a_weight_scales_a_reward() -> None:
    mask = torch.stack([MASK, torch.tensor([False, True, False, False])])
    mean, log_std = t(1.0, -2.0, 4.0, NAN).expand(2, -1), t(0.1, -0.2, 0.3, NAN).expand(2, -1)
    equal = weighted_posterior(RewardPosterior(mean, log_std), mask / mask.sum(-1, keepdim=True).double(), mask, 1e4)
    torch.testing.assert_close(equal.mean, torch.where(mask, mean, 0.0))
    torch.testing.assert_close(equal.log_std, torch.where(mask, log_std, 0.0), rtol=0, atol=1e-6)
    found = weighted_posterior(RewardPosterior(mean, log_std), t(0.5, 0.5, 0.0, NAN).expand(2, -1), mask, 1e4)
    scaled = Normal(mean[0, :2], log_std[0, :2].exp())
    torch.testing.assert_close(found.mean[0, :2], 1.5 * scaled.mean)  # what 3 · ½ times such a variable has
    torch.testing.assert_close(found.log_std[0, :2].exp(), 1.5 * scaled.stddev, rtol=1e-5, atol=0)
    # the score of the Preference Transformer: Σ w μ
    assert found.mean[0, :3].mean().item() == pytest.approx(0.5 * 1.0 + 0.5 * -2.0)


def test_deviations_stay_within_their_bound_and_weights_of_nothing_have_a_gradient() -> None:
    log_std = torch.tensor([-50.0, 50.0, 0.0, NAN], requires_grad=True)
    weights = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    found = weighted_posterior(RewardPosterior(torch.ones(4), log_std), weights, MASK, 3.0)
    assert found.log_std.tolist() == pytest.approx([-3.0, 3.0, -3.0, 0.0])
    (found.mean + found.log_std).sum().backward()
    assert torch.isfinite(log_std.grad).all() and torch.isfinite(weights.grad).all()


def test_correlations_by_hand() -> None:
    assert correlation(t(1.0, 2.0, 3.0), t(3.0, 5.0, 7.0)).item() == pytest.approx(1.0)
    assert correlation(t(1.0, 2.0, 3.0), t(1.0, 0.0, -1.0)).item() == pytest.approx(-1.0)
    # deviations (-1, 0, 1) and (0, -2, 2) from 4: 2 / √(2 · 8)
    assert correlation(t(1.0, 2.0, 3.0), t(4.0, 2.0, 6.0)).item() == pytest.approx(0.5)
    assert correlation(t(1.0, 2.0, 4.0), t(0.1, 0.1, 0.1)).isnan()
    assert correlation(t(0.1, 0.1, 0.1), t(1.0, 2.0, 4.0)).isnan()  # whose mean is not 0.1 in floating point


def answers(seed: int, rows: int = 64, longest: int = 20) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens, and masks of lengths that have nothing to do with them."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(rows, longest, generator=generator, dtype=torch.float64) - 0.5
    return log_probs, torch.arange(longest) < torch.randint(2, longest + 1, (rows, 1), generator=generator)


def test_returns_that_are_length_or_likelihood_are_found_out() -> None:
    log_probs, mask = answers(0)
    padded = torch.where(mask, log_probs, NAN)
    fine = return_correlations(torch.ones_like(padded), padded, mask)
    assert fine.length.item() == pytest.approx(1.0) and -1.0 < fine.log_likelihood.item() < -0.9
    stacked = return_correlations(*(x.reshape(4, 16, 20) for x in (torch.ones_like(padded), padded, mask)))
    torch.testing.assert_close(stacked, fine)
    unlikely = return_correlations(-2 * padded, padded, mask)
    assert unlikely.log_likelihood.item() == pytest.approx(-1.0)
    assert unlikely.length.item() == pytest.approx(-fine.log_likelihood.item())


@pytest.mark.parametrize("seed", range(3))
def test_a_return_of_residuals_of_log_probabilities_is_a_matter_of_gamma(seed: int) -> None:
    log_probs, mask = answers(seed)
    near, one = (return_correlations(td_residuals(log_probs, mask, gamma), log_probs, mask) for gamma in (0.5, 1.0))
    assert near.log_likelihood.item() > 0.9 and near.length.item() < -0.9  # of random tokens: nothing to be learned
    assert abs(one.log_likelihood.item()) < 0.3 and abs(one.length.item()) < 0.3
