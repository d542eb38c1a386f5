"""Dataset folders through `datasets`: data files, subsets, splits, `save_to_disk`; its cache is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data_files import GOOD, lines, pairs_of, reasons, refused, rows_of, write, write_json, write_parquet

datasets = pytest.importorskip("datasets")

ROWS = [{**GOOD, "id": str(number)} for number in range(3)]
CARD = """---
configs:
- config_name: helpful
  data_files:
  - {split: train, path: help/*.parquet}
- config_name: harmless
  data_files:
  - {split: train, path: harm/train.parquet}
  - {split: heldout, path: harm/test.parquet}
---
# Two subsets
"""


@pytest.fixture(autouse=True)
def quiet_progress():
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def table() -> Any:
    return datasets.Dataset.from_list(ROWS)


def ids(path: Path, format: str = "dataset", **part: Any) -> list[str]:
    return [row.provenance.original_id for row in pairs_of(path, format, dataset=part)]


# ---------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "json", "csv"])
def test_splits_of_data_files(tmp_path, table, suffix):
    writer = {"jsonl": "to_json", "json": "to_json", "parquet": "to_parquet", "csv": "to_csv"}[suffix]
    getattr(table, writer)(str(tmp_path / f"train.{suffix}"))
    getattr(table.select([2]), writer)(str(tmp_path / f"test.{suffix}"))
    assert len(pairs_of(tmp_path, "dataset")) == 3
    assert len(pairs_of(tmp_path, "dataset", dataset={"split": "test"})) == 1


def test_a_folder_of_shards_gives_what_its_files_give(tmp_path, table):
    for shard in range(2):
        part = table.shard(2, shard)
        part.to_parquet(str(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet"))
    assert pairs_of(tmp_path, "dataset") == pairs_of(tmp_path / "data", "parquet")
    assert sorted(ids(tmp_path)) == ["0", "1", "2"]


@pytest.fixture
def subsets(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(CARD)
    write_parquet(tmp_path / "help" / "one.parquet", [{**GOOD, "id": "h"}])
    write_parquet(tmp_path / "harm" / "train.parquet", [{**GOOD, "id": "t"}])
    write_parquet(tmp_path / "harm" / "test.parquet", [{**GOOD, "id": "x"}])
    return tmp_path


def test_subsets_of_a_data_card(subsets):
    assert ids(subsets, subset="helpful") == ["h"]
    assert ids(subsets, subset="harmless") == ["t"]
    assert ids(subsets, subset="harmless", split="heldout") == ["x"]


def test_a_data_dir_is_read_as_a_dataset_of_its_own(subsets):
    assert ids(subsets, data_dir="harm", split="test") == ["x"]


def test_what_save_to_disk_wrote(tmp_path, table):
    table.save_to_disk(tmp_path / "one")
    table.with_format("numpy").select([2, 0]).save_to_disk(tmp_path / "numpy")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "many")
    assert ids(tmp_path / "one") == ["0", "1", "2"]
    assert ids(tmp_path / "numpy") == ["2", "0"]
    assert ids(tmp_path / "many") == ["0", "1", "2"]
    assert ids(tmp_path / "many", split="test") == ["1"]
    assert ids(tmp_path, data_dir="many", split="test") == ["1"]


def test_a_native_format_through_datasets(tmp_path):
    head = "\n\nHuman: a\n\nAssistant:"
    write(tmp_path / "helpful-base" / "train.jsonl.gz", {"chosen": f"{head} x", "rejected": f"{head} y"})
    (pair,) = pairs_of(tmp_path, "hh", dataset={"data_dir": "helpful-base"})
    assert (pair.prompt.text(), pair.chosen) == ("a", "x")


def test_bad_rows_of_a_dataset_are_dropped_like_any_others(tmp_path):
    write(tmp_path / "train.jsonl", GOOD, {**GOOD, "chosen": ""}, {**GOOD, "rejected": None}, {**GOOD, "id": "4"})
    found = rows_of(tmp_path, "dataset", on_bad_row="drop")
    assert reasons(found) == [None, "empty chosen", "missing field", None]
    assert refused(tmp_path, "dataset").where == f"{tmp_path}, row 2, field 'chosen'"


def test_the_limit_holds(tmp_path):
    write(tmp_path / "train.jsonl", *ROWS, b"{broken\n")
    assert refused(tmp_path, "dataset").what.startswith("datasets cannot read it: JSON parse error")
    write_parquet(tmp_path / "more" / "train.parquet", ROWS)
    assert len(pairs_of(tmp_path / "more", "dataset", limit=2)) == 2


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("part", "what", "key", "fix"),
    [
        ({}, "the dataset has several subsets", "subset", "name one of them: harmless, helpful"),
        (
            {"subset": "helpfull"},
            "the dataset has no subset 'helpfull'",
            "subset",
            "did you mean 'helpful'? (set dataset.subset)",
        ),
        (
            {"subset": "harmless", "split": "test"},
            "the dataset has no split 'test'",
            "split",
            "valid names: heldout, train (set dataset.split)",
        ),
        (
            {"subset": "helpful", "split": "trian"},
            "the dataset has no split 'trian'",
            "split",
            "did you mean 'train'? (set dataset.split)",
        ),
        (
            {"data_dir": "ham"},
            "the dataset has no folder 'ham'",
            "data_dir",
            "did you mean 'harm'? (set dataset.data_dir)",
        ),
    ],
)
def test_a_part_that_is_not_there_names_its_key(subsets, part, what, key, fix):
    error = refused(subsets, "dataset", dataset=part)
    assert (error.what, error.where, error.fix) == (what, f"{subsets}, dataset.{key}", fix)


@pytest.mark.parametrize(
    ("part", "key", "fix"),
    [
        ({"split": "test"}, "split", "remove dataset.split: it was saved without one"),
        ({"subset": "x"}, "subset", "remove dataset.subset"),
    ],
)
def test_parts_of_a_saved_table(tmp_path, table, part, key, fix):
    table.save_to_disk(tmp_path / "saved")
    error = refused(tmp_path / "saved", "dataset", dataset=part)
    assert (error.where, error.fix) == (f"{tmp_path / 'saved'}, dataset.{key}", fix)


def test_a_saved_split_is_not_taken_for_another(tmp_path):
    write(tmp_path / "test.jsonl", *ROWS)
    saved = datasets.load_dataset(str(tmp_path), split="test", cache_dir=str(tmp_path / "cache"))
    saved.save_to_disk(tmp_path / "saved")
    assert refused(tmp_path / "saved", "dataset").fix == "valid names: test (set dataset.split)"
    assert ids(tmp_path / "saved", split="test") == ["0", "1", "2"]


def test_a_split_of_several_that_is_misspelt(tmp_path, table):
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "saved")
    assert (
        refused(tmp_path / "saved", "dataset", dataset={"split": "tets"}).fix
        == "did you mean 'test'? (set dataset.split)"
    )


def test_a_file_is_no_dataset(tmp_path):
    error = refused(write(tmp_path / "a.jsonl", GOOD), "dataset")
    assert error.what == "is no dataset folder" and "format jsonl" in error.fix


@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_folders_that_the_library_cannot_read(tmp_path, table, on_bad_row):
    (tmp_path / "nothing").mkdir()
    write(tmp_path / "broken" / "train.jsonl", GOOD, b"{broken\n")
    write_parquet(tmp_path / "cut" / "train.parquet", ROWS)
    data = (tmp_path / "cut" / "train.parquet").read_bytes()
    (tmp_path / "cut" / "train.parquet").write_bytes(data[:-20])
    write(tmp_path / "unlike" / "train-1.jsonl", *ROWS)
    write(tmp_path / "unlike" / "train-2.jsonl", {**GOOD, "other": {"a": 1}})
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit('must not be run')")
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    table.save_to_disk(tmp_path / "gone")
    (tmp_path / "gone" / "data-00000-of-00001.arrow").unlink()
    write(tmp_path / "card" / "train.jsonl", *ROWS)
    (tmp_path / "card" / "README.md").write_text("---\nconfigs: [\n---\n")
    for name in ("nothing", "broken", "cut", "unlike", "script", "saved", "gone", "card"):
        error = refused(tmp_path / name, "dataset", on_bad_row=on_bad_row)
        assert error.what.startswith("datasets cannot read it: "), name
        assert error.where.startswith(f"{tmp_path / name}, after row "), name


def test_a_dataset_without_a_row(tmp_path):
    empty = datasets.Dataset.from_dict({name: [] for name in GOOD})
    empty.save_to_disk(tmp_path / "saved")
    assert refused(tmp_path / "saved", "dataset").what == "the file holds no row"


# ---------------------------------------------------------------------------------------------- side effects

SCRIPT = """
import sys
sys.path.insert(0, "tests/unit/data")
from data_files import pairs_of, refused
folder = sys.argv[1]
print(len(pairs_of(folder + "/files", "dataset")), len(pairs_of(folder + "/saved", "dataset")))
print(refused(folder + "/broken", "dataset").what)
"""


def test_the_cache_of_the_library_and_the_terminal_are_left_alone(tmp_path, table):
    """In a process of its own, because the library reads its settings on import."""
    write_parquet(tmp_path / "files" / "train.parquet", ROWS)
    write(tmp_path / "broken" / "train.jsonl", GOOD, b"{broken\n")
    table.save_to_disk(tmp_path / "saved")
    home = tmp_path / "home"
    home.mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    places = {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_DATASETS_CACHE": str(home / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, **places, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.splitlines()[0] == "3 3"
    assert done.stdout.splitlines()[1].startswith("datasets cannot read it: JSON parse error")
    assert done.stderr == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_file_in_a_dataset_folder_can_be_read_by_its_own_format_too(tmp_path):
    write_json(tmp_path / "train.json", ROWS)
    assert lines(*ROWS) and pairs_of(tmp_path / "train.json", "json") == pairs_of(tmp_path, "dataset")
