"""The benchmark of a million pairs measures what it says: made-up pairs as real ones cost, and their copies."""

from __future__ import annotations

import json

import pytest

from benchmarks.aggregate_scale.__main__ import compare, table
from benchmarks.aggregate_scale.synthetic import SOURCES, write_sources

ROWS = 12_000


def lines(folder, count, shards, seed=0):
    """Rows of each source, read back shard by shard."""
    sources = write_sources(folder / f"{count}-{shards}-{seed}", count, shards, seed)
    assert [source.name for source in sources] == list(SOURCES)
    found = {}
    for source in sources:
        files = sorted((folder / f"{count}-{shards}-{seed}" / source.name).iterdir())
        assert len(files) == shards
        found[source.name] = [json.loads(line) for file in files for line in file.open(encoding="utf-8")]
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return lines(tmp_path_factory.mktemp("scale"), ROWS, 3)


def test_there_are_as_many_rows_as_asked_for_with_copies_among_them(rows):
    every = [row for each in rows.values() for row in each]
    assert len(every) == ROWS and all(len(each) > ROWS / 5 for each in rows.values())
    said = {(row["prompt"], row["chosen"], row["rejected"]) for row in every}
    assert 0.04 < 1 - len(said) / ROWS < 0.06
    torn = {(prompt, *sorted(answers)) for prompt, *answers in said if (prompt, *answers[::-1]) in said}
    assert 0.01 < len(torn) / ROWS < 0.03
    assert 25 < sum(len(row["prompt"].split()) for row in every) / ROWS < 35
    assert 50 < sum(len(row["chosen"].split()) for row in every) / ROWS < 70
    assert len({row["annotator"] for row in every}) == 12 and len({row["source_chosen"] for row in every}) == 8


def test_seeds_decide_the_rows_and_shards_only_where_they_lie(rows, tmp_path):
    def sorted_rows(found):
        return {name: sorted(map(json.dumps, each)) for name, each in found.items()}

    assert sorted_rows(lines(tmp_path, ROWS, 1)) == sorted_rows(rows)
    assert sorted_rows(lines(tmp_path, ROWS, 1, seed=1)) != sorted_rows(rows)


@pytest.mark.slow
def test_a_small_run_says_every_number(tmp_path):
    found = compare(tmp_path, rows=600, shards=2, near=True)
    few, many = found["few"], found["many"]
    assert (few["rows"], many["rows"]) == (60, 600) and many["pairs"] + sum(many["dropped"].values()) == 600
    assert list(many["passes"]) == ["rows read", "rows examined", "rows written"]
    assert sum(part["seconds"] for part in many["passes"].values()) <= many["seconds"]
    assert many["rows_per_second"] == pytest.approx(600 / many["seconds"])
    assert many["peak_rss_above"] > 0 and "bytes a row" in table(found)
