"""A pool that is read as it is looked at says what the file says, and holds little of it."""

from __future__ import annotations

import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import write_jsonl
from inverse_alignment.data import pool as pools
from inverse_alignment.data.pool import Pool, open_split
from tests.unit.models import tiny

PAIRS = [tiny.pair(f"prompt {i % 7}", f"good\n{i}", f"bäd {i} \N{GRINNING FACE}" * (i % 5 + 1), i) for i in range(50)]


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "WINDOW", 8)
    write_jsonl(tmp_path / "train.jsonl", PAIRS)
    return open_split(tmp_path, "train")


def test_it_is_the_sequence_of_the_file(pool):
    assert len(pool) == len(PAIRS) and list(pool) == PAIRS
    assert [pool[i] for i in range(len(PAIRS))] == PAIRS and pool[-1] == PAIRS[-1]
    assert pool[3:40:7] == PAIRS[3:40:7] and pool[::-1] == PAIRS[::-1]
    with pytest.raises(IndexError):
        pool[50]


def test_columns_side_by_side_read_every_line_once(pool, monkeypatch):
    lines = []
    read = Pool._read
    monkeypatch.setattr(Pool, "_read", lambda self, a, b: lines.extend(range(a, b)) or read(self, a, b))
    columns = pool.column(lambda pair: pair.chosen), pool.column(lambda pair: pair.rejected)
    assert list(zip(*columns, strict=True)) == [(pair.chosen, pair.rejected) for pair in PAIRS]
    assert lines == list(range(50))
    assert columns[0][5] == PAIRS[5].chosen and columns[0][4:6] == [PAIRS[4].chosen, PAIRS[5].chosen]
    assert len(columns[0]) == 50


def test_a_window_is_all_that_is_held(pool):
    for _ in pool:
        assert len(pool._held[1]) <= 8


def test_a_damaged_line_is_named_when_it_is_looked_at(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", PAIRS[:3])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{}\n")
    pool = open_split(tmp_path, "train")
    assert pool[2] == PAIRS[2]
    with pytest.raises(UserError, match=r"not a valid Comparison: Field required[\s\S]*train.jsonl, line 4"):
        list(pool)
    with pytest.raises(UserError, match="the preference set lacks a file"):
        open_split(tmp_path, "gate")
