"""Files and bytes: every container is read from real files, and whatever is wrong with one ends in one clear error."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from data_files import (
    DROP_HINT,
    GOOD,
    lines,
    pairs_of,
    reasons,
    refused,
    rows_of,
    source,
    write,
    write_bytes,
    write_json,
    write_parquet,
)

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison
from inverse_alignment.data.read import read
from inverse_alignment.data.rows import BadRow, Row, json_rows, sniff, suggest

POLICIES = pytest.mark.parametrize("on_bad_row", ["error", "drop"])
MANY = [{**GOOD, "id": i, "noise": f"{i * 7919 % 10007:x}" * 9} for i in range(4000)]
ARRAY = json.dumps(MANY).encode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


# ---------------------------------------------------------------------------------------------- JSON Lines


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.ndjson.gz", "a.txt"])
def test_lines_are_read_whatever_the_name(tmp_path, name):
    assert len(pairs_of(write(tmp_path / name, GOOD, {**GOOD, "id": 7}))) == 2


@pytest.mark.parametrize(
    "data",
    [
        lines(GOOD, GOOD),
        lines(GOOD, GOOD).rstrip(b"\n"),
        lines(GOOD, GOOD).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + lines(GOOD, GOOD),
        b"\xef\xbb\xbf\n\n" + lines(GOOD, b"\n", b" \t\r\n", GOOD),
        lines(GOOD, GOOD).replace(b'{"', b'  {"'),
    ],
    ids=["plain", "no last newline", "CRLF", "byte order mark", "blank lines", "indented"],
)
def test_endings_blanks_and_a_byte_order_mark_change_nothing(file, data):
    both = pairs_of(write_bytes(file, data))
    assert [(row.prompt.text(), row.chosen, row.rejected) for row in both] == [("why?", "because", "no idea")] * 2
    assert both[0] == both[1]


def test_blank_lines_are_counted_so_that_row_numbers_are_line_numbers(file):
    write(file, GOOD, b"\n", b"  \n", b"{broken\n")
    assert refused(file).where == f"{file}, row 4"


def test_gzip_in_several_members_is_one_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(GOOD), mtime=0) + gzip.compress(lines({**GOOD, "id": 2})))
    assert len(pairs_of(path)) == 2


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"prompt": "why?", \n', "not valid JSON: Expecting property name"),
        (b"[1, 2]\n", "holds a list, not an object: [1, 2]"),
        (b"null\n", "holds null, not an object: None"),
        (b'"' + b"x" * 5000 + b'"\n', "holds a text, not an object: 'xxx"),
        (b"[" * 100_000 + b"\n", "not valid JSON: maximum recursion depth exceeded"),
        (b'{"prompt": "caf\xe9"}\n', "not UTF-8: byte 16 of the row is 0xe9"),
        (b'{"margin": 1' + b"0" * 5000 + b"}\n", "not valid JSON: Exceeds the limit"),
        (lines(GOOD)[:-1] + lines(GOOD), "not valid JSON: Extra data (column 63)"),
    ],
    ids=["cut", "list", "null", "long text", "deep", "Latin-1", "5001 digits", "two objects"],
)
def test_a_bad_line_is_named_by_its_row_or_dropped(file, line, what):
    write(file, GOOD, line, GOOD)
    error = refused(file)
    assert error.what.startswith(what)
    assert error.where == f"{file}, row 2"
    assert error.fix.endswith(DROP_HINT)
    assert len(str(error)) < 400
    assert reasons(rows_of(file, on_bad_row="drop")) == [None, "unreadable", None]


def test_a_byte_order_mark_does_not_shift_the_place_of_a_bad_byte(file):
    write(file, b"\xef\xbb\xbf" + b'{"a": "\xe9"}\n')
    assert refused(file).what == "not UTF-8: byte 8 of the row is 0xe9"


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_among_lines_is_sent_to_the_right_format(file, indent):
    file.write_text(json.dumps([GOOD, GOOD], indent=indent))
    assert refused(file).fix == "for a file that is one JSON array use format: json" + DROP_HINT
    assert "format: json;" in refused(file, on_bad_row="drop").fix


def test_of_a_key_that_stands_twice_the_last_counts(file):
    (pair,) = pairs_of(write(file, b'{"prompt": "a", "prompt": "b", "chosen": "x", "rejected": "y"}\n'))
    assert pair.prompt.text() == "b"


# ---------------------------------------------------------------------------------------------- JSON arrays


@pytest.mark.parametrize(
    "data",
    [
        json.dumps([GOOD, GOOD]).encode(),
        json.dumps([GOOD, GOOD], indent=4).encode(),
        b"\xef\xbb\xbf \n" + json.dumps([GOOD, GOOD]).encode() + b"\n\n",
    ],
    ids=["one line", "indented", "byte order mark"],
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_arrays_are_read_item_by_item(tmp_path, name, data):
    both = pairs_of(write_bytes(tmp_path / name, data), "json")
    assert both[0] == both[1] and both[0].chosen == "because"


def test_an_array_gives_what_lines_give(tmp_path):
    rows = [
        {**GOOD, "id": "x", "margin": 0.25, "weight": 2, "meta": {"a": [1, {"b": None}]}, "licence": "MIT"},
        {**GOOD, "prompt": [{"role": "user", "content": 'ü\n"\\ 🙂'}], "margin": None},
    ]
    array = pairs_of(write_json(tmp_path / "a.json", rows), "json")
    assert array == pairs_of(write(tmp_path / "a.jsonl", *rows))
    assert array[1].prompt.text() == 'ü\n"\\ 🙂'


def test_items_that_are_no_objects_are_bad_rows(tmp_path):
    path = write_json(tmp_path / "a.json", [GOOD, ["a"], 3, "x", None, GOOD])
    assert reasons(rows_of(path, "json", on_bad_row="drop")) == [None, *["unreadable"] * 4, None]
    error = refused(path, "json")
    assert error.what == "holds a list, not an object: ['a']" and error.where == f"{path}, row 2"


def test_nesting_costs_no_memory(tmp_path):
    """200 KB that `ijson.items` would need gigabytes for."""
    nested = b"[" * 100_000 + b"]" * 100_000
    path = write_bytes(tmp_path / "a.json", b"[" + lines(GOOD) + b"," + nested + b',{"a": ' + nested + b"}]")
    tracemalloc.start()
    found = rows_of(path, "json", on_bad_row="drop")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons(found) == [None, "unreadable", "unreadable"]
    assert peak < 5e6
    assert refused(path, "json").what == "is nested more than 100 levels deep"


@pytest.mark.parametrize(("lists", "kind"), [(98, Row), (99, BadRow)])
def test_the_limit_of_nesting(tmp_path, lists, kind):
    """The array, the item and 98 lists are 100 levels."""
    nested: Any = "x"
    for _ in range(lists):
        nested = [nested]
    (row,) = json_rows(write_json(tmp_path / "a.json", [{"a": nested}]))
    assert isinstance(row, kind)
    if isinstance(row, Row):
        assert row.values["a"] == nested


@POLICIES
@pytest.mark.parametrize(
    ("data", "what", "place"),
    [
        (ARRAY[:-40], "not valid JSON: parse error: premature EOF", "after row 3999"),
        (ARRAY + b"x", "not valid JSON: parse error: trailing garbage, near ", "after row 4000"),
        (ARRAY + b"[]", "not valid JSON: parse error: trailing garbage, near ", "after row 4000"),
        (b'[{"margin": NaN}]', "not valid JSON: lexical error: invalid char in json text, near ", "after row 0"),
        (b"[" + lines(GOOD) + b",,{}]", "not valid JSON: parse error: unallowed token", "after row 1"),
        (b'[{"margin": 1' + b"0" * 400 + b"}]", "not valid JSON: parse error: integer overflow", "after row 0"),
        (b'[{"a": "caf\xe9"}]', "not valid JSON: lexical error: invalid bytes in UTF8 string", "after row 0"),
    ],
    ids=["cut", "garbage", "second array", "NaN", "two commas", "401 digits", "Latin-1"],
)
def test_a_broken_array_is_an_error_whatever_the_policy(tmp_path, on_bad_row, data, what, place):
    path = write_bytes(tmp_path / "a.json", data)
    error = refused(path, "json", on_bad_row=on_bad_row)
    assert error.what.startswith(what)
    assert (error.where, error.fix) == (f"{path}, {place}", "fetch the file again, or correct it")


def test_the_fault_of_an_array_is_shown(tmp_path):
    path = write_bytes(tmp_path / "a.json", b'[{"margin": NaN}]')
    assert refused(path, "json").what.endswith(", near '[{\"margin\": NaN}]'")


@POLICIES
@pytest.mark.parametrize(
    ("data", "fix"),
    [
        (lines(GOOD, GOOD), "for one JSON object a line use format: jsonl"),
        (b'{"version": 1, "data": [{"prompt": "x"}]}', "write the list under 'data' into a file of its own; "),
        (
            json.dumps({"meta": {"rows": [{}]}, "tags": ["a"], "pairs": MANY}).encode(),
            "write the list under 'pairs' into a file of its own; for one JSON object a line use format: jsonl",
        ),
        (lines({"messages": [{"role": "user"}]}, GOOD), "for one JSON object a line use format: jsonl"),
        (b"3", "for one JSON object a line use format: jsonl"),
        (b"{broken", "for one JSON object a line use format: jsonl"),
        (b'{"a": ' * 20_000, "for one JSON object a line use format: jsonl"),
    ],
    ids=["lines", "under a key", "under one of many", "lines with lists", "number", "broken", "deep"],
)
def test_what_is_no_array_says_where_the_rows_may_be(tmp_path, on_bad_row, data, fix):
    path = write_bytes(tmp_path / "a.json", data)
    error = refused(path, "json", on_bad_row=on_bad_row)
    assert (error.what, error.where) == ("does not hold a JSON array", str(path))
    assert error.fix.startswith(fix) and error.fix.endswith("format: jsonl")


# ---------------------------------------------------------------------------------------------- Parquet


def test_parquet_gives_what_lines_give(tmp_path):
    rows = [
        {**GOOD, "id": "x", "margin": 0.25, "meta": {"judge": "a"}, "answers": ["p", "q"]},
        {**GOOD, "id": "y", "margin": None, "meta": {"judge": "b"}, "answers": []},
    ]
    columns = {"annotator": "meta.judge"}
    parquet = pairs_of(write_parquet(tmp_path / "a.parquet", rows), "parquet", columns=columns)
    assert parquet == pairs_of(write(tmp_path / "a.jsonl", *rows), columns=columns)
    assert [row.provenance.annotator for row in parquet] == ["a", "b"]


def test_a_column_with_a_dot_in_its_name_is_found(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"prompt": "x", "a.b": "y", "rejected": "z"}])
    (pair,) = pairs_of(path, "parquet", columns={"chosen": "a.b"})
    assert pair.chosen == "y"


def test_columns_that_nobody_asked_for_are_not_read(tmp_path):
    """A column of dates beyond the year 9999, which Python cannot hold."""
    import pyarrow

    columns = {name: [value] for name, value in GOOD.items()}
    table = pyarrow.table({**columns, "seen": pyarrow.array([2**62], pyarrow.timestamp("us"))})
    path = write_parquet(tmp_path / "a.parquet", table)
    assert len(pairs_of(path, "parquet")) == 1
    assert refused(path, "parquet", columns={"annotator": "seen"}).what == "cannot be read: date value out of range"


def test_one_bad_value_in_parquet_is_one_bad_row(tmp_path):
    import pyarrow

    texts = pyarrow.array([b"one", b"\xff\xfe", b"three"], pyarrow.binary())
    prompts = pyarrow.Array.from_buffers(pyarrow.string(), 3, texts.buffers())
    table = pyarrow.table({"prompt": prompts, "chosen": ["a"] * 3, "rejected": ["b"] * 3})
    path = write_parquet(tmp_path / "a.parquet", table)
    error = refused(path, "parquet")
    assert error.what.startswith("cannot be read: 'utf-8' codec can't decode byte 0xff")
    assert error.where == f"{path}, row 2, field 'prompt'"
    found = rows_of(path, "parquet", on_bad_row="drop")
    assert reasons(found) == [None, "unreadable", None]
    assert [row.prompt.text() for row in found if isinstance(row, Comparison)] == ["one", "three"]


@pytest.mark.parametrize(
    ("change", "what", "field"),
    [
        ({"chosen": b"bytes"}, "is bytes, not a text", "chosen"),
        ({"prompt": b"bytes"}, "is bytes, not a text or a list of messages", "prompt"),
        ({"prompt": Decimal("1.5")}, "is a number, not a text or a list of messages", "prompt"),
        ({"prompt": [[["deep"]]]}, "is not a {role, content} object", "prompt.0"),
        ({"chosen": {"text": "x"}}, "is an object, not a text", "chosen"),
        ({"chosen": None}, "is null", "chosen"),
    ],
)
def test_types_that_only_parquet_has(tmp_path, change, what, field):
    path = write_parquet(tmp_path / "a.parquet", [{**GOOD, **change}])
    error = refused(path, "parquet")
    assert (error.what, error.where) == (what, f"{path}, row 1, field '{field}'")


@pytest.mark.parametrize("unit", ["s", "ns"])
def test_a_timestamp_is_no_id(tmp_path, unit):
    import pyarrow

    columns = {name: [value] for name, value in GOOD.items()}
    table = pyarrow.table({**columns, "id": pyarrow.array([1], pyarrow.timestamp(unit))})
    assert refused(write_parquet(tmp_path / "a.parquet", table), "parquet").what == "is a date, not a text"


def test_decimals_and_dictionaries_are_numbers_and_texts(tmp_path):
    import pyarrow

    columns = {name: pyarrow.array([value]).dictionary_encode() for name, value in GOOD.items()}
    path = write_parquet(tmp_path / "a.parquet", pyarrow.table({**columns, "margin": [Decimal("0.25")]}))
    (pair,) = pairs_of(path, "parquet")
    assert (pair.chosen, pair.margin) == ("because", 0.25)


@POLICIES
def test_broken_parquet_is_an_error_whatever_the_policy(tmp_path, on_bad_row):
    whole = write_parquet(tmp_path / "a.parquet", MANY).read_bytes()
    spoilt = bytearray(whole)
    spoilt[2000:2100] = bytes(byte ^ 0xFF for byte in whole[2000:2100])
    for name, data in {"cut": whole[:-30], "text": lines(GOOD), "spoilt": bytes(spoilt)}.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(data)
        error = refused(path, "parquet", on_bad_row=on_bad_row)
        assert error.what.startswith("not a readable Parquet file: ") and str(path) in error.where
        assert error.fix == "fetch the file again, or set the source's format to what it is"


def test_two_columns_of_one_name_are_refused(tmp_path):
    import pyarrow

    arrays = [pyarrow.array([text]) for text in ("x", "y", "a", "b")]
    table = pyarrow.Table.from_arrays(arrays, names=["prompt", "prompt", "chosen", "rejected"])
    assert refused(write_parquet(tmp_path / "a.parquet", table), "parquet").what == "two columns are named 'prompt'"


def test_parquet_with_none_of_the_columns_names_those_it_has(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"question": "x", "better": "y"}])
    error = refused(path, "parquet")
    assert error.what == "no such column" and error.fix.startswith("valid names: better, question ")


# ---------------------------------------------------------------------------------------------- nothing in it


@POLICIES
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\n \n\r\n"),
        ("a.jsonl", b"\xef\xbb\xbf"),
        ("a.jsonl.gz", b""),
        ("a.json", b""),
        ("a.json", b" \n "),
        ("a.json", b"[]"),
        ("a.json", b"[ \n ]\n"),
        ("a.json.gz", b"[]"),
    ],
)
def test_files_without_a_row(tmp_path, on_bad_row, name, data):
    path = write_bytes(tmp_path / name, data)
    error = refused(path, name.split(".")[1], on_bad_row=on_bad_row)
    assert (error.what, error.where) == ("the file holds no row", str(path))


def test_a_parquet_file_without_a_row(tmp_path):
    import pyarrow

    table = pyarrow.table({name: pyarrow.array([], pyarrow.string()) for name in GOOD})
    assert refused(write_parquet(tmp_path / "a.parquet", table), "parquet").what == "the file holds no row"


@pytest.mark.parametrize("format", ["jsonl", "json", "parquet", "hh", "sharegpt", "alpaca_eval"])
@pytest.mark.parametrize("name", ["a.x", "a.gz"])
def test_a_file_of_no_bytes(tmp_path, format, name):
    (tmp_path / name).touch()
    assert refused(tmp_path / name, format).what == "the file holds no row"


# ---------------------------------------------------------------------------------------------- packed or foreign


@POLICIES
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.9])
@pytest.mark.parametrize(("name", "data"), [("a.jsonl.gz", lines(*MANY)), ("a.json.gz", ARRAY)])
def test_truncated_gzip_is_an_error_whatever_the_policy(tmp_path, on_bad_row, keep, name, data):
    path = write_bytes(tmp_path / name, data)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    error = refused(path, name.split(".")[1], on_bad_row=on_bad_row)
    assert error.what.startswith("the gzip data end early or are damaged: ")
    assert "after row" in error.where and (keep < 0.1 or "after row 0" not in error.where)
    assert error.fix == "fetch the file again; `gzip -t` checks it"


@pytest.mark.parametrize("format", ["jsonl", "json", "hh"])
def test_gzip_of_a_few_bytes(tmp_path, format):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(lines(GOOD), mtime=0)[:11])
    assert refused(path, format).what.startswith("the gzip data end early")


@pytest.mark.parametrize("place", [0.5, -6])
def test_damaged_gzip(tmp_path, place):
    path = write(tmp_path / "a.jsonl.gz", *MANY)
    whole = bytearray(path.read_bytes())
    whole[place if isinstance(place, int) else int(len(whole) * place)] ^= 0xFF
    path.write_bytes(whole)
    assert str(path) in refused(path).where


def test_what_follows_gzip_data_is_damage(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(GOOD), mtime=0) + b"junk")
    assert refused(path).where == f"{path}, after row 1"


TWICE = gzip.compress(gzip.compress(lines(GOOD), mtime=0), mtime=0)


@pytest.mark.parametrize(
    ("name", "data", "what", "fix"),
    [
        ("a.jsonl.gz", lines(GOOD), "is named .gz but is not gzip", "rename it without .gz, or fetch it again"),
        ("a.jsonl", gzip.compress(lines(GOOD), mtime=0), "is gzip but not named .gz", "rename it to a.jsonl.gz"),
        ("a.jsonl.gz", TWICE, "is gzip inside gzip", "unpack it once with"),
        ("a.jsonl.gz", b"\x1f\x8b", "the gzip data end early or are damaged", "fetch the file again"),
    ],
)
@pytest.mark.parametrize("format", ["jsonl", "hh"])
def test_gzip_and_its_name_must_agree(tmp_path, name, data, what, fix, format):
    (tmp_path / name).write_bytes(data)
    error = refused(tmp_path / name, format)
    assert error.what.startswith(what) and error.fix.startswith(fix)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@POLICIES
@pytest.mark.parametrize("format", ["jsonl", "json", "parquet", "hh"])
@pytest.mark.parametrize(
    ("data", "what", "fix"),
    [
        (LFS, "is a pointer of Git LFS, not the data", "fetch the data with `git lfs pull`"),
        (lines(GOOD).decode().encode("utf-16"), "is UTF-16, not UTF-8", "iconv -f utf-16 -t utf-8"),
        (b"\xfe\xff\x00{", "is UTF-16, not UTF-8", "iconv -f utf-16 -t utf-8"),
        (b"\x28\xb5\x2f\xfd\x00\x00", "is packed with zstd", "unpack it with `zstd -d`"),
        (b"\xfd7zXZ\x00", "is packed with xz", "unpack it with `xz -d`"),
        (b"BZh91AY&SY", "is packed with bzip2", "unpack it with `bzip2 -d`"),
        (b"PK\x03\x04....", "is a zip archive", "unpack it"),
        (b"ARROW1\x00\x00", "is an Arrow file", "format: dataset"),
    ],
    ids=["Git LFS", "UTF-16", "UTF-16, big end first", "zstd", "xz", "bzip2", "zip", "Arrow"],
)
def test_what_is_often_taken_for_data_is_named(tmp_path, on_bad_row, format, data, what, fix):
    path = tmp_path / "a.data"
    path.write_bytes(data)
    error = refused(path, format, on_bad_row=on_bad_row)
    assert (error.what, error.where) == (what, str(path)) and fix in error.fix


def test_parquet_in_place_of_json(tmp_path):
    path = write_parquet(tmp_path / "a.jsonl", [GOOD])
    for format in ("jsonl", "json"):
        error = refused(path, format)
        assert (error.what, error.fix) == ("is a Parquet file", "set the source's format to parquet")


# ---------------------------------------------------------------------------------------------- missing or forbidden


@POLICIES
def test_a_missing_file_names_the_nearest(file, on_bad_row):
    write(file, GOOD)
    error = refused(file.with_name("pair.jsonl"), on_bad_row=on_bad_row)
    assert (error.what, error.fix) == ("no such file", "did you mean 'pairs.jsonl'?")


def test_a_missing_file_among_many_lists_a_few(tmp_path):
    for number in range(40):
        (tmp_path / f"part-{number:02}.bin").touch()
    fix = refused(tmp_path / "x.jsonl").fix
    assert fix.startswith("valid names: part-00.bin, ") and fix.endswith(" and 32 more")


def test_missing_folders_broken_links_and_names_no_file_can_have(tmp_path):
    fix = refused(tmp_path / "nowhere" / "x.jsonl").fix
    assert fix == f"the folder {tmp_path / 'nowhere'} does not exist either, or may not be listed"
    (tmp_path / "link.jsonl").symlink_to("gone.jsonl")
    assert refused(tmp_path / "link.jsonl").fix == "it is a link to a file that is gone: fetch that file again"
    assert refused(tmp_path / ("x" * 300)).what == "no such file"


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A folder that everybody may read, seen by somebody who is not root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = os.geteuid() == 0
        yield Path(folder)
        if root:
            os.seteuid(0)
        for path in Path(folder).rglob("*"):
            path.chmod(0o700)


def become_nobody() -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)


@pytest.mark.parametrize("format", ["jsonl", "json", "parquet", "hh"])
def test_a_file_that_may_not_be_read(guarded, format):
    path = write(guarded / "a.jsonl", GOOD)
    path.chmod(0)
    become_nobody()
    error = refused(path, format)
    assert (error.what, error.where) == ("cannot be read: Permission denied", str(path))
    assert error.fix == "check its permissions"


@pytest.mark.parametrize(("mode", "name"), [(0o444, "a.jsonl"), (0o111, ""), (0o000, "gone.jsonl")])
def test_a_folder_that_may_not_be_entered_or_listed(guarded, mode, name):
    write(guarded / "inside" / "a.jsonl", GOOD)
    (guarded / "inside").chmod(mode)
    become_nobody()
    assert refused(guarded / "inside" / name).what == "cannot be read: Permission denied"


def test_a_missing_file_in_a_folder_that_may_not_be_listed(guarded):
    write(guarded / "inside" / "a.jsonl", GOOD)
    (guarded / "inside").chmod(0o111)
    become_nobody()
    error = refused(guarded / "inside" / "b.jsonl")
    assert error.what == "no such file" and error.fix.endswith("or may not be listed")


# ---------------------------------------------------------------------------------------------- folders of shards


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "b.jsonl", {**GOOD, "id": "3"})
    write(tmp_path / "a.jsonl.gz", {**GOOD, "id": "1"}, {**GOOD, "id": "2"})
    write(tmp_path / "c.ndjson", {**GOOD, "id": "4"})
    (tmp_path / ".hidden.jsonl").write_bytes(b"\x00\x05\x16\x07")  # what one system leaves on the disks of others
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "d.jsonl", {**GOOD, "id": "5"})
    assert [row.provenance.original_id for row in pairs_of(tmp_path)] == ["1", "2", "3", "4"]


def test_a_folder_is_read_in_the_container_that_its_format_names(tmp_path):
    write(tmp_path / "a.jsonl", {**GOOD, "id": "lines"})
    write_json(tmp_path / "a.json", [{**GOOD, "id": "array"}])
    write_parquet(tmp_path / "a.parquet", [{**GOOD, "id": "parquet"}])
    ids = {format: [r.provenance.original_id for r in pairs_of(tmp_path, format)] for format in ("jsonl", "json")}
    assert ids == {"jsonl": ["lines"], "json": ["array"]}
    assert [r.provenance.original_id for r in pairs_of(tmp_path, "parquet")] == ["parquet"]


def test_a_native_format_takes_all_containers_of_a_folder(tmp_path):
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: a\n\nAssistant: y"}
    write(tmp_path / "a.jsonl.gz", pair)
    write_json(tmp_path / "b.json", [pair])
    write_parquet(tmp_path / "c.parquet", [pair])
    assert len(pairs_of(tmp_path, "hh")) == 3


def test_a_fault_in_a_shard_names_the_shard(tmp_path):
    write(tmp_path / "a.jsonl", GOOD)
    bad = write(tmp_path / "b.jsonl", GOOD, b"{broken\n")
    assert refused(tmp_path).where == f"{bad}, row 2"
    bad.write_bytes(b"")
    error = refused(tmp_path)
    assert (error.what, error.where) == ("the file holds no row", str(bad))


@pytest.mark.parametrize(
    ("format", "what"),
    [
        ("jsonl", "the folder holds no file named *.jsonl or *.jsonl.gz or *.ndjson or *.ndjson.gz"),
        ("json", "the folder holds no file named *.json or *.json.gz"),
        ("parquet", "the folder holds no file named *.parquet"),
    ],
)
def test_a_folder_without_shards(tmp_path, format, what):
    error = refused(tmp_path, format)
    assert (error.what, error.where, error.fix) == (what, str(tmp_path), "the folder is empty")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "pairs.csv").touch()
    assert refused(tmp_path, format).fix == "name one of its files or folders: deeper, pairs.csv"


# ---------------------------------------------------------------------------------------------- telling containers


def test_sniffing(tmp_path):
    assert sniff(write(tmp_path / "a", GOOD)) == "jsonl"
    assert sniff(write_bytes(tmp_path / "b", b"\xef\xbb\xbf\n [1]")) == "json"
    assert sniff(write_json(tmp_path / "c.gz", [GOOD])) == "json"
    assert sniff(write_parquet(tmp_path / "d", [GOOD])) == "parquet"
    with pytest.raises(UserError, match="is UTF-16"):
        sniff(write_bytes(tmp_path / "e", "[]".encode("utf-16")))
    with pytest.raises(UserError, match="holds no row"):
        sniff(write_bytes(tmp_path / "f", b""))


def test_reading_is_lazy(tmp_path):
    for path, format in ((tmp_path / "a.jsonl", "jsonl"), (tmp_path / "a.json", "json")):
        data = lines(GOOD, b"{broken\n")
        path.write_bytes(data if format == "jsonl" else b"[" + data.replace(b"}\n{", b"},{"))
        found = read(source(path, format))
        assert isinstance(next(found), Comparison)
        with pytest.raises(UserError):
            next(found)


# ---------------------------------------------------------------------------------------------- words of messages


def test_suggestions_are_short_and_printable():
    assert suggest("chosne", ["chosen", "rejected"]) == "did you mean 'chosen'?"
    assert suggest("x", ["b", "a"]) == "valid names: a, b"
    assert suggest("x", [f"column {i:02}" for i in range(20)]).endswith("column 07 and 12 more")
    assert suggest("x", []) == "there is nothing of that kind"
    assert suggest("rompt", ["\ud800rompt"]) == r"did you mean '\ud800rompt'?"
    assert suggest("x", ["two\nlines"]) == r"valid names: two\nlines"
    assert len(suggest("x", ["y" * 10_000])) < 100


def test_a_column_that_no_terminal_can_print(file):
    write(file, b'{"\\ud800rompt": "x", "a\\nb": 1, "chosen": "a", "rejected": "b"}\n')
    assert r"did you mean '\ud800rompt'?" in refused(file).fix
