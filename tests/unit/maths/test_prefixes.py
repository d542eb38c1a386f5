"""TCRM's penalties: least where the score so far is the mean of what may follow, and their targets do not move."""

from __future__ import annotations

import itertools

import pytest
import torch

from inverse_alignment.maths.prefixes import look_ahead, temporal_smoothness

RUN = torch.tensor([[False, True, True, True], [True, True, False, False]])


def leaves():
    """The tree with root .3 A, .7 B; A: 2 (.7) or 0; B: 1 (.4) or -1, a hundred answers in all."""
    kinds = {("A", 2.0): 21, ("A", 0.0): 9, ("B", 1.0): 28, ("B", -1.0): 42}
    return list(itertools.chain.from_iterable([kind] * count for kind, count in kinds.items()))


def minimised(penalty):
    """Values of the root, A and B after gradient descent on a penalty of them."""
    values = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    nodes = torch.tensor([1 if kind == "A" else 2 for kind, _ in leaves()])
    final = torch.tensor([leaf for _, leaf in leaves()], dtype=torch.float64)
    mask = torch.ones(100, 3, dtype=torch.bool)
    for _ in range(300):
        rows = torch.stack([values[0].expand(100), values[nodes], final], -1)
        (slope,) = torch.autograd.grad(penalty(rows, final, mask).mean(), values)
        values = (values - 1.0 * slope).detach().requires_grad_()
    return values.tolist()


@pytest.mark.parametrize(
    "penalty", [lambda values, final, mask: temporal_smoothness(values, mask), look_ahead], ids=["smooth", "ahead"]
)
def test_the_least_penalty_is_at_the_conditional_means(penalty):
    assert minimised(penalty) == pytest.approx([0.28, 1.4, -0.2], abs=1e-6)


def test_by_hand():
    values = torch.tensor([[9.0, 1.0, 3.0, 6.0], [2.0, 5.0, float("nan"), 9.0]])
    final = torch.tensor([6.0, 5.0])
    assert temporal_smoothness(values, RUN).tolist() == [(4 + 9) / 2, 9.0]
    assert look_ahead(values, final, RUN).tolist() == [(25 + 9) / 2, 9.0]


def test_what_is_to_be_reached_has_no_gradient():
    values = torch.tensor([[9.0, 1.0, 3.0, 6.0], [2.0, 5.0, 0.0, 9.0]], requires_grad=True)
    final = torch.tensor([6.0, 5.0], requires_grad=True)
    (smooth,) = torch.autograd.grad(temporal_smoothness(values, RUN).sum(), values)
    assert smooth.tolist() == [[0.0, -2.0, -3.0, 0.0], [-6.0, 0.0, 0.0, 0.0]]  # 2 (r_{k-1} - r_k) / K
    slope, still = torch.autograd.grad(look_ahead(values, final, RUN).sum(), [values, final], allow_unused=True)
    assert slope.tolist() == [[0.0, -5.0, -3.0, 0.0], [-6.0, 0.0, 0.0, 0.0]] and still is None


def test_an_answer_without_steps_costs_nothing():
    alone = torch.tensor([[True, False]])
    values = torch.tensor([[1.0, 2.0]])
    assert temporal_smoothness(values, alone).tolist() == look_ahead(values, torch.ones(1) * 5, alone).tolist() == [0.0]
