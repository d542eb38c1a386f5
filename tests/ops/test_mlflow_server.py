"""A real MLflow server that is killed in the middle of a run: the run finishes, and is whole after a mirror."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.store import Store
from tasks.journal import read_journals
from tasks.lineage import journals_of
from tasks.mirror import mirror
from tasks.run_stage import Execute, Node
from tests.ops.gated_stages import GATED, Gated
from tests.ops.mlflow_view import config_for, go, lineage_of, view

pytestmark = pytest.mark.ops
START_SECONDS = 120.0


class Server:
    """An MLflow server on a port of its own, with a database that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        where = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination"]
        call = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*call, "--workers", "1", *where, f"{self.folder}/files"],
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        """End it without a word, with all its processes."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.kill()


def test_a_server_that_is_killed_mid_run_loses_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = config_for(server.uri, tmp_path / "store")
    lineage = lineage_of(config)
    with lineage:
        first = Node("sft-s7", "sft", {}, Gated(text="before"), 7)
        Execute(Store(tmp_path / "store"), RuntimeConfig(), (lineage,), GATED).run(first)
        lineage.flush()
        server.kill()
        began = time.monotonic()
        go(config, lineage)
        assert time.monotonic() - began < 20
    assert "`inverse-alignment mirror`" in caplog.text

    server.start()
    seen = {run["name"]: run["status"] for run in view(server.uri)["runs"].values()}
    assert seen == {"shared-start-s7": "RUNNING", "sft-s7": "FINISHED"}
    assert mirror(read_journals(journals_of(config)), server.uri).runs > 10
    other = f"sqlite:///{tmp_path}/other.db"
    mirror(read_journals(journals_of(config)), other)
    assert view(server.uri) == view(other)
    assert {run["status"] for run in view(server.uri)["runs"].values()} == {"FINISHED"}
    assert mirror(read_journals(journals_of(config)), server.uri).runs == 0
