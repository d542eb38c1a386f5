"""The hinge: nothing is left to learn of a pair beyond a gap of one, and before that all pull alike."""

from __future__ import annotations

import pytest
import torch

from inverse_alignment.maths.pairwise import hinge_loss


def test_by_hand():
    chosen = torch.tensor([2.0, 0.0, 0.5], requires_grad=True)
    loss = hinge_loss(chosen, torch.tensor([0.5, 1.0, 0.0]), torch.tensor([1.0, 3.0, 4.0]))
    assert loss.item() == pytest.approx((0.0 + 3 * 2.0 + 4 * 0.5) / 8)
    loss.backward()
    assert chosen.grad.tolist() == pytest.approx([0.0, -3 / 8, -4 / 8])


def test_only_weights_relative_to_each_other_count():
    chosen, rejected, weights = torch.tensor([[0.3, -1.0], [0.0, 2.0], [1.0, 5.0]])
    assert hinge_loss(chosen, rejected, weights).item() == pytest.approx(
        hinge_loss(chosen, rejected, 7 * weights).item()
    )
