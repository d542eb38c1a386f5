"""Whatever a file holds, reading ends in records, counted drops or one error of three lines: never in a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import GOOD, lines, source, write_bytes, write_parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Example
from inverse_alignment.data.read import Dropped, read
from inverse_alignment.data.sources import COLUMNS_OF, ColumnMap

HARD = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
NUMBERS = st.sampled_from([0, 1, -1, 0.5, 1.5, 2, 1e308, 5e-324, 10**30, 10**400, float("nan"), float("inf"), True])
TEXTS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(
        ["user", "assistant", "human", "gpt", "train", "\ud800", "\x00", " ", "\n\nHuman: a\n\nAssistant: b"]
    ),
)
TURNS = st.fixed_dictionaries(
    {}, optional={name: st.one_of(TEXTS, NUMBERS) for name in ("role", "content", "from", "value")}
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3), st.lists(TURNS, max_size=3)
    ),
    max_leaves=8,
)
NATIVE = ["conversations", "system", "instruction", "output_1", "output_2", "generator_1", "annotator", "preference"]
COLUMNS = sorted({*ColumnMap.model_fields, "completion", "up", "down", *NATIVE})
ROWS = st.lists(
    st.one_of(
        st.just(GOOD),
        VALUES,
        st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=8).map(lambda change: {**GOOD, **change}),
    ),
    max_size=4,
)
SOURCES: list[dict[str, Any]] = [
    *({"kind": kind} for kind in COLUMNS_OF),
    {"columns": {"prompt": None}},
    {"columns": {"votes_chosen": "up", "votes_rejected": "down"}, "weight": 1e-3, "splits": ["train"]},
    {"format": "hh"},
    {"format": "sharegpt"},
    {"format": "alpaca_eval", "strength": "soft_label"},
]


def survive(path: Path, given: dict[str, Any]) -> None:
    """Read under both policies; what is kept can be written and read again."""
    for on_bad_row in ("error", "drop"):
        try:
            for row in read(source(path, **{"format": "jsonl", **given}, on_bad_row=on_bad_row)):
                assert isinstance(row, (Example, Dropped))
                if isinstance(row, Example):
                    assert type(row).model_validate_json(row.model_dump_json()) == row
        except UserError as error:
            text = str(error)
            assert len(text.split("\n")) == 3 and len(text) < 1000
            text.encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("given_", SOURCES, ids=str)
@HARD
@given(ROWS)
def test_any_json(folder, given_, rows):
    survive(write_bytes(folder / "a.jsonl", lines(*rows)), given_)
    if given_.get("format", "jsonl") == "jsonl":
        survive(write_bytes(folder / "a.json", json.dumps(rows).encode()), {**given_, "format": "json"})


SOUND = [{**GOOD, "id": str(number), "margin": 0.5} for number in range(30)]


@HARD
@given(st.data())
def test_any_damage(folder, data):
    """One file of each container with a few bytes changed, or cut."""
    format, name = data.draw(st.sampled_from([("jsonl", "a.jsonl"), ("json", "a.json"), ("jsonl", "a.jsonl.gz")]))
    path = write_bytes(folder / name, lines(*SOUND) if format == "jsonl" else json.dumps(SOUND).encode())
    damage(path, data)
    survive(path, {"format": format})
    survive(path, {"format": "hh"})


@HARD
@given(st.data())
def test_any_damage_to_parquet(folder, data):
    path = write_parquet(folder / "a.parquet", SOUND)
    damage(path, data)
    survive(path, {"format": "parquet"})


def damage(path: Path, data: st.DataObject) -> None:
    """Cut the file, and change some of its bytes."""
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])


@HARD
@given(st.binary(max_size=60), st.sampled_from(["jsonl", "json", "parquet", "hh", "sharegpt", "alpaca_eval"]))
def test_any_bytes(folder, data, format):
    for name in ("a.x", "a.gz"):
        (folder / name).write_bytes(data)
        survive(folder / name, {"format": format})
    survive(write_bytes(folder / "b.gz", data), {"format": format})
