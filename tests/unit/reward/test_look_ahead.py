"""MetaRM's step, against one taken by hand; and which answers it looks at."""

from __future__ import annotations

import copy

import pytest
import torch

from inverse_alignment.core.batches import pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.maths.pairwise import preference_log_likelihood
from inverse_alignment.maths.spread import score_spread
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward import bradley_terry
from inverse_alignment.reward.bradley_terry import LookAhead, PairLoss, fit, pair_rows
from inverse_alignment.text.render import encode_answers
from tests.unit.models import tiny
from tests.unit.reward.test_reward_training import Report

PLAIN = PairLoss(smoothing=0.0, centring=0.0, use_margins=False)
PAIRS = [tiny.pair("a dog?", "the cat sat", "a dog", 0), tiny.pair("hi", "the end", "a cat. the dog", 1)]
TEXTS = ["the cat", "a dog and a cat", "on the mat. the end"]


def looked_at(prompts=1, seed=0):
    answers = [encode_answers(tiny.tokenizer(), [prompt] * 3, TEXTS, 48) for prompt in tiny.PROMPTS]
    return LookAhead(answers, rate=0.5, prompts=prompts, seed=seed)


def scores(model, rows):
    ids, mask = pad_right(rows, 0)
    return model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1)


def loss_of(model, rows):
    chosen, rejected = (scores(model, [row[key] for row in rows]) for key in ("chosen_ids", "rejected_ids"))
    return -preference_log_likelihood(chosen, rejected).mean()


def by_hand(model, rows, ahead):
    """The gradient of the pairs' loss where the gradient of the spread leads."""
    shifted = copy.deepcopy(model)
    learned = list(shifted.parameters())
    spread = score_spread(scores(shifted, [list(ids) for ids in ahead.at(0)[0]]).reshape(1, -1))
    with torch.no_grad():
        for weight, gradient in zip(learned, torch.autograd.grad(spread, learned), strict=True):
            weight += ahead.rate * gradient
    loss = loss_of(shifted, rows)
    return torch.autograd.grad(loss, learned), loss.detach()


def test_the_step_is_the_gradient_at_the_shifted_weights(tmp_path, monkeypatch):
    """With one step of plain gradient descent in the optimiser's place."""
    model, rows, ahead = tiny.reward_model(), pair_rows(tiny.tokenizer(), PAIRS, [1.0, 1.0], 48), looked_at()
    before, seen = tiny.weights(model), {}
    expected, loss = by_hand(model, rows, ahead)
    names = [name for name, _ in model.named_parameters()]

    class Descent(bradley_terry.WeightedRewardTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
            return self.optimizer

        def training_step(self, *given):
            found = super().training_step(*given)
            seen.update({name: weight.detach().clone() for name, weight in self.model.named_parameters()})
            return found

    monkeypatch.setattr(bradley_terry, "WeightedRewardTrainer", Descent)
    given = arguments(
        partial=tmp_path, device="cpu", seed=0, epochs=1, learning_rate=1.0, batch_size=2, warmup_share=0.0
    )
    given |= {"max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    metrics = fit(model, tiny.tokenizer(), rows, given, PLAIN, tmp_path, Report(tmp_path / "m.jsonl"), 3600, ahead)
    assert metrics["steps"] == 1 and metrics["train_loss"] == pytest.approx(float(loss), abs=1e-5)
    assert all(torch.equal(seen[name], before[name]) for name in names)  # back where they were, for the optimiser
    after = tiny.weights(model)
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(after[name], before[name] - gradient, rtol=1e-4, atol=1e-5, msg=name)
    plain = copy.deepcopy(tiny.reward_model())
    there = torch.autograd.grad(loss_of(plain, rows), list(plain.parameters()))
    assert max(float((a - b).abs().max()) for a, b in zip(there, expected, strict=True)) > 1e-3  # elsewhere, another


def test_every_prompt_is_looked_at_once_before_any_is_twice_and_the_step_is_the_cursor():
    ahead = looked_at(prompts=3)
    seen = [tuple(map(tuple, answers)) for step in range(4) for answers in ahead.at(step)]  # 12 of 4 prompts
    for epoch in range(3):
        assert len(set(seen[4 * epoch : 4 * epoch + 4])) == 4
    assert ahead.at(2) == looked_at(prompts=3).at(2) != looked_at(prompts=3, seed=1).at(2)


def test_a_sharded_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    rows = pair_rows(tiny.tokenizer(), PAIRS, [1.0, 1.0], 48)
    with pytest.raises(UserError, match="cannot where they are sharded") as error:
        fit(tiny.reward_model(), tiny.tokenizer(), rows, {}, PLAIN, tmp_path, None, 3600, looked_at())
    assert error.value.where == "runtime.launcher.config" and "refresh.rule.type=full" in error.value.fix
