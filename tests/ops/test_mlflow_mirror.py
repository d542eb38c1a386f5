"""A tracker that is away, slow or killed loses nothing: the journal has it, and mirroring twice is mirroring once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from tasks.journal import AnyEvent, Close, Open, read_journals
from tasks.lineage import MlflowStore, journals_of
from tasks.mirror import mirror
from tasks.run_stage import Execute, Node
from tests.ops.gated_stages import GATED, Gated
from tests.ops.mlflow_view import config_for, go, lineage_of, runs_of, view

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowStore(f"sqlite:///{path}", "toys")
    return path


@pytest.fixture
def database(tmp_path: Path, empty: Path) -> Any:
    """Makes an empty store of a name."""

    def make(name: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(empty, folder / "mlflow.db")
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        moved = MlflowStore(uri, "toys")
        assert not runs_of(uri) and moved.made == 0
        return uri

    return make


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def journal(store: Path) -> list[Any]:
    """The journals of a store as if their process had ended."""
    found = list(read_journals(store / ".journal"))
    return [type(each)(each.writer.model_copy(update={"pid_start": 0.0}), each.events) for each in found]


def test_a_mirror_equals_what_was_written_live_and_twice_is_once(tmp_path: Path, database: Any) -> None:
    live, other = database("live"), database("other")
    config = config_for(live, tmp_path / "store")
    with lineage_of(config) as lineage:
        go(config, lineage)
    first = mirror(journal(tmp_path / "store"), other)
    assert (first.journals, first.running) == (1, 0)
    assert first.runs == len(runs_of(live)) == 13
    assert view(other) == view(live)
    assert mirror(journal(tmp_path / "store"), other).runs == 0
    assert mirror(journal(tmp_path / "store"), live).runs == 0
    assert view(other) == view(live)
    assert {run["status"] for run in view(live)["runs"].values()} == {"FINISHED"}


class _Cut(Exception):
    """The server goes away."""


@pytest.mark.parametrize("taken", [0, 7, 61, *(pytest.param(n, marks=pytest.mark.ops) for n in (1, 2, 30))])
def test_a_store_that_is_lost_at_any_event_is_completed_later(
    taken: int, tmp_path: Path, database: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost, whole = database("lost"), database("whole")
    seen: list[AnyEvent] = []
    apply = MlflowStore.apply

    def until_cut(store: MlflowStore, event: AnyEvent) -> None:
        seen.append(event)
        if len(seen) > taken:
            raise _Cut
        apply(store, event)

    config = config_for(lost, tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "apply", until_cut)
        with lineage_of(config) as lineage:
            go(config, lineage)
    assert len(seen) == taken + 1  # after the first failure it is left alone
    assert len(list((tmp_path / "store").glob("*/*/artifact.json"))) == 11  # and the run went on
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.name == "tasks.lineage"]
    assert "`inverse-alignment mirror`" in warning
    mirror(journal(tmp_path / "store"), whole)
    assert view(lost) != view(whole)
    mirror(journal(tmp_path / "store"), lost)
    assert view(lost) == view(whole)


@pytest.mark.parametrize(
    "call",
    [
        "log_batch",
        "log_inputs",
        "log_artifact",
        "log_model_artifacts",
        "log_outputs",
        "create_model_version",
        "set_registered_model_alias",
    ],
)
def test_a_store_that_is_lost_within_an_event_is_completed_later(
    call: str, tmp_path: Path, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, whole = database("lost"), database("whole")
    done = getattr(MlflowClient, call)
    calls = []

    def once(*arguments: Any, **named: Any) -> Any:
        calls.append(call)
        if len(calls) == 2:
            raise _Cut
        return done(*arguments, **named)

    config = config_for(lost, tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, once)
        with lineage_of(config) as lineage:
            go(config, lineage)
    assert len(calls) == 2
    for uri in (whole, lost):
        mirror(journal(tmp_path / "store"), uri)
    assert view(lost) == view(whole)


def test_a_run_that_another_process_made_needless_is_gone(tmp_path: Path, database: Any) -> None:
    uri = database("x")
    config = config_for(uri, tmp_path / "store")
    node = Node("sft-s0", "sft", {}, Gated(text="sft"), 0)
    with lineage_of(config) as lineage:
        entry = Execute(Store(tmp_path / "store"), RuntimeConfig(), (), GATED).entry(node)
        lineage.started(node, "never built")
        lineage.finished(node, replace(entry, reused=True), 0.0)
    assert [run.info.run_name for run in runs_of(uri)] == ["shared-start-s0"]
    (found,) = journal(tmp_path / "store")
    (opened,) = [event for event in found.events if isinstance(event, Open) and event.name == "sft-s0"]
    other = database("y")
    MlflowStore(other, "toys").apply(opened.model_copy(update={"parent": None}))
    assert len(runs_of(other)) == 1
    mirror(journal(tmp_path / "store"), other)
    assert view(other)["models"].keys() == view(uri)["models"].keys() == {"policy-start-s0"}
    assert [run.info.run_name for run in runs_of(other)] == ["shared-start-s0"]


def test_a_slow_store_does_not_hold_the_run_up(
    tmp_path: Path, database: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = database("slow")
    apply = MlflowStore.apply

    def slowly(store: MlflowStore, event: AnyEvent) -> None:
        time.sleep(0.2)
        apply(store, event)

    config = config_for(uri, tmp_path / "store")
    monkeypatch.setattr(MlflowStore, "apply", slowly)
    monkeypatch.setattr("tasks.lineage.END_SECONDS", 0.1)
    lineage = lineage_of(config)
    began = time.monotonic()
    go(config, lineage)
    assert time.monotonic() - began < 2.0  # 60 events of 0.2 s
    lineage.flush(0.1)
    assert "has not taken" in caplog.text
    monkeypatch.setattr(MlflowStore, "apply", apply)
    lineage.flush(30)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.ops.mlflow_view import config_for, lineage_of, go
config = config_for(sys.argv[1], Path(sys.argv[2]))
lineage = lineage_of(config)
failed = lineage.failed
def killed(event):
    tell(event)
    if event.do == "open" and event.name == "random-s0-r2-ppo":
        os.kill(os.getpid(), signal.SIGKILL)
tell = lineage._recorder._emit
lineage._recorder._emit = killed
go(config, lineage)
"""


@pytest.mark.ops
def test_what_a_killed_process_began_is_closed(tmp_path: Path, database: Any) -> None:
    uri = database("killed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", KILLED, uri, str(tmp_path / "store")]
    killed = subprocess.run(call, cwd=tmp_path, env=environment, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    config = config_for(uri, tmp_path / "store")
    assert mirror(read_journals(journals_of(config)), uri).running == 0
    status = {run.info.run_name: run.info.status for run in runs_of(uri)}
    assert status["random-s0-r2-ppo"] == status["random-s0"] == status["shared-start-s0"] == "KILLED"
    assert status["random-s0-r1-ppo"] == "FINISHED" and "RUNNING" not in status.values()
    before = view(uri)
    mirror(read_journals(journals_of(config)), uri)
    assert view(uri) == before


def test_a_process_that_runs_is_left_to_itself(tmp_path: Path, database: Any) -> None:
    uri = database("runs")
    config = config_for(uri, tmp_path / "store")
    lineage = lineage_of(config)
    go(config, lineage)
    lineage.flush()
    done = mirror(read_journals(journals_of(config)), uri)
    assert (done.journals, done.running, done.runs) == (0, 1, 0)
    assert "RUNNING" in {run.info.status for run in runs_of(uri)}
    lineage.close()


def test_a_journal_that_a_kill_cut_short_is_read_to_there(tmp_path: Path, database: Any) -> None:
    config = config_for("", tmp_path / "store")
    with lineage_of(config.model_copy(update={"tracking": config_for(database("x"), tmp_path).tracking})) as lineage:
        go(config, lineage)
    (path,) = (tmp_path / "store" / ".journal").glob("*.jsonl")
    text = path.read_text()
    path.write_text(text[: text.index('"do": "close"') + 4])
    (cut,) = journal(tmp_path / "store")
    opened = {event.key for event in cut.events if isinstance(event, Open)}
    ends = [event for event in cut.whole() if isinstance(event, Close)]
    assert {end.key for end in ends} == opened and {end.status for end in ends} == {"KILLED"}
    path.write_text("")
    assert journal(tmp_path / "store") == []


def test_a_store_that_does_not_answer_is_said_in_three_lines(tmp_path: Path, database: Any) -> None:
    config = config_for(database("x"), tmp_path / "store")
    with lineage_of(config) as lineage:
        go(config, lineage)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    with pytest.raises(UserError, match="MLflow failed") as error:
        mirror(journal(tmp_path / "store"), "http://me:secret@127.0.0.1:9/")
    assert "secret" not in str(error.value)
