"""The losses of the parts of a batch, as several processes have them: their mean is the loss of the whole batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from inverse_alignment.core import parallel
from inverse_alignment.core.errors import UserError
from inverse_alignment.models import trl_training
from inverse_alignment.models.trl_training import shared_out
from inverse_alignment.reward import bradley_terry
from inverse_alignment.reward.bradley_terry import PairCollator, PairLoss, WeightedRewardTrainer, pair_rows
from inverse_alignment.reward.token_head import TokenCollator, edits_loss
from tests.unit.models import tiny

PAIRS = [tiny.pair(f"q{i}", "the cat" + "s" * i, "a dog", i, weight=1.0 + 2 * i) for i in range(5)]
CLOSE = {"rtol": 1e-5, "atol": 1e-7}


class Half(parallel.Alone):
    """One of two processes; what the sums of both are is known."""

    size = 2

    def __init__(self, *sums: float) -> None:
        self.sums = sums

    def add(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            tensor.copy_(torch.tensor(self.sums))


def loss_of_pairs(rows, smoothing=0.1):
    """Loss and gradient of some pairs."""
    model = tiny.reward_model()
    trainer = SimpleNamespace(_pair_loss=PairLoss(smoothing=smoothing, centring=0.05, use_margins=False))
    loss = WeightedRewardTrainer.compute_loss(trainer, model, PairCollator(0)(rows))  # type: ignore[arg-type]
    loss.backward()
    return loss.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


def silent(row):
    return {**row, "weight": 0.0}


@pytest.mark.parametrize("first", [1, 2, 3, 5])
def test_the_parts_of_a_batch_of_pairs_have_the_loss_of_the_whole_as_their_mean(monkeypatch, first):
    rows = pair_rows(tiny.tokenizer(), PAIRS, [1.0] * 5, 48)
    parts = rows[:first] + [silent(rows[0])] * (5 - first), rows[first:] + [silent(rows[0])] * first
    whole, gradient = loss_of_pairs(rows)
    apart = [loss_of_pairs(part) for part in parts if any(row["weight"] for row in part)]
    weights, pairs = sum(pair.weight for pair in PAIRS), 5.0
    monkeypatch.setattr(bradley_terry, "group", lambda: Half(weights, pairs))
    found = [loss_of_pairs(part) for part in parts]
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, whole, **CLOSE)
    torch.testing.assert_close((found[0][1] + found[1][1]) / 2, gradient, **CLOSE)
    if first < 5:  # the negative control: a mean of means
        assert (sum(loss for loss, _ in apart) / len(apart) - whole).abs() > 1e-4


def test_the_parts_of_a_batch_of_edited_answers_too(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": [2, 3, *range(10, 10 + n)], "token_labels": [0, 0, *[1, -1, 0, 0, 1][:n]], "start": 2}
        | {"weight": 1.0 + n, "certainty": 0.9}
        for n in (2, 3, 5)
    ]
    scores = torch.randn(3, 7, generator=generator)

    def loss(index):
        def model(input_ids, **more):
            return SimpleNamespace(logits=scores[index, : input_ids.shape[-1]].unsqueeze(-1))

        batch = TokenCollator(0)([rows[i] for i in index])
        return edits_loss(0.5)(model, batch, 0)[0]

    whole, apart = loss([0, 1, 2]), (loss([0]) + loss([1, 2])) / 2
    tokens = sum((1.0 + n) * n for n in (2, 3, 5))
    monkeypatch.setattr(parallel, "group", lambda: Half(tokens))
    torch.testing.assert_close((loss([0]) + loss([1, 2])) / 2, whole, **CLOSE)
    assert (apart - whole).abs() > 1e-3
    rows[0]["weight"] = 0.0
    assert float(loss([0])) == 0.0  # nothing but filling: no loss, and a number


def test_the_last_batch_is_filled_up_and_every_batch_stays_as_it_was(monkeypatch):
    given = {"per_device_train_batch_size": 6, "seed": 0}
    rows = [{"weight": float(1 + i)} for i in range(14)]
    assert shared_out(rows, given, silent) == (rows, given)
    monkeypatch.setattr(trl_training, "group", lambda: Half())
    filled, arguments = shared_out(rows, given, silent)
    assert filled[:14] == rows and [row["weight"] for row in filled[14:]] == [0.0] * 4
    assert arguments == {"per_device_train_batch_size": 3, "seed": 0}
    with pytest.raises(UserError, match="a batch of 5 cannot be shared out among 2 processes"):
        shared_out(rows, {"per_device_train_batch_size": 5}, silent)
