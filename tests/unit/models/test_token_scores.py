"""What a reward model says per token: telescoping, direct readings, other tokenizers, padding, where it looked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.loading import new_reward_model
from inverse_alignment.models.reward_scores import RewardScorer
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.models.token_heads import load_token_head, token_head_from_trunk
from inverse_alignment.models.token_scores import Span, TokenHead, TokenScorer
from inverse_alignment.text.render import decode_response, encode_full, encode_prompt, encode_response, prompt_budget
from inverse_alignment.text.tokenizers import train_tokenizer
from tests.unit.models import tiny

TOKENS = tiny.tokenizer()
OTHER = train_tokenizer(["the dog sat. naïve 日本 😀 a cat"] * 20, 330)
END = TOKENS.eos_token_id
PROMPTS = [*tiny.PROMPTS, Prompt.from_text("a\nb")]
TEXTS = ["the cat", "", "a dog and a cat.", "naïve 日本 😀", "on the mat. " * 9]


@dataclass
class Written:
    """An answer of a policy."""

    response_ids: list[int]
    text: str


def written(text: str, tokenizer: Any = TOKENS) -> Written:
    """The answer in its tokenizer's own tokens."""
    return Written(encode_response(tokenizer, text), text)


def model(tokenizer: Any = TOKENS, seed: int = 1) -> Any:
    spec = InitialisedModel(vocab_size=len(tokenizer), hidden_size=16, layers=2, heads=2, context=64)
    made = new_reward_model(spec, tokenizer, seed).eval()
    made.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)  # opinions that change from token to token
    return made


def scorer(tokenizer: Any = TOKENS, rows: int = 2, max_tokens: int = 64) -> RewardScorer:
    return RewardScorer(model(tokenizer), tokenizer, max_tokens, rows)


def bare(score: RewardScorer, prompt: Prompt) -> float:
    """The score at the last token of a prompt alone, read directly."""
    ids = torch.tensor([encode_prompt(score.tokenizer, prompt, prompt_budget(score.max_tokens))])
    with torch.no_grad():
        return float(score.model.score(score.model.base_model(input_ids=ids).last_hidden_state)[0, -1, 0])


def read_directly(score: RewardScorer, prompt: Prompt, answer: Written) -> np.ndarray:
    """Scores at the last prompt token and at every token of an answer, one forward pass per prefix."""
    start = encode_prompt(score.tokenizer, prompt, prompt_budget(score.max_tokens))
    whole = encode_full(score.tokenizer, prompt, answer.text, score.max_tokens)
    found = []
    with torch.no_grad():
        for end in range(len(start), len(whole) + 1):
            state = score.model.base_model(input_ids=torch.tensor([whole[:end]])).last_hidden_state
            found.append(float(score.model.score(state)[0, -1, 0]))
    return np.array(found)


def test_prefix_scores_are_those_of_every_position_where_the_tokenizers_are_equal():
    score, answers = scorer(), [written(text) for text in TEXTS[:4]]
    made = TokenScorer(score, TOKENS).prefix_scores(PROMPTS[:4], answers)
    for prompt, answer, prefixes in zip(PROMPTS, answers, made, strict=False):
        direct = read_directly(score, prompt, answer)
        assert prefixes.shape == (len(answer.response_ids) + 1,)
        np.testing.assert_allclose(prefixes, direct, atol=1e-5)
        assert len(set(np.round(prefixes, 3))) > 1  # negative control: the scores do change from token to token


@pytest.mark.parametrize("reader", [TOKENS, OTHER], ids=["same tokenizer", "another tokenizer"])
def test_the_changes_add_up_to_the_score_less_that_of_the_bare_prompt(reader):
    score = scorer(reader)
    answers = [written(text) for text in TEXTS]
    whole = score(PROMPTS, TEXTS)
    for i, prefixes in enumerate(TokenScorer(score, TOKENS).prefix_scores(PROMPTS, answers)):
        assert len(prefixes) == len(answers[i].response_ids) + 1
        assert prefixes[-1] == pytest.approx(whole[i], abs=1e-6)
        assert prefixes[0] == pytest.approx(bare(score, PROMPTS[i]), abs=1e-5)
        assert np.diff(prefixes).sum() == pytest.approx(whole[i] - bare(score, PROMPTS[i]), abs=1e-5)


def test_an_answer_cut_off_at_the_longest_folds_the_end_token_into_its_last():
    """The reward model reads an end token that the policy did not write."""
    score, answer = scorer(), Written(encode_response(TOKENS, "a dog and")[:-1], "a dog and")
    (prefixes,) = TokenScorer(score, TOKENS).prefix_scores(PROMPTS[:1], [answer])
    direct = read_directly(score, PROMPTS[0], answer)
    np.testing.assert_allclose(prefixes[:-1], direct[:-2], atol=1e-5)
    assert prefixes[-1] == pytest.approx(direct[-1], abs=1e-5)


def test_an_answer_longer_than_the_reward_model_reads_credits_what_it_reads():
    score = scorer(max_tokens=24)
    answer = written("the cat sat on the mat and a dog sat on the cat")
    (prefixes,) = TokenScorer(score, TOKENS).prefix_scores(PROMPTS[:1], [answer])
    assert len(prefixes) == len(answer.response_ids) + 1
    assert prefixes[-1] == pytest.approx(score(PROMPTS[:1], [answer.text])[0], abs=1e-6)
    changes = np.diff(prefixes)
    kept = 24 - len(encode_prompt(TOKENS, PROMPTS[0], 12)) - 1
    assert (changes[kept:-1] == 0).all() and (changes[:kept] != 0).any()


def test_another_tokenizer_by_hand():
    """The policy spells 'a', ' ', 'd', 'o', 'g'; the reader has ' dog' whole, so nothing changes before the 'g'."""
    ids = [TOKENS.convert_tokens_to_ids(piece) for piece in ("a", "Ġ", "d", "o", "g")]
    answer = Written([*ids, END], "a dog")
    score = scorer(OTHER)
    assert [OTHER.decode([i]) for i in encode_response(OTHER, "a dog")] == ["a", " dog", "<|end|>"]
    (prefixes,) = TokenScorer(score, TOKENS).prefix_scores(PROMPTS[:1], [answer])
    direct = read_directly(score, PROMPTS[0], answer)  # S_0, after 'a', after ' dog', after the end
    expected = [direct[0], direct[1], direct[1], direct[1], direct[1], direct[2], direct[3]]
    np.testing.assert_allclose(prefixes, expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("reader", [TOKENS, OTHER], ids=["same tokenizer", "another tokenizer"])
def test_neighbours_and_padding_change_nothing(reader, rows):
    score = scorer(reader, rows)
    answers = [written(text) for text in TEXTS]
    together = TokenScorer(score, TOKENS)
    for kind in ("prefix_scores", "attention"):
        batched = getattr(together, kind)(PROMPTS, answers)
        for i, alone in enumerate(answers):
            (single,) = getattr(together, kind)([PROMPTS[i]], [alone])
            np.testing.assert_allclose(batched[i], single, atol=1e-5)
        order = [3, 1, 4, 0, 2]
        shuffled = getattr(together, kind)([PROMPTS[i] for i in order], [answers[i] for i in order])
        for place, i in enumerate(order):
            np.testing.assert_allclose(shuffled[place], batched[i], atol=1e-5)


def test_attention_is_the_row_of_the_scored_position_in_the_last_layer():
    score, answer = scorer(), written("a dog and a cat.")
    (looked,) = TokenScorer(score, TOKENS).attention(PROMPTS[:1], [answer])
    whole = encode_full(TOKENS, PROMPTS[0], answer.text, 64)
    start = len(whole) - len(answer.response_ids)
    score.model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = score.model(input_ids=torch.tensor([whole]), output_attentions=True).attentions
    expected = layers[-1][0, :, -1, start:].mean(0)
    np.testing.assert_allclose(looked, expected.numpy(), atol=1e-6)
    assert 0 < looked.sum() < 1  # what the prompt got is left out
    wrong = layers[0][0, :, -1, start:].mean(0)  # negative control: another layer
    assert np.abs(looked - wrong.numpy()).max() > 1e-3


def test_attention_of_another_tokenizer_is_added_up_within_a_token():
    score, answer = scorer(OTHER), written("the cat sat on the mat.")
    (looked,) = TokenScorer(score, TOKENS).attention(PROMPTS[:1], [answer])
    (own,) = TokenScorer(score, OTHER).attention(PROMPTS[:1], [written(answer.text, OTHER)])
    assert len(looked) == len(answer.response_ids) != len(own)
    assert looked.sum() == pytest.approx(own.sum(), abs=1e-6)
    assert looked[-1] == pytest.approx(own[-1], abs=1e-6)  # both wrote the end token


def test_looking_leaves_the_model_as_it_was():
    score = scorer()
    before, plain = score.model.config._attn_implementation, score(PROMPTS, TEXTS)
    reader = TokenScorer(score, TOKENS)
    reader.attention(PROMPTS, [written(text) for text in TEXTS])
    reader.prefix_scores(PROMPTS, [written(text) for text in TEXTS])
    assert score.model.config._attn_implementation == before != "eager"
    assert (score(PROMPTS, TEXTS) == plain).all()
    assert not any(module._forward_hooks for name, module in score.model.named_modules() if name == "score")


def gpt2_scorer() -> RewardScorer:
    """Another architecture, whose pad is its end token: the score is read at the last token before the end."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    _, tokens = tiny.gpt2()
    config = GPT2Config(
        vocab_size=len(tokens),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        num_labels=1,
        initializer_range=0.5,
        bos_token_id=tokens.eos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    config.pad_token_id = tokens.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = GPT2ForSequenceClassification(config).eval()
    return RewardScorer(made, tokens, 64, 2)


def test_a_model_whose_pad_is_its_end_token_is_read_where_it_scores():
    score = gpt2_scorer()
    answers = [written(text) for text in TEXTS]
    whole = score(PROMPTS, TEXTS)
    reader = TokenScorer(score, TOKENS)
    for i, prefixes in enumerate(reader.prefix_scores(PROMPTS, answers)):
        assert prefixes[-1] == pytest.approx(whole[i], abs=1e-6)
        np.testing.assert_allclose(prefixes[:-1], read_directly(score, PROMPTS[i], answers[i])[:-1], atol=1e-5)
    for looked, answer in zip(reader.attention(PROMPTS, answers), answers, strict=True):
        assert looked[-1] == 0  # the position that scores comes before the end token, and looks at none after it
        assert (looked[:-1] > 0).all() and len(looked) == len(answer.response_ids)


@pytest.mark.parametrize("name", ["GPTNeoX", "Qwen2", "Mistral", "Gemma2"])
def test_other_architectures(name):
    import transformers

    few = {"num_key_value_heads": 1, "head_dim": 8} if name == "Gemma2" else {}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(TOKENS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        pad_token_id=TOKENS.pad_token_id,
        bos_token_id=END,
        eos_token_id=END,
        **few,
        **({} if few or name == "GPTNeoX" else {"num_key_value_heads": 2}),
    )
    made = getattr(transformers, f"{name}ForSequenceClassification")(config).eval()
    score, answers = RewardScorer(made, TOKENS, 64, 8), [written(text) for text in TEXTS]
    reader = TokenScorer(score, TOKENS)
    ends = [prefixes[-1] for prefixes in reader.prefix_scores(PROMPTS, answers)]
    np.testing.assert_allclose(ends, score(PROMPTS, TEXTS), atol=1e-6)
    looked = reader.attention(PROMPTS, answers)[0]
    made.set_attn_implementation("eager")
    ids = torch.tensor([encode_full(TOKENS, PROMPTS[0], TEXTS[0], 64)])
    with torch.no_grad():
        last = made(input_ids=ids, output_attentions=True).attentions[-1]
    np.testing.assert_allclose(looked, last[0, :, -1, -len(looked) :].mean(0).numpy(), atol=1e-6)


@given(st.lists(st.lists(st.integers(5, 270), max_size=9), min_size=1, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_whatever_a_policy_writes_telescopes(rows, ended, alike):
    score = scorer(TOKENS if alike else OTHER)
    answers = []
    for ids in rows:
        ids = [*ids, END] if ended or not ids else ids
        answers.append(Written(ids, decode_response(TOKENS, ids)))
    prompts = PROMPTS[: len(answers)]
    whole = score(prompts, [answer.text for answer in answers])
    reader = TokenScorer(score, TOKENS)
    for i, prefixes in enumerate(reader.prefix_scores(prompts, answers)):
        assert prefixes.shape == (len(answers[i].response_ids) + 1,)
        assert prefixes[-1] == pytest.approx(whole[i], abs=1e-6)
    for looked, answer in zip(reader.attention(prompts, answers), answers, strict=True):
        assert looked.shape == (len(answer.response_ids),) and (looked >= 0).all() and looked.sum() > 0


def test_a_reward_model_without_a_score_on_every_token_is_refused():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(TOKENS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(UserError, match="scores no prefix"):
        TokenScorer(RewardScorer(BertForSequenceClassification(config), TOKENS, 64, 2), TOKENS)


def test_a_score_that_is_not_finite_stops_the_run():
    score = scorer()
    with torch.no_grad():
        score.model.score.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="score is nan"):
        TokenScorer(score, TOKENS).prefix_scores(PROMPTS[:1], [written("a")])


def test_a_span_by_hand():
    """Five tokens of a reader belong to four of a policy: the second and the last own two, the third none."""
    span = Span(2, np.array([0, 1, 1, 3, 3]), 4)
    values = np.array([50.0, -7.0, 1.0, 2.0, 3.0, 4.0, 5.0, 99.0])  # two of the prompt first, padding last
    assert span.summed(values).tolist() == [1.0, 5.0, 0.0, 9.0]
    assert span.newest(values).tolist() == [-7.0, 1.0, 3.0, 3.0, 5.0]
    late = Span(1, np.array([2]), 3)  # nothing is owned before the last token
    assert late.newest(np.array([-7.0, 6.0])).tolist() == [-7.0, -7.0, -7.0, 6.0]


def test_what_was_read_for_the_scores_is_not_read_again():
    score, answers = scorer(), [written(text) for text in TEXTS]
    fresh, reader = TokenScorer(score, TOKENS), TokenScorer(score, TOKENS)
    passes = []
    watch = score.model.register_forward_hook(lambda *given: passes.append(1))
    np.testing.assert_allclose(reader.scores(PROMPTS, TEXTS), score(PROMPTS, TEXTS), atol=1e-6)
    passes.clear()
    kept = reader.prefix_scores(PROMPTS, answers)
    assert not passes
    for mine, other in zip(kept, fresh.prefix_scores(PROMPTS, answers), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    np.testing.assert_allclose(reader.scores(PROMPTS, TEXTS, look=True), score(PROMPTS, TEXTS), atol=1e-6)
    passes.clear()
    looked = reader.attention(PROMPTS, answers)
    assert not passes
    for mine, other in zip(looked, fresh.attention(PROMPTS, answers), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)
    assert passes  # by the other reader
    passes.clear()
    changed = reader.prefix_scores(PROMPTS, [*answers[:-1], written("another")])  # other answers are read anew
    assert passes and changed[-1][-1] == pytest.approx(score(PROMPTS[-1:], ["another"])[0], abs=1e-5)
    watch.remove()


# ------------------------------------------------------------------------------------------------- token heads


def head(tmp_path: Any, tokenizer: Any = TOKENS) -> Any:
    """A token head on the trunk of a reward model, with some opinion."""
    from inverse_alignment.models.loading import save_model

    save_model(model(tokenizer), tokenizer, tmp_path / "reward")
    made = token_head_from_trunk(tmp_path / "reward").eval()
    with torch.no_grad():
        made.score.weight.normal_(generator=torch.Generator().manual_seed(0))
        made.score.bias.fill_(0.25)
    return made


def test_a_fresh_token_head_has_the_trunk_and_no_opinion(tmp_path):
    from inverse_alignment.models.loading import save_model

    trunk = model()
    save_model(trunk, TOKENS, tmp_path / "reward")
    made = token_head_from_trunk(tmp_path / "reward").eval()
    assert tiny.same(tiny.weights(made.base_model), tiny.weights(trunk.base_model))
    ids = torch.tensor([encode_full(TOKENS, PROMPTS[0], "a dog", 64)])
    assert (made(input_ids=ids).logits == 0).all() and made.dropout.p == 0.0


def test_token_rewards_are_the_models_where_the_tokenizers_are_equal(tmp_path):
    made, answers = head(tmp_path), [written(text) for text in TEXTS[:4]]
    judged = TokenHead(made, TOKENS, TOKENS, 64, 2).token_rewards(PROMPTS[:4], answers)
    for prompt, answer, rewards in zip(PROMPTS, answers, judged, strict=False):
        ids = encode_full(TOKENS, prompt, answer.text, 64)
        with torch.no_grad():
            own = made(input_ids=torch.tensor([ids])).logits[0, -len(answer.response_ids) :, 0]
        np.testing.assert_allclose(rewards, own.numpy(), atol=1e-5)
        assert np.abs(rewards).max() > 0.01


def test_token_rewards_of_another_tokenizer_are_added_up_within_a_token(tmp_path):
    made, text = head(tmp_path, OTHER), "the cat sat on the mat."
    (rewards,) = TokenHead(made, OTHER, TOKENS, 64, 2).token_rewards(PROMPTS[:1], [written(text)])
    (own,) = TokenHead(made, OTHER, OTHER, 64, 2).token_rewards(PROMPTS[:1], [written(text, OTHER)])
    assert len(rewards) != len(own) and rewards.sum() == pytest.approx(own.sum(), abs=1e-5)


def test_a_token_head_survives_its_folder(tmp_path):
    from inverse_alignment.models.loading import save_model

    made = head(tmp_path)
    save_model(made, TOKENS, tmp_path / "head")
    assert tiny.same(tiny.weights(load_token_head(tmp_path / "head")), tiny.weights(made))
    answers = [written(text) for text in TEXTS]
    judge = TokenHead.load(tmp_path / "head", TOKENS, torch.device("cpu"), 64, 3)
    again = judge.token_rewards(PROMPTS, answers)
    for a, b in zip(again, TokenHead(made, TOKENS, TOKENS, 64, 3).token_rewards(PROMPTS, answers), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_folder_without_a_token_head_is_refused(tmp_path):
    from inverse_alignment.models.loading import save_model

    save_model(tiny.policy(), TOKENS, tmp_path / "policy")
    with pytest.raises(UserError, match="not a token-level reward model: it lacks"):
        load_token_head(tmp_path / "policy")


def test_a_token_reward_that_is_not_finite_stops_the_run(tmp_path):
    made = head(tmp_path)
    with torch.no_grad():
        made.score.bias.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="not finite"):
        TokenHead(made, TOKENS, TOKENS, 64, 2).token_rewards(PROMPTS[:1], [written("a")])
