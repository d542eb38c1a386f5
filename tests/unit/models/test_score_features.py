"""What a reward model's last layer reads: the score is a linear map of it, whatever the architecture."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from inverse_alignment.core.errors import UserError
from inverse_alignment.models.reward_scores import RewardScorer
from inverse_alignment.models.score_features import pair_features, score_features, score_layer
from inverse_alignment.selection.nearest import room
from tests.unit.models import tiny

ANSWERS = ["yes", "the cat sat on the mat because it was warm", "", "no"]


def scorer(model=None, rows=3):
    return RewardScorer(model or tiny.reward_model(), tiny.tokenizer(), 48, rows)


def encoder():
    """A model that reads in both directions and has one layer more below its last one, and a constant."""
    config = BertConfig(
        vocab_size=280, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
        torch.nn.init.constant_(model.classifier.bias, 3.0)
    return model


@pytest.mark.parametrize("model", [tiny.reward_model, encoder])
def test_scores_are_a_linear_map_of_the_features(model):
    asked = scorer(model())
    found = score_features(asked, tiny.PROMPTS, ANSWERS)
    np.testing.assert_allclose(found.scores, asked(tiny.PROMPTS, ANSWERS), rtol=1e-5, atol=1e-6)
    layer = score_layer(asked.model)
    constant = 0.0 if layer.bias is None else layer.bias.item()
    predicted = found.features @ layer.weight.detach().numpy()[0] + constant
    np.testing.assert_allclose(predicted, found.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [tiny.reward_model, encoder])
def test_of_pairs_the_difference_alone_matters(model):
    pairs = [tiny.pair(prompt, "a cat", "a dog sat", 0) for prompt in ("hi", "the end", "a dog?")]
    asked = scorer(model())
    found = pair_features(asked, pairs)
    np.testing.assert_allclose(found.differences @ found.weights, found.gaps, rtol=1e-4, atol=1e-6)
    prompts = [pair.prompt for pair in pairs]
    gaps = asked(prompts, ["a cat"] * 3) - asked(prompts, ["a dog sat"] * 3)
    np.testing.assert_allclose(found.gaps, gaps, rtol=1e-4, atol=1e-6)
    assert found.differences.dtype == np.float32 and np.ptp(found.gaps) > 0


def test_pairs_in_blocks_and_in_a_file_are_the_same(monkeypatch, tmp_path):
    pairs = [tiny.pair(prompt, "a cat", f"a dog sat {n}", n) for n, prompt in enumerate(("hi", "the end", "a dog?"))]
    whole = pair_features(scorer(), pairs)
    told = []
    monkeypatch.setattr("inverse_alignment.models.score_features.BLOCK", 2)
    in_file = partial(room, most_bytes=8, folder=tmp_path, name="features")
    parts = pair_features(scorer(), pairs, lambda *said: told.append(said), in_file)
    assert isinstance(parts.differences, np.memmap) and (tmp_path / "features.npy").exists()
    np.testing.assert_allclose(parts.differences, whole.differences, rtol=1e-4, atol=1e-6)
    assert told == [(2, 3, "pairs scored"), (3, 3, "pairs scored")]
    assert [(rows.start, len(gaps)) for rows, _, gaps in parts.blocks()] == [(0, 2), (2, 1)]
    np.testing.assert_array_equal(np.concatenate([block for _, block, _ in parts.blocks()]), parts.differences)


def test_order_batches_and_blocks_change_nothing(monkeypatch):
    whole = score_features(scorer(), tiny.PROMPTS, ANSWERS)
    told = []
    monkeypatch.setattr("inverse_alignment.models.score_features.BLOCK", 3)
    parts = score_features(scorer(rows=1), tiny.PROMPTS[::-1], ANSWERS[::-1], lambda *said: told.append(said))
    np.testing.assert_allclose(parts.features[::-1], whole.features, rtol=1e-4, atol=1e-6)
    assert told == [(3, 4, "answers scored"), (4, 4, "answers scored")]


def test_a_score_that_is_more_than_its_last_layer_is_refused():
    model = tiny.reward_model()
    inner = model.forward

    def squared(**given):
        made = inner(**given)
        made.logits = made.logits**2 + 5
        return made

    model.forward = squared
    with pytest.raises(UserError, match="no linear map of what its last layer reads"):
        score_features(scorer(model), tiny.PROMPTS, ANSWERS)


def test_a_model_without_such_a_layer_is_refused():
    model = tiny.reward_model()
    model.score = torch.nn.Linear(16, 2)
    with pytest.raises(UserError, match="the last layer of the reward model is no linear map") as error:
        score_layer(model)
    assert "selection.type" in error.value.where
