"""A score is of one answer: not of the answers beside it, the side that is padded, or the disk it was on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.models.adapters import adapt_trunk, merge_adapters
from inverse_alignment.models.loading import load_reward_model, save_model
from inverse_alignment.models.reward_scores import RewardScorer, load_classifier
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward.bradley_terry import PairLoss, fit, pair_rows
from tests.unit.models import tiny

ANSWERS = [
    "the cat",
    "a dog and a cat. the end. a dog and a cat on the mat",
    "",
    "mat",
    "the dog sat on a cat. the end",
]
PROMPTS = [tiny.PROMPTS[i % 4] for i in range(len(ANSWERS))]
PAIRS = [tiny.pair(f"q{i}", "the cat sat", "a dog" + "s" * (i % 3), i) for i in range(16)]


def gpt2():
    """A reward model whose pad is its end token, as GPT-2's is by custom."""
    from transformers import GPT2ForSequenceClassification

    policy, tokenizer = tiny.gpt2()
    policy.config.num_labels, policy.config.pad_token_id = 1, tokenizer.pad_token_id
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(policy.config).eval(), tokenizer


KINDS = {"llama": lambda: (tiny.reward_model(), tiny.tokenizer()), "gpt2": gpt2}


def scores(model, tokenizer, rows=64):
    return RewardScorer(model, tokenizer, 48, rows)(PROMPTS, ANSWERS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_scored_beside_an_answer_does_not_matter(kind):
    model, tokenizer = KINDS[kind]()
    together, alone = scores(model, tokenizer), scores(model, tokenizer, rows=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    assert len(set(np.round(alone, 6))) == len(ANSWERS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_side_that_a_tokenizer_pads_does_not_matter(kind):
    model, tokenizer = KINDS[kind]()
    found = []
    for side in ("left", "right"):
        tokenizer.padding_side = side
        found.append(scores(model, tokenizer))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_same_bits_after_saving_and_loading(tmp_path, kind):
    model, tokenizer = KINDS[kind]()
    save_model(model, tokenizer, tmp_path)
    again = load_classifier(tmp_path, torch.device("cpu"), 48, 64)(PROMPTS, ANSWERS)
    np.testing.assert_array_equal(again, scores(model, tokenizer))


def test_a_model_trained_through_adapters_is_saved_with_its_score_head(tmp_path):
    tokenizer, model = tiny.tokenizer(), tiny.reward_model()
    before, start = scores(model, tokenizer), tiny.weights(model)
    adapt_trunk(model, 4, 8.0, (), 0, "reward.weights.targets")
    np.testing.assert_allclose(scores(model, tokenizer), before, rtol=0, atol=1e-6)
    given = arguments(
        partial=tmp_path, device="cpu", seed=0, epochs=2, learning_rate=1e-2, batch_size=4, warmup_share=0.1
    )
    rows = pair_rows(tokenizer, PAIRS, [1.0] * 16, 48)
    fit(model, tokenizer, rows, given, PairLoss(0.0, 0.0, False), tmp_path, FileReport(tmp_path / "m.jsonl"), 3600)
    taught = scores(model, tokenizer)
    merge_adapters(model)
    assert model.state_dict().keys() == start.keys() and all(w.requires_grad for w in model.parameters())
    merged = scores(model, tokenizer)
    np.testing.assert_allclose(merged, taught, rtol=0, atol=1e-5)
    assert np.abs(merged - before).max() > 0.01
    save_model(model, tokenizer, tmp_path / "saved")
    np.testing.assert_array_equal(scores(load_reward_model(tmp_path / "saved"), tokenizer), merged)
    headless = tiny.reward_model()  # the trap: adapters alone, on a fresh score head
    trunk = {name: weight for name, weight in model.state_dict().items() if not name.startswith("score")}
    headless.load_state_dict(trunk, strict=False)
    assert np.abs(scores(headless, tokenizer) - merged).max() > 1e-3


def test_pairs_whose_answers_are_one_to_the_tokenizer_are_left_out():
    same = tiny.pair("q", "the end " * 40 + "yes", "the end " * 40 + "no")
    tokenizer = tiny.tokenizer()
    rows = pair_rows(tokenizer, [PAIRS[0], same, PAIRS[1]], [1.0, 2.0, 3.0], 48)
    assert [row["weight"] for row in rows] == [1.0, 3.0]
    with pytest.raises(UserError, match="no pair has two different answers"):
        fit(
            tiny.reward_model(),
            tiny.tokenizer(),
            pair_rows(tiny.tokenizer(), [same], [1.0], 48),
            {},
            None,
            None,
            None,
            1,
        )
