"""Records, their grouping key, and refusals that name the place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import (
    MOST_WEIGHT,
    SPLITS,
    Authorship,
    Comparison,
    Demonstration,
    Example,
    Judgement,
    Message,
    Origin,
    Prompt,
    PromptOnly,
    Provenance,
    Rollout,
    iter_jsonl,
    read_jsonl,
    write_jsonl,
)

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


@given(text, text, st.sampled_from(SPLITS), st.booleans())
def test_every_kind_of_row_is_read_as_it_was_written(tmp_path_factory, prompt, response, split, label):
    folder = tmp_path_factory.mktemp("r")
    origin = {"dataset": "d", "original_id": "1", "split": split}
    asked = Prompt.from_text(prompt)
    author = Authorship(**origin, source="p", annotator="a")
    rows: list[Example] = [
        PromptOnly(prompt=asked, provenance=Origin(**origin)),
        Demonstration(prompt=asked, response=response, weight=0.5, provenance=author),
        Judgement(prompt=asked, response=response, label=label, provenance=author),
        Comparison(
            prompt=asked, chosen=response, rejected="", margin=0.1, soft_label=0.9, provenance=Provenance(**origin)
        ),
    ]
    for row in rows:
        write_jsonl(folder / "one.jsonl", [row])
        assert read_jsonl(folder / "one.jsonl", type(row)) == [row]
        assert row.id == "d/1" and row.provenance.split == split


def test_reading_is_lazy_and_keeps_line_breaks_of_texts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    odd = pair(chosen="a\r\nb\rc\u2028d\x85e")
    write_jsonl(path, [odd])
    with path.open("ab") as file:
        file.write(b"{broken\n")
    records = iter_jsonl(path, Comparison)
    assert next(records) == odd
    with pytest.raises(UserError):
        next(records)


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
        (GOOD.replace('"weight":1.0', '"weight":null'), "weight"),
        (GOOD.replace('"soft_label":null', '"soft_label":0.4'), "soft_label"),
        (GOOD.replace('"split":null', '"split":"hold out"'), "provenance.split"),
        (GOOD.replace('"a"', '"\udcff"'), "line"),
        ("[" * 100_000, "line"),
        (GOOD[:-1] + ',"extra":1}', "extra"),
    ],
)
def test_a_bad_line_is_refused_by_file_line_and_field(tmp_path, line, field):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(f"{GOOD}\n{line}\n{GOOD}\n".encode(errors="surrogateescape"))
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


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1.1 * MOST_WEIGHT])
@pytest.mark.parametrize("margin", [None, float("nan"), 0, 1.1])
def test_numbers_that_json_or_a_loss_cannot_hold(weight, margin):
    with pytest.raises(ValidationError, match="weight"):
        Comparison.model_validate({**pair().model_dump(), "weight": weight})
    if margin is not None:
        with pytest.raises(ValidationError, match="margin"):
            Comparison.model_validate({**pair().model_dump(), "margin": margin})


def test_a_pair_is_named_by_dataset_and_row():
    assert pair().id == "d/1"
