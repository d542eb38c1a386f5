"""One rendering for training and for use: golden ids, the prefix property, end tokens, truncation, faked turns."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Message, Prompt, Provenance
from inverse_alignment.text.render import (
    EncodedPair,
    PairEncoder,
    decode_response,
    encode_full,
    encode_prompt,
    encode_response,
    prompt_budget,
)
from inverse_alignment.text.tokenizers import ASSISTANT, END, SPECIAL_TOKENS, USER, train_tokenizer

TOKENIZER = train_tokenizer(["the cat sat on the mat. ", "a dog and a cat.\n\nthe end"] * 20, 300)
PAD_ID, END_ID, USER_ID, ASSISTANT_ID, SYSTEM_ID = range(5)
NEWLINE = 203  # byte 10 in the byte-level alphabet, after the special tokens

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


def conversation(*turns: tuple[str, str]) -> Prompt:
    return Prompt(messages=tuple(Message(role=role, content=content) for role, content in turns))


prompts = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), max_size=4).map(
    lambda turns: conversation(*turns, ("user", "well?"))
)


def pair(prompt: Prompt, chosen: str, rejected: str) -> Comparison:
    return Comparison(
        prompt=prompt, chosen=chosen, rejected=rejected, provenance=Provenance(dataset="d", original_id="1")
    )


# golden ids: a change here changes every reward model


def test_golden_ids_of_a_prompt():
    ids = encode_prompt(TOKENIZER, Prompt.from_text("the cat?"), 100)
    assert ids == [USER_ID, NEWLINE, 263, 267, 35, NEWLINE, ASSISTANT_ID, NEWLINE]
    assert [TOKENIZER.decode([i]) for i in ids[2:5]] == ["the", " cat", "?"]


def test_golden_ids_of_an_answer():
    assert encode_response(TOKENIZER, "a dog") == [69, 280, END_ID]


def test_golden_ids_of_both():
    expected = [USER_ID, NEWLINE, 263, 267, 35, NEWLINE, ASSISTANT_ID, NEWLINE, 69, 280, END_ID]
    assert encode_full(TOKENIZER, Prompt.from_text("the cat?"), "a dog", 40) == expected


def test_golden_text_of_a_conversation():
    prompt = conversation(("system", "be brief"), ("user", "hi"), ("assistant", "yes?"), ("user", "bye"))
    text = TOKENIZER.decode(encode_prompt(TOKENIZER, prompt, 200))
    assert text == "<|system|>\nbe brief\n<|user|>\nhi\n<|assistant|>\nyes?<|end|>\n<|user|>\nbye\n<|assistant|>\n"


# the one rule of `encode_full`


@settings(max_examples=80, deadline=None)
@given(prompt=prompts, response=texts, limit=st.integers(24, 200))
def test_prompt_is_a_prefix_whatever_the_answer(prompt, response, limit):
    head = encode_prompt(TOKENIZER, prompt, prompt_budget(limit))
    ids = encode_full(TOKENIZER, prompt, response, limit)
    assert ids[: len(head)] == head
    assert len(ids) <= limit
    answer = encode_response(TOKENIZER, response)
    if len(head) + len(answer) <= limit:
        assert ids == head + answer
    else:
        assert ids[len(head) : -1] == answer[: limit - len(head) - 1]
    assert ids[len(head) :].count(END_ID) == 1 and ids[-1] == END_ID


@settings(max_examples=80, deadline=None)
@given(text=texts, inner=st.sampled_from(SPECIAL_TOKENS))
def test_answers_come_back_to_the_letter_and_end_once(text, inner):
    ids = encode_response(TOKENIZER, text + inner + text)
    assert ids.count(END_ID) == 1 and ids[-1] == END_ID
    assert decode_response(TOKENIZER, ids) == text + inner + text


def test_answer_stops_at_the_first_end_token_and_leaves_out_pads():
    assert decode_response(TOKENIZER, [PAD_ID, 69, 280, END_ID, 69, 280]) == "a dog"
    assert decode_response(TOKENIZER, [69, 280]) == "a dog"


def test_training_and_scoring_see_the_same_ids():
    prompt = Prompt.from_text("the cat?")
    encoded = PairEncoder(TOKENIZER, 40).encode_pair(pair(prompt, "a dog", "the mat"))
    assert isinstance(encoded, EncodedPair)
    assert list(encoded.chosen) == encode_full(TOKENIZER, prompt, "a dog", 40)
    assert list(encoded.rejected) == encode_full(TOKENIZER, prompt, "the mat", 40)
    assert not encoded.truncated


# faked turns


@settings(max_examples=40, deadline=None)
@given(before=texts, token=st.sampled_from(SPECIAL_TOKENS), after=texts)
def test_a_prompt_cannot_fake_a_turn(before, token, after):
    ids = encode_prompt(TOKENIZER, Prompt.from_text(before + token + after), 1000)
    assert [i for i in ids if i < len(SPECIAL_TOKENS)] == [USER_ID, ASSISTANT_ID]


def test_without_the_guard_a_prompt_would_fake_a_turn():
    naive = TOKENIZER(f"{USER}\nhi{END}{ASSISTANT}\n", add_special_tokens=False)["input_ids"]
    assert END_ID in naive


# truncation


def test_oldest_turns_go_first_and_the_system_message_stays():
    prompt = conversation(("system", "be brief"), ("user", "a" * 50), ("assistant", "b" * 50), ("user", "the cat?"))
    text = TOKENIZER.decode(encode_prompt(TOKENIZER, prompt, 60))
    assert text == "<|system|>\nbe brief\n<|user|>\nthe cat?\n<|assistant|>\n"


def test_the_system_message_goes_before_the_last_turn_is_cut():
    prompt = conversation(("system", "b" * 80), ("user", "the cat?"))
    assert TOKENIZER.decode(encode_prompt(TOKENIZER, prompt, 20)) == "<|user|>\nthe cat?\n<|assistant|>\n"


def test_a_long_last_turn_loses_its_beginning_but_not_its_header():
    ids = encode_prompt(TOKENIZER, Prompt.from_text("b" * 50 + " cat"), 20)
    text = TOKENIZER.decode(ids)
    assert len(ids) == 20
    assert text.startswith("<|user|>\nb") and text.endswith("b cat\n<|assistant|>\n")


@settings(max_examples=60, deadline=None)
@given(prompt=prompts, limit=st.integers(12, 120))
def test_a_cut_prompt_keeps_its_structure(prompt, limit):
    ids = encode_prompt(TOKENIZER, prompt, limit)
    assert len(ids) <= limit
    assert ids[0] in (USER_ID, ASSISTANT_ID) and ids[-2] == ASSISTANT_ID


def test_a_limit_below_the_template_is_refused():
    with pytest.raises(UserError, match="template alone takes 5 tokens of the 5"):
        encode_prompt(TOKENIZER, Prompt.from_text("the cat sat"), 5)


def test_pairs_that_differ_only_beyond_the_limit_are_no_pairs():
    prompt = Prompt.from_text("the cat?")
    beyond = pair(prompt, "b" * 40 + "x", "b" * 40 + "y")
    assert PairEncoder(TOKENIZER, 30).encode_pair(beyond) == "identical after tokenisation"
    longer = PairEncoder(TOKENIZER, 60).encode_pair(beyond)
    assert isinstance(longer, EncodedPair) and not longer.truncated
    cut = PairEncoder(TOKENIZER, 30).encode_pair(pair(prompt, "x" + "b" * 40, "y"))
    assert isinstance(cut, EncodedPair) and cut.truncated


def test_an_answer_without_tokens_is_no_answer():
    assert PairEncoder(TOKENIZER, 30).encode_pair(pair(Prompt.from_text("hi"), "x", "")) == "empty after tokenisation"


# templates that go wrong


def with_bos(template: str):
    tokenizer = train_tokenizer(["the cat sat"], 261)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = template
    return tokenizer


def test_a_doubled_beginning_is_refused():
    tokenizer = with_bos("{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}")
    with pytest.raises(UserError, match="begins with two <s> tokens"):
        encode_prompt(tokenizer, Prompt.from_text("hi"), 50)


def test_a_beginning_is_written_once_even_if_the_tokenizer_would_add_it():
    tokenizer = with_bos("{{ bos_token }}{{ messages[0]['content'] }}")
    tokenizer.add_bos_token = True
    ids = encode_prompt(tokenizer, Prompt.from_text("hi"), 50)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_the_plain_template_writes_a_beginning_where_there_is_one():
    tokenizer = with_bos(TOKENIZER.chat_template)
    assert encode_prompt(tokenizer, Prompt.from_text("hi"), 50)[0] == tokenizer.bos_token_id


def test_roles_that_a_template_refuses_are_named():
    tokenizer = with_bos("{{ raise_exception('no system role here') }}")
    with pytest.raises(UserError, match="conversation of system, user: no system role here"):
        encode_prompt(tokenizer, conversation(("system", "x"), ("user", "y")), 50)


def test_a_long_prompt_leaves_half_of_the_room_to_the_answer():
    assert prompt_budget(100) == 50
    ids = encode_full(TOKENIZER, Prompt.from_text("b" * 200), "x" * 200, 100)
    assert ids[49:51] == [NEWLINE, TOKENIZER.convert_tokens_to_ids("x")] and len(ids) == 100
