"""Readers against real files, good and bad: every structural fault is one UserError with file, row and field."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from inverse_alignment.core.configuration import identity_of
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison
from inverse_alignment.data.sources import ColumnMap, Dropped, HhSource, JsonlSource, ParquetSource, SourceConfig, read

GOOD = {"prompt": "why?", "chosen": "because", "rejected": "no idea"}


def write(path: Path, *rows: Any) -> Path:
    data = b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def jsonl(path: Path, *rows: Any, **settings: Any) -> list[Comparison | Dropped]:
    return list(read(JsonlSource(name="d", path=str(write(path, *rows)), **settings)))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "pairs.jsonl"


def refused(file: Path, *rows: Any, **settings: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        jsonl(file, *rows, **settings)
    assert str(file) in caught.value.where
    return caught.value


# good files


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_minimal_rows(tmp_path, name):
    first, second = jsonl(tmp_path / name, GOOD, {**GOOD, "id": 7, "an unknown field": [1]})
    assert isinstance(first, Comparison) and isinstance(second, Comparison)
    assert (first.prompt.text(), first.chosen, first.rejected, first.margin) == ("why?", "because", "no idea", None)
    assert first.provenance.model_dump() == {
        "dataset": "d",
        "source_chosen": "unnamed",
        "source_rejected": "unnamed",
        "annotator": "unnamed",
        "split": None,
        "licence": "unknown",
        "original_id": "1",
    }
    assert second.id == "d/7"


def test_every_field_is_read(file):
    row = {
        **GOOD,
        "id": "x-1",
        "source_chosen": "strong",
        "source_rejected": "weak",
        "annotator": "human:a",
        "margin": 0.5,
        "licence": "MIT",
        "split": "dev",
    }
    (pair,) = jsonl(file, row)
    assert isinstance(pair, Comparison)
    assert pair.margin == 0.5
    assert pair.provenance.model_dump() == {
        "dataset": "d",
        "source_chosen": "strong",
        "source_rejected": "weak",
        "annotator": "human:a",
        "split": "validation",
        "licence": "MIT",
        "original_id": "x-1",
    }


def test_defaults_of_the_source_fill_what_rows_leave_out(file):
    named = {**GOOD, "annotator": "human:a", "margin": 1}
    rows = jsonl(
        file, named, {**GOOD, "margin": None}, annotator="llm:b", licence="MIT", margin=0.25, source_chosen="strong"
    )
    assert [(r.provenance.annotator, r.provenance.licence, r.margin) for r in rows] == [
        ("human:a", "MIT", 1.0),
        ("llm:b", "MIT", 0.25),
    ]
    assert rows[0].provenance.source_chosen == "strong" and rows[0].provenance.source_rejected == "unnamed"


def test_renamed_and_nested_columns(file):
    row = {"q": "why?", "answers": {"good": "a", "bad": "b"}, "meta": {"judge": "llm:x"}, "dotted.name": 3}
    columns = ColumnMap(
        prompt="q", chosen="answers.good", rejected="answers.bad", annotator="meta.judge", id="dotted.name"
    )
    (pair,) = jsonl(file, row, columns=columns)
    assert isinstance(pair, Comparison)
    assert (pair.chosen, pair.rejected, pair.provenance.annotator, pair.id) == ("a", "b", "llm:x", "d/3")


TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?", "extra": 1},
    {"role": "user", "content": "why?"},
]


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "prompt": TURNS},
        {**GOOD, "prompt": "as text", "messages": TURNS},
        {"messages": TURNS, "chosen": "because", "rejected": "no idea"},
        {
            "chosen": [*TURNS, {"role": "assistant", "content": "because"}],
            "rejected": [*TURNS, {"role": "assistant", "content": "no idea"}],
        },
        {
            "prompt": TURNS,
            "chosen": [{"role": "assistant", "content": "because"}],
            "rejected": [{"role": "assistant", "content": "no idea"}],
        },
    ],
    ids=["prompt as messages", "messages win", "messages alone", "implicit prompt", "answers as messages"],
)
def test_conversations(file, row):
    (pair,) = jsonl(file, row)
    assert isinstance(pair, Comparison)
    assert [(m.role, m.content) for m in pair.prompt.messages] == [(t["role"], t["content"]) for t in TURNS]
    assert (pair.chosen, pair.rejected) == ("because", "no idea")


def test_null_messages_leave_the_prompt(file):
    (pair,) = jsonl(file, {**GOOD, "messages": None})
    assert isinstance(pair, Comparison) and pair.prompt.text() == "why?"


def test_answers_to_other_prompts_are_dropped(file):
    other = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "x"}]
    _, second = jsonl(file, GOOD, {**GOOD, "rejected": other})
    assert isinstance(second, Dropped) and second.reason == "transcripts differ before the last turn"


def test_limit_counts_rows_that_pass_the_splits(file):
    rows = [{**GOOD, "id": i, "split": "test" if i < 3 else "train"} for i in range(6)]
    taken = jsonl(file, *rows, splits=("train",), limit=2)
    assert [r.provenance.original_id for r in taken] == ["3", "4"]


def test_limit_stops_reading(file):
    assert len(jsonl(file, GOOD, b"not read\n", limit=1)) == 1


def test_blank_lines_and_a_byte_order_mark_are_skipped(file):
    rows = jsonl(file, b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n", b"\n", GOOD, b"  \n")
    assert [r.provenance.original_id for r in rows] == ["1", "3"]


def test_reading_is_lazy(file):
    rows = read(JsonlSource(name="d", path=str(write(file, GOOD, b"{broken\n"))))
    assert isinstance(next(rows), Comparison)
    with pytest.raises(UserError):
        next(rows)


def test_the_file_may_lie_elsewhere(file):
    source = JsonlSource(name="d", path="where/it/came/from.jsonl")
    assert len(list(read(source, write(file, GOOD)))) == 1
    assert "path" not in identity_of(source)


# rows that hold no preference


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"rejected": "because"}, "chosen equals rejected", "rejected"),
        ({"chosen": " \n"}, "empty chosen", "chosen"),
        ({"rejected": ""}, "empty rejected", "rejected"),
        ({"prompt": ""}, "empty prompt", "prompt"),
        ({"prompt": []}, "empty prompt", "prompt"),
        ({"prompt": TURNS[:2]}, "no user turn before the answer", "prompt"),
    ],
)
def test_degenerate_rows_are_dropped_or_refused(file, change, reason, field):
    kept, dropped = jsonl(file, GOOD, {**GOOD, **change})
    assert isinstance(kept, Comparison) and isinstance(dropped, Dropped)
    assert (dropped.reason, dropped.where) == (reason, f"{file}, row 2, field '{field}'")
    error = refused(file, GOOD, {**GOOD, **change}, on_degenerate="refuse")
    assert error.what == reason and error.where == dropped.where


def test_a_source_of_degenerate_rows_only_is_refused(file):
    row = {**GOOD, "rejected": "because"}
    error = refused(file, row, {**GOOD, "chosen": ""})
    assert error.what == "none of the 2 rows holds a preference; the first: chosen equals rejected"
    assert error.where == f"{file}, row 1, field 'rejected'"


# bad files


def test_missing_file_names_the_nearest(file):
    write(file, GOOD)
    with pytest.raises(UserError) as caught:
        list(read(JsonlSource(name="d", path=str(file.with_name("pair.jsonl")))))
    assert caught.value.what == "no such file" and caught.value.fix == "did you mean 'pairs.jsonl'?"


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no such file") as caught:
        list(read(JsonlSource(name="d", path=str(tmp_path / "nowhere" / "x.jsonl"))))
    assert "does not exist either" in caught.value.fix


@pytest.mark.parametrize("source", [JsonlSource, ParquetSource])
def test_a_folder_instead_of_a_file(tmp_path, source):
    write(tmp_path / "pairs.jsonl", GOOD)
    with pytest.raises(UserError, match="is a folder") as caught:
        list(read(source(name="d", path=str(tmp_path))))
    assert caught.value.fix == "name one file: pairs.jsonl"


@pytest.mark.parametrize("rows", [(), (b"\n \n",)])
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_empty_files(tmp_path, name, rows):
    assert refused(tmp_path / name, *rows).what == "the file holds no row"


def test_a_file_of_no_bytes_named_gz(tmp_path):
    (tmp_path / "x.jsonl.gz").touch()
    with pytest.raises(UserError, match="holds no row"):
        list(read(JsonlSource(name="d", path=str(tmp_path / "x.jsonl.gz"))))


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_gzip(tmp_path, keep):
    path = tmp_path / "pairs.jsonl.gz"
    whole = write(path, *({**GOOD, "id": i, "noise": f"{i * 7919 % 10007:x}" * 9} for i in range(4000))).read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(UserError, match="end early or are damaged") as caught:
        list(read(JsonlSource(name="d", path=str(path))))
    assert "after row" in caught.value.where and "after row 0" not in caught.value.where


def test_damaged_gzip(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    whole = bytearray(write(path, *({**GOOD, "id": i} for i in range(500))).read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(UserError):
        list(read(JsonlSource(name="d", path=str(path))))


def test_gzip_and_its_name_must_agree(tmp_path):
    plain = tmp_path / "a.jsonl.gz"
    plain.write_text(json.dumps(GOOD))
    compressed = tmp_path / "b.jsonl"
    compressed.write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    with pytest.raises(UserError, match="is not gzip"):
        list(read(JsonlSource(name="d", path=str(plain))))
    with pytest.raises(UserError, match=r"not named \.gz"):
        list(read(JsonlSource(name="d", path=str(compressed))))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"prompt": "why?", \n', "not valid JSON: Expecting property name"),
        (b"[1, 2]\n", "holds a list, not an object"),
        (b"[" * 100_000 + b"\n", "not valid JSON"),
        (b'{"prompt": "caf\xe9"}\n', "not UTF-8: byte 16 of the row is 0xe9"),
    ],
)
def test_bad_lines_are_named_by_row(file, line, what):
    error = refused(file, GOOD, line)
    assert error.what.startswith(what)
    assert error.where == f"{file}, row 2"
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    ("change", "what", "field"),
    [
        ({"chosen": 3}, "is a number, not a text", "chosen"),
        ({"chosen": None}, "is null", "chosen"),
        ({"rejected": {"text": "x"}}, "is an object, not a text", "rejected"),
        ({"chosen": "\ud800"}, "holds half of a surrogate pair", "chosen"),
        ({"chosen": [{"role": "user", "content": "x"}]}, "does not end in an assistant turn", "chosen"),
        ({"prompt": 3}, "is a number, not a text or a list", "prompt"),
        ({"prompt": ["why?"]}, "is not a {role, content} object", "prompt.0"),
        ({"prompt": [*TURNS, {"role": "uesr", "content": "x"}]}, "unknown role 'uesr'", "prompt.3.role"),
        ({"prompt": [{"role": "user", "content": ["x"]}]}, "is a list, not a text", "prompt.0.content"),
        ({"messages": "why?"}, "is a text, not a list of messages", "messages"),
        ({"id": 1.5}, "is a number, not a text", "id"),
        ({"annotator": ["a"]}, "is a list, not a text", "annotator"),
        ({"split": "training"}, "unknown split 'training'", "split"),
        ({"split": 3}, "unknown split 3", "split"),
        ({"margin": "big"}, "is a text, not a number", "margin"),
        ({"margin": True}, "is true or false, not a number", "margin"),
        ({"margin": 0}, "0 is outside (0, 1]", "margin"),
        ({"margin": 1.5}, "1.5 is outside (0, 1]", "margin"),
        ({"margin": float("nan")}, "nan is outside (0, 1]", "margin"),
    ],
)
def test_wrong_values_are_named_by_row_and_field(file, change, what, field):
    error = refused(file, GOOD, {**GOOD, **change})
    assert error.what.startswith(what)
    assert error.where == f"{file}, row 2, field '{field}'"


def test_ignoring_a_column_lets_its_values_pass(file):
    row = {**GOOD, "split": "training", "margin": 12, "id": 1.5}
    (pair,) = jsonl(file, row, columns=ColumnMap(split=None, margin=None, id=None))
    assert isinstance(pair, Comparison) and pair.margin is None and pair.provenance.original_id == "1"


@pytest.mark.parametrize(
    ("columns", "where", "fix"),
    [
        ({"chosen": "chosne"}, "field 'chosne' (columns.chosen=chosne)", "did you mean 'chosen'?"),
        (
            {"annotator": "meta.jugde"},
            "field 'meta.jugde' (columns.annotator=meta.jugde)",
            "did you mean 'meta.judge'?",
        ),
        ({"prompt": "zzz"}, "field 'zzz' (columns.prompt=zzz)", "valid names: "),
    ],
)
def test_missing_columns_suggest_the_nearest(file, columns, where, fix):
    error = refused(file, {**GOOD, "meta": {"judge": "x"}}, columns=ColumnMap(**columns))
    assert error.what == "no such column"
    assert error.where == f"{file}, row 1, {where}" and error.fix.startswith(fix)


def test_splits_need_a_split_column(file):
    assert "has no split" in refused(file, GOOD, splits=("train",)).what
    assert "no row is left" in refused(file, {**GOOD, "split": "test"}, splits=("train",)).what


# parquet


def parquet(path: Path, rows: list[dict[str, Any]], **settings: Any) -> list[Comparison | Dropped]:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return list(read(ParquetSource(name="d", path=str(path), **settings)))


def test_parquet_reads_what_jsonl_reads(tmp_path, file):
    rows = [
        {
            "prompt": TURNS[:1] + TURNS[1:],
            "chosen": "a",
            "rejected": "b",
            "meta": {"judge": "x"},
            "margin": 0.5,
            "id": 1,
        },
        {"prompt": TURNS[:1], "chosen": "c", "rejected": "c", "meta": {"judge": "y"}, "margin": None, "id": 2},
    ]
    rows = [{**row, "prompt": [{k: t[k] for k in ("role", "content")} for t in row["prompt"]]} for row in rows]
    columns = ColumnMap(annotator="meta.judge")
    from_parquet = parquet(tmp_path / "x.parquet", rows, columns=columns)
    from_jsonl = jsonl(file, *rows, columns=columns)
    assert from_parquet[0] == from_jsonl[0]
    assert isinstance(from_parquet[1], Dropped) and from_parquet[1].provenance == from_jsonl[1].provenance


def test_parquet_faults(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(UserError, match="no such column") as caught:
        parquet(path, [{**GOOD, "chosen_answer": "x"}], columns=ColumnMap(chosen="chosen_anwser"))
    assert caught.value.fix == "did you mean 'chosen_answer'?"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        list(read(ParquetSource(name="d", path=str(path))))
    with pytest.raises(UserError, match="not a readable Parquet file"):
        list(read(ParquetSource(name="d", path=str(write(tmp_path / "y.parquet", GOOD)))))
    with pytest.raises(UserError, match="is null"):
        parquet(path, [GOOD, {**GOOD, "chosen": None}])
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], "string")}), path)
    with pytest.raises(UserError, match="holds no row"):
        list(read(ParquetSource(name="d", path=str(path))))


# HH transcripts


def hh(path: Path, *rows: tuple[str, str], **settings: Any) -> list[Comparison | Dropped]:
    write(path, *({"chosen": chosen, "rejected": rejected} for chosen, rejected in rows))
    return list(read(HhSource(path=str(path), **settings)))


HEAD = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why?"


def test_hh_transcripts_share_a_prompt(tmp_path):
    (pair,) = hh(tmp_path / "x.jsonl.gz", (f"{HEAD}\n\nAssistant: because", f"{HEAD}\n\nAssistant: no: Human: x"))
    assert isinstance(pair, Comparison)
    assert [(m.role, m.content) for m in pair.prompt.messages] == [
        ("user", "hi"),
        ("assistant", "yes?"),
        ("user", "why?"),
    ]
    assert (pair.chosen, pair.rejected) == ("because", "no: Human: x")
    assert pair.provenance.annotator == "human:crowd" and pair.provenance.dataset == "hh-rlhf"


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
    )
    assert Counter(r.reason for r in rows if isinstance(r, Dropped)) == {
        "transcripts differ before the last turn": 1,
        "empty chosen": 2,
        "empty rejected": 1,
        "chosen equals rejected": 1,
        "empty prompt": 1,
        "no user turn before the answer": 1,
    }


def test_hh_neighbouring_human_turns_become_one(file):
    head = "\n\nHuman: a\n\nHuman: b"
    (pair,) = hh(file, (f"{head}\n\nAssistant: x", f"{head}\n\nAssistant: y"))
    assert isinstance(pair, Comparison) and [m.content for m in pair.prompt.messages] == ["a\n\nb"]


@pytest.mark.parametrize("text", ["plain text", "x\n\nHuman: a\n\nAssistant: b", ""])
def test_what_is_no_transcript_is_refused(file, text):
    with pytest.raises(UserError, match="not an HH transcript") as caught:
        hh(file, (text, "\n\nHuman: a\n\nAssistant: b"))
    assert caught.value.where == f"{file}, row 1, field 'chosen'"


def test_hh_without_its_fields(file):
    write(file, GOOD | {"chosen": "\n\nHuman: a\n\nAssistant: b"}, {"chosen": "\n\nHuman: a\n\nAssistant: b"})
    with pytest.raises(UserError, match="not an HH transcript"):
        list(read(HhSource(path=str(file))))
    write(file, {"chosen": "\n\nHuman: a\n\nAssistant: b"})
    with pytest.raises(UserError, match="no such column"):
        list(read(HhSource(path=str(file))))


# configuration


def test_the_format_picks_the_reader():
    adapter = TypeAdapter(SourceConfig)
    assert isinstance(adapter.validate_python({"format": "hh", "path": "x"}), HhSource)
    assert isinstance(adapter.validate_python({"format": "parquet", "path": "x", "name": "d"}), ParquetSource)
    for bad in ({"format": "csv", "path": "x"}, {"format": "jsonl", "path": "x", "name": "a/b"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(bad)


@pytest.mark.parametrize("kind", [JsonlSource, ParquetSource, HhSource, ColumnMap])
def test_every_field_is_described(kind):
    assert all(f.description for name, f in kind.model_fields.items() if name != "format")
