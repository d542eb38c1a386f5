"""Scores without passes over padding: the same as those of one padded pass with its mask, and so are the gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from inverse_alignment.core.batches import pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.models import sequence_scores as subject
from inverse_alignment.models.score_features import score_layer
from inverse_alignment.models.sequence_scores import is_causal, plain_scores, sequence_scores, watched_scores
from tests.unit.models import tiny

LENGTHS = (3, 40, 9, 9, 27, 1, 60)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def rows(pad, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return pad_right([torch.randint(2, 270, (n,), generator=generator).tolist() for n in lengths], pad)


def gpt2_reward_model():
    from transformers import GPT2ForSequenceClassification

    policy, tokens = tiny.gpt2()
    policy.config.num_labels, policy.config.pad_token_id = 1, tokens.pad_token_id
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(policy.config).eval(), tokens.pad_token_id


def encoder():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=280,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval(), 0


MODELS = {"llama": lambda: (tiny.reward_model(), 0), "gpt2": gpt2_reward_model, "bert": encoder}


def gradient(model, scores):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad((scores * torch.arange(1.0, 8.0)).sum(), weights, allow_unused=True)
    return torch.cat(
        [torch.zeros(w.numel()) if g is None else g.flatten() for g, w in zip(found, weights, strict=True)]
    )


@pytest.mark.parametrize("most", [subject.PART_TOKENS, 30])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_gradients_are_those_of_one_padded_pass(monkeypatch, name, most):
    monkeypatch.setattr(subject, "PART_TOKENS", most)
    monkeypatch.setattr(subject, "PASS_COSTS", {"cpu": 1})
    model, pad = MODELS[name]()
    ids, mask = rows(pad)
    found, expected = sequence_scores(model, ids, mask), plain_scores(model, ids, mask)
    assert float(expected.detach().std()) > 0
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(gradient(model, found), gradient(model, expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_decoders_look_back_and_encoders_do_not(name):
    model = MODELS[name]()[0].train()
    state = torch.get_rng_state()
    assert is_causal(model) == (name != "bert")
    assert model.training and torch.equal(torch.get_rng_state(), state)
    frozen = MODELS[name]()[0].requires_grad_(False)
    with torch.no_grad():
        assert is_causal(frozen) == (name != "bert")


def test_an_encoder_that_hardly_looks_anywhere_is_one_all_the_same():
    model = encoder()[0]
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1e-3)
    assert not is_causal(model)


def test_without_its_mask_an_encoder_would_say_something_else():
    model, pad = encoder()
    ids, mask = rows(pad)
    assert not torch.allclose(model(input_ids=ids).logits.squeeze(-1), plain_scores(model, ids, mask), atol=1e-4)


def test_few_of_the_tokens_read_are_padding(monkeypatch):
    monkeypatch.setattr(subject, "PASS_COSTS", {"cpu": 1})
    monkeypatch.setattr(subject, "is_causal", lambda model: True)
    read = []

    def model(input_ids, use_cache):
        read.append(input_ids.numel())
        return SimpleNamespace(logits=input_ids[:, :1].float())

    ids, mask = rows(0)
    assert sequence_scores(model, ids, mask).tolist() == ids[:, 0].tolist()
    assert sum(read) == sum(LENGTHS) < ids.numel() / 2


@pytest.mark.parametrize("most", [subject.PART_TOKENS, 30])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_score_of_a_beginning_is_that_of_the_beginning_alone(monkeypatch, name, most):
    monkeypatch.setattr(subject, "PART_TOKENS", most)
    monkeypatch.setattr(subject, "PASS_COSTS", {"cpu": 1})
    model, pad = MODELS[name]()
    ids, mask = rows(pad)
    found = watched_scores(model, ids, mask)
    torch.testing.assert_close(found.final, plain_scores(model, ids, mask), **CLOSE)
    assert found.values.shape == ids.shape
    torch.testing.assert_close(
        score_layer(model)(found.features).squeeze(-1),
        found.values[torch.arange(7), torch.tensor(LENGTHS) - 1],
        **CLOSE,
    )
    for row, length in enumerate(LENGTHS):
        for kept in {1, length // 2 or 1, length}:
            alone = model(input_ids=ids[row : row + 1, :kept]).logits.squeeze()
            torch.testing.assert_close(found.values[row, kept - 1], alone, **CLOSE)


def test_an_encoder_says_nothing_of_beginnings():
    model, pad = encoder()
    with pytest.raises(UserError, match="says nothing of the beginning of an answer"):
        watched_scores(model, *rows(pad))
