"""Which policy token a reader's token belongs to: by hand, causal, complete, and one to one where tokenizers agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.text.alignment import Aligner, complete_characters
from inverse_alignment.text.render import decode_response, encode_response
from inverse_alignment.text.tokenizers import train_tokenizer

POLICY = train_tokenizer(["the cat sat on the mat. naïve café 日本語 😀\n\n"] * 20, 300)
READER = train_tokenizer(["a dog and a cat.\n\nthe end 日 😀"] * 20, 320)
END = POLICY.eos_token_id

texts = st.text(alphabet=st.sampled_from("the cat sat. naïve 日本😀\n"), max_size=25)
sampled = st.lists(st.integers(5, len(POLICY) - 1), max_size=12)  # what a policy writes need not be canonical


def pieces(tokenizer, ids):
    return [tokenizer.decode([token]) for token in ids]


def written(*names):
    """Ids of tokens by their names in the byte-level alphabet."""
    ids = [POLICY.convert_tokens_to_ids(name) for name in names]
    assert POLICY.unk_token_id not in ids
    return ids


def test_by_hand():
    (aligned,) = Aligner(POLICY, READER)([[*written("the", "Ġsat"), END]], ["the sat"])
    assert pieces(READER, aligned.ids) == ["the", " ", "s", "at"]
    assert aligned.owners.tolist() == [0, 1, 1, 1]


def test_a_token_that_ends_inside_of_a_readers_token_owns_nothing():
    (aligned,) = Aligner(POLICY, READER)([written("t", "h", "e", "Ġcat")], ["the cat"])
    assert pieces(READER, aligned.ids) == ["the", " cat"] and aligned.owners.tolist() == [2, 3]


def test_a_character_counts_when_its_last_byte_is_written():
    ids = encode_response(POLICY, "😀a")
    assert len(ids) > 3  # the emoji takes several tokens
    counts = complete_characters(POLICY, ids, "😀a")
    assert counts[0] == 0 and counts[-2:] == [2, 2]


@given(texts)
@settings(max_examples=60, deadline=None)
def test_the_tokenizers_characters_say_the_same_as_decoding_every_prefix(text):
    ids = encode_response(POLICY, text)
    prefixes = [decode_response(POLICY, ids[:count]).rstrip("\ufffd") for count in range(1, len(ids) + 1)]
    assert complete_characters(POLICY, ids, text) == [len(prefix) for prefix in prefixes]


@given(sampled, st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_token_of_the_reader_belongs_to_the_first_token_that_has_written_all_of_it(ids, ended):
    ids = [*ids, END] if ended or not ids else ids
    text = decode_response(POLICY, ids)
    (aligned,) = Aligner(POLICY, READER)([ids], [text])
    assert aligned.ids == encode_response(READER, text)[:-1]
    assert (np.diff(aligned.owners) >= 0).all()
    assert ((aligned.owners >= 0) & (aligned.owners < len(ids))).all()
    complete = complete_characters(POLICY, ids, text)
    assert complete == sorted(complete) and complete[-1] == len(text)
    if "\ufffd" in text:  # bytes that are no character: decoding tells no whole one from a part
        return
    for count, owner in enumerate(aligned.owners, start=1):
        read = len(decode_response(READER, aligned.ids[:count]).rstrip("\ufffd"))
        part = decode_response(READER, aligned.ids[:count]).endswith("\ufffd")
        assert complete[owner] >= read + part
        assert owner == 0 or complete[owner - 1] < read + part


@given(texts)
@settings(max_examples=60, deadline=None)
def test_equal_tokenizers_align_one_to_one(text):
    ids = encode_response(POLICY, text)
    for response in (ids, ids[:-1] or ids):  # ended, or cut off at the longest answer
        (aligned,) = Aligner(POLICY, POLICY)([response], [decode_response(POLICY, response)])
        if decode_response(POLICY, response) == text:
            assert aligned.owners.tolist() == list(range(len(ids) - 1))


def test_batches_are_aligned_row_by_row():
    texts = ["the cat", "", "naïve 日本"]
    ids = [encode_response(POLICY, text) for text in texts]
    align = Aligner(POLICY, READER)
    together = align(ids, texts)
    for row, (response, text) in enumerate(zip(ids, texts, strict=True)):
        assert align([response], [text])[0].owners.tolist() == together[row].owners.tolist()
    assert align([], []) == []


def test_a_reader_that_names_no_characters_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="does not say where in the text"):
        Aligner(POLICY, Slow())
