"""Heads on one trunk: each learns from its own pairs, and from as much of the loss as its pairs are."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid

from inverse_alignment.core.errors import UserError
from inverse_alignment.reward.bradley_terry import PairLoss
from inverse_alignment.reward.family_settings import require_plain
from inverse_alignment.reward.members import drawn
from inverse_alignment.reward.outputs import PairBatch, heads_loss
from inverse_alignment.reward.training_settings import TrainReward

PLAIN = PairLoss(0.0, 0.0, False)


def batch(outputs, counts, weights=(1.0, 3.0)):
    n = len(weights)
    return PairBatch(
        torch.tensor(outputs, requires_grad=True),
        torch.tensor(weights),
        torch.zeros(n),
        torch.ones(n),
        torch.tensor(counts),
        torch.ones(2 * n),
        0,
    )


def test_by_hand():
    # chosen rows, then rejected ones; gaps of head 0: 1 and 2, of head 1: -1 and 0
    given = batch([[2.0, 0.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 2.0]])
    gaps = torch.tensor([1.0, 2.0, 0.0])
    first, second, tied = (-logsigmoid(gap) for gap in gaps)
    # head 0 sees both, head 1 the second pair twice: (1 a + 3 b)/4 and 6 c / 4, then their mean
    expected = ((first + 3 * second) / 4 + 6 * tied / 4) / 2
    loss = heads_loss(PLAIN, given)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    slopes = given.outputs.grad
    assert slopes[0, 1] == slopes[2, 1] == 0 and slopes[1, 1] < 0 < slopes[3, 1]  # head 1 never saw the first pair


def test_a_head_that_sees_nothing_of_a_batch_learns_nothing():
    given = batch([[2.0, 0.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]])
    loss = heads_loss(PLAIN, given)
    loss.backward()
    assert torch.isfinite(loss) and (given.outputs.grad[:, 1] == 0).all() and (given.outputs.grad[:, 0] != 0).all()


def test_bootstraps_differ_and_are_of_full_size():
    first, again, other = drawn(200, 1), drawn(200, 1), drawn(200, 2)
    assert (first == again).all() and (first != other).any() and len(first) == 200
    assert len(set(first.tolist())) / 200 == pytest.approx(1 - 1 / 2.718, abs=0.07)


def test_settings_of_the_training_without_effect_are_refused(monkeypatch):
    require_plain(TrainReward(), "it")
    monkeypatch.setattr("inverse_alignment.reward.family_settings.PLAIN", {"type"})
    with pytest.raises(UserError, match=r"without training.epochs"):
        require_plain(TrainReward(epochs=3), "it")
