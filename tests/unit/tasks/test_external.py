"""Inputs from outside: identified by content, hashed once, refused clearly."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from inverse_alignment.core.artifact import external as plain
from inverse_alignment.core.errors import UserError
from tasks import external


def aged(path: Path, text: str) -> Path:
    """A file that was last written a while ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    past = time.time() - 60
    os.utime(path, (past, past))
    return path


def test_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    file = aged(tmp_path / "model" / "a.json", "1")
    aged(tmp_path / "model" / "deep" / "b.json", "2")
    assert external.data_file(str(file), "key", tmp_path).digest == plain("data", file).digest
    folder = file.parent
    assert external.model(str(folder), None, "key", tmp_path).digest == plain("model", folder).digest


def test_an_unchanged_file_is_not_hashed_again(tmp_path: Path) -> None:
    file = aged(tmp_path / "data.jsonl", "one")
    cache = tmp_path / "store"
    external.data_file(str(file), "key", cache)
    memory = cache / ".external.json"
    key = next(iter(json.loads(memory.read_text())))
    memory.write_text(json.dumps({key: "remembered"}))
    assert external.data_file(str(file), "key", cache).digest == "remembered"
    aged(file, "two!")
    fresh = external.data_file(str(file), "key", cache).digest
    assert fresh == plain("data", file).digest
    assert len(json.loads(memory.read_text())) == 1  # what it said of the old state is gone


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("one")
    external.data_file(str(file), "key", tmp_path / "store")
    assert not (tmp_path / "store" / ".external.json").exists()


def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path) -> None:
    file = aged(tmp_path / "data.jsonl", "one")
    (tmp_path / ".external.json").write_text("{half")
    assert external.data_file(str(file), "key", tmp_path).digest == plain("data", file).digest


def test_a_hub_id_without_revision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a revision") as error:
        external.model("someone/some-model", None, "models.policy", tmp_path)
    assert "models.policy.revision" in error.value.fix


def test_nothing_is_read_where_nothing_shall_be(tmp_path: Path) -> None:
    with external.unread():
        assert external.data_file("nowhere.jsonl", "key", tmp_path).uri == "nowhere.jsonl"
        assert external.model("someone/m", "abc", "key", tmp_path).uri == "hub:someone/m@abc"
