"""What the fields of a row mean: column maps, conversations, votes and soft labels, HH, ShareGPT, AlpacaEval."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_files import (
    DROP_HINT,
    GOOD,
    assistant,
    pairs_of,
    reasons,
    refused,
    rows_of,
    system,
    turns,
    user,
    write,
    write_json,
)

from inverse_alignment.core.records import Comparison, Demonstration, Example, Judgement, PromptOnly
from inverse_alignment.data.read import Dropped


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


def only(found: list[Any]) -> Any:
    (row,) = found
    assert isinstance(row, Example), row
    return row


# ---------------------------------------------------------------------------------------------- columns


def test_a_row_of_three_texts(file):
    pair = only(rows_of(write(file, {**GOOD, "an unknown field": [1]})))
    assert (pair.prompt.text(), pair.chosen, pair.rejected) == ("why?", "because", "no idea")
    assert (pair.margin, pair.soft_label, pair.weight) == (None, None, 1.0)
    assert pair.provenance.model_dump(exclude={"original_id"}) == {
        "dataset": "d",
        "source_chosen": "unnamed",
        "source_rejected": "unnamed",
        "annotator": "unnamed",
        "split": None,
        "licence": "unknown",
    }


def test_every_column_of_a_pair(file):
    row = {
        **GOOD,
        "id": "x-1",
        "source_chosen": "strong",
        "source_rejected": "weak",
        "annotator": "human:a",
        "margin": 0.5,
        "soft_label": 0.9,
        "weight": 2,
        "licence": "MIT",
        "split": "dev",
    }
    pair = only(rows_of(write(file, row)))
    assert (pair.margin, pair.soft_label, pair.weight) == (0.5, 0.9, 2.0)
    assert pair.provenance.model_dump() == {
        "dataset": "d",
        "source_chosen": "strong",
        "source_rejected": "weak",
        "annotator": "human:a",
        "split": "validation",
        "licence": "MIT",
        "original_id": "x-1",
    }


@pytest.mark.parametrize("kind", ["demonstration", "judgement"])
def test_every_column_of_an_answer(file, kind):
    row = {"prompt": "why?", "completion": "so", "label": 0, "source": "p", "annotator": "a", "weight": 0.5, "id": 7}
    found = only(rows_of(write(file, row), kind=kind))
    assert type(found) is (Judgement if kind == "judgement" else Demonstration)
    assert (found.response, found.weight, found.provenance.source, found.provenance.annotator) == ("so", 0.5, "p", "a")
    assert found.id == "d/7" and getattr(found, "label", False) is False


def test_defaults_of_the_source_fill_what_rows_leave_out(file):
    write(file, {**GOOD, "annotator": "human:a", "margin": 1}, {**GOOD, "margin": None, "annotator": ""})
    rows = pairs_of(file, annotator="llm:b", licence="MIT", margin=0.25, source_chosen="strong")
    assert [(r.provenance.annotator, r.provenance.licence, r.margin) for r in rows] == [
        ("human:a", "MIT", 1.0),
        ("llm:b", "MIT", 0.25),
    ]
    assert rows[0].provenance.source_chosen == "strong" and rows[0].provenance.source_rejected == "unnamed"


def test_renamed_and_nested_columns(file):
    row = {"q": "why?", "answers": {"good": "a", "bad": "b"}, "meta": {"judge": "llm:x"}, "dotted.name": 3}
    columns = {"prompt": "q", "chosen": "answers.good", "rejected": "answers.bad"}
    pair = only(rows_of(write(file, row), columns={**columns, "annotator": "meta.judge", "id": "dotted.name"}))
    assert (pair.chosen, pair.rejected, pair.provenance.annotator, pair.id) == ("a", "b", "llm:x", "d/3")


def test_messages_may_lie_deep(file):
    row = {"data": {"turns": [user("why?"), assistant("so")]}}
    found = only(rows_of(write(file, row), kind="demonstration", columns={"messages": "data.turns"}))
    assert (found.prompt.text(), found.response) == ("why?", "so")


def test_a_column_mapped_to_null_is_ignored(file):
    row = {**GOOD, "split": "training", "margin": 12, "id": 1.5, "weight": "heavy", "licence": 3, "annotator": []}
    columns = {name: None for name in row if name not in GOOD}
    pair = only(rows_of(write(file, row), columns=columns))
    assert (pair.margin, pair.weight, pair.provenance.licence) == (None, 1.0, "unknown")


@pytest.mark.parametrize(("stated", "split"), [("valid", "validation"), ("val", "validation"), ("dev", "validation")])
def test_other_names_of_splits(file, stated, split):
    assert only(rows_of(write(file, {**GOOD, "split": stated}))).provenance.split == split


@pytest.mark.parametrize(
    ("columns", "where", "fix"),
    [
        ({"chosen": "chosne"}, "field 'chosne' (columns.chosen=chosne)", "did you mean 'chosen'? (set columns.chosen)"),
        ({"annotator": "meta.jugde"}, "field 'meta.jugde' (columns.annotator=meta.jugde)", "did you mean 'meta.judge'"),
        ({"prompt": "zzz"}, "field 'zzz' (columns.prompt=zzz)", "valid names: chosen, meta, meta.judge, prompt, "),
        ({"messages": "turnz"}, "field 'turnz' (columns.messages=turnz)", "valid names: "),
        ({"votes_chosen": "up", "votes_rejected": "prompt"}, "field 'up' (columns.votes_chosen=up)", "valid names: "),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_a_mapped_column_that_is_nowhere_suggests_the_nearest(file, columns, where, fix, on_bad_row):
    write(file, *[{**GOOD, "meta": {"judge": "x"}}] * 3)
    error = refused(file, columns=columns, on_bad_row=on_bad_row)
    assert error.what.endswith("no such column") and error.where == f"{file}, row 1, {where}"
    assert error.fix.startswith(fix) and "columns.prompt: null" not in error.fix


def test_a_column_that_some_rows_lack_drops_these(file):
    write(file, {**GOOD, "judge": "a"}, GOOD, {**GOOD, "judge": None})
    found = rows_of(file, columns={"annotator": "judge"}, on_bad_row="drop")
    assert reasons(found) == [None, "missing field", None]


@pytest.mark.parametrize(
    ("change", "what", "field"),
    [
        ({"chosen": 3}, "is a number, not a text", "chosen"),
        ({"chosen": True}, "is true or false, not a text", "chosen"),
        ({"chosen": None}, "is null", "chosen"),
        ({"rejected": {"text": "x"}}, "is an object, not a text", "rejected"),
        ({"chosen": "\ud800"}, "holds half of a surrogate pair at character 1", "chosen"),
        ({"annotator": "x\udfff"}, "holds half of a surrogate pair at character 2", "annotator"),
        ({"chosen": [user("x")]}, "does not end in an assistant turn", "chosen"),
        ({"chosen": []}, "does not end in an assistant turn", "chosen"),
        ({"prompt": 3}, "is a number, not a text or a list", "prompt"),
        ({"prompt": ["why?"]}, "is not a {role, content} object", "prompt.0"),
        ({"prompt": [[user("why?")]]}, "is not a {role, content} object", "prompt.0"),
        ({"prompt": [{"role": "user"}]}, "is not a {role, content} object", "prompt.0"),
        ({"prompt": [user("a"), assistant("b"), {"role": "uesr", "content": "x"}]}, "unknown role", "prompt.2.role"),
        ({"prompt": [{"role": ["user"], "content": "x"}]}, "unknown role ['user']", "prompt.0.role"),
        ({"prompt": [{"role": "user", "content": ["x"]}]}, "is a list, not a text", "prompt.0.content"),
        ({"prompt": [{"role": "user", "content": None}]}, "is null, not a text", "prompt.0.content"),
        ({"messages": "why?"}, "is a text, not a list of messages", "messages"),
        ({"messages": {"0": "why?"}}, "is an object, not a text or a list of messages", "messages"),
        ({"id": 1.5}, "is a number, not a text", "id"),
        ({"id": True}, "is true or false, not a text", "id"),
        ({"annotator": ["a"]}, "is a list, not a text", "annotator"),
        ({"split": "training"}, "unknown split 'training'", "split"),
        ({"split": 3}, "unknown split 3", "split"),
        ({"split": ["train"]}, "unknown split ['train']", "split"),
        ({"margin": "big"}, "is a text, not a number", "margin"),
        ({"margin": True}, "is true or false, not a number", "margin"),
        ({"margin": 0}, "0 is outside (0, 1]", "margin"),
        ({"margin": -0.5}, "-0.5 is outside (0, 1]", "margin"),
        ({"margin": 1.5}, "1.5 is outside (0, 1]", "margin"),
        ({"margin": 10**400}, "1000000000000000000000000000...", "margin"),
        ({"margin": float("nan")}, "nan is outside (0, 1]", "margin"),
        ({"soft_label": 1.01}, "1.01 is outside [0, 1]", "soft_label"),
        ({"soft_label": float("inf")}, "inf is outside [0, 1]", "soft_label"),
        ({"weight": 0}, "0 times the source's weight 1 is outside (0, 1e+06]", "weight"),
        ({"weight": -1}, "-1 is outside (0, 1e+06]", "weight"),
        ({"weight": 2e6}, "2000000.0 is outside (0, 1e+06]", "weight"),
        ({"weight": [1]}, "is a list, not a number", "weight"),
    ],
)
def test_a_wrong_value_is_named_by_row_and_field_or_dropped(file, change, what, field):
    write(file, GOOD, {**GOOD, **change})
    error = refused(file)
    assert error.what.startswith(what)
    assert error.where == f"{file}, row 2, field '{field}'"
    assert error.fix.endswith(DROP_HINT)
    dropped = rows_of(file, on_bad_row="drop")[1]
    assert isinstance(dropped, Dropped) and dropped.where == error.where
    assert dropped.reason in ("missing field", "wrong type", "wrong value", "unreadable")


@pytest.mark.parametrize("label", ["good", {"a": 1}, [True], 2, -1, 1.0, None, "true"])
def test_labels_are_true_or_false(file, label):
    row = {"prompt": "x", "completion": "y"}
    write(file, {**row, "label": True}, {**row, "label": label})
    error = refused(file, kind="judgement")
    assert error.where == f"{file}, row 2, field 'label'"
    assert len(rows_of(file, kind="judgement", on_bad_row="drop")) == 2


def test_nested_values_do_not_swell_a_message(file):
    label: Any = "x"
    for _ in range(500):
        label = [label] * 1 if isinstance(label, dict) else {"a": label}
    write(file, {"prompt": "x", "completion": "y", "label": label})
    assert len(refused(file, kind="judgement").what) < 100


# ---------------------------------------------------------------------------------------------- conversations

TALK = [system("be kind"), user("hi"), {**assistant("yes?"), "extra": 1}, user("why?")]
SAID = [("system", "be kind"), ("user", "hi"), ("assistant", "yes?"), ("user", "why?")]


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "prompt": TALK},
        {**GOOD, "prompt": "as text", "messages": TALK},
        {"messages": TALK, "chosen": "because", "rejected": "no idea"},
        {"chosen": [*TALK, assistant("because")], "rejected": [*TALK, assistant("no idea")]},
        {"prompt": TALK, "chosen": [assistant("because")], "rejected": [assistant("no idea")]},
        {"prompt": TALK, "chosen": [*TALK, assistant("because")], "rejected": "no idea"},
        {
            "prompt": TALK[:2],
            "chosen": [*TALK[2:], assistant("because")],
            "rejected": [*TALK[2:], assistant("no idea")],
        },
        {"prompt": "why?", "chosen": [*TALK, assistant("because")], "rejected": [*TALK, assistant("no idea")]},
        {"chosen": [*TALK, assistant("because")], "rejected": [*TALK, assistant("no idea")], "prompt": None},
        {**GOOD, "messages": [*TALK, assistant("because")]},
        {"chosen": [*TALK, assistant("because")], "rejected": "no idea"},
    ],
    ids=[
        "prompt as messages",
        "messages win",
        "messages alone",
        "answers are whole conversations",
        "answers as messages",
        "the prompt twice",
        "answers go on from the prompt",
        "whole conversations win over a text",
        "null prompt",
        "messages end in the chosen answer",
        "one whole conversation",
    ],
)
def test_one_conversation_in_many_shapes(file, row):
    pair = only(rows_of(write(file, row)))
    assert turns(pair.prompt) == SAID
    assert (pair.chosen, pair.rejected) == ("because", "no idea")


def test_null_messages_leave_the_prompt(file):
    assert only(rows_of(write(file, {**GOOD, "messages": None}))).prompt.text() == "why?"


@pytest.mark.parametrize(
    ("row", "field", "what"),
    [
        ({**GOOD, "rejected": [user("who?"), assistant("x")]}, "rejected", "chosen and rejected answer different"),
        (
            {"chosen": [user("a"), assistant("x")], "rejected": [user("b"), assistant("y")]},
            "rejected",
            "chosen and rejected answer different conversations",
        ),
        (
            {
                "chosen": [user("a"), assistant("x"), user("b"), assistant("y")],
                "rejected": [user("a"), assistant("z"), user("b"), assistant("y")],
            },
            "rejected",
            "chosen and rejected answer different conversations",
        ),
        (
            {**GOOD, "prompt": TALK, "chosen": [user("a"), assistant("x")]},
            "chosen",
            "the conversation before the answer",
        ),
        (
            {**GOOD, "messages": TALK, "rejected": [*TALK[1:], assistant("x")]},
            "rejected",
            "the conversation before the answer is not that of the prompt",
        ),
    ],
)
def test_answers_to_different_conversations(file, row, field, what):
    write(file, GOOD, row)
    error = refused(file)
    assert error.what.startswith(what) and error.where == f"{file}, row 2, field '{field}'"
    assert reasons(rows_of(file, on_bad_row="drop")) == [None, "transcripts differ before the last turn"]


@pytest.mark.parametrize(
    ("change", "reason", "what", "field"),
    [
        ({"rejected": "because"}, "chosen equals rejected", "chosen equals rejected", "rejected"),
        ({"chosen": " \n"}, "empty chosen", "chosen is empty", "chosen"),
        ({"rejected": ""}, "empty rejected", "rejected is empty", "rejected"),
        ({"prompt": ""}, "empty prompt", "prompt is empty", "prompt"),
        ({"prompt": []}, "empty prompt", "prompt is empty", "prompt"),
        ({"prompt": [user(" ")]}, "empty prompt", "prompt is empty", "prompt"),
        ({"messages": []}, "empty prompt", "prompt is empty", "messages"),
        (
            {"prompt": [user("hi"), assistant("yes?")]},
            "no user turn before the answer",
            "the prompt ends in a turn of the assistant, not of the user",
            "prompt",
        ),
        (
            {"prompt": [user("hi"), system("be kind")]},
            "no user turn before the answer",
            "the prompt ends in a turn of the system, not of the user",
            "prompt",
        ),
    ],
)
def test_rows_that_say_nothing_are_refused_or_dropped(file, change, reason, what, field):
    write(file, GOOD, {**GOOD, **change, "source_chosen": "strong"})
    error = refused(file)
    assert (error.what, error.where) == (what, f"{file}, row 2, field '{field}'")
    assert error.fix.endswith(DROP_HINT)
    kept, dropped = rows_of(file, on_bad_row="drop")
    assert isinstance(kept, Comparison) and isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, error.where)
    assert dropped.provenance.source_chosen == "strong"  # type: ignore[attr-defined]  (counted by policy too)


def test_errors_name_the_columns_of_the_file(file):
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    for row, field in (
        ({"q": "", "good": "a", "bad": "b"}, "q"),
        ({"q": "x", "good": "", "bad": "b"}, "good"),
        ({"q": "x", "good": "a", "bad": " "}, "bad"),
        ({"q": "x", "good": "a", "bad": "a"}, "bad"),
    ):
        assert refused(write(file, row), columns=columns).where == f"{file}, row 1, field '{field}'"


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"prompt": "x", "completion": " "}, "completion", "empty response"),
        ({"prompt": " ", "completion": "y"}, "prompt", "empty prompt"),
        ({"messages": [user("x")]}, "messages", "wrong type"),
        ({"messages": [assistant("y")]}, "messages", "empty prompt"),
        ({"completion": "y"}, "prompt", "missing field"),
        ({"prompt": "x"}, "completion", "missing field"),
    ],
)
def test_demonstrations_that_say_nothing(file, row, field, reason):
    write(file, {"prompt": "x", "completion": "y"}, row)
    found = rows_of(file, kind="demonstration", on_bad_row="drop")
    assert reasons(found) == [None, reason]
    assert isinstance(found[1], Dropped) and f"field '{field}'" in found[1].where


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TALK, "completion": "so"},
        {"prompt": TALK, "completion": [assistant("so")]},
        {"prompt": TALK[:2], "completion": [*TALK[2:], assistant("so")]},
        {"prompt": TALK, "completion": [*TALK, assistant("so")]},
        {"prompt": "why?", "completion": [*TALK, assistant("so")]},
        {"completion": [*TALK, assistant("so")]},
        {"messages": [*TALK, assistant("so")]},
        {"messages": TALK, "completion": "so"},
        {"messages": [*TALK, assistant("so")], "completion": "so"},
    ],
)
@pytest.mark.parametrize("kind", ["demonstration", "judgement"])
def test_an_answer_in_many_shapes(file, row, kind):
    found = only(rows_of(write(file, {**row, "label": 1}), kind=kind))
    assert turns(found.prompt) == SAID and found.response == "so"


def test_prompts_alone(file):
    write(file, {"prompt": "why?", "chosen": 3}, {"prompt": TALK}, {"messages": TALK})
    found = rows_of(file, kind="prompt")
    assert all(type(row) is PromptOnly for row in found)
    assert [turns(row.prompt) for row in found if isinstance(row, Example)] == [[("user", "why?")], SAID, SAID]
    write(file, {"messages": [*TALK, assistant("so")]})
    assert refused(file, kind="prompt").what.startswith("the prompt ends in a turn of the assistant")


# ---------------------------------------------------------------------------------------------- votes, soft labels

BY = {"source_chosen": "p", "source_rejected": "q"}
VOTED = {"votes_chosen": "up", "votes_rejected": "down"}


@pytest.mark.parametrize(
    ("up", "down", "margin", "soft_label", "swapped"),
    [
        (3, 1, 0.5, 0.75, False),
        (1, 3, 0.5, 0.75, True),
        (1, 0, 1.0, 1.0, False),
        (0, 4, 1.0, 1.0, True),
        (5, 4, 1 / 9, 5 / 9, False),
        (3.0, 1.0, 0.5, 0.75, False),
        (2**53, 2**53 - 1, 1 / (2**54 - 1), 0.5, False),
    ],
)
def test_votes_become_a_margin_or_a_soft_label(file, up, down, margin, soft_label, swapped):
    write(file, {**GOOD, **BY, "up": up, "down": down})
    for strength, expected in (("margin", (margin, None)), ("soft_label", (None, soft_label))):
        pair = only(rows_of(file, columns=VOTED, strength=strength))
        assert (pair.margin, pair.soft_label) == pytest.approx(expected)
        answers, writers = (
            (pair.chosen, pair.rejected),
            (pair.provenance.source_chosen, pair.provenance.source_rejected),
        )
        assert answers == (("no idea", "because") if swapped else ("because", "no idea"))
        assert writers == (("q", "p") if swapped else ("p", "q"))


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_ties_and_rows_without_a_vote_are_dropped_whatever_the_policy(file, on_bad_row):
    votes = [(2, 2), (0, 0), (3, 1)]
    write(file, *({**GOOD, "up": up, "down": down} for up, down in votes))
    found = rows_of(file, columns=VOTED, on_bad_row=on_bad_row)
    assert reasons(found) == ["tie", "not judged", None]
    assert isinstance(found[0], Dropped) and found[0].where == f"{file}, row 1, field 'up'"


@pytest.mark.parametrize(
    ("up", "what"),
    [
        (2.5, "2.5 is no number of votes"),
        (-1, "-1 is outside the whole numbers from 0 to 2^53"),
        (2**53 + 1, "9007199254740993 is outside the whole numbers from 0 to 2^53"),
        ("3", "is a text, not a number"),
        (None, "is null"),
        (True, "is true or false, not a number"),
    ],
)
def test_votes_are_whole_numbers(file, up, what):
    error = refused(write(file, {**GOOD, "up": up, "down": 1}), columns=VOTED)
    assert error.what == what and "field 'up'" in error.where


def test_votes_win_over_a_margin(file):
    write(file, {**GOOD, "up": 3, "down": 1, "margin": 0.9, "soft_label": 0.1})
    pair = only(rows_of(file, columns=VOTED))
    assert (pair.chosen, pair.margin, pair.soft_label) == ("because", 0.5, None)


@pytest.mark.parametrize(
    ("given", "label", "chosen", "writer"),
    [
        (0.8, 0.8, "because", "p"),
        (1, 1.0, "because", "p"),
        (0.2, 0.8, "no idea", "q"),
        (0, 1.0, "no idea", "q"),
        (0.4999, 0.5001, "no idea", "q"),
    ],
)
def test_a_soft_label_below_one_half_swaps_the_answers(file, given, label, chosen, writer):
    pair = only(rows_of(write(file, {**GOOD, **BY, "soft_label": given})))
    assert pair.soft_label == pytest.approx(label)
    assert (pair.chosen, pair.provenance.source_chosen) == (chosen, writer)


def test_a_soft_label_of_one_half_is_a_tie(file):
    write(file, {**GOOD, "soft_label": 0.5}, GOOD)
    found = rows_of(file)
    assert reasons(found) == ["tie", None]
    assert isinstance(found[0], Dropped) and found[0].where.endswith("field 'soft_label'")


@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        ({"margin": 0.19}, {}, "tie"),
        ({"margin": 0.2}, {}, None),
        ({}, {}, None),  # nobody says how strong it is
        ({}, {"margin": 0.1}, "tie"),
        ({"up": 59, "down": 41}, {"columns": VOTED}, "tie"),  # 0.18
        ({"up": 41, "down": 59}, {"columns": VOTED, "strength": "soft_label"}, "tie"),
        ({"up": 61, "down": 39}, {"columns": VOTED}, None),
        ({"soft_label": 0.59}, {}, "tie"),
        ({"soft_label": 0.39}, {}, None),
        ({"soft_label": 0.59, "margin": 0.9}, {}, "tie"),
    ],
)
def test_weaker_preferences_than_least_margin_are_ties(file, row, settings, reason):
    strong = {**GOOD, "up": 1, "down": 0, "margin": 1}
    write(file, strong, {**GOOD, **row})
    assert reasons(rows_of(file, least_margin=0.2, **settings)) == [None, reason]


def test_an_empty_answer_is_named_by_its_column_after_a_swap(file):
    write(file, GOOD | {"soft_label": 1}, {**GOOD, "rejected": "", "soft_label": 0.1})
    dropped = rows_of(file, on_bad_row="drop")[1]
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "empty chosen"  # the answer that won
    assert dropped.where == f"{file}, row 2, field 'rejected'"


# ---------------------------------------------------------------------------------------------- HH transcripts

HEAD = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why?"


def hh(path: Path, *rows: tuple[str, str], **settings: Any) -> list[Any]:
    write(path, *({"chosen": chosen, "rejected": rejected} for chosen, rejected in rows))
    return rows_of(path, "hh", **settings)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl"])
def test_hh_transcripts_share_a_prompt(tmp_path, name):
    pair = only(hh(tmp_path / name, (f"{HEAD}\n\nAssistant: because", f"{HEAD}\n\nAssistant: no: Human: x")))
    assert turns(pair.prompt) == [("user", "hi"), ("assistant", "yes?"), ("user", "why?")]
    assert (pair.chosen, pair.rejected) == ("because", "no: Human: x")
    assert pair.provenance.annotator == "human:crowd" and pair.provenance.dataset == "hh-rlhf"
    assert pair.provenance.licence == "MIT"


def test_hh_oddities_are_counted(file):
    good = (f"{HEAD}\n\nAssistant: a", f"{HEAD}\n\nAssistant: b")
    rows = hh(
        file,
        good,
        (f"{HEAD}\n\nAssistant: a", "\n\nHuman: other\n\nAssistant: b"),
        (f"{HEAD}\n\nAssistant: ", f"{HEAD}\n\nAssistant: b"),
        (f"{HEAD}\n\nAssistant: a", f"{HEAD}\n\nAssistant:"),
        (f"{HEAD}\n\nAssistant: a", f"{HEAD}\n\nAssistant: a"),
        (HEAD, HEAD),
        ("\n\nAssistant: a", "\n\nAssistant: b"),
        ("\n\nHuman: x\n\nAssistant: y\n\nAssistant: a", "\n\nHuman: x\n\nAssistant: y\n\nAssistant: b"),
        ("plain text", "\n\nHuman: a\n\nAssistant: b"),
        on_bad_row="drop",
    )
    assert Counter(r.reason for r in rows if isinstance(r, Dropped)) == {
        "transcripts differ before the last turn": 1,
        "empty chosen": 2,
        "empty rejected": 1,
        "chosen equals rejected": 1,
        "empty prompt": 1,
        "no user turn before the answer": 1,
        "wrong type": 1,
    }


def test_hh_neighbouring_human_turns_become_one(file):
    head = "\n\nHuman: a\n\nHuman: b"
    pair = only(hh(file, (f"{head}\n\nAssistant: x", f"{head}\n\nAssistant: y")))
    assert turns(pair.prompt) == [("user", "a\n\nb")]


@pytest.mark.parametrize("text", ["plain text", "x\n\nHuman: a\n\nAssistant: b", "", "Human: a\n\nAssistant: b"])
def test_what_is_no_transcript_is_refused(file, text):
    write(file, {"chosen": text, "rejected": "\n\nHuman: a\n\nAssistant: b"})
    error = refused(file, "hh")
    assert (error.what, error.where) == ("not an HH transcript", f"{file}, row 1, field 'chosen'")
    assert "format: jsonl" in error.fix


def test_hh_without_its_fields(file):
    assert refused(write(file, {"chosen": "\n\nHuman: a\n\nAssistant: b"}), "hh").what == "no such column"
    error = refused(write(file, {"chosen": 3, "rejected": "x"}), "hh")
    assert error.what == "is a number, not a text"


# ---------------------------------------------------------------------------------------------- ShareGPT


def talk(*said: tuple[str, str], chosen: Any = ("gpt", "good"), rejected: Any = ("gpt", "bad"), **more: Any) -> Any:
    def turn(both: Any) -> Any:
        return {"from": both[0], "value": both[1]} if isinstance(both, tuple) else both

    return {"conversations": [turn(each) for each in said], "chosen": turn(chosen), "rejected": turn(rejected), **more}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (talk(("human", "hi")), [("user", "hi")]),
        (
            talk(("human", "hi"), ("gpt", "yes?"), ("human", "why?"), system="be kind"),
            [("system", "be kind"), ("user", "hi"), ("assistant", "yes?"), ("user", "why?")],
        ),
        (talk(("system", "be kind"), ("user", "hi")), [("system", "be kind"), ("user", "hi")]),
        (talk(("human", "a"), ("human", "b")), [("user", "a\n\nb")]),
        (talk(("human", "hi"), system="", tools="[]"), [("user", "hi")]),
        (talk(("human", "hi"), system=None, chosen=("assistant", "good")), [("user", "hi")]),
    ],
    ids=["one turn", "several turns", "system turn", "two of one speaker", "empty system", "other names"],
)
def test_sharegpt(tmp_path, row, said):
    for path in (write_json(tmp_path / "a.json", [row]), write(tmp_path / "a.jsonl", row)):
        pair = only(rows_of(path, "sharegpt", source_chosen="p"))
        assert turns(pair.prompt) == said
        assert (pair.chosen, pair.rejected, pair.provenance.source_chosen) == ("good", "bad", "p")


@pytest.mark.parametrize(
    ("row", "what", "field"),
    [
        (talk(("bot", "hi")), "unknown speaker 'bot'", "conversations.0.from"),
        (talk((["human"], "hi")), "unknown speaker ['human']", "conversations.0.from"),
        (talk("hi"), "is not a {from, value} object", "conversations.0"),
        (talk(("human", 3)), "is a number, not a text", "conversations.0.value"),
        (talk(("human", "hi"), chosen="good"), "is not a {from, value} object", "chosen"),
        (talk(("human", "hi"), rejected=("human", "bad")), "is a turn of the user", "rejected.from"),
        (talk(("human", "hi"), system=3), "is a number, not a text", "system"),
        ({**talk(("human", "hi")), "conversations": "hi"}, "is a text, not a list of turns", "conversations"),
        ({**talk(("human", "hi")), "conversations": None}, "is null", "conversations"),
        (talk(), "prompt is empty", "conversations"),
        (talk(("human", "hi"), ("gpt", "yes?")), "the prompt ends in a turn of the assistant", "conversations"),
        (talk(("human", "hi"), rejected=("gpt", "good")), "chosen equals rejected", "rejected"),
    ],
)
def test_sharegpt_rows_that_are_wrong(tmp_path, row, what, field):
    path = write_json(tmp_path / "a.json", [talk(("human", "hi")), row])
    error = refused(path, "sharegpt")
    assert error.what.startswith(what) and error.where == f"{path}, row 2, field '{field}'"
    assert len(rows_of(path, "sharegpt", on_bad_row="drop")) == 2


def test_an_unknown_speaker_suggests_the_nearest(tmp_path):
    path = write_json(tmp_path / "a.json", [talk(("humn", "hi"))])
    assert refused(path, "sharegpt").fix.startswith("did you mean 'human'?")


# ---------------------------------------------------------------------------------------------- AlpacaEval


def judged(preference: Any, **change: Any) -> dict[str, Any]:
    return {
        "instruction": "why?",
        "output_1": "one",
        "output_2": "two",
        "generator_1": "reference",
        "generator_2": "model",
        "annotator": "gpt4",
        "dataset": "helpful_base",
        "preference": preference,
        **change,
    }


@pytest.mark.parametrize(
    ("preference", "chosen", "writer", "margin", "soft_label"),
    [
        (1, "one", "reference", 1.0, 1.0),
        (2, "two", "model", 1.0, 1.0),
        (2.0, "two", "model", 1.0, 1.0),
        (1.23, "one", "reference", 0.54, 0.77),  # the probability of output 2 is 0.23
        (1.9, "two", "model", 0.8, 0.9),
        (1.5000001, "two", "model", 2e-7, 0.5000001),
    ],
)
def test_alpaca_eval_preferences(tmp_path, preference, chosen, writer, margin, soft_label):
    path = write_json(tmp_path / "annotations.json", [judged(preference)])
    for strength, expected in (("margin", (margin, None)), ("soft_label", (None, soft_label))):
        pair = only(rows_of(path, "alpaca_eval", strength=strength))
        assert (pair.margin, pair.soft_label) == pytest.approx(expected)
        assert pair.chosen == chosen and {pair.chosen, pair.rejected} == {"one", "two"}
        assert pair.provenance.source_chosen == writer and pair.provenance.annotator == "gpt4"
        assert {pair.provenance.source_chosen, pair.provenance.source_rejected} == {"reference", "model"}


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_alpaca_eval_ties_and_failed_judges(tmp_path, on_bad_row):
    rows = [judged(1.5), judged(0), judged(0.0), judged(None), judged(1)]
    del rows[3]["preference"]
    path = write_json(tmp_path / "annotations.json", [*rows, judged(None)])
    found = rows_of(path, "alpaca_eval", on_bad_row=on_bad_row)
    assert reasons(found) == ["tie", "tie", "tie", "not judged", None, "not judged"]
    dropped = found[0]
    assert isinstance(dropped, Dropped) and dropped.where.endswith("field 'preference'")
    assert dropped.provenance.annotator == "gpt4"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("row", "what", "field"),
    [
        (judged(2.5), "2.5 is outside [1, 2]", "preference"),
        (judged(0.5), "0.5 is outside [1, 2]", "preference"),
        (judged(-1), "-1 is outside [1, 2]", "preference"),
        (judged("1"), "is a text, not a number", "preference"),
        (judged(1, instruction=""), "prompt is empty", "instruction"),
        (judged(1, output_1=""), "chosen is empty", "output_1"),
        (judged(2, output_1=""), "rejected is empty", "output_1"),
        (judged(1, output_2=None), "is null", "output_2"),
        (judged(1, output_2="one"), "chosen equals rejected", "output_2"),
        (judged(1, generator_1=3), "is a number, not a text", "generator_1"),
        (judged(1, annotator=["a"]), "is a list, not a text", "annotator"),
    ],
)
def test_alpaca_eval_rows_that_are_wrong(tmp_path, row, what, field):
    path = write_json(tmp_path / "annotations.json", [judged(1), row])
    error = refused(path, "alpaca_eval")
    assert (error.what, error.where) == (what, f"{path}, row 2, field '{field}'")
    assert len(rows_of(path, "alpaca_eval", on_bad_row="drop")) == 2


def test_alpaca_eval_names_may_be_missing(tmp_path):
    row = judged(1, generator_1=None, annotator=None)
    del row["generator_2"]
    path = write_json(tmp_path / "annotations.json", [row])
    pair = only(rows_of(path, "alpaca_eval", annotator="some judge", source_rejected="model"))
    assert pair.provenance.model_dump(include={"source_chosen", "source_rejected", "annotator"}) == {
        "source_chosen": "unnamed",
        "source_rejected": "model",
        "annotator": "some judge",
    }


def test_alpaca_eval_least_margin(tmp_path):
    path = write_json(tmp_path / "annotations.json", [judged(1.45), judged(1.3)])
    for strength in ("margin", "soft_label"):
        assert reasons(rows_of(path, "alpaca_eval", least_margin=0.2, strength=strength)) == ["tie", None]
