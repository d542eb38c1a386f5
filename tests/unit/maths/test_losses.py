"""Clipped surrogate, value loss, credit, KL and pairwise likelihood: numbers typed by hand, and identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.bootstrap import mean_interval
from inverse_alignment.maths.credit import final_positions, terminal_rewards
from inverse_alignment.maths.grouping import group_means, within_group_variance
from inverse_alignment.maths.kl import exact_kl, k1, k2, k3, next_kl_coefficient
from inverse_alignment.maths.pairwise import (
    accuracy,
    best_scale,
    bradley_terry_loss,
    paired_gain,
    preference_log_likelihood,
)
from inverse_alignment.maths.surrogate import policy_loss, token_entropy, value_loss

ON = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 1.0, -1.2, 1.0),  # gain bounded at 1 + ε
        (0.5, 1.0, -0.5, 0.0),  # a loss of probability is never bounded for a good action
        (1.5, -1.0, 1.5, 0.0),
        (0.5, -1.0, 0.8, 1.0),  # bounded at 1 - ε
        (1.1, 2.0, -2.2, 0.0),
    ],
)
def test_policy_loss_in_every_regime(ratio, advantage, loss, clipped):
    result = policy_loss(torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1), torch.tensor([[advantage]]), ON, 0.2)
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.clipped.item() == clipped


def test_policy_gradient_raises_the_probability_of_a_good_action():
    log_probs = torch.zeros(1, 1, requires_grad=True)
    policy_loss(log_probs, torch.zeros(1, 1), torch.tensor([[2.0]]), ON, 0.2).loss.backward()
    assert log_probs.grad.item() == pytest.approx(-2.0)


def test_policy_loss_ignores_what_is_masked_out():
    mask = torch.tensor([[True, False]])
    full = policy_loss(torch.tensor([[0.1, float("inf")]]), torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), mask, 0.2)
    bare = policy_loss(torch.tensor([[0.1]]), torch.zeros(1, 1), torch.tensor([[1.0]]), ON, 0.2)
    assert full.loss.item() == pytest.approx(bare.loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [
        (1.0, 0.9, 2.0, 0.5, 0.0),
        (1.5, 0.0, 2.0, 0.5 * 1.8**2, 1.0),  # moved further than ε: judged at old + ε, the worse of the two
        (3.0, 0.0, 0.0, 4.5, 0.0),  # moving away is not excused by clipping
    ],
)
def test_value_loss(value, old, target, loss, clipped):
    result = value_loss(torch.tensor([[value]]), torch.tensor([[old]]), torch.tensor([[target]]), ON, 0.2)
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.clipped.item() == clipped


def test_terminal_rewards_put_the_score_on_the_last_token_and_the_kl_on_every_token():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    ratios = torch.tensor([[1.0, -2.0, 99.0], [0.0, 0.5, 1.0]])
    rewards = terminal_rewards(torch.tensor([10.0, 20.0]), ratios, mask, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 10.2, 0.0], [0.0, -0.05, 19.9]]))


def test_an_answer_without_tokens_is_refused():
    with pytest.raises(ValueError, match="no True position"):
        final_positions(torch.tensor([[False, False]]))


def test_kl_estimators_agree_in_expectation_with_the_exact_kl():
    logits, ref = torch.tensor([0.3, -1.0, 2.0, 0.1]).double(), torch.tensor([1.0, 0.0, 0.5, -0.5]).double()
    log_p, log_q = logits.log_softmax(-1), ref.log_softmax(-1)
    exact = exact_kl(logits, ref)
    assert exact.item() == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()))
    for estimator in (k1, k3):
        assert float((log_p.exp() * estimator(log_p, log_q)).sum()) == pytest.approx(exact.item(), rel=1e-9)
    assert (k3(log_p, log_q) >= 0).all() and (k1(log_p, log_q) < 0).any()
    torch.testing.assert_close(k2(log_p, log_q), (log_p - log_q) ** 2 / 2)


def test_kl_is_zero_for_equal_and_not_symmetric():
    logits, ref = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 0.0, 0.0])
    assert exact_kl(logits, logits).item() == pytest.approx(0.0, abs=1e-7)
    assert abs(exact_kl(logits, ref).item() - exact_kl(ref, logits).item()) > 0.01


def test_the_adaptive_controller_moves_towards_its_target():
    assert next_kl_coefficient(0.1, kl=12.0, target=6.0, horizon=1000, rows=100) == pytest.approx(0.1 * 1.02)
    assert next_kl_coefficient(0.1, kl=3.0, target=6.0, horizon=1000, rows=100) == pytest.approx(0.1 * 0.98)
    assert next_kl_coefficient(0.1, kl=6.6, target=6.0, horizon=1000, rows=100) == pytest.approx(0.1 * 1.01)


def test_entropy_of_a_uniform_and_of_a_sure_distribution():
    assert token_entropy(torch.zeros(8)).item() == pytest.approx(math.log(8), rel=1e-6)
    assert token_entropy(torch.tensor([100.0, 0.0])).item() == pytest.approx(0.0, abs=1e-6)


def test_preference_likelihood_and_loss_by_hand():
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    # log σ(2) = -0.126928, log σ(-1) = -1.313262
    torch.testing.assert_close(
        preference_log_likelihood(chosen, rejected), torch.tensor([-0.126928, -1.313262]), rtol=1e-5, atol=1e-6
    )
    ones, zeros = torch.ones(2), torch.zeros(2)
    assert bradley_terry_loss(chosen, rejected, ones, zeros, ones).item() == pytest.approx(0.720095, rel=1e-5)
    # weights 3:1; smoothing ε adds ε·gap to each loss; centring 0.5 · mean(4, 1); margin 1 shifts the gap
    weighted = bradley_terry_loss(chosen, rejected, torch.tensor([3.0, 1.0]), zeros, ones)
    assert weighted.item() == pytest.approx((3 * 0.126928 + 1.313262) / 4, rel=1e-5)
    smooth = bradley_terry_loss(chosen, rejected, ones, zeros, ones, smoothing=0.1)
    assert smooth.item() == pytest.approx(0.720095 + 0.1 * (2 - 1) / 2, rel=1e-5)
    centred = bradley_terry_loss(chosen, rejected, ones, zeros, ones, centring=0.5)
    assert centred.item() == pytest.approx(0.720095 + 0.5 * 2.5, rel=1e-5)
    margin = bradley_terry_loss(chosen, rejected, ones, torch.tensor([2.0, -1.0]), ones)
    assert margin.item() == pytest.approx(math.log(2), rel=1e-5)


def test_soft_labels_by_hand():
    chosen, rejected, weights = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([3.0, 1.0])
    labels = torch.tensor([0.8, 0.5])
    # -log σ(2) = 0.126928, -log σ(-2) = 2.126928, -log σ(-1) = 1.313262, -log σ(1) = 0.313262
    first, second = 0.8 * 0.126928 + 0.2 * 2.126928, 0.5 * 1.313262 + 0.5 * 0.313262
    loss = bradley_terry_loss(chosen, rejected, weights, torch.zeros(2), labels)
    assert loss.item() == pytest.approx((3 * first + second) / 4, rel=1e-5)
    # ε = 0.1: p' = 0.8 · 0.9 + 0.2 · 0.1 = 0.74, and ½ stays ½
    smoothed = bradley_terry_loss(chosen, rejected, weights, torch.zeros(2), labels, smoothing=0.1)
    assert smoothed.item() == pytest.approx((3 * (0.74 * 0.126928 + 0.26 * 2.126928) + second) / 4, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_certain_label_leaves_the_loss_with_hard_labels(smoothing):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margins = torch.randn(3, 50, generator=generator, dtype=torch.float64).unbind()
    weights = torch.rand(50, generator=generator, dtype=torch.float64) + 0.1
    gap = chosen - rejected - margins
    hard = -(1 - smoothing) * torch.log(torch.sigmoid(gap)) - smoothing * torch.log(torch.sigmoid(-gap))
    loss = bradley_terry_loss(chosen, rejected, weights, margins, torch.ones_like(weights), smoothing)
    torch.testing.assert_close(loss, (weights * hard).sum() / weights.sum())
    doubted = bradley_terry_loss(chosen, rejected, weights, margins, torch.full_like(weights, 0.7), smoothing)
    assert abs(float(doubted - loss)) > 0.01


def test_smoothing_a_certain_label_is_a_soft_label():
    chosen, rejected, ones, zeros = torch.tensor([1.5]), torch.tensor([0.2]), torch.ones(1), torch.zeros(1)
    smoothed = bradley_terry_loss(chosen, rejected, ones, zeros, ones, smoothing=0.3)
    torch.testing.assert_close(smoothed, bradley_terry_loss(chosen, rejected, ones, zeros, torch.tensor([0.7])))


@pytest.mark.parametrize(("label", "margin"), [(0.5, 0.0), (0.5, 0.4), (0.8, 0.0), (0.8, 0.4)])
def test_the_loss_is_least_where_the_model_is_as_sure_as_the_label(label, margin):
    """The gradient in the gap is σ(Δ - m) - p: zero at σ(Δ - m) = p, so at Δ = m for a label of one half."""

    def slope(gap):
        chosen = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
        ones, zeros = torch.ones_like(chosen), torch.zeros_like(chosen)
        bradley_terry_loss(chosen, zeros, ones, zeros + margin, ones * label).backward()
        return chosen.grad.item()

    best = margin + math.log(label / (1 - label))
    assert slope(best) == pytest.approx(0.0, abs=1e-12)
    assert slope(best - 0.5) < 0 < slope(best + 0.5)
    assert slope(margin) == pytest.approx(0.5 - label)  # where a certain label would pull with 0.5 - 1


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=8), st.floats(-20, 20))
@settings(max_examples=50, deadline=None)
def test_only_score_differences_matter(pairs, shift):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    ones, zeros = torch.ones_like(chosen), torch.zeros_like(chosen)
    torch.testing.assert_close(
        bradley_terry_loss(chosen + shift, rejected + shift, ones, zeros, ones),
        bradley_terry_loss(chosen, rejected, ones, zeros, ones),
    )


def test_accuracy_counts_a_tie_as_half():
    assert accuracy(torch.tensor([1.0, 0.0, 2.0, 1.0]), torch.tensor([0.0, 1.0, 2.0, 0.5])).item() == 0.625


def test_paired_gain_sees_a_real_gain_and_not_noise():
    noise = torch.randn(400, generator=torch.Generator().manual_seed(3)).double()
    better = paired_gain(noise * 0.1 + 0.1, torch.zeros(400).double(), 0.95, 500, seed=0)
    assert better.low > 0.08 and better.mean == pytest.approx(0.1, abs=0.02)
    # sd 0.1, n 400, z_.95 + z_.8 = 1.6449 + 0.8416
    assert better.detectable == pytest.approx(2.4865 * 0.1 / 20, rel=0.1)
    assert paired_gain(noise, noise.flip(0), 0.95, 500, seed=0).low < 0
    with pytest.raises(ValueError, match="at least two"):
        paired_gain(torch.zeros(1), torch.zeros(1), 0.9, 100, seed=0)


def test_bootstrap_interval_covers_and_narrows():
    values = torch.arange(100.0)
    wide, narrow = mean_interval(values[:10], 0), mean_interval(values.repeat(10) / 10, 0)
    assert wide.low < wide.mean == 4.5 < wide.high
    assert narrow.high - narrow.low < wide.high - wide.low
    with pytest.raises(ValueError, match="no values"):
        mean_interval(torch.empty(0), 0)


def test_group_statistics():
    import numpy as np

    values, groups = np.array([1.0, 3.0, 5.0, 10.0]), ["a", "a", "b", "c"]
    assert group_means(values, groups).tolist() == [2.0, 5.0, 10.0]
    assert within_group_variance(values, groups) == 2.0  # only "a" has two values
    assert math.isnan(within_group_variance(values[2:], groups[2:]))


def test_best_scale_is_scale_free_and_honest_at_the_ends():
    generator = torch.Generator().manual_seed(1)
    gap = torch.randn(500, generator=generator, dtype=torch.float64) + 0.5
    zeros = torch.zeros_like(gap)
    scale = best_scale(gap, zeros)
    assert best_scale(gap * 10, zeros) == pytest.approx(scale / 10, rel=1e-6)
    losses = [-preference_log_likelihood(gap * s, zeros).mean() for s in (0.9 * scale, scale, 1.1 * scale)]
    assert losses[1] < losses[0] and losses[1] < losses[2]
    assert best_scale(zeros - 1, zeros) == pytest.approx(0.0, abs=1e-9)  # every label against the scores
    assert best_scale(zeros + 2, zeros) == pytest.approx(50.0)  # nothing finite is best: the stated bound
    with pytest.raises(ValueError, match="different scores"):
        best_scale(zeros, zeros)
