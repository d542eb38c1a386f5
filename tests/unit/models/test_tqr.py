"""TQR models: whose column a number stands in, what changes nothing, and what comes back from a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.generation.answers import Answer
from inverse_alignment.maths.variational import RewardPosterior
from inverse_alignment.models.reward_scores import FAMILY, Calibration, load_calibrated, save_calibration
from inverse_alignment.models.tqr import HEADS, Tqr, TqrForm, new_tqr, save_tqr
from inverse_alignment.models.tqr_scores import DenseReader, TqrScorer, answers_of
from inverse_alignment.text.render import encode_full, encode_prompt, encode_response
from tests.unit.models import tiny

TOKENS = tiny.tokenizer()
CPU = torch.device("cpu")
TEXTS = ["the cat", "a dog and a cat.", "on the mat. " * 9, "naïve"]
PLAIN = TqrForm(weighted=False)
FORMS = [
    TqrForm(),
    TqrForm(q="fresh", inverse_temperature=0.5, score="sum"),
    TqrForm(q="none", score="mean", uncertain=False),
    TqrForm(weighted=False, bound=0.5, score="sum"),
]


def model(form: TqrForm, policy: Any = None) -> Tqr:
    """A model that has opinions."""
    made = new_tqr(policy or tiny.policy(scale=4.0), form)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if not name.startswith("trunk."):
                weight.copy_(torch.randn(weight.shape, generator=generator) / 4)
    return made.eval()


def scorer(form: TqrForm, rows: int = 3) -> TqrScorer:
    return TqrScorer(model(form), TOKENS, 64, rows)


def inputs(ids: list[int], start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return tokens, mask.long(), answers_of(mask, [start])


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("of", ["llama", "gpt2"])
def test_a_pretrained_q_is_what_the_policy_says_before_each_token(alpha, of):
    policy = tiny.gpt2()[0] if of == "gpt2" else tiny.policy(scale=4.0)
    ids, start = [7, 9, 20, 8, 11, 1], 3
    with torch.no_grad():
        expected = (alpha * policy(torch.tensor([ids])).logits).log_softmax(-1)
        found = model(replace(PLAIN, inverse_temperature=alpha), policy)(*inputs(ids, start))
    chosen = [expected[0, place - 1, ids[place]].item() for place in range(start, len(ids))]
    assert found.log_probs[0].tolist() == pytest.approx([0, 0, 0, *chosen], abs=1e-5)
    assert torch.equal(found.action_values, found.log_probs)


def test_a_fresh_q_has_a_policy_of_its_own_inverse_temperature():
    made = model(TqrForm(q="fresh", inverse_temperature=0.5))
    ids, start = [7, 9, 20, 8, 1], 2
    with torch.no_grad():
        states = made.trunk(torch.tensor([ids])).last_hidden_state[0]
        q = states @ made.q_head.weight.T
        found = made(*inputs(ids, start))
    for place in range(start, len(ids)):
        values = q[place - 1]
        assert found.action_values[0, place].item() == pytest.approx(values[ids[place]].item(), abs=1e-5)
        log_policy = (0.5 * values).log_softmax(-1)[ids[place]].item()
        assert found.log_probs[0, place].item() == pytest.approx(log_policy, abs=1e-5)


def test_a_reward_is_read_where_its_token_is_and_no_later_token_changes_it_unless_weights_do():
    ids, start = [7, 9, 20, 8, 11, 1], 2
    with torch.no_grad():
        made = model(replace(PLAIN, bound=100.0))
        states = made.trunk(torch.tensor([ids])).last_hidden_state[0]
        expected = states @ made.reward_head.weight.T + made.reward_head.bias
        found = made.rewards(*inputs(ids, start))
        other = made.rewards(*inputs([*ids[:4], 30, 1], start))
        weighted = [model(TqrForm()).rewards(*inputs(each, start)) for each in (ids, [*ids[:4], 30, 1])]
    assert found.mean[0].tolist() == pytest.approx([0, 0, *expected[start:, 0].tolist()], abs=1e-5)
    assert found.log_std[0].tolist() == pytest.approx([0, 0, *expected[start:, 1].tolist()], abs=1e-3)
    assert torch.allclose(found.mean[0, :4], other.mean[0, :4], atol=1e-6)
    assert not torch.allclose(weighted[0].mean[0, 2:4], weighted[1].mean[0, 2:4], atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_rewards_are_those_of_the_prior_at_first(form):
    made = new_tqr(tiny.policy(), form)
    with torch.no_grad():
        found = made(*inputs([7, 9, 20, 8, 1], 2))
    assert not found.posterior.mean.any() and found.posterior.log_std.abs().max() < 1e-6
    assert form.q != "fresh" or not found.action_values.any()


@pytest.mark.parametrize("form", FORMS)
def test_neither_batch_nor_padding_changes_a_score(form):
    alone = [scorer(form).estimate([prompt], [text]) for prompt, text in zip(tiny.PROMPTS, TEXTS, strict=True)]
    together = scorer(form, rows=64).estimate(tiny.PROMPTS, TEXTS)
    np.testing.assert_allclose(together.mean, [one.mean[0] for one in alone], atol=1e-5)
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.per_token[i], one.per_token[0], atol=1e-5)
        if form.uncertain:
            assert together.std[i] == pytest.approx(one.std[0], abs=1e-5)
    assert len(set(np.round(together.mean, 4))) == len(TEXTS)


def test_scores_are_made_of_token_rewards():
    made = {kind: scorer(TqrForm(score=kind)).estimate(tiny.PROMPTS, TEXTS) for kind in ("last", "sum", "mean")}
    for i, (prompt, text) in enumerate(zip(tiny.PROMPTS, TEXTS, strict=True)):
        tokens = len(encode_full(TOKENS, prompt, text, 64)) - len(encode_prompt(TOKENS, prompt, 32))
        assert len(made["last"].per_token[i]) == tokens
        assert made["last"].mean[i] == pytest.approx(made["last"].per_token[i][-1])
        assert made["sum"].mean[i] == pytest.approx(made["sum"].per_token[i].sum(), abs=1e-5)
        assert made["mean"].mean[i] == pytest.approx(made["mean"].per_token[i].sum(), abs=1e-5)
        assert made["mean"].mean[i] == pytest.approx(made["sum"].mean[i] / tokens, abs=1e-5)
        assert made["mean"].std[i] == pytest.approx(made["sum"].std[i] / tokens, abs=1e-5)


def test_deviations_by_hand():
    counts = torch.tensor([[False, True, True]])
    posterior = RewardPosterior(torch.zeros(1, 3), torch.tensor([[9.0, np.log(3.0), np.log(4.0)]]))
    found = {kind: float(model(TqrForm(score=kind)).deviation(posterior, counts)) for kind in ("last", "sum", "mean")}
    assert found == pytest.approx({"last": 4.0, "sum": 5.0, "mean": 2.5})


def test_who_was_not_trained_to_be_unsure_does_not_say_how_sure_it_is():
    assert scorer(FORMS[2]).estimate(tiny.PROMPTS, TEXTS).std is None


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_gives_back_the_same_model_to_the_bit(tmp_path, form):
    made = scorer(form)
    save_tqr(made.model, TOKENS, tmp_path)
    save_calibration(Calibration(1.0, 2.0, 9), tmp_path)
    loaded = load_calibrated(tmp_path, CPU, 64, 3)
    assert isinstance(loaded.scorer, TqrScorer) and loaded.scorer.model.form == form
    assert tiny.same(tiny.weights(loaded.scorer.model), tiny.weights(made.model))
    assert np.array_equal(loaded(tiny.PROMPTS, TEXTS), (made(tiny.PROMPTS, TEXTS) - 1.0) / 2.0)


def test_a_policy_whose_head_is_its_own_keeps_it(tmp_path):
    policy = tiny.policy(scale=4.0)
    policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.detach() * 2.0)
    made = model(PLAIN, policy)
    assert made.q_head is not None and made.q_head is not policy.lm_head
    save_tqr(made, TOKENS, tmp_path)
    save_calibration(Calibration(0.0, 1.0, 9), tmp_path)
    assert tiny.same(tiny.weights(load_calibrated(tmp_path, CPU, 64, 3).scorer.model), tiny.weights(made))


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    save_tqr(model(TqrForm()), TOKENS, tmp_path)
    save_calibration(Calibration(0.0, 1.0, 9), tmp_path)
    form = json.loads((tmp_path / FAMILY).read_text())
    for changed, why in (
        ({**form, "weighted": False}, "knows no"),
        ({**form, "q": "pretrained", "odd": 1}, "odd"),
        ({**form, "type": "oracle"}, "unknown family 'oracle'"),
    ):
        (tmp_path / FAMILY).write_text(json.dumps(changed))
        with pytest.raises(UserError, match=why):
            load_calibrated(tmp_path, CPU, 64, 3)
    (tmp_path / FAMILY).write_text(json.dumps(form))
    (tmp_path / HEADS).unlink()
    with pytest.raises(UserError, match="not a reward model of the family ava"):
        load_calibrated(tmp_path, CPU, 64, 3)


def test_a_model_without_logits_has_no_q_to_begin_with():
    with pytest.raises(UserError, match="no Q can be read"):
        new_tqr(tiny.reward_model(), TqrForm())
    new_tqr(tiny.reward_model(), TqrForm(q="fresh"))


def test_rewards_of_another_tokenizers_tokens_are_those_of_its_own_added_up():
    other, form = tiny.tokenizer(264), TqrForm(score="sum")  # nearly a byte each
    own = scorer(form)
    responses = [encode_response(other, text) for text in TEXTS[:3]]
    answers = [Answer([], ids, True, text) for ids, text in zip(responses, TEXTS, strict=False)]
    found = DenseReader(own, other).token_rewards(tiny.PROMPTS[:3], answers)
    expected = own.estimate(tiny.PROMPTS[:3], TEXTS[:3])
    for rewards, ids, mean in zip(found, responses, expected.mean, strict=True):
        assert len(rewards) == len(ids) and rewards.sum() == pytest.approx(mean, abs=1e-5)
    same = [Answer([], encode_response(TOKENS, text), True, text) for text in TEXTS[:3]]
    for rewards, mine in zip(
        DenseReader(own, TOKENS).token_rewards(tiny.PROMPTS[:3], same), expected.per_token, strict=False
    ):
        np.testing.assert_allclose(rewards, mine, atol=1e-6)


def test_a_token_reward_that_is_no_number_is_refused():
    broken = scorer(TqrForm())
    with torch.no_grad():
        broken.model.reward_head.bias.fill_(float("nan"))
    answer = Answer([], encode_response(TOKENS, "the cat"), True, "the cat")
    with pytest.raises(FloatingPointError, match="the cat"):
        DenseReader(broken, TOKENS).token_rewards(tiny.PROMPTS[:1], [answer])


def test_a_score_that_is_no_number_is_refused():
    broken = scorer(TqrForm())
    with torch.no_grad():
        broken.model.reward_head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the cat"):
        broken(tiny.PROMPTS, TEXTS)
