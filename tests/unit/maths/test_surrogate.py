"""Clipped losses: where they teach and where not, what they bound, and the policy gradient that they begin as."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.surrogate import policy_loss, value_loss

CLIP = 0.2


def rows(low, high, count=3):
    """`count` tensors (1, t) of one length, of eighths: none lies on a bound."""
    eighths = st.integers(8 * low, 8 * high).map(lambda number: number / 8)
    return st.integers(1, 6).flatmap(
        lambda t: st.lists(st.lists(eighths, min_size=t, max_size=t), min_size=count, max_size=count).map(
            lambda table: [torch.tensor([numbers]).double() for numbers in table]
        )
    )


def everywhere(tensor):
    return torch.ones_like(tensor, dtype=torch.bool)


def gradient(loss, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x).loss, x)[0]


@given(rows(-2, 2))
@settings(max_examples=60, deadline=None)
def test_the_policy_learns_nothing_more_once_it_has_moved_as_it_should(case):
    log_probs, old, advantages = case
    mask = everywhere(old)
    ratio = (log_probs - old).exp()
    done = ((advantages > 0) & (ratio > 1 + CLIP)) | ((advantages < 0) & (ratio < 1 - CLIP))
    expected = torch.where(done, 0.0, -ratio * advantages / mask.sum())
    found = gradient(lambda x: policy_loss(x, old, advantages, mask, CLIP), log_probs)
    torch.testing.assert_close(found, expected)
    assert policy_loss(log_probs, old, advantages, mask, CLIP).clipped.item() == pytest.approx(done.double().mean())


@given(rows(-2, 2))
@settings(max_examples=40, deadline=None)
def test_at_ratio_one_it_is_the_policy_gradient(case):
    log_probs, _, advantages = case
    mask = everywhere(log_probs)
    found = gradient(lambda x: policy_loss(x, log_probs, advantages, mask, CLIP), log_probs)
    torch.testing.assert_close(found, -advantages / mask.sum())
    result = policy_loss(log_probs, log_probs, advantages, mask, CLIP)
    assert result.loss.item() == pytest.approx(-advantages.mean().item()) and result.clipped == 0


@given(rows(-2, 2))
@settings(max_examples=40, deadline=None)
def test_clipping_only_makes_the_policy_loss_worse(case):
    log_probs, old, advantages = case
    mask = everywhere(old)
    free = -((log_probs - old).exp() * advantages).mean()
    tight, loose, none = (policy_loss(log_probs, old, advantages, mask, clip).loss for clip in (0.1, 0.5, 1e9))
    assert tight >= loose - 1e-12 and loose >= free - 1e-12
    torch.testing.assert_close(none, free)


@given(rows(-2, 2), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_means_are_over_what_counts(case, first):
    log_probs, old, advantages = case
    mask = torch.arange(old.shape[1]).unsqueeze(0) >= min(first, old.shape[1] - 1)
    kept = [tensor[mask].unsqueeze(0) for tensor in case]
    for loss in (policy_loss, value_loss):
        whole, part = loss(log_probs, old, advantages, mask, CLIP), loss(*kept, everywhere(kept[0]), CLIP)
        torch.testing.assert_close(whole, part)


@given(rows(-3, 3))
@settings(max_examples=60, deadline=None)
def test_the_value_loss_is_the_worse_of_two_squared_errors(case):
    values, old, returns = case
    mask, moved = everywhere(values), values - old
    found = value_loss(values, old, returns, mask, CLIP)
    free = (values - returns) ** 2
    clipped = (old + moved.clamp(-CLIP, CLIP) - returns) ** 2
    assert found.loss >= 0.5 * free.mean() - 1e-12
    assert found.loss <= 0.5 * (free + clipped).mean() + 1e-12
    # it has moved further than ε, and where ε would have taken it is worse
    decided = (moved.abs() > CLIP) & (clipped > free)
    expected = torch.where(decided, 0.0, (values - returns) / mask.sum())
    torch.testing.assert_close(gradient(lambda x: value_loss(x, old, returns, mask, CLIP), values), expected)
    assert found.clipped.item() == pytest.approx(decided.double().mean())


@given(rows(-3, 3))
@settings(max_examples=40, deadline=None)
def test_the_value_loss_of_a_value_that_has_not_moved_is_half_its_squared_error(case):
    values, _, returns = case
    found = value_loss(values, values, returns, everywhere(values), CLIP)
    assert found.loss.item() == pytest.approx(((values - returns) ** 2).mean().item() / 2)
    assert found.clipped == 0
    loose = value_loss(values, values - 2, returns, everywhere(values), 1e9)
    torch.testing.assert_close(loose.loss, found.loss)
