"""The verbs report and watch: one run, two runs, a run that goes on, and names that are none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows.report import report
from flows.watch import curves, look, sparkline, watch
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from inverse_alignment.report.comparison import save
from tasks import run_stage
from tests.unit.report.test_merge import read


@pytest.fixture
def console(tmp_path):
    with (tmp_path / "said").open("w") as file:
        yield Console(file=file, width=160)


def said(console, tmp_path):
    console.file.flush()
    return (tmp_path / "said").read_text()


def test_one_run_and_two(tmp_path, console):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(read(tmp_path / f"in-{name}"), tmp_path / name)
    store = Store(tmp_path / "store")
    stored = store.root / "compare" / ("f" * 32)
    stored.mkdir(parents=True)
    save(read(tmp_path / "in-c"), stored)
    report([str(tmp_path / "a")], store, tmp_path / "one", console)
    report([f"x={tmp_path / 'a'}", str(tmp_path / "b"), "ffffff"], store, tmp_path / "three", console)
    assert "Is the policy better?" in said(console, tmp_path)
    assert "x/none" not in (tmp_path / "one" / "report.html").read_text()
    page = (tmp_path / "three" / "report.html").read_text()
    assert all(arm in page for arm in ("x/none", "b/none", "ffffffffffff/similarity"))


def test_runs_that_are_not_there_or_there_twice(tmp_path, console):
    save(read(tmp_path / "in"), tmp_path)
    for given in ("nowhere", "fff"):
        with pytest.raises(UserError, match=f"no run at {given}"):
            report([given], Store(tmp_path / "store"), tmp_path / "out", console)
    with pytest.raises(UserError, match="two runs are called 'x'"):
        report([f"x={tmp_path}", f"x={tmp_path}"], Store(tmp_path / "store"), tmp_path / "out", console)


def test_sparklines():
    assert sparkline([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert sparkline([3.0, 3.0]) == "▄▄" and len(sparkline(range(1000))) == 48
    assert sparkline([0, 0, 4, 4], 2) == "▁█"


class Planned(SimpleNamespace):
    """What `look` asks of a plan: one finished round, one under way, one that waits."""


def plan_of(tmp_path: Path, monkeypatch) -> SimpleNamespace:
    def rows(folder: str, steps: range, end: str = "") -> Path:
        (tmp_path / folder).mkdir()
        text = "".join(json.dumps({"step": step, "rm_score": step / 10}) + "\n" for step in steps)
        (tmp_path / folder / "metrics.jsonl").write_text(text + end)
        return tmp_path / folder

    done = SimpleNamespace(artifact=SimpleNamespace(uri=str(rows("done", range(1, 3)))))
    now = rows("now", range(3, 5), '{"step": 5, "rm_')
    monkeypatch.setattr(run_stage, "identify", lambda node, stages: {})
    node = SimpleNamespace(stage="ppo", inputs={})
    waits = SimpleNamespace(stage="ppo", inputs={"policy": SimpleNamespace(pending=True)})
    planned = {
        "none-s0-r1-ppo": Planned(entry=done, status="reuse", node=node),
        "none-s0-r2-ppo": Planned(entry=None, status="run", node=node),
        "none-s0-r3-ppo": Planned(entry=None, status="depends", node=waits),
        "none-s0-r1-rollout": Planned(entry=None, status="run", node=waits),
    }
    return SimpleNamespace(planned=planned, stages={}, store=SimpleNamespace(partial=lambda stage, identity: now))


def test_a_run_under_way_is_read_over_its_rounds(tmp_path, monkeypatch, console):
    plan = plan_of(tmp_path, monkeypatch)
    seen = look("none-s0", plan)
    assert [row["step"] for row in seen.rows] == [1, 2, 3, 4] and (seen.finished, seen.nodes) == (1, 3)
    assert [row["step"] for row in look("none-s0-r2-ppo", plan).rows] == [3, 4]
    watch("none-s0", lambda: plan, console, once=False)  # no terminal: once
    text = said(console, tmp_path)
    assert "step 4, 1 of 3 done" in text and "▁" in text and "0.4" in text


def test_a_run_that_said_nothing_and_one_that_is_none(tmp_path, monkeypatch):
    plan = plan_of(tmp_path, monkeypatch)
    assert curves("x", look("none-s0-r3-ppo", plan)).caption == "nothing reported yet"
    with pytest.raises(UserError, match="no run 'nome-s0'") as refused:
        look("nome-s0", plan)
    assert "none-s0" in refused.value.fix
