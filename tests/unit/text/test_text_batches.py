"""Many examples at once give the ids of one at a time, for every kind of tokenizer; and what does not fit."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Message, Prompt, Provenance
from inverse_alignment.text.render import (
    DEGENERATE,
    EncodedPair,
    EncodedText,
    PairEncoder,
    encode_full,
    encode_prompt,
    encode_response,
    prompt_budget,
)
from inverse_alignment.text.tokenizers import load_tokenizer, plain_template, train_tokenizer

STORIES = Path(__file__).parents[3].parent / "shared" / "models" / "stories260K"
TEXTS = ["the cat sat on the mat. ", "a dog and a cat.\n\nthe end"] * 20
KINDS = [
    "ours",
    "adds a beginning and an end by itself",
    "slow",
    pytest.param(
        "pretrained", marks=pytest.mark.skipif(not STORIES.is_dir(), reason=f"no pretrained tokenizer at {STORIES}")
    ),
]


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    match kind:
        case "ours":
            return train_tokenizer(TEXTS, 300)
        case "slow":  # in Python, byte by byte
            tokenizer = ByT5Tokenizer(extra_ids=3)
            tokenizer.chat_template = plain_template()
            assert not tokenizer.is_fast
            return tokenizer
        case "pretrained":
            return load_tokenizer(STORIES).tokenizer
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.add_bos_token = tokenizer.add_eos_token = True
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # only where nobody forbids it
    return tokenizer


def pair(prompt: Prompt, chosen: str, rejected: str) -> Comparison:
    return Comparison(
        prompt=prompt, chosen=chosen, rejected=rejected, provenance=Provenance(dataset="d", original_id="1")
    )


def examples(kind: str) -> st.SearchStrategy[list[tuple[Prompt, str, str]]]:
    """Conversations with two answers: any letters, special tokens spelt out, empty, long, some of them shared."""
    special = sorted(tokenizer_of(kind).all_special_tokens)
    text = st.lists(
        st.one_of(
            st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12),
            st.sampled_from([*special, "the cat ", " ", "\n", "é😀", "b" * 70]),
        ),
        max_size=4,
    ).map("".join)
    turns = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), text), max_size=3)
    prompts = st.builds(
        lambda before, last: Prompt(
            messages=tuple(Message(role=role, content=content) for role, content in (*before, ("user", last)))
        ),
        turns,
        text,
    )
    few = st.lists(st.tuples(prompts, text, text), min_size=1, max_size=4)
    return few.flatmap(lambda rows: st.lists(st.sampled_from(rows), max_size=7))


def plainly_encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """An answer as one call of transformers encodes it, with the end token once."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [*(i for i in ids if i != tokenizer.eos_token_id), tokenizer.eos_token_id]


def plainly_rendered(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """A whole prompt as one call of transformers encodes it."""
    chat = prompt.as_chat()
    for message in chat:
        for token in sorted(tokenizer.all_special_tokens):
            message["content"] = message["content"].replace(token, f"{token[0]} {token[1:]}")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), limit=st.integers(120, 400))
def test_a_batch_gives_the_ids_of_one_at_a_time(kind, data, limit):
    tokenizer, encoder = tokenizer_of(kind), PairEncoder(tokenizer_of(kind), limit)
    rows = data.draw(examples(kind))
    pairs = encoder.encode_pairs([pair(*row) for row in rows])
    texts = encoder.encode_texts([(prompt, chosen) for prompt, chosen, _ in rows])
    assert pairs == [encoder.encode_pair(pair(*row)) for row in rows]
    for (prompt, *answers), both, one in zip(rows, pairs, texts, strict=True):
        whole, plain = plainly_rendered(tokenizer, prompt), [plainly_encoded(tokenizer, answer) for answer in answers]
        head = encode_prompt(tokenizer, prompt, prompt_budget(limit))
        assert head == whole or len(whole) > prompt_budget(limit)
        assert [encode_response(tokenizer, answer) for answer in answers] == plain
        room = limit - len(head)
        fitted = [ids if len(ids) <= room else [*ids[: room - 1], tokenizer.eos_token_id] for ids in plain]
        lost = [head != whole or ids != kept for ids, kept in zip(plain, fitted, strict=True)]
        assert [encode_full(tokenizer, prompt, answer, limit) for answer in answers] == [head + ids for ids in fitted]
        if [tokenizer.eos_token_id] in plain:
            assert both == "empty after tokenisation"
        elif fitted[0] == fitted[1]:
            assert both == "identical after tokenisation"
        else:
            assert both == EncodedPair((*head, *fitted[0]), (*head, *fitted[1]), truncated=any(lost))
        if plain[0] == [tokenizer.eos_token_id]:
            assert one == "empty after tokenisation"
        else:
            assert one == EncodedText((*head, *fitted[0]), truncated=lost[0])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data(), limit=st.integers(120, 400))
def test_dropping_what_is_too_long_leaves_the_others_as_they_are(kind, data, limit):
    tokenizer = tokenizer_of(kind)
    rows = data.draw(examples(kind))
    cut, dropped = PairEncoder(tokenizer, limit), PairEncoder(tokenizer, limit, too_long="drop")
    pairs, texts = [pair(*row) for row in rows], [(prompt, chosen) for prompt, chosen, _ in rows]
    for one, other in [
        *zip(cut.encode_pairs(pairs), dropped.encode_pairs(pairs), strict=True),
        *zip(cut.encode_texts(texts), dropped.encode_texts(texts), strict=True),
    ]:
        if isinstance(one, str):  # equal answers may be equal only because both were cut
            assert other == one or (one, other) == ("identical after tokenisation", "longer than the context")
        else:
            assert other == ("longer than the context" if one.truncated else one)


OURS = tokenizer_of("ours")


def test_the_way_for_rust_is_not_taken_by_a_tokenizer_with_a_way_of_its_own():
    class Shouting(type(OURS)):
        def _encode_plus(self, text, **options):
            return super()._encode_plus([each.upper() for each in text], **options)

    shouting = Shouting(tokenizer_object=OURS.backend_tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    assert encode_response(shouting, "a dog") == encode_response(OURS, "A DOG") != encode_response(OURS, "a dog")


def test_what_the_tokenizer_was_told_before_does_not_matter():
    tokenizer = train_tokenizer(TEXTS, 300)
    expected = encode_response(tokenizer, "the cat sat on the mat")
    tokenizer("the cat", truncation=True, max_length=1, padding="max_length")
    assert encode_response(tokenizer, "the cat sat on the mat") == expected
    assert tokenizer("<|end|>", add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_nothing_gives_nothing():
    for kind in ("ours", "slow"):
        assert PairEncoder(tokenizer_of(kind), 40).encode_pairs([]) == []
        assert PairEncoder(tokenizer_of(kind), 40).encode_texts([]) == []


# by hand: the prompt below takes 8 tokens, an answer of n letters n + 1

PROMPT = Prompt.from_text("the cat?")


@pytest.mark.parametrize(
    ("chosen", "rejected", "limit", "truncated", "dropped"),
    [
        ("bbbbbbb", "x", 16, False, False),
        ("bbbbbbbb", "x", 16, True, True),
        ("x", "bbbbbbbb", 16, True, True),
        ("bbb", "x", 15, True, True),  # the answers fit, the prompt not into its half
        ("bbbbbbbbx", "bbbbbbbby", 16, "identical after tokenisation", "longer than the context"),
        ("bbb", "bbb", 16, "identical after tokenisation", "identical after tokenisation"),
        ("", "b" * 50, 16, "empty after tokenisation", "empty after tokenisation"),
    ],
)
def test_what_is_longer_than_the_context_by_hand(chosen, rejected, limit, truncated, dropped):
    one = pair(PROMPT, chosen, rejected)
    cut = PairEncoder(OURS, limit).encode_pair(one)
    strict = PairEncoder(OURS, limit, too_long="drop").encode_pair(one)
    assert (cut.truncated if isinstance(cut, EncodedPair) else cut) == truncated
    if dropped is True:
        assert strict == "longer than the context"
    elif dropped is False:
        assert strict == cut
    else:
        assert strict == dropped
    assert {each for each in (cut, strict) if isinstance(each, str)} <= set(DEGENERATE)


def test_a_single_answer_by_hand():
    texts = [(PROMPT, "a dog"), (PROMPT, ""), (PROMPT, "b" * 8)]
    kept, empty, long = PairEncoder(OURS, 16).encode_texts(texts)
    assert kept == EncodedText(tuple(encode_full(OURS, PROMPT, "a dog", 16)), truncated=False)
    assert empty == "empty after tokenisation"
    assert isinstance(long, EncodedText) and long.truncated and len(long.ids) == 16
    assert PairEncoder(OURS, 16, too_long="drop").encode_texts(texts) == [kept, empty, "longer than the context"]


def test_a_prompt_that_will_be_dropped_is_not_cut_first():
    """Even where a template alone does not fit, which cutting refuses."""
    assert PairEncoder(OURS, 9, too_long="drop").encode_pair(pair(PROMPT, "a", "b")) == "longer than the context"
    with pytest.raises(UserError, match="the chat template alone takes"):
        PairEncoder(OURS, 9).encode_pair(pair(PROMPT, "a", "b"))
