"""Metrics in files: finite or null, and cut to where a stage goes on."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inverse_alignment.core.metrics import FileReport, read_metrics, truncate_metrics


def test_rows_are_appended_and_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    FileReport(path).log(1, {"loss": 0.5, "kl": math.nan})
    FileReport(path).log(2, {"loss": math.inf, "kl": -math.inf})
    assert path.read_text() == '{"kl": null, "loss": 0.5, "step": 1}\n{"kl": null, "loss": null, "step": 2}\n'
    assert read_metrics(path) == [{"step": 1, "loss": 0.5, "kl": None}, {"step": 2, "loss": None, "kl": None}]


def test_progress_carries_the_newest_values(tmp_path):
    heard = []
    report = FileReport(tmp_path / "m", lambda *said: heard.append(said))
    report.progress(0, 9, "steps")
    report.log(1, {"loss": 0.5})
    report.progress(1, 9, "steps")
    assert heard == [(0, 9, "steps", {}), (1, 9, "steps", {"loss": 0.5})]


def test_nothing_reported_is_no_rows(tmp_path):
    assert read_metrics(tmp_path / "none") == []
    truncate_metrics(tmp_path / "none", 3)
    assert not (tmp_path / "none").exists()


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(-1, 21))
def test_rows_after_the_step_are_dropped(tmp_path_factory, steps, step):
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    rows = [{"step": each, "text": "one\u2028row"} for each in steps]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    truncate_metrics(path, step)
    kept = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert kept == [row for row in rows if row["step"] <= step]
    assert [each.name for each in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_last_row_cut_short_is_dropped(tmp_path):
    """Power went while it was written; in the midst of a character, too."""
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1}\n'
    rest = '{"step": 2, "text": "é"}\n'.encode()
    for cut in range(len(rest)):
        path.write_bytes(whole.encode() + rest[:cut])
        truncate_metrics(path, 2)
        assert path.read_text() == whole
    path.write_bytes(whole.encode() + rest)
    truncate_metrics(path, 2)
    assert path.read_bytes() == whole.encode() + rest


@pytest.mark.parametrize("damaged", ['{"step": \x00}', "[2]", '{"kl": 1}', ""])
def test_what_follows_a_damaged_row_is_dropped_with_it(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 2}}\n')
    truncate_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n'


def test_killed_and_resumed_gives_the_same_bytes(tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for step in range(1, 9):
        FileReport(straight).log(step, {"loss": 1 / step})
    for step in range(1, 6):  # killed after 5; the newest checkpoint is of step 3
        FileReport(resumed).log(step, {"loss": 1 / step})
    truncate_metrics(resumed, 3)
    for step in range(4, 9):
        FileReport(resumed).log(step, {"loss": 1 / step})
    assert resumed.read_bytes() == straight.read_bytes()
