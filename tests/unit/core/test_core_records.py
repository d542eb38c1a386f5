"""Records, their grouping key, and refusals that name the place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Message, Prompt, Provenance, Rollout, read_jsonl, write_jsonl

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
provenance = Provenance(dataset="d", original_id="1")


def conversation(*turns: tuple[str, str]) -> Prompt:
    return Prompt(messages=tuple(Message(role=role, content=content) for role, content in turns))


def pair(prompt: str = "p", chosen: str = "a", rejected: str = "b") -> Comparison:
    return Comparison(prompt=Prompt.from_text(prompt), chosen=chosen, rejected=rejected, provenance=provenance)


def test_golden_keys():
    """A change here moves prompts between splits, and changes what is sampled."""
    assert Prompt.from_text("Hello,  World!").id == "b94d27b9934d3e08"  # sha256 of "hello world"
    assert Prompt.from_text("Hello").key == "4aed057b5e644535"


@pytest.mark.parametrize(
    "other",
    [
        conversation(("user", "hello world")),
        conversation(("user", "HELLO... world?!\n")),
        conversation(("system", "Be kind."), ("user", "Hello, world")),
        conversation(("user", "Hello, world"), ("assistant", "Hi"), ("user", "And now?")),
    ],
)
def test_conversations_that_open_alike_share_an_id_but_not_a_key(other):
    first = conversation(("user", "Hello, world"))
    assert other.id == first.id
    assert other.key != first.key


@pytest.mark.parametrize("words", ["hello", "world hello", "helloworld", "hello word", "hello world 2"])
def test_other_words_have_another_id(words):
    assert Prompt.from_text(words).id != Prompt.from_text("hello world").id


@given(text, text)
def test_a_key_is_equal_only_for_equal_conversations(one, two):
    same = Prompt.from_text(one).key == Prompt.from_text(two).key
    assert same == (one == two)


def test_roles_and_borders_of_turns_are_part_of_the_key():
    keys = [
        conversation(("user", "a"), ("user", "b")).key,
        conversation(("user", "ab")).key,
        conversation(("system", "a"), ("user", "b")).key,
        conversation(("user", "a"), ("assistant", "b")).key,
    ]
    assert len(set(keys)) == len(keys)


def test_text_and_chat():
    turns = conversation(("user", "a"), ("assistant", "b"))
    assert turns.as_chat() == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert turns.text() == "user: a\n\nassistant: b"
    assert Prompt.from_text("a").text() == "a"


@given(st.lists(st.tuples(text, text, text), max_size=5))
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("r") / "pairs.jsonl"
    records = [pair(*row) for row in rows]
    assert write_jsonl(path, records) == len(records)
    assert read_jsonl(path, Comparison) == records


GOOD = pair().model_dump_json()


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("{half", "line"),
        ("", "line"),
        ("[]", "line"),
        (GOOD.replace('"a"', "3"), "chosen"),
        (GOOD.replace('"role":"user"', '"role":"robot"'), "prompt.messages.0.role"),
        (GOOD.replace('"original_id"', '"original"'), "provenance.original_id"),
        (GOOD.replace('"weight":1.0', '"weight":0'), "weight"),
        (GOOD[:-1] + ',"extra":1}', "extra"),
    ],
)
def test_a_bad_line_is_refused_by_file_line_and_field(tmp_path, line, field):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(UserError) as error:
        read_jsonl(path, Comparison)
    assert error.value.where == f"{path}, line 2, field '{field}'"
    assert error.value.what.startswith("not a valid Comparison: ")
    assert error.value.fix


def test_records_are_frozen_and_strict():
    with pytest.raises(ValidationError):
        pair().chosen = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Prompt(messages=())
    with pytest.raises(ValidationError, match="provenance"):
        Comparison(prompt=Prompt.from_text("p"), chosen="a", rejected="b")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="tokens"):
        Rollout(
            prompt=Prompt.from_text("p"),
            response="",
            sample=0,
            log_prob=0,
            ref_log_prob=0,
            kl_estimate=0,
            tokens=-1,
            ended=True,
        )


def test_a_pair_is_named_by_dataset_and_row():
    assert pair().id == "d/1"
