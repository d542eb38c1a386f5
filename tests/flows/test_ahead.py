"""Light stages run before there is a server or a tracker, and whoever comes later hears of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.compare import compare
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Entry, Store
from tasks.run_stage import Ahead, Execute, Node, Remember
from tests.flows.quick_stages import FAIL, QUICK
from tests.flows.toy_run import config_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Execute:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    return Execute(Store(tmp_path / "store"), RuntimeConfig(), stages=QUICK)


@pytest.fixture
def flow(tmp_path: Path) -> Callable[[], Any]:
    config = config_for(tmp_path / "store", tmp_path / "pairs.jsonl")
    return lambda: compare(config)


class Heard(Remember):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []

    def started(self, node: Node, why: str) -> None:
        self.calls.append(("started", node.name))

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        self.calls.append(("reused" if entry.reused else "built", node.name))

    def failed(self, node: Node, error: BaseException) -> None:
        self.calls.append(("failed", node.name))


def test_it_ends_at_the_first_stage_that_wants_an_accelerator(execute: Execute, flow: Callable[[], Any]) -> None:
    watching, late = Heard(), Heard()
    ahead = Ahead(replace(execute, observers=(watching,))).walk(flow)
    assert list(ahead.done) == ["tokenizers", "aggregate"]
    ahead.later.tell(late)
    expected = [(what, name) for name in ("tokenizers", "aggregate") for what in ("started", "built")]
    assert late.calls == watching.calls == expected


def test_what_is_there_is_reused_and_told_as_such(execute: Execute, flow: Callable[[], Any]) -> None:
    Ahead(execute).walk(flow)
    late = Heard()
    Ahead(execute).walk(flow).later.tell(late)
    assert late.calls == [("reused", "tokenizers"), ("reused", "aggregate")]


def test_what_a_light_stage_refuses_passes_through(execute: Execute, flow: Callable[[], Any]) -> None:
    FAIL.write_text("AggregateStage")
    ahead, late = Ahead(execute), Heard()
    with pytest.raises(UserError, match="the toy refuses"):
        ahead.walk(flow)
    ahead.later.tell(late)
    assert late.calls[-1] == ("failed", "aggregate")


def test_bad_data_start_neither_server_nor_tracker(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    source = {"format": "jsonl", "name": "mine", "path": "pairs.jsonl"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": {"sources": [source]}}))
    heavy = "print([name for name in ('torch', 'prefect', 'mlflow') if name in sys.modules])"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\nfrom flows.cli import main\ntry:\n    main()\nfinally:\n    {heavy}",
            "run",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "chosen equals rejected" in done.stderr
    assert done.stdout.strip().endswith("[]")
    assert {path.name for path in tmp_path.iterdir()} == {"artifacts", "params.yaml", "pairs.jsonl", "reports"}
