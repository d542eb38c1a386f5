"""TRL's dataset formats as people have them: written by `datasets`, read by us, compared with TRL's own functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import assistant, reasons, refused, rows_of, source, system, turns, user, write
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.records import Comparison, Demonstration, Example, Judgement, PromptOnly
from inverse_alignment.data.read import Dropped, read

datasets = pytest.importorskip("datasets")
data_utils = pytest.importorskip("trl.data_utils")

ASK, SKY = user("What color is the sky?"), [("user", "What color is the sky?")]
BLUE, GREEN = assistant("It is blue."), assistant("It is green.")


def _json_lines(table: Any, folder: Path) -> dict[str, Any]:
    table.to_json(str(folder / "train.jsonl"))
    return {"path": folder / "train.jsonl", "format": "jsonl"}


def _json_array(table: Any, folder: Path) -> dict[str, Any]:
    table.to_json(str(folder / "train.json"), lines=False, orient="records")
    return {"path": folder / "train.json", "format": "json"}


def _parquet(table: Any, folder: Path) -> dict[str, Any]:
    table.to_parquet(str(folder / "train.parquet"))
    return {"path": folder / "train.parquet", "format": "parquet"}


def _folder(table: Any, folder: Path) -> dict[str, Any]:
    table.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    return {"path": folder, "format": "dataset"}


def _saved(table: Any, folder: Path) -> dict[str, Any]:
    datasets.DatasetDict({"train": table}).save_to_disk(folder / "saved")
    return {"path": folder / "saved", "format": "dataset"}


WRITERS = [_json_lines, _json_array, _parquet, _folder, _saved]


@pytest.fixture(autouse=True)
def quiet_progress():
    datasets.disable_progress_bars()


FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any], type[Example], dict[str, Any]]] = {
    "prompt-only, standard": (
        {"prompt": "The sky is"},
        {"kind": "prompt"},
        PromptOnly,
        {"prompt": [("user", "The sky is")]},
    ),
    "prompt-only, conversational": ({"prompt": [ASK]}, {"kind": "prompt"}, PromptOnly, {"prompt": SKY}),
    "prompt-completion, standard": (
        {"prompt": "The sky is", "completion": " blue."},
        {"kind": "demonstration"},
        Demonstration,
        {"prompt": [("user", "The sky is")], "response": " blue."},
    ),
    "prompt-completion, conversational": (
        {"prompt": [ASK], "completion": [BLUE]},
        {"kind": "demonstration"},
        Demonstration,
        {"prompt": SKY, "response": "It is blue."},
    ),
    "language modelling, conversational": (
        {"messages": [system("Be brief."), ASK, BLUE]},
        {"kind": "demonstration"},
        Demonstration,
        {"prompt": [("system", "Be brief."), *SKY], "response": "It is blue."},
    ),
    "preference, standard": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {},
        Comparison,
        {"prompt": [("user", "The sky is")], "chosen": " blue.", "rejected": " green."},
    ),
    "preference, conversational": (
        {"prompt": [ASK], "chosen": [BLUE], "rejected": [GREEN]},
        {},
        Comparison,
        {"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."},
    ),
    "preference with implicit prompt, standard": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"columns": {"prompt": None}},
        Comparison,
        {"prompt": [("user", "The sky is")], "chosen": " blue.", "rejected": " green."},
    ),
    "preference with implicit prompt, conversational": (
        {"chosen": [ASK, BLUE], "rejected": [ASK, GREEN]},
        {},
        Comparison,
        {"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."},
    ),
    "unpaired preference, standard": (
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        {"kind": "judgement"},
        Judgement,
        {"prompt": [("user", "The sky is")], "response": " blue.", "label": True},
    ),
    "unpaired preference, conversational": (
        {"prompt": [ASK], "completion": [GREEN], "label": False},
        {"kind": "judgement"},
        Judgement,
        {"prompt": SKY, "response": "It is green.", "label": False},
    ),
    "prompt as text beside whole conversations": (  # as in ultrafeedback_binarized
        {"prompt": ASK["content"], "messages": [ASK, BLUE], "chosen": [ASK, BLUE], "rejected": [ASK, GREEN]},
        {},
        Comparison,
        {"prompt": SKY, "chosen": "It is blue.", "rejected": "It is green."},
    ),
}


@pytest.mark.parametrize("writer", WRITERS, ids=[writer.__name__ for writer in WRITERS])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_trl_in_every_container(tmp_path, name, writer: Callable[..., dict[str, Any]]):
    row, settings, kind, expected = FORMATS[name]
    written = writer(datasets.Dataset.from_list([row, row]), tmp_path)
    found = rows_of(written["path"], written["format"], **settings)
    assert [type(each) for each in found] == [kind, kind]
    for each in found:
        assert isinstance(each, kind)
        facts = {**each.model_dump(include=set(expected)), "prompt": turns(each.prompt)}
        assert facts == expected


def test_the_names_of_formats_are_what_trl_says(tmp_path):
    """A format that TRL takes for conversational is one that we read as messages."""
    for name, (row, *_) in FORMATS.items():
        if "beside" not in name:
            assert data_utils.is_conversational(row) == ("conversational" in name)


def test_extract_prompt_agrees_on_conversations(tmp_path):
    talk = [system("Be brief."), ASK, BLUE, user("Why?")]
    row = {"chosen": [*talk, assistant("Air.")], "rejected": [*talk, assistant("Magic.")]}
    theirs = data_utils.extract_prompt(row)
    (ours,) = rows_of(write(tmp_path / "a.jsonl", row))
    assert isinstance(ours, Comparison)
    assert ours.prompt.as_chat() == theirs["prompt"]
    assert [assistant(ours.chosen)] == theirs["chosen"] and [assistant(ours.rejected)] == theirs["rejected"]


def test_judgements_are_what_trl_makes_of_pairs(tmp_path):
    pairs = [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"prompt": "The sun is", "chosen": " in the sky.", "rejected": " in the sea."},
    ]
    unpaired = data_utils.unpair_preference_dataset(datasets.Dataset.from_list(pairs))
    found = rows_of(**_parquet(unpaired, tmp_path), kind="judgement")
    said = {(row.prompt.text(), row.response, row.label) for row in found if isinstance(row, Judgement)}
    kept = rows_of(write(tmp_path / "pairs.jsonl", *pairs))
    compared = [row for row in kept if isinstance(row, Comparison)]
    assert len(found) == 4
    assert said == {(p.prompt.text(), p.chosen, True) for p in compared} | {
        (p.prompt.text(), p.rejected, False) for p in compared
    }


# ---------------------------------------------------------------------------------------------- implicit prompts

PIECE = st.text("ab \n", max_size=6)


@settings(max_examples=300, deadline=None)
@given(PIECE, PIECE, PIECE)
def test_extract_prompt_agrees_on_texts(tmp_path_factory, head, left, right):
    """Where TRL makes sense of two texts, we read the same; elsewhere there is one of four counted reasons."""
    row = {"chosen": head + left, "rejected": head + right}
    path = write(tmp_path_factory.mktemp("implicit") / "a.jsonl", row, {"chosen": "a b", "rejected": "a c"})
    given = source(path, columns={"prompt": None}, on_bad_row="drop")
    ours = next(iter(read(given)))
    makes_sense = next((i for i, (a, b) in enumerate(zip(*row.values(), strict=False)) if a != b), 0) > 0
    if isinstance(ours, Dropped):
        assert ours.reason in ("empty prompt", "chosen equals rejected", "empty chosen", "empty rejected")
        if makes_sense:
            theirs = data_utils.extract_prompt(row)
            assert not all(text.strip() for text in theirs.values())
        return
    assert isinstance(ours, Comparison) and makes_sense
    theirs = data_utils.extract_prompt(row)
    assert {"prompt": ours.prompt.text(), "chosen": ours.chosen, "rejected": ours.rejected} == theirs


@pytest.mark.parametrize(
    ("chosen", "rejected", "what", "theirs"),
    [
        ("blue", "green", "there is no prompt: chosen and rejected share no beginning", ("", "blue")),
        ("x ", "y ", "there is no prompt: chosen and rejected share no beginning", ("x", " ")),  # from the wrong end
        ("The sky is", "The sky is", "chosen equals rejected", ("The sky i", "s")),  # torn before the last letter
        ("The sky", "The sky is blue", "chosen is empty", ("The sk", "y")),
        ("The sky is blue", "The sky", "rejected is empty", ("The sk", "y is blue")),
    ],
)
def test_what_trl_makes_nonsense_of_is_one_clear_error(tmp_path, chosen, rejected, what, theirs):
    row = {"chosen": chosen, "rejected": rejected}
    made = data_utils.extract_prompt(row)
    assert (made["prompt"], made["chosen"]) == theirs
    error = refused(write(tmp_path / "a.jsonl", row), columns={"prompt": None})
    assert error.what == what


def test_an_implicit_prompt_is_asked_for_by_name(tmp_path):
    row = FORMATS["preference with implicit prompt, standard"][0]
    error = refused(write(tmp_path / "a.jsonl", row))
    assert error.what == "no such column"
    assert "where chosen and rejected begin with the prompt, set columns.prompt: null" in error.fix


def test_answers_of_several_turns_are_one_clear_error(tmp_path):
    """TRL would take three turns for the answer."""
    row = {
        "chosen": [ASK, BLUE, user("Why?"), assistant("Air.")],
        "rejected": [ASK, GREEN, user("Why?"), assistant("Magic.")],
    }
    assert len(data_utils.extract_prompt(row)["chosen"]) == 3
    assert "they differ before the last turn" in refused(write(tmp_path / "a.jsonl", row)).what


# ---------------------------------------------------------------------------------------------- what TRL has besides


def test_columns_that_only_trl_needs_are_ignored(tmp_path):
    row = {"prompt": [ASK], "chosen": [BLUE], "rejected": [GREEN], "tools": "[]", "chat_template_kwargs": {"a": True}}
    (found,) = rows_of(**_parquet(datasets.Dataset.from_list([row]), tmp_path))
    assert isinstance(found, Comparison)


@pytest.mark.parametrize(
    ("turn", "what", "field"),
    [
        ({"role": "tool", "content": "4"}, "unknown role 'tool'", "prompt.1.role"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, "is a list, not a text", "prompt.1.content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "is null, not a text", "prompt.1.content"),
    ],
)
def test_tools_and_images_are_refused(tmp_path, turn, what, field):
    path = write(tmp_path / "a.jsonl", {"prompt": [ASK, turn, ASK], "chosen": [BLUE], "rejected": [GREEN]})
    error = refused(path)
    assert error.what == what and error.where == f"{path}, row 1, field '{field}'"


def test_missing_values_of_a_table(tmp_path):
    """`datasets` writes null where a row lacks a column."""
    table = datasets.Dataset.from_list(
        [{"prompt": "x", "chosen": "a", "rejected": "b"}, {"prompt": "y", "chosen": "a"}]
    )
    found = rows_of(**_json_lines(table, tmp_path), on_bad_row="drop")
    assert reasons(found) == [None, "missing field"]
