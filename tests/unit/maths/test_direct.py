"""Direct losses on bandits whose best policy is known, and their limits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inverse_alignment.maths.direct import (
    clipped_reference_gap,
    dpo_loss,
    ipo_loss,
    kto_baseline,
    kto_loss,
    log_ratio_gap,
    optimism,
)
from inverse_alignment.world.tabular import optimum_log_probs

BETA = 0.5
REFERENCE = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
REWARD = torch.tensor([0.0, 0.4, -0.3, 0.8], dtype=torch.float64)
C, R = (side.reshape(-1) for side in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
CHOSEN, REJECTED = C[C != R], R[C != R]
ONE = torch.ones(len(CHOSEN), dtype=torch.float64)


def gaps(policy: Tensor, reference: Tensor = REFERENCE) -> Tensor:
    return log_ratio_gap(policy[CHOSEN], policy[REJECTED], reference[CHOSEN], reference[REJECTED])


def fitted(loss: Callable[[Tensor], Tensor], start: Tensor = REFERENCE, steps: int = 200) -> Tensor:
    """The policy that a loss ends at, by a quasi-Newton method from `start`."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=steps, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(torch.log_softmax(logits, -1))
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    return torch.log_softmax(logits.detach(), -1)


def test_with_bradley_terry_labels_dpo_ends_at_the_optimum_of_rl() -> None:
    labels = torch.sigmoid(REWARD[CHOSEN] - REWARD[REJECTED])
    found = fitted(lambda policy: dpo_loss(gaps(policy), ONE, labels, BETA))
    torch.testing.assert_close(found, optimum_log_probs(REFERENCE, REWARD, BETA), rtol=0, atol=1e-4)


def test_hard_resets_with_the_same_pairs_are_a_smaller_beta() -> None:
    """π_K ∝ π_0 exp(K r / β): the fair baseline of K resets is β / K."""
    labels = torch.sigmoid(REWARD[CHOSEN] - REWARD[REJECTED])
    reference = REFERENCE
    for _ in range(3):
        anchor = reference
        reference = fitted(lambda policy, at=anchor: dpo_loss(gaps(policy, at), ONE, labels, BETA), start=anchor)
    torch.testing.assert_close(reference, optimum_log_probs(REFERENCE, REWARD, BETA / 3), rtol=0, atol=1e-3)


def test_ipo_ends_at_a_gap_that_certain_labels_do_not_drive_on() -> None:
    pair = torch.tensor([0.0, -1.0], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)

    def at(policy: Tensor, label: float = 1.0) -> Tensor:
        return ipo_loss(log_ratio_gap(policy[:1], policy[1:], pair[:1], pair[1:]), one, label * one, BETA)

    found = fitted(at, start=pair)
    assert float(found[0] - found[1]) == pytest.approx(1.0 + 1 / (2 * BETA), abs=1e-4)
    doubted = fitted(lambda policy: at(policy, 0.75), start=pair)
    assert float(doubted[0] - doubted[1]) == pytest.approx(1.0 + 0.5 / (2 * BETA), abs=1e-4)
    driven = fitted(
        lambda policy: dpo_loss(log_ratio_gap(policy[:1], policy[1:], pair[:1], pair[1:]), one, one, BETA), start=pair
    )
    assert driven[0] - driven[1] > 5  # negative control: DPO has no end where labels are certain


@given(st.floats(-5, 5), st.floats(0.05, 2), st.floats(0, 0.4))
def test_a_smoothed_label_is_a_soft_one(gap: float, beta: float, smoothing: float) -> None:
    h, one = torch.tensor([gap], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for loss in (dpo_loss, ipo_loss):
        soft = loss(h, one, (1 - smoothing) * one, beta)
        torch.testing.assert_close(loss(h, one, one, beta, smoothing), soft)


def test_a_reference_that_is_wrong_excuses_nobody_once_it_is_clipped() -> None:
    policy, reference = torch.tensor([-1.0, -0.5]), torch.tensor([-3.0, -0.5])  # both prefer the rejected answer
    plain = log_ratio_gap(policy[:1], policy[1:], reference[:1], reference[1:])
    clipped = clipped_reference_gap(policy[:1], policy[1:], reference[:1], reference[1:])
    assert float(plain) == 2.0 and float(clipped) == -0.5
    agreeing = clipped_reference_gap(policy[1:], policy[:1], reference[1:], reference[:1])
    assert float(agreeing) == float(log_ratio_gap(policy[1:], policy[:1], reference[1:], reference[:1])) == -2.0


def test_kto_moves_good_answers_up_and_bad_ones_down_and_its_baseline_not_at_all() -> None:
    ratios = torch.tensor([0.3, 0.3], dtype=torch.float64, requires_grad=True)
    others = torch.tensor([0.4, -0.1], dtype=torch.float64, requires_grad=True)
    baseline = kto_baseline(others)
    assert float(baseline) == pytest.approx(0.15) and not baseline.requires_grad
    good, one = torch.tensor([True, False]), torch.ones(2, dtype=torch.float64)
    kto_loss(ratios, good, one, baseline, BETA, losses=3.0).backward()
    assert ratios.grad is not None
    up, down = ratios.grad.tolist()
    assert up < 0 < down and down == pytest.approx(-3 * up)


def test_optimism_is_the_gain_over_the_reference_that_a_reward_can_have() -> None:
    """`max_π E_π[r] - E_ref[r] - β KL(π ‖ π_ref)` at r = β log π_r / π_ref + const is `β KL(π_ref ‖ π_r)`."""
    best = optimum_log_probs(REFERENCE, REWARD, BETA)
    reference, policy = REFERENCE.exp(), best.exp()
    divergence = float((policy * (best - REFERENCE)).sum())
    gain = float((policy * REWARD).sum() - (reference * REWARD).sum()) - BETA * divergence
    bonus = float(optimism(best - REFERENCE, reference, 1.0, BETA))
    assert -bonus == pytest.approx(gain) and gain > 0


def test_at_the_reference_optimism_has_no_slope_in_expectation_and_one_for_every_answer() -> None:
    def slope(weights: Tensor) -> Tensor:
        logits = REFERENCE.clone().requires_grad_()
        optimism(torch.log_softmax(logits, -1) - REFERENCE, weights, 1.0, BETA).backward()
        assert logits.grad is not None
        return logits.grad

    assert float(slope(REFERENCE.exp()).abs().max()) < 1e-12
    greedy = torch.zeros(4, dtype=torch.float64)
    greedy[0] = 1.0
    assert float(slope(greedy).abs().max()) > 0.1


def test_what_nobody_has_seen_gains_with_optimism_and_is_that_of_dpo_without() -> None:
    """Answers 0 and 1 are compared, and are what the reference says; 2 and 3 are neither."""
    one = torch.ones(1, dtype=torch.float64)
    said = REFERENCE.exp() * torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)

    def of_pair(policy: Tensor) -> Tensor:
        return dpo_loss(log_ratio_gap(policy[:1], policy[1:2], REFERENCE[:1], REFERENCE[1:2]), one, 0.7 * one, BETA)

    def unseen(alpha: float) -> float:
        policy = fitted(lambda p: of_pair(p) + optimism(p - REFERENCE, said, alpha, BETA), steps=5)
        return float(policy.exp()[2:].sum())

    assert unseen(0.0) == float(fitted(of_pair, steps=5).exp()[2:].sum())
    assert unseen(0.0) < unseen(0.1) < unseen(0.3)
