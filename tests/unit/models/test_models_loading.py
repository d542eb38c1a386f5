"""Models come back from a folder to the bit, and what is no model of the wanted kind is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification

from inverse_alignment.core.artifact import list_files
from inverse_alignment.core.batches import Sequences
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.estimates import RewardEstimate
from inverse_alignment.generation.answers import answer, batch_of
from inverse_alignment.models.heads import ValueModel, load_optimizer, save_optimizer
from inverse_alignment.models.loading import (
    load_policy,
    load_reward_model,
    new_policy,
    new_reward_model,
    pick_device,
    reward_model_from_trunk,
    save_model,
)
from inverse_alignment.models.log_probs import compare_with_reference
from inverse_alignment.models.reward_scores import (
    Calibration,
    RewardScorer,
    load_calibrated,
    save_calibration,
    save_family,
)
from inverse_alignment.text.render import encode_full
from inverse_alignment.text.tokenizers import load_tokenizer
from tests.unit.models import tiny

ANSWERS = ["the cat.", "a dog and a cat sat on the mat.", "", "é"]
IDS = torch.tensor([[5, 9, 14, 7, 1]])


def scorer(model, rows=64, tokens=None):
    return RewardScorer(model, tokens or tiny.tokenizer(), 48, rows)


def test_a_policy_comes_back_to_the_bit(tmp_path):
    model = tiny.policy()
    back = load_policy(tiny.saved(model, tmp_path))
    assert tiny.same(tiny.weights(model), tiny.weights(back))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, back.eval()(IDS).logits)


def test_a_reward_model_comes_back_to_the_bit_with_its_calibration(tmp_path):
    model = tiny.reward_model()
    scores = scorer(model)(tiny.PROMPTS, ANSWERS)
    calibration = Calibration.of(scores)
    save_calibration(calibration, tiny.saved(model, tmp_path))
    back = load_calibrated(tmp_path, torch.device("cpu"), 48, 64)
    assert back.calibration == calibration
    np.testing.assert_array_equal(back.scorer(tiny.PROMPTS, ANSWERS), scores)
    standard = back(tiny.PROMPTS, ANSWERS)
    assert standard.mean() == pytest.approx(0, abs=1e-9) and standard.std() == pytest.approx(1)


def test_saving_names_no_folder_and_equal_models_have_equal_bytes(tmp_path):
    tiny.saved(tiny.policy(), tmp_path / "one")
    again = load_policy(tmp_path / "one")
    assert str(tmp_path) in again.config._name_or_path  # what must not be written
    save_model(again, load_tokenizer(tmp_path / "one").tokenizer, tmp_path / "two")
    names = list_files(tmp_path / "one")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert list_files(tmp_path / "two") == names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
        assert str(tmp_path).encode() not in (tmp_path / "two" / name).read_bytes(), name


def test_weights_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = tiny.weights(new_policy(tiny.SPEC, tiny.tokenizer(), 3))
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's numbers are used up
    torch.manual_seed(2)
    assert tiny.same(one, tiny.weights(new_policy(tiny.SPEC, tiny.tokenizer(), 3)))
    assert not tiny.same(one, tiny.weights(new_policy(tiny.SPEC, tiny.tokenizer(), 4)))


def test_a_score_head_on_a_trunk_depends_on_the_seed_alone(tmp_path):
    policy = tiny.policy()
    tiny.saved(policy, tmp_path)
    models = []
    for seed, rng in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(rng)
        models.append(reward_model_from_trunk(tmp_path, seed))
    assert tiny.same(tiny.weights(models[0]), tiny.weights(models[1]))
    assert not torch.equal(models[0].score.weight, models[2].score.weight)
    assert tiny.same(tiny.weights(models[0].model), tiny.weights(policy.model))


@pytest.mark.parametrize("rows", [1, 2])
def test_scores_do_not_depend_on_batch_or_order(rows):
    model = tiny.reward_model()
    together = scorer(model)(tiny.PROMPTS, ANSWERS)
    assert together.std() > 1e-3
    np.testing.assert_allclose(scorer(model, rows)(tiny.PROMPTS, ANSWERS), together, atol=1e-5)
    backwards = scorer(model, rows)(tiny.PROMPTS[::-1], ANSWERS[::-1])[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-5)


def test_the_score_is_read_at_the_end_token_without_padding():
    model = tiny.reward_model()
    ids = encode_full(tiny.tokenizer(), tiny.PROMPTS[0], ANSWERS[0], 48)
    with torch.no_grad():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0]
        expected = model.score(hidden)[:, 0]
    found = scorer(model)([tiny.PROMPTS[0], tiny.PROMPTS[1]], [ANSWERS[0], ANSWERS[1]])[0]
    assert ids[-1] == 1 and found == pytest.approx(expected[-1].item(), abs=1e-5)
    assert abs(found - expected[-2].item()) > 1e-4


def test_a_reward_model_that_cannot_tell_answers_apart_is_refused():
    with pytest.raises(UserError, match="same score"):
        Calibration.of(np.full(9, 3.25))
    with pytest.raises(UserError, match="same score"):
        Calibration.of(np.full(9, 1e6) + np.linspace(0, 1e-3, 9))  # rounding is no opinion
    assert Calibration.of(np.array([1.0, 3.0])) == Calibration(2.0, 1.0, 2)


def test_a_score_that_is_not_finite_is_refused():
    model = tiny.reward_model()
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the reward model's score is nan"):
        scorer(model)(tiny.PROMPTS, ANSWERS)


def test_a_causal_lm_is_no_reward_model_and_the_other_way_round(tmp_path):
    with pytest.raises(UserError, match="not a reward model: it lacks score"):
        load_reward_model(tiny.saved(tiny.policy(), tmp_path / "policy"))
    load_reward_model(tiny.saved(tiny.reward_model(), tmp_path / "reward"))
    config = tiny.reward_model().config
    config.tie_word_embeddings = False
    untied = LlamaForSequenceClassification(config)
    with pytest.raises(UserError, match="not a causal language model: it lacks lm_head"):
        load_policy(tiny.saved(untied, tmp_path / "untied"))


def test_a_classifier_with_two_labels_is_no_reward_model(tmp_path):
    config = tiny.reward_model().config
    config.num_labels = 2
    with pytest.raises(UserError, match="2 labels"):
        load_reward_model(tiny.saved(LlamaForSequenceClassification(config), tmp_path))


@pytest.mark.parametrize("load", [load_policy, load_reward_model, lambda path: reward_model_from_trunk(path, 0)])
def test_pickled_weights_are_not_loaded(tmp_path, load):
    model = tiny.policy()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors"):
        load(tmp_path)


def stepped(seed=0, steps=3):
    model = tiny.policy(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model, optimizer


def test_an_optimizer_goes_on_to_the_bit(tmp_path):
    model, optimizer = stepped(steps=2)
    save_optimizer(optimizer, tmp_path / "a.safetensors")
    copy = tiny.policy()
    copy.load_state_dict(model.state_dict())
    results = []
    for load in (True, False):
        twin = tiny.policy()
        twin.load_state_dict(model.state_dict())
        other = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
        if load:
            load_optimizer(other, tmp_path / "a.safetensors")
            save_optimizer(other, tmp_path / "b.safetensors")
        twin(IDS, labels=IDS).loss.backward()
        other.step()
        results.append(tiny.weights(twin))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    expected = tiny.weights(stepped(steps=3)[0])
    assert tiny.same(results[0], expected)
    assert not tiny.same(results[1], expected)  # without its moments it would have gone elsewhere


def test_an_optimizer_that_never_stepped_can_be_saved(tmp_path):
    model = tiny.policy()
    optimizer = torch.optim.AdamW(model.parameters())
    save_optimizer(optimizer, tmp_path / "o.safetensors")
    load_optimizer(optimizer, tmp_path / "o.safetensors")
    assert not optimizer.state_dict()["state"]


def test_a_value_model_starts_at_zero_as_a_copy_and_comes_back(tmp_path):
    policy = tiny.policy()
    value = ValueModel.from_policy(policy)
    answers = answer(policy, tiny.tokenizer(), tiny.PROMPTS, [1, 2, 3, 4], tiny.sampling())
    batch = Sequences.of(batch_of(answers, 0, policy.device))
    assert not value(batch).any()
    with torch.no_grad():
        value.head.weight.fill_(0.5)
        value.trunk.embed_tokens.weight.add_(1.0)
    assert tiny.same(tiny.weights(policy), tiny.weights(tiny.policy()))  # the policy's own trunk stays
    value.save(tmp_path / "v.safetensors")
    back = ValueModel.from_policy(tiny.policy(9))
    assert not torch.equal(back(batch), value(batch))
    back.load(tmp_path / "v.safetensors")
    assert torch.equal(back(batch), value(batch)) and value(batch).std() > 0


def test_the_number_of_heads_must_divide_the_width():
    with pytest.raises(UserError, match="not a multiple of heads"):
        new_reward_model(tiny.SPEC.model_copy(update={"heads": 3}), tiny.tokenizer(), 0)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    with pytest.raises(UserError, match="no GPU"):
        pick_device("cuda")


def test_another_architecture_whose_pad_is_its_end_token(tmp_path):
    model, tokens = tiny.gpt2()
    save_model(model, tokens, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == tokens.eos_token_id
    policy, tokens = load_policy(tmp_path).eval(), load_tokenizer(tmp_path).tokenizer
    assert tokens.pad_token_id == tokens.eos_token_id
    answers = answer(policy, tokens, tiny.PROMPTS, [1, 2, 3, 4], tiny.sampling())
    assert answers == answer(policy, tokens, tiny.PROMPTS, [1, 2, 3, 4], tiny.sampling(rows=1))
    batch = batch_of(answers, tokens.pad_token_id, policy.device)
    view = compare_with_reference(policy, tiny.gpt2()[0], batch, 1.0)
    assert view.kl[batch.response_mask].abs().max() < 1e-4
    for row, given in enumerate(answers):
        ids = torch.tensor([given.prompt_ids + given.response_ids])
        with torch.no_grad():
            log_probs = torch.log_softmax(policy(ids).logits[0], -1)
        start = len(given.prompt_ids)
        expected = [log_probs[start + t - 1, token].item() for t, token in enumerate(given.response_ids)]
        np.testing.assert_allclose(view.log_probs[row][batch.response_mask[row]].numpy(), expected, atol=1e-4)
    reward = reward_model_from_trunk(tmp_path, 0)
    reward.config.pad_token_id = tokens.pad_token_id
    together = scorer(reward, 64, tokens)(tiny.PROMPTS, ANSWERS)
    assert together.std() > 1e-3
    np.testing.assert_allclose(scorer(reward, 1, tokens)(tiny.PROMPTS, ANSWERS), together, atol=1e-5)


def test_an_unknown_family_and_a_torn_family_file_are_refused(tmp_path):
    folder = tiny.saved(tiny.reward_model(), tmp_path)
    save_calibration(Calibration(0.0, 1.0, 2), folder)
    save_family({"type": "oracle"}, folder)
    with pytest.raises(UserError, match="unknown family 'oracle'"):
        load_calibrated(folder, torch.device("cpu"), 48, 64)
    (folder / "reward.json").write_text("[")
    with pytest.raises(UserError, match="holds no JSON object"):
        load_calibrated(folder, torch.device("cpu"), 48, 64)


def test_an_estimate_is_standardised_part_by_part():
    estimate = RewardEstimate(np.array([3.0, 5.0]), np.array([1.0, 4.0]), (np.array([2.0]), np.array([1.0, -1.0])))
    found = Calibration(3.0, 2.0, 9).standardised(estimate)
    assert found.mean.tolist() == [0.0, 1.0] and found.std.tolist() == [0.5, 2.0]
    assert [row.tolist() for row in found.per_token] == [[1.0], [0.5, -0.5]]
    bare = Calibration(3.0, 2.0, 9).standardised(RewardEstimate(np.array([3.0])))
    assert bare.std is None and bare.per_token is None
