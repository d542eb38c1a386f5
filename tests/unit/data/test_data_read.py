"""Reading a source as a whole: bad rows, limits, splits, weights, names made of content, and what is configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_files import (
    DROP_HINT,
    GOOD,
    SOURCES,
    pairs_of,
    reasons,
    refused,
    rows_of,
    source,
    write,
    write_json,
    write_parquet,
)
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from pydantic import ValidationError

from inverse_alignment.core.configuration import identity_of
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Example
from inverse_alignment.data.read import Dropped, read
from inverse_alignment.data.sources import (
    COLUMNS_OF,
    DEFAULTS_OF,
    AlpacaEvalSource,
    ColumnMap,
    DatasetRef,
    DatasetSource,
    HhSource,
    JsonlSource,
    JsonSource,
    ParquetSource,
    ShareGptSource,
    TableSource,
    reference,
)

BAD = {**GOOD, "rejected": "because"}
FORMATS = (JsonlSource, JsonSource, ParquetSource, DatasetSource, HhSource, ShareGptSource, AlpacaEvalSource)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


def ids(found: list[Any]) -> list[str]:
    return [row.provenance.original_id for row in found]


# ---------------------------------------------------------------------------------------------- bad rows


def test_a_bad_row_is_an_error_unless_it_may_be_dropped(file):
    write(file, GOOD, BAD, b"{broken\n", GOOD)
    found = read(source(file))
    assert isinstance(next(found), Comparison)
    with pytest.raises(UserError) as caught:
        next(found)
    assert type(caught.value) is UserError
    assert str(caught.value) == (
        "chosen equals rejected\n"
        f"  where: {file}, row 2, field 'rejected'\n"
        "  fix:   remove the row; or set on_bad_row: drop"
    )
    assert reasons(rows_of(file, on_bad_row="drop")) == [None, "chosen equals rejected", "unreadable", None]


def test_dropped_rows_say_where_they_come_from(file):
    write(file, b"{broken\n", {**BAD, "annotator": "human:a"}, {**GOOD, "annotator": 3}, GOOD)
    dropped = [row for row in rows_of(file, on_bad_row="drop", licence="MIT") if isinstance(row, Dropped)]
    assert [row.provenance.model_dump()["annotator"] for row in dropped] == ["unnamed", "human:a", "unnamed"]
    assert {row.provenance.dataset for row in dropped} == {"d"} and {row.provenance.licence for row in dropped} == {
        "MIT"
    }
    assert dropped[0].where == f"{file}, row 1"


@pytest.mark.parametrize("format", ["jsonl", "json", "parquet"])
def test_if_all_rows_are_bad_the_first_fault_is_shown(tmp_path, format):
    rows = [BAD, {**GOOD, "chosen": ""}]
    path = {
        "jsonl": lambda: write(tmp_path / "a.jsonl", *rows),
        "json": lambda: write_json(tmp_path / "a.json", rows),
        "parquet": lambda: write_parquet(tmp_path / "a.parquet", rows),
    }[format]()
    error = refused(path, format, on_bad_row="drop")
    assert error.what == "none of the 2 rows can be used; the first: chosen equals rejected"
    assert error.where == f"{path}, row 1, field 'rejected'"
    assert error.fix == "remove the row; check that format and columns are those of the file"


def test_bad_rows_and_ties_alone_show_the_first_bad_row(file):
    write(file, {**GOOD, "soft_label": 0.5}, BAD)
    error = refused(file, on_bad_row="drop")
    assert error.what.startswith("none of the 2 rows can be used; the first: chosen equals rejected")


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_ties_alone_are_an_error(file, on_bad_row):
    write(file, {**GOOD, "soft_label": 0.5}, {**GOOD, "soft_label": 0.5})
    error = refused(file, on_bad_row=on_bad_row)
    assert error.what == "none of the 2 rows states a preference: all are ties or were not judged"
    assert error.where == str(file)


# ---------------------------------------------------------------------------------------------- limit, splits, cap


def test_the_limit_counts_rows_that_pass_the_splits(file):
    write(file, *({**GOOD, "id": i, "split": "test" if i < 3 else "train"} for i in range(6)))
    assert ids(pairs_of(file, splits=["train"], limit=2)) == ["3", "4"]
    assert ids(pairs_of(file, splits=["train", "test"], limit=4)) == ["0", "1", "2", "3"]
    assert ids(pairs_of(file, limit=100)) == list("012345")


def test_the_limit_counts_bad_rows_and_ties_too(file):
    write(file, GOOD, BAD, {**GOOD, "soft_label": 0.5}, GOOD, GOOD)
    assert reasons(rows_of(file, on_bad_row="drop", limit=4)) == [None, "chosen equals rejected", "tie", None]


def test_what_lies_past_the_limit_is_not_read(file):
    assert len(pairs_of(write(file, GOOD, b"{broken\n"), limit=1)) == 1


def test_splits_need_a_split_column(file):
    assert refused(write(file, GOOD), splits=["train"]).what == "the row has no split, but the source asks for some"
    error = refused(write(file, {**GOOD, "split": "test"}), splits=["train"])
    assert (error.what, error.where) == ("no row is left", f"{file}, splits")


def test_rows_of_other_splits_may_be_broken(file):
    write(file, {**BAD, "split": "test"}, {**GOOD, "split": "valid"})
    (pair,) = pairs_of(file, splits=["validation"])
    assert pair.provenance.split == "validation"


def test_the_cap_is_not_for_reading(file):
    """It is applied after duplicates are gone, by `aggregate`."""
    assert len(pairs_of(write(file, *[GOOD] * 5), cap=2)) == 5


# ---------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("row", "settings", "weight"), [({}, {}, 1), ({"weight": 3}, {}, 3), ({}, {"weight": 0.5}, 0.5)]
)
def test_weights_multiply(file, row, settings, weight):
    assert pairs_of(write(file, {**GOOD, **row}), **settings)[0].weight == weight
    write(file, {"prompt": "x", "completion": "y", "weight": 3})
    (answer,) = rows_of(file, kind="demonstration", weight=0.5)
    assert isinstance(answer, Example) and answer.model_dump()["weight"] == 1.5


def test_native_formats_have_the_weight_of_their_source(file):
    head = "\n\nHuman: a\n\nAssistant:"
    write(file, {"chosen": f"{head} x", "rejected": f"{head} y"})
    assert pairs_of(file, "hh", weight=0.25)[0].weight == 0.25


@pytest.mark.parametrize(("row", "source_weight"), [(1e5, 100), (1e-300, 1e-300)])
def test_a_product_of_weights_that_no_loss_can_bear(file, row, source_weight):
    error = refused(write(file, {**GOOD, "weight": row}), weight=source_weight)
    assert error.what == f"{row} times the source's weight {source_weight:g} is outside (0, 1e+06]"
    assert error.where == f"{file}, row 1, field 'weight'"


@pytest.mark.parametrize("weight", [0, -1, 1e7, float("inf"), float("nan")])
def test_weights_of_sources(weight):
    with pytest.raises(ValidationError):
        source("x", weight=weight)


# ---------------------------------------------------------------------------------------------- names

CELL = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
PAIRS = st.lists(
    st.fixed_dictionaries(
        {"prompt": CELL, "chosen": CELL.map("+{}".format), "rejected": CELL.map("-{}".format)},
        optional={"annotator": CELL, "margin": st.sampled_from([0.25, 1.0]), "split": st.just("test")},
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@hypothesis_given(st.data())
def test_no_order_and_no_shards_change_the_records(tmp_path_factory, data):
    rows = data.draw(PAIRS)
    folder = tmp_path_factory.mktemp("rows")
    whole = pairs_of(write(folder / "whole.jsonl", *rows))
    mixed = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)), max_size=3)))
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
        if mixed[begin:end]:
            write(folder / "shards" / f"{number}.jsonl.gz", *mixed[begin:end])
    sharded = pairs_of(folder / "shards")
    assert sorted(row.model_dump_json() for row in sharded) == sorted(row.model_dump_json() for row in whole)
    assert len({row.id for row in whole}) == len({row.model_dump_json() for row in whole})


def test_a_name_is_made_of_all_that_a_row_says(file):
    changes = [{}, {"prompt": "who?"}, {"rejected": "x"}, {"margin": 0.5}, {"annotator": "a"}, {"licence": "MIT"}]
    named = ids(pairs_of(write(file, *({**GOOD, **change} for change in changes))))
    assert len(set(named)) == len(changes) and all(len(name) == 16 for name in named)
    assert ids(pairs_of(write(file, GOOD, {**GOOD, "unread": 1}))) == [named[0]] * 2


@pytest.mark.parametrize(("given", "name"), [("x-1", "x-1"), (7, "7"), (0, "0")])
def test_a_name_of_the_file_stays(file, given, name):
    assert ids(pairs_of(write(file, {**GOOD, "id": given}))) == [name]


@pytest.mark.parametrize("given", ["", None])
def test_an_empty_name_is_none(file, given):
    assert ids(pairs_of(write(file, {**GOOD, "id": given}, GOOD))) == ids(pairs_of(write(file, GOOD))) * 2


def test_every_kind_is_named(file):
    write(file, {"prompt": "x", "completion": "y", "label": 1})
    names = {kind: ids(rows_of(file, kind=kind))[0] for kind in ("prompt", "demonstration", "judgement")}
    assert len(set(names.values())) == 3 and all(names.values())


# ---------------------------------------------------------------------------------------------- configuration


def test_the_file_may_lie_elsewhere(file):
    given = source("where/it/came/from.jsonl")
    assert len(list(read(given, write(file, GOOD)))) == 1
    assert "path" not in identity_of(given)


def test_a_revision_says_where_and_not_what():
    given = source("org/set", "dataset", dataset={"revision": "a" * 40, "subset": "s"})
    assert identity_of(given)["dataset"] == {"subset": "s", "data_dir": None, "split": "train"}


def test_the_format_picks_the_reader():
    kinds = {kind.model_fields["format"].default: kind for kind in FORMATS}
    assert list(kinds) == ["jsonl", "json", "parquet", "dataset", "hh", "sharegpt", "alpaca_eval"]
    for format, kind in kinds.items():
        assert type(source("x", format)) is kind
    for bad in ({"format": "csv", "path": "x"}, {"format": "jsonl", "path": "x", "name": "a/b"}, {"path": "x"}):
        with pytest.raises(ValidationError):
            SOURCES.validate_python(bad)


def test_what_is_read_through_datasets():
    assert reference(source("x")) is None and reference(source("x", "hh")) is None
    assert reference(source("x", "dataset")) == DatasetRef()
    assert reference(source("x", "hh", dataset={"split": "test"})) == DatasetRef(split="test")
    with pytest.raises(ValidationError):
        source("x", dataset={})
    with pytest.raises(ValidationError, match="revision"):
        source("x", "dataset", dataset={"revision": "main"})


@pytest.mark.parametrize(
    ("given", "where", "fix"),
    [
        (
            {"kind": "prompt", "columns": {"margin": "m"}},
            "columns.margin",
            "set kind: preference; kind: prompt has prompt, messages, id, licence, split",
        ),
        (
            {"kind": "prompt", "columns": {"response": "m"}},
            "columns.response",
            "set kind: demonstration or judgement; kind: prompt has prompt, messages, id, licence, split",
        ),
        ({"kind": "prompt", "weight": 2}, "weight", "set kind: preference or demonstration or judgement"),
        (
            {"kind": "demonstration", "columns": {"label": "l"}},
            "columns.label",
            "set kind: judgement; kind: demonstration has prompt, messages, id, licence, split, response, source, "
            "annotator, weight",
        ),
        (
            {"kind": "judgement", "source_chosen": "p"},
            "source_chosen",
            "set kind: preference; kind: judgement has source, annotator, weight",
        ),
        (
            {"kind": "judgement", "strength": "soft_label"},
            "strength",
            "set kind: preference; kind: judgement has source, annotator, weight",
        ),
        (
            {"source": "p"},
            "source",
            "set kind: demonstration or judgement; kind: preference has source_chosen, source_rejected, annotator, "
            "margin, strength, least_margin, weight",
        ),
    ],
)
@pytest.mark.parametrize("format", ["jsonl", "json", "parquet", "dataset"])
def test_settings_that_mean_nothing_are_refused(given, where, fix, format):
    with pytest.raises(UserError) as caught:
        source("x", format, **given)
    assert caught.value.what == f"means nothing for kind: {given.get('kind', 'preference')}"
    assert caught.value.where == f"data.sources, source 'd', {where}"
    assert caught.value.fix == f"remove it, or {fix}"


def test_votes_come_in_twos():
    with pytest.raises(UserError, match="votes for one answer only"):
        source("x", columns={"votes_chosen": "up"})


def test_native_formats_have_no_columns():
    for format in ("hh", "sharegpt"):
        for given in ({"columns": {}}, {"kind": "prompt"}, {"strength": "margin"}, {"splits": ["train"]}):
            with pytest.raises(ValidationError):
                source("x", format, **given)


def test_every_column_and_default_belongs_to_a_kind():
    assert set(ColumnMap.model_fields) == {name for names in COLUMNS_OF.values() for name in names}
    of_kinds = {name for names in DEFAULTS_OF.values() for name in names}
    assert of_kinds <= set(TableSource.model_fields)


def test_a_column_that_means_something_is_read(file):
    """Every mapped column of every kind is missed when it is not there."""
    rows = {
        "preference": GOOD,
        "prompt": {"prompt": "x"},
        "demonstration": {"prompt": "x", "completion": "y"},
        "judgement": {"prompt": "x", "completion": "y", "label": True},
    }
    for kind, row in rows.items():
        for column in COLUMNS_OF[kind]:  # type: ignore[index]
            votes = {"votes_chosen": "nowhere", "votes_rejected": "nowhere"} if column.startswith("votes") else {}
            error = refused(write(file, row), kind=kind, columns=votes or {column: "nowhere"})
            assert error.what == "no such column" and f"columns.{'votes_chosen' if votes else column}" in error.where
            assert error.fix.endswith(DROP_HINT)


@pytest.mark.parametrize("kind", [*FORMATS, ColumnMap, DatasetRef])
def test_every_field_is_described(kind):
    assert all(f.description for name, f in kind.model_fields.items() if name != "format")


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        source("x", on_degenerate="drop")
