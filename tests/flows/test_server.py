"""One server for the runs of a project: shared, ended by the last one out, never outliving killed runs for long."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from inverse_alignment.core.errors import UserError
from tasks import server

ROOT = Path(__file__).parents[2]
USER = """
import sys, time
from pathlib import Path
from tasks.server import prefect_server
with prefect_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, with_database: Callable[[Path], Path]) -> Iterator[Path]:
    """A project whose database exists."""
    folder = with_database(tmp_path_factory.mktemp("project"))
    yield folder
    server.stop(folder)


class User:
    """A process that holds the project's server until it is told to leave."""

    def __init__(self, project: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(USER), str(project)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout

    def url(self) -> str:
        return self.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=30)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.ops
def test_two_runs_share_a_server_that_is_replaced_if_it_dies_and_ended_by_the_last_one_out(project: Path) -> None:
    first, second = User(project), User(project)
    url = first.url()
    assert url == second.url()
    state = server.status(project)
    assert (state.url, state.healthy, state.users) == (url, True, 2)
    assert state.pid is not None
    children = psutil.Process(state.pid).children(recursive=True)
    assert children

    os.killpg(state.pid, signal.SIGKILL)
    assert all(gone(child.pid, 5) for child in children)
    with server.prefect_server(project) as again:  # who still uses the old address finds the new server
        assert again == url
        pid = server.status(project).pid
        assert pid is not None
        children = psutil.Process(pid).children(recursive=True)
    first.leave()
    assert server.status(project).users == 1
    assert server.answers(url)
    second.leave()
    assert server.status(project).url is None
    assert not server.answers(url)
    assert all(gone(child.pid, 1) for child in children)
    assert (project / ".prefect" / "prefect.db").is_file()


@pytest.mark.ops
def test_killed_users_do_not_keep_a_server_alive(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WATCH_SECONDS", 0.5)
    held = server.SharedServer(project).begin()
    killed = User(project)
    url = held.wait()
    assert killed.url() == url
    supervisor = server.status(project).pid
    assert supervisor is not None
    # as if this process had been killed as well: nobody takes its name off the list
    state = json.loads((project / ".prefect" / "server.json").read_text())
    assert len(state["users"]) == 2
    state["users"] = [user for user in state["users"] if user["pid"] != os.getpid()]
    (project / ".prefect" / "server.json").write_text(json.dumps(state))
    killed.kill()
    assert gone(supervisor, 15)
    assert not server.answers(url)
    assert not (project / ".prefect" / "server.json").exists()
    held.release()


@pytest.mark.ops
def test_a_started_server_stays_until_it_is_stopped(project: Path) -> None:
    url = server.start(project)
    assert "PREFECT_API_URL" not in os.environ
    with server.prefect_server(project) as used:
        assert used == url
        assert os.environ["PREFECT_API_URL"] == url
    assert server.start(project) == url
    state = server.status(project)
    assert (state.healthy, state.pinned, state.users) == (True, True, 0)
    assert server.stop(project)
    assert not server.stop(project)
    assert server.status(project) == server.Status(None, False, None, 0, False, server.log_path(project))


@pytest.mark.ops
def test_a_server_that_cannot_start_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "prefect.db").mkdir()  # SQLite cannot open a folder
    held = server.SharedServer(tmp_path).begin()
    with pytest.raises(UserError, match="Prefect server") as caught:
        held.wait(60)
    assert caught.value.where == str(tmp_path / ".prefect" / "server.log")
    assert not (tmp_path / ".prefect" / "server.json").exists()
    assert "PREFECT_API_URL" not in os.environ


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()

    def log_message(self, *values: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def other() -> Iterator[str]:
    """A server that somebody else runs."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Health) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/api"
        httpd.shutdown()


@pytest.mark.parametrize("how", ["environment", "dotenv", "prefect.toml", "pyproject.toml", "profile"])
def test_a_configured_server_that_answers_is_used(
    how: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match how:
        case "environment":
            monkeypatch.setenv("PREFECT_API_URL", other)
        case "dotenv":
            Path(".env").write_text(f'PREFECT_API_URL="{other}"\n')
        case "prefect.toml":
            Path("prefect.toml").write_text(f'[api]\nurl = "{other}"\n')
        case "pyproject.toml":
            Path("pyproject.toml").write_text(f'[tool.prefect]\napi.url = "{other}"\n')
        case _:
            (tmp_path / ".prefect").mkdir()
            profile = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{other}"\n'
            (tmp_path / ".prefect" / "profiles.toml").write_text(profile)
    with server.prefect_server(tmp_path / "elsewhere") as url:
        assert url == other
    assert not (tmp_path / "elsewhere").exists()
    assert server.answers(other)


def test_a_configured_server_that_is_gone_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{server._port(0)}/api"
    monkeypatch.setenv("PREFECT_API_URL", dead)
    assert server.configured_url() == dead
    assert not server.answers(dead)


def test_a_damaged_state_file_and_a_reused_pid_count_as_no_server(tmp_path: Path) -> None:
    server.home(tmp_path).mkdir()
    (server.home(tmp_path) / "server.json").write_text("{half")
    assert server.status(tmp_path).url is None
    assert not server.stop(tmp_path)
    alive = {"pid": os.getpid(), "start": 1.0, "port": 1, "since": 1.0, "users": []}
    (server.home(tmp_path) / "server.json").write_text(json.dumps(alive))
    assert server.status(tmp_path).url is None
    assert not server.stop(tmp_path)  # and this process is not signalled


def test_importing_it_imports_no_prefect() -> None:
    code = "import sys, tasks.server; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
