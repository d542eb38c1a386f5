"""Looking at files nobody has described: the format told, the sample counted, and a source that reads what was seen."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Demonstration, Example, Judgement
from inverse_alignment.data import files
from inverse_alignment.data.inspection import Inspection, inspect, names_for, read_together
from inverse_alignment.data.licences import non_commercial
from inverse_alignment.data.read import read
from inverse_alignment.data.recognise import SOURCE
from inverse_alignment.data.sources import ColumnMap

SHARED = Path(__file__).parents[4] / "shared/data"
PAIR = {"prompt": "why?", "chosen": "because it is so", "rejected": "no idea"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        return path
    if path.name.removesuffix(".gz").endswith(".json"):
        data = json.dumps(rows, indent=1).encode()
    else:
        data = b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def look(tmp_path: Path, *rows: Any, name: str = "file.jsonl", **limits: Any) -> Inspection:
    return inspect(write(tmp_path / name, *rows), "it", **limits)


def reads(found: Inspection) -> list[Example]:
    """What the suggested source makes of the file, from the text that a person would copy."""
    (item,) = yaml.safe_load(found.snippet)
    return [row for row in read(SOURCE.validate_python(item)) if isinstance(row, Example)]


def texts(example: Example) -> tuple[str, ...]:
    match example:
        case Comparison():
            return example.prompt.text(), example.chosen, example.rejected
        case Judgement():
            return example.prompt.text(), example.response, str(example.label)
        case Demonstration():
            return example.prompt.text(), example.response
        case _:
            return (example.prompt.text(),)


# which format


HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."}
ALPACA = {
    "instruction": "Q",
    "output_1": "a",
    "output_2": "b",
    "generator_1": "g",
    "generator_2": "h",
    "preference": 2.0,
}
SHARE_GPT = {
    "conversations": [{"from": "human", "value": "Q"}],
    "chosen": {"from": "gpt", "value": "a"},
    "rejected": {"from": "gpt", "value": "b"},
}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "TRL, explicit prompt": (PAIR, {}, ("why?", "because it is so", "no idea")),
    "TRL, implicit prompt": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"columns": {"prompt": None}},
        ("The sky is", " blue.", " green."),
    ),
    "TRL, conversational, explicit prompt": (
        {"prompt": [user("Q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
        {},
        ("Q", "a", "b"),
    ),
    "TRL, conversational, implicit prompt": (
        {"chosen": [user("Q"), assistant("a")], "rejected": [user("Q"), assistant("b")]},
        {},
        ("Q", "a", "b"),
    ),
    "question, better, worse": (
        {"question": "Q", "better": "a", "worse": "b"},
        {"columns": {"prompt": "question", "chosen": "better", "rejected": "worse"}},
        ("Q", "a", "b"),
    ),
    "words beside the spelling": (
        {"User Prompt": "Q", "chosen_response": "a", "rejectedAnswer": "b"},
        {"columns": {"prompt": "User Prompt", "chosen": "chosen_response", "rejected": "rejectedAnswer"}},
        ("Q", "a", "b"),
    ),
    "nested": (
        {"input": {"text": "Q"}, "answers": {"winner": "a", "loser": "b"}, "meta": {"judge": "ann"}},
        {
            "columns": {
                "prompt": "input.text",
                "chosen": "answers.winner",
                "rejected": "answers.loser",
                "annotator": "meta.judge",
            }
        },
        ("Q", "a", "b"),
    ),
    "a number named prompt": (
        {"prompt": 8, "question": "Q", "chosen": "a", "rejected": "b"},
        {"columns": {"prompt": "question"}},
        ("Q", "a", "b"),
    ),
    "votes": (
        {
            "question": "Q",
            "response_a": "a",
            "response_b": "b",
            "votes_a": 1,
            "votes_b": 3,
            "model_a": "m",
            "model_b": "n",
        },
        {
            "columns": {
                "prompt": "question",
                "chosen": "response_a",
                "rejected": "response_b",
                "source_chosen": "model_a",
                "source_rejected": "model_b",
                "votes_chosen": "votes_a",
                "votes_rejected": "votes_b",
            }
        },
        ("Q", "b", "a"),
    ),
    "the number of the better answer": (
        {"prompt": "Q", "response_0": "a", "response_1": "b", "better_response_id": 0},
        {"columns": {"chosen": "response_1", "rejected": "response_0", "soft_label": "better_response_id"}},
        ("Q", "a", "b"),
    ),
    "HH": (HH, {"format": "hh"}, ("Hi", "Hello.", "Go away.")),
    "AlpacaEval": (ALPACA, {"format": "alpaca_eval"}, ("Q", "b", "a")),
    "ShareGPT": (SHARE_GPT, {"format": "sharegpt"}, ("Q", "a", "b")),
    "prompts": ({"query": "Q"}, {"kind": "prompt", "columns": {"prompt": "query"}}, ("Q",)),
    "prompts, conversational": ({"messages": [user("Q")]}, {"kind": "prompt"}, ("Q",)),
    "demonstrations": ({"prompt": "Q", "completion": "a"}, {"kind": "demonstration"}, ("Q", "a")),
    "instruction and output": (
        {"instruction": "Q", "output": "a", "generator": "m"},
        {
            "kind": "demonstration",
            "columns": {"prompt": "instruction", "response": "output", "source": "generator"},
        },
        ("Q", "a"),
    ),
    "demonstrations in messages": ({"messages": [user("Q"), assistant("a")]}, {"kind": "demonstration"}, ("Q", "a")),
    "judgements": ({"prompt": "Q", "completion": "a", "label": True}, {"kind": "judgement"}, ("Q", "a", "True")),
    "judgements, other names": (
        {"question": "Q", "answer": "a", "thumbs_up": 0},
        {"kind": "judgement", "columns": {"prompt": "question", "response": "answer", "label": "thumbs_up"}},
        ("Q", "a", "False"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["file.jsonl", "file.jsonl.gz", "file.json", "file.json.gz", "file.parquet"])
def test_the_suggested_source_reads_the_file(tmp_path, layout, name):
    row, keys, expected = LAYOUTS[layout]
    found = look(tmp_path, row, name=name)
    container = name.split(".")[1]
    source = {"format": container, "name": "it", "path": str(tmp_path / name), **keys}
    assert found.source == source and found.container == container
    assert [texts(example) for example in reads(found)] == [expected]
    assert (found.rows, found.total, found.complete, found.refused) == (1, 1, True, {})


def test_columns_under_their_own_names_are_not_mapped(tmp_path):
    row = {**PAIR, "source_chosen": "m", "source_rejected": "n", "annotator": "ann", "margin": 0.5, "licence": "MIT"}
    found = look(tmp_path, row)
    assert "columns" not in found.source
    facts = found.statistics
    assert facts["policies"] == {"m": {"pairs": 1, "wins": 1, "losses": 0}, "n": {"pairs": 1, "wins": 0, "losses": 1}}
    assert (facts["annotators"], facts["licences"], facts["margins"]) == ({"ann": 1}, {"MIT": 1}, 1)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"chosen": "Yes, of course", "rejected": "Never"}, "share no beginning"),
        ({"prompt": 8, "result_x": "a", "result_y": "b"}, "no column says"),
        ({"prompt": "Q", "response_a": "a", "response_b": "b", "better": 1}, "no column says"),  # 1 may be a or b
        ({"text": "Once upon a time"}, "neither a prompt nor an answer"),
        ({"conversations": [{"from": "human", "value": "Q"}]}, "no chosen and rejected"),
        ({"id": 97, "name": "Airoboros"}, "there are id, name"),
    ],
)
def test_what_nothing_reads_is_explained(tmp_path, row, what):
    found = look(tmp_path, row, row)
    assert found.source is None and found.snippet == "" and found.fault is None
    assert what in found.obstacle.what and found.obstacle.fix
    assert found.examples[0].texts.keys() == row.keys()


def test_rows_inside_one_object_are_pointed_at(tmp_path):
    found = look(tmp_path, {"version": 1, "data": [PAIR, PAIR]})
    assert found.source is None and "data" in found.obstacle.fix


# columns that cannot be used


def test_an_optional_column_out_of_range_is_left_out(tmp_path):
    rows = [{**PAIR, "prompt": f"{i}?", "margin": i, "weight": 0, "split": "train_sft"} for i in range(1, 9)]
    found = look(tmp_path, *rows)
    assert found.source["columns"] == {"margin": None, "weight": None, "split": None}
    assert len(reads(found)) == 8 and not found.refused
    assert any("margin" in note and "(0, 1]" in note for note in found.notes)
    with pytest.raises(UserError, match="outside"):  # without those keys a run would refuse the file
        list(read(SOURCE.validate_python({**found.source, "columns": {"weight": None, "split": None}})))


def test_a_mapped_column_out_of_range_is_not_mapped(tmp_path):
    found = look(tmp_path, *({**PAIR, "prompt": f"{i}?", "strength": i} for i in range(1, 9)))
    assert "columns" not in found.source and len(reads(found)) == 8


def test_few_rows_out_of_range_are_problems_not_a_column_to_leave_out(tmp_path):
    rows = [{**PAIR, "prompt": f"{i}?", "margin": 0.5} for i in range(9)]
    found = look(tmp_path, *rows, {**PAIR, "margin": 7})
    assert "columns" not in found.source and found.source["on_bad_row"] == "drop"
    assert [(p.row, p.field) for p in found.problems] == [(10, "margin")]


def test_ids_that_are_not_unique_are_not_used(tmp_path):
    rows = [{**PAIR, "prompt": f"{i}?", "id": "same"} for i in range(3)]
    found = look(tmp_path, *rows)
    assert found.source["columns"] == {"id": None}
    assert len({example.id for example in reads(found)}) == 3
    assert any("'same'" in note for note in found.notes)


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c", "up": 3, "down": 1, "empty": None}, "not read: up, down"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c", "judge": "x"},
            "not read: judge",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "annotator": "x", "margin": 0.5}, None),
    ],
)
def test_columns_that_nothing_reads_are_named(tmp_path, row, unread):
    said = [note for note in look(tmp_path, row).notes if note.startswith("not read")]
    assert said == ([unread] if unread else [])


def test_a_native_format_says_whose_licence_it_takes(tmp_path):
    row = {
        "instruction": "a",
        "output_1": "b",
        "output_2": "c",
        "preference": 1,
        "generator_1": "x",
        "generator_2": "y",
    }
    (note,) = look(tmp_path, row).notes
    assert "CC BY-NC 4.0" in note and "set licence" in note


@pytest.mark.parametrize(
    ("chosen", "rejected", "cut"),
    [("say it now: stop", "say it now: stay", 1), ("say it now: go", "say it now: no", 0)],
)
def test_a_shared_beginning_that_ends_inside_a_word_is_mentioned(tmp_path, chosen, rejected, cut):
    notes = look(tmp_path, {"chosen": chosen, "rejected": rejected}).notes
    assert [note.split(" pairs")[0] for note in notes] == ["in 1 of the first 1"] * cut


def test_scores_and_a_second_input_are_mentioned(tmp_path):
    row = {"instruction": "Sum up", "input": "A text", "output": "b"}
    assert any("input" in note for note in look(tmp_path, row).notes)
    assert not any("input" in note for note in look(tmp_path, {**row, "input": ""}).notes)
    scored = {**PAIR, "score_chosen": 9, "score_rejected": 4}
    assert any("score_chosen" in note for note in look(tmp_path, scored).notes)


# statistics


def test_statistics_by_hand(tmp_path):
    row = {"source_chosen": "m", "source_rejected": "n", "annotator": "ann"}
    talk = [{"role": "system", "content": "Be kind."}, user("one"), assistant("two"), user("three")]
    found = look(
        tmp_path,
        {**row, "prompt": "p q", "chosen": "a b c", "rejected": "a"},
        {**row, "prompt": "p q", "chosen": "a b c", "rejected": "a", "annotator": "bo"},  # a duplicate
        {**row, "prompt": "p q", "chosen": "a", "rejected": "a b c"},  # contradicts
        {**row, "prompt": "r", "chosen": "x y", "rejected": "v w"},  # as long
        {**row, "messages": talk, "chosen": "a b c d e", "rejected": "a b"},
        {**row, "prompt": "r", "chosen": "same", "rejected": "same"},
        {**row, "prompt": "r", "chosen": "x", "rejected": "y", "soft_label": 0.5},  # a tie
        {**row, "prompt": "r", "chosen": "x", "rejected": "y z", "soft_label": 0.2},  # the second is better
    )
    facts = found.statistics
    assert found.rows == 8 and found.refused == {"chosen equals rejected": 1}
    assert (facts["used"], facts["duplicates"], facts["pairs"], facts["ties"]) == (6, 1, 5, 1)
    assert facts["prompts"] == 3 and facts["contradictions"] == 1
    # chosen words 3, 1, 2, 5, 2 against 1, 3, 2, 2, 1: longer in three of five, as long in one
    assert facts["longer_wins"] == pytest.approx(3.5 / 5)
    assert facts["words"]["chosen"] == {"mean": pytest.approx(13 / 5), "median": 2, "p95": 5}
    assert facts["words"]["rejected"] == {"mean": pytest.approx(9 / 5), "median": 2, "p95": 3}
    assert facts["turns"] == {"mean": pytest.approx(7 / 6), "median": 1, "most": 2}
    assert facts["system"] == pytest.approx(1 / 6)
    assert facts["annotators"] == {"ann": 5, "bo": 1} and facts["soft_labels"] == 1 and facts["margins"] == 0
    assert facts["policies"]["m"] == {"pairs": 5, "wins": 4, "losses": 1}  # one of n's by the soft label


def test_statistics_of_single_answers(tmp_path):
    rows = [{"prompt": f"{i}", "completion": "a b", "label": i < 3, "source": "m"} for i in range(4)]
    facts = look(tmp_path, *rows, rows[0]).statistics
    assert facts["kind"] == "judgement" and facts["good"] == pytest.approx(4 / 5)
    assert (facts["used"], facts["duplicates"], facts["prompts"], facts["sources"]) == (5, 1, 4, {"m": 5})
    assert facts["words"] == {"response": {"mean": 2, "median": 2, "p95": 2}}
    assert "longer_wins" not in facts


def test_examples_are_of_different_prompts_and_short(tmp_path):
    long = "word " * 500
    rows = [
        PAIR,
        PAIR,
        {**PAIR, "prompt": "how?", "chosen": long},
        {**PAIR, "prompt": "what?"},
        {**PAIR, "prompt": "who?"},
    ]
    shown = look(tmp_path, *rows).examples
    assert [(each.row, each.texts["prompt"]) for each in shown] == [(1, "why?"), (3, "how?"), (4, "what?")]
    assert shown[1].texts["chosen"].endswith("… (420 more words)") and len(shown[1].texts["chosen"]) < 450


def test_own_splits_are_counted_and_mentioned(tmp_path):
    found = look(tmp_path, {**PAIR, "split": "train"}, {**PAIR, "prompt": "how?", "split": "test"})
    assert found.statistics["splits"] == {"train": 1, "test": 1}
    assert any("respect_source_splits" in note for note in found.notes)


# problems


def test_problems_name_row_field_and_cure_and_every_reason(tmp_path):
    good = [{**PAIR, "prompt": f"{i}?"} for i in range(10)]
    empty = [{**PAIR, "rejected": ""}] * 8
    found = look(tmp_path, *good, *empty, b"not json\n", {**PAIR, "chosen": 5}, {"prompt": "p", "chosen": "c"})
    assert found.refused == {"empty rejected": 8, "unreadable": 1, "wrong type": 1, "missing field": 1}
    assert [(p.row, p.field, p.reason) for p in found.problems] == [
        (11, "rejected", "empty rejected"),
        (12, "rejected", "empty rejected"),
        (19, None, "unreadable"),
        (20, "chosen", "wrong type"),
        (21, "rejected", "missing field"),
    ]
    assert all(problem.what and problem.fix for problem in found.problems)
    assert found.statistics["used"] == 10 and len(reads(found)) == 10
    assert any("max_dropped_share" in note for note in found.notes)  # 11 of 21 rows are lost
    with pytest.raises(UserError, match="row 11"):  # so the snippet has to say on_bad_row: drop
        list(read(SOURCE.validate_python({**found.source, "on_bad_row": "error"})))


def test_a_file_without_usable_rows_gets_no_source(tmp_path):
    found = look(tmp_path, *({**PAIR, "rejected": PAIR["chosen"]} for _ in range(3)))
    assert found.source is None and "none of the 3 rows" in found.obstacle.what and found.obstacle.row == 1
    tied = look(tmp_path, {**ALPACA, "preference": 1.5}, {**ALPACA, "preference": None})
    assert tied.source is None and "ties" in tied.obstacle.what


# broken files


BROKEN = {
    "missing.jsonl": (None, "no such file"),
    "empty.jsonl": (b"", "holds no row"),
    "blank.jsonl": (b"\n\n", "holds no row"),
    "words.jsonl": (b"hello\nworld\n", "not valid JSON"),
    "table.csv": (b"prompt,chosen,rejected\na,b,c\n", "separated values"),
    "one.json": (json.dumps({"data": [PAIR, PAIR]}, indent=1).encode(), "one JSON object"),
    "list.json": (b'["a", "b"]', "not an object"),
    "named.jsonl.gz": (b"{}", "is not gzip"),
    "unnamed.jsonl": (gzip.compress(b"{}", mtime=0), "not named .gz"),
    "fake.parquet": (b"PAR1 no table", "not a readable Parquet file"),
    "utf16.jsonl": ('{"prompt": "a"}'.encode("utf-16"), "UTF-16"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_described(tmp_path, name):
    content, what = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    found = inspect(tmp_path / name, "it")
    assert found.fault is not None and what in found.fault.what and found.fault.fix
    assert found.source is None and not found.statistics


def test_a_torn_file_is_told_up_to_where_it_ends(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({**PAIR, "prompt": f"{i * i}?"}).encode() + b"\n" for i in range(5000)))
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found = inspect(tmp_path / "torn.jsonl.gz", "it")
    assert found.fault is not None and "end early" in found.fault.what
    assert 0 < found.rows < 5000 and found.statistics["used"] == found.rows and found.total is None


def test_an_endless_line_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    assert "longer than" in look(tmp_path, {"prompt": "x" * 2000}).fault.what
    assert look(tmp_path, {"prompt": "x" * 900}).fault is None


# bounds


_DRAW = random.Random(0)
MANY = [
    {"prompt": f"question {i} of many", "chosen": _DRAW.randbytes(150).hex(" ", 4), "rejected": "no"}
    for i in range(6000)
]


@pytest.mark.parametrize("name", ["file.jsonl", "file.jsonl.gz", "file.json", "file.json.gz", "file.parquet"])
def test_of_a_large_file_a_sample_is_read_and_the_rest_estimated(tmp_path, name, monkeypatch):
    monkeypatch.setattr(files, "COUNTED", 2**17)
    found = look(tmp_path, *MANY, name=name, most_rows=300)
    assert (found.rows, found.complete, found.statistics["used"]) == (300, False, 300)
    assert found.total == pytest.approx(6000, rel=0.1)
    assert (found.total == 6000) == (name == "file.parquet")


def test_exactly_as_many_rows_as_are_read_is_the_whole_file(tmp_path):
    assert look(tmp_path, *MANY[:300], most_rows=300).complete
    assert not look(tmp_path, *MANY[:301], most_rows=300).complete


def test_without_time_one_row_is_read(tmp_path):
    found = look(tmp_path, *MANY, seconds=0.0)
    assert (found.rows, found.complete) == (1, False) and found.source is not None


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(rows: list[Any]) -> int:
        path = write(tmp_path / f"{len(rows)}.jsonl", *rows)
        inspect(path, "it", most_rows=100)
        tracemalloc.start()
        inspect(path, "it", most_rows=100)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    wide = [{**row, "chosen": f"{i} " * 1000} for i, row in enumerate(MANY)]
    small, large = peak(wide[:600]), peak(wide[:4000])
    assert large < 1.3 * small + 2**20, (small, large)


# anything at all

_NAMES = st.sampled_from(
    [
        *ColumnMap.model_fields,
        *("conversations", "question", "better", "worse", "response_a", "response_b", "votes_a"),
        *("votes_b", "instruction", "output_1", "output_2", "preference", "input", "text", "meta", "score_chosen", "x"),
    ]
)
_TURN = st.fixed_dictionaries({}, optional={name: st.text(max_size=5) for name in ("role", "content", "from", "value")})
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner | _TURN, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(_NAMES, _VALUES, max_size=8), min_size=1, max_size=6))
def test_whatever_rows_hold_they_are_described_and_a_suggested_source_reads_them(tmp_path, rows):
    found = look(tmp_path, *rows)
    assert found.fault is None and found.rows == len(rows)
    assert (found.source is None) == (found.obstacle is not None)
    if found.source is not None:
        assert len(reads(found)) == found.statistics["used"] > 0


def test_an_answer_in_text_beside_one_in_messages_has_no_prompt_to_share(tmp_path):
    found = look(tmp_path, {"chosen": "", "rejected": [{"role": "", "content": "", "from": "", "value": ""}]})
    assert found.source is None and "share no beginning" in str(found.obstacle)


# several files


def test_every_file_gets_a_name_of_its_own():
    assert names_for([Path("a/pairs.jsonl.gz"), Path("b/other.json")]) == ["pairs", "other"]
    assert names_for([Path("a/x.jsonl"), Path("b/x.jsonl")]) == ["a-x", "b-x"]
    assert names_for([Path("hh/train.jsonl"), Path("hh/test.jsonl")]) == ["hh-train", "hh-test"]
    assert names_for([Path("my data/train-00000-of-00002.parquet")]) == ["my-data-train-00000-of-00002"]
    twice = names_for([Path("a/x.jsonl")] * 2)
    assert len(set(twice)) == 2


def test_files_of_a_folder_are_found_and_others_named(tmp_path):
    for name in ("b/two.jsonl", "a.json", "b/c/three.parquet", ".hidden/four.jsonl"):
        write(tmp_path / name, PAIR)
    (tmp_path / "README.md").write_text("#")
    inside, others = files.find(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in inside] == ["a.json", "b/c/three.parquet", "b/two.jsonl"]
    assert [path.name for path in others] == ["README.md"]
    assert files.find(tmp_path / "a.json") == ([tmp_path / "a.json"], [])


def test_alike_files_of_a_folder_are_read_by_one_source(tmp_path):
    for number in range(3):
        write(tmp_path / "shards" / f"{number}.jsonl", {"question": f"{number}?", "better": "a", "worse": "b"})
    write(tmp_path / "mixed" / "one.jsonl", PAIR)
    write(tmp_path / "mixed" / "two.jsonl", {"question": "Q", "better": "a", "worse": "b"})
    inside, _ = files.find(tmp_path)
    (source,) = read_together(tmp_path, [inspect(path, "it") for path in inside])
    assert source["path"] == str(tmp_path / "shards") and source["name"] == "shards"
    assert len(list(read(SOURCE.validate_python(source)))) == 3


def test_datasets_saved_to_disk_are_looked_at(tmp_path):
    datasets = pytest.importorskip("datasets")
    pairs = datasets.Dataset.from_list([{"question": f"{i}?", "better": "a", "worse": "b"} for i in range(3)])
    pairs.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"test": datasets.Dataset.from_list([HH])}).save_to_disk(tmp_path / "splits")
    assert files.find(tmp_path)[0] == [tmp_path / "plain", tmp_path / "splits"]
    plain, splits = (inspect(tmp_path / name, name) for name in ("plain", "splits"))
    assert plain.source["format"] == "dataset" and [texts(each)[0] for each in reads(plain)] == ["0?", "1?", "2?"]
    assert (splits.source["format"], splits.source["dataset"]) == ("hh", {"split": "test"})
    assert [texts(each) for each in reads(splits)] == [("Hi", "Hello.", "Go away.")]


def test_licences_for_no_commercial_use_are_known():
    assert all(map(non_commercial, ("CC BY-NC 4.0", "cc-by-nc-sa-4.0", "Non-Commercial", "research, noncommercial")))
    assert not any(map(non_commercial, ("MIT", "CC BY 4.0", "CC BY-SA 3.0", "unknown", "NCSA", "Apache-2.0")))


# real files


REAL = {
    **{
        f"pairs/{name}.jsonl.gz": ("jsonl", "preference")
        for name in ("alpaca_eval", "gsm8k_solutions", "hh_harmless_base")
    },
    **{f"pairs/{name}.jsonl.gz": ("jsonl", "preference") for name in ("llmfao_crowd", "llmfao_gpt4", "qlora_vicuna")},
    **{f"pairs/{name}.jsonl.gz": ("jsonl", "preference") for name in ("oasst1_en_validation", "qa_feedback_dev")},
    "prompts/unlabelled.jsonl.gz": ("jsonl", "prompt"),
    "sft/instructions.jsonl.gz": ("jsonl", "demonstration"),
    "responses/alpaca_eval.jsonl.gz": ("jsonl", "demonstration"),
    "raw/hh-rlhf/harmless-base/test.jsonl.gz": ("hh", "preference"),
    "raw/sharegpt/dpo_en_demo.json": ("sharegpt", "preference"),
    "raw/alpaca_eval/results/alpaca-7b/alpaca_eval_gpt4/annotations.json": ("alpaca_eval", "preference"),
    "raw/alpaca_eval/results/claude-2/model_outputs.json": ("json", "demonstration"),
    "raw/llmfao/models.jsonl": (None, None),
    "raw/llmfao/pairs-crowd.jsonl": (None, None),
    "text/c4_sample.jsonl": (None, None),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_recognised(name):
    found = inspect(SHARED / name, "it", most_rows=400)
    kind = found.statistics.get("kind")
    assert ((found.source or {}).get("format"), kind) == REAL[name]
    assert found.fault is None and len(found.examples) == 3
    if found.source is not None:
        (item,) = yaml.safe_load(found.snippet)
        assert len(list(islice(read(SOURCE.validate_python(item)), 400))) > 290
