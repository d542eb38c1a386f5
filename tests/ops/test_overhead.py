"""The overhead benchmark: its arithmetic, and that its stages make what every driver asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.overhead.__main__ import summary
from benchmarks.overhead.stages import LIGHT
from flows.compare import compare
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.store import Store
from tasks import dvc_file, run_stage
from tests.flows.toy_run import config_for


def test_a_cost_is_the_median_over_pairs_of_what_a_run_takes_longer() -> None:
    pairs = [{"on": 14.0, "off": 4.0, "stages": 40}, {"on": 90.0, "off": 5.0, "stages": 40}]
    pairs.append({"on": 12.0, "off": 4.0, "stages": 40})
    found = summary(pairs, first=24.0, run_seconds=190.0, dvc=1.25)
    assert (found["seconds_per_stage"], found["share_of_run"], found["dvc_seconds_per_stage"]) == (0.25, 0.05, 1.25)
    assert (found["seconds_of_a_run"], found["seconds_of_the_first_run"]) == (10.0, 20.0)


def test_the_light_stages_leave_what_dvc_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    config = config_for(tmp_path / "store", Path("pairs.jsonl"), rounds=1)
    remember = run_stage.Remember()
    with run_stage.driving(run_stage.Execute(Store(tmp_path / "store"), RuntimeConfig(), (remember,), LIGHT)):
        compare(config)
    for node, entry in remember.entries.values():
        dvc_file.write_record(node, entry, tmp_path)
        declared = dvc_file._stage(node, tmp_path, LIGHT)
        for out in (*declared.get("outs", ()), *declared["metrics"]):
            assert (tmp_path / next(iter(out))).is_file()
