"""One Prefect server for all runs of a project, for as long as there are any.

Prefect's own ephemeral server loses records when a flow ends, so a run that finds no server starts a real one on a free
loopback port, with its database in `<project>/.prefect/`. Runs at the same time share it: each is a *user* in
`.prefect/server.json`, under an OS lock, and the last one out ends the server. Users that died are dropped, by pid and
start time; a small supervisor process (this module run as a script) does the same while nobody else looks, so that a
server never outlives a killed run for long.

Light on purpose: nothing here imports Prefect, whose settings are read when it is first imported.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import http
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from inverse_alignment.core.errors import UserError
from tasks.processes import runs

HOST = "127.0.0.1"
STARTUP_SECONDS = 120.0  # a first start creates the database: 12 s on two idle cores
STOP_SECONDS = 10.0
ANSWER_SECONDS = 5.0
WATCH_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkPool:
    """A pool of `prefect.yaml`, and how many runs a worker of `make up` takes from it at once."""

    limit: int
    description: str


WORK_POOLS = {
    "gpu": WorkPool(1, "stages that train and sample; one worker per GPU, each with its CUDA_VISIBLE_DEVICES"),
    "cpu": WorkPool(2, "what needs no accelerator: light stages, and runs that wait for other runs"),
}


@dataclass(frozen=True)
class User:
    """A process that needs the server; a pinned one needs it until somebody says stop."""

    pid: int
    start: float
    token: str
    pinned: bool = False


@dataclass(frozen=True)
class State:
    """What `server.json` says: the supervisor's process (and process group), the server's port, and who uses it."""

    pid: int
    start: float
    port: int
    since: float
    users: tuple[User, ...] = ()
    host: str = HOST  # the address it listens on; it is spoken to on the loopback interface

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://{HOST}:{self.port}/api"


@dataclass(frozen=True)
class Status:
    """What `inverse-alignment server status` says."""

    url: str | None
    healthy: bool
    pid: int | None
    users: int
    pinned: bool
    log_file: Path


class SharedServer:
    """A run's hold on a Prefect server. Start-up overlaps with other work between `begin` and `wait`.

    A configured API (environment, `prefect.toml`, profile) that answers is used as it is, and nothing is started.
    """

    def __init__(self, project: Path, *, pinned: bool = False, host: str = HOST) -> None:
        self.project = project.resolve()
        self.host = host
        self.token = uuid.uuid4().hex
        self.pinned = pinned
        self.shared = False  # whether the server is the project's own
        self._url: str | None = None
        self._restarted = False
        self._environment: dict[str, str | None] = {}

    def begin(self) -> SharedServer:
        """Find or start a server and return at once; `PREFECT_API_URL` is set, but may not answer yet."""
        configured = configured_url()
        if configured and answers(configured):
            self._url = configured
            self._set_environment({})
            return self
        with _locked(self.project):
            state = _read(self.project)
            if configured and (state is None or configured != state.url):
                log.warning("no Prefect server answers at %s: using one in %s", configured, home(self.project))
            if state is None or _is_dead(state):
                state = _start(self.project, state, self.host)
            self._join(state)
        return self

    def wait(self, timeout: float | None = None) -> str:
        """The API's URL, once it answers.

        Raises:
            UserError: it does not, within `timeout` seconds.
        """
        assert self._url is not None, "begin() comes first"
        deadline = time.monotonic() + (STARTUP_SECONDS if timeout is None else timeout)
        while not self.ready():
            if self.shared and not self._replaced():
                raise self._failed("the Prefect server ended while it was starting")
            if time.monotonic() > deadline:
                raise self._failed("the Prefect server does not answer")
            time.sleep(0.1)
        if self.shared:
            _ensure_work_pools(self._url)
        return self._url

    def ready(self) -> bool:
        """Whether the server answers now."""
        return self._url is not None and answers(self._url, 1.0)

    def release(self) -> None:
        """Give the server back; the last user ends it. Safe to call twice."""
        self._restore_environment()
        if not self.shared:
            return
        self.shared = False
        with _locked(self.project):
            state = _read(self.project)
            if state is None:
                return
            state = _without_dead_users(replace(state, users=tuple(u for u in state.users if u.token != self.token)))
            if state.users:
                _write(self.project, state)
            else:
                _end(self.project, state)

    def _replaced(self) -> bool:
        """Whether a server runs, which may be a new one because the port of the old one was taken meanwhile."""
        with _locked(self.project):
            state = _read(self.project)
            if state is None:
                return False
            if not runs(state.pid, state.start):
                if self._restarted and _port(state.port) == state.port:
                    return False  # twice, and it was not the port
                self._restarted = True  # once may be a port that a dead server had not let go of yet
                state = _start(self.project, state, self.host)
            self._join(state)
            return True

    def _join(self, state: State) -> None:
        me = User(os.getpid(), psutil.Process().create_time(), self.token, self.pinned)
        others = tuple(user for user in _without_dead_users(state).users if user.token != self.token)
        if self.pinned:
            others = tuple(user for user in others if not user.pinned)
        state = replace(state, users=(*others, me))
        _write(self.project, state)
        self.shared, self._url = True, state.url
        self._set_environment({"PREFECT_API_URL": state.url, "PREFECT_HOME": str(home(self.project))})

    def _failed(self, what: str) -> UserError:
        where, fix = str(self._url), "start that server, or unset PREFECT_API_URL to use one of the project's own"
        if self.shared:
            where = str(log_path(self.project))
            fix = "read the end of that file; `inverse-alignment server stop` clears what is left of it"
        self.release()
        return UserError(what, where=where, fix=fix)

    def _set_environment(self, values: dict[str, str]) -> None:
        quiet = {
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
        }
        if login := os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
            quiet["PREFECT_API_AUTH_STRING"] = login
        for name, value in {**quiet, **values}.items():
            self._environment.setdefault(name, os.environ.get(name))
            os.environ[name] = value
        _refresh_prefect()

    def _restore_environment(self) -> None:
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment = {}
        _refresh_prefect()


@contextmanager
def prefect_server(project: Path) -> Iterator[str]:
    """A Prefect API for the duration of a block, at the yielded URL: the configured one, or the project's own.

    Raises:
        UserError: a server was started but does not answer.
    """
    server = SharedServer(project).begin()
    try:
        yield server.wait()
    finally:
        server.release()


def start(project: Path, host: str = HOST) -> str:
    """Start the project's server, or find it, and keep it until `stop`; its URL.

    Raises:
        UserError: it does not answer, or it runs already and listens on another address.
    """
    with _locked(project):
        state = _read(project)
    if state is not None and runs(state.pid, state.start) and state.host != host:
        fix = "end it first: `inverse-alignment server stop`"
        raise UserError(f"the Prefect server runs already, on {state.host}", where=f"--host {host}", fix=fix)
    server = SharedServer(project, pinned=True, host=host).begin()
    url = server.wait()
    server._restore_environment()
    return url


def stop(project: Path) -> bool:
    """End the project's server, whoever uses it; whether there was one."""
    with _locked(project):
        state = _read(project)
        if state is None:
            return False
        found = runs(state.pid, state.start)
        _end(project, state)
        return found


def status(project: Path) -> Status:
    """Whether the project's server runs and answers, and how many processes use it."""
    with _locked(project):
        state = _read(project)
    if state is None or not runs(state.pid, state.start):
        return Status(None, False, None, 0, False, log_path(project))
    users = _without_dead_users(state).users
    pinned = any(user.pinned for user in users)
    return Status(state.url, answers(state.url), state.pid, len(users) - pinned, pinned, log_path(project))


def home(project: Path) -> Path:
    """Where the project's Prefect keeps its database, log and state."""
    return project.resolve() / ".prefect"


def log_path(project: Path) -> Path:
    """The log of the project's server."""
    return home(project) / "server.log"


def answers(url: str, timeout: float = ANSWER_SECONDS) -> bool:
    """Whether a Prefect API answers at `url`; one that asks for a login does."""
    request = urllib.request.Request(f"{url.rstrip('/')}/health")  # noqa: S310 - the user's or our own URL
    if key := os.environ.get("PREFECT_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with opener(url).open(request, timeout=timeout):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False


def opener(url: str) -> urllib.request.OpenerDirector:
    """Loopback is never asked through a proxy."""
    local = any(host in url for host in (HOST, "localhost", "[::1]"))
    return urllib.request.build_opener(urllib.request.ProxyHandler({}) if local else urllib.request.ProxyHandler())


def _ensure_work_pools(url: str) -> None:
    """`prefect deploy` refuses a pool that does not exist: the project's own server has those of `prefect.yaml`."""
    for name, pool in WORK_POOLS.items():
        body = {"name": name, "type": "process", "description": pool.description}
        request = urllib.request.Request(  # noqa: S310 - our own URL
            f"{url}/work_pools/", json.dumps(body).encode(), {"Content-Type": "application/json", **_login()}
        )
        try:
            opener(url).open(request, timeout=ANSWER_SECONDS).close()
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.CONFLICT:  # it is there
                log.warning("the work pool %s could not be made: %s", name, error)
        except OSError as error:
            log.warning("the work pool %s could not be made: %s", name, error)


def _login() -> dict[str, str]:
    """The header for a server that asks who one is."""
    login = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}


def configured_url() -> str | None:
    """The API URL a person configured: environment, `.env`, `prefect.toml`, `pyproject.toml`, active profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    for line in _text(Path(".env")).splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "PREFECT_API_URL":
            return value.strip().strip("\"'") or None
    tool = _toml(Path("pyproject.toml")).get("tool", {})
    for settings in (_toml(Path("prefect.toml")), tool.get("prefect", {})):
        if url := settings.get("api", {}).get("url"):
            return str(url)
    folder = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = _toml(Path(os.environ.get("PREFECT_PROFILES_PATH") or folder / "profiles.toml"))
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return str(url) if url else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _toml(path: Path) -> dict:
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError:
        return {}  # Prefect itself complains about it


@contextmanager
def _locked(project: Path) -> Iterator[None]:
    """Exclusive access to `server.json`; the kernel frees the lock when its owner dies."""
    home(project).mkdir(parents=True, exist_ok=True)
    ignore = home(project) / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    with (home(project) / "server.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(project: Path) -> State | None:
    """The state, or None; one that cannot be read is as good as none."""
    try:
        values = json.loads((home(project) / "server.json").read_text())
        return State(**{**values, "users": tuple(User(**user) for user in values["users"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        log.warning("%s is damaged and is written anew", home(project) / "server.json")
        return None


def _write(project: Path, state: State) -> None:
    write_json(home(project) / "server.json", asdict(state))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON so that no reader meets half a file."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.rename(path)


def _without_dead_users(state: State) -> State:
    return replace(state, users=tuple(user for user in state.users if user.pinned or runs(user.pid, user.start)))


def _is_dead(state: State) -> bool:
    """Whether the recorded server is gone, or has had time to start and three times gave no answer."""
    if not runs(state.pid, state.start):
        return True
    if time.time() - state.since < STARTUP_SECONDS:
        return False
    return not any(answers(state.url) for _ in range(3))


def _start(project: Path, old: State | None, host: str) -> State:
    """Start a supervisor with a server; in place of an old one on its port, so that its other users find it again."""
    host = old.host if old else host
    if old is not None:
        _end(project, old)
    port = _port(old.port if old else 0)
    with log_path(project).open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.server", str(project), str(port), str(WATCH_SECONDS), host],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    users = _without_dead_users(old).users if old else ()
    state = State(process.pid, psutil.Process(process.pid).create_time(), port, time.time(), users, host)
    process.returncode = 0  # it is meant to outlive us: no ResourceWarning
    _write(project, state)
    return state


def _port(preferred: int) -> int:
    """`preferred` if it is free, or becomes so at once, as a dying process lets go of it; else any free one."""
    for attempt in range(20 if preferred else 0):
        if attempt:
            time.sleep(0.1)
        if found := _bindable(preferred):
            return found
    if found := _bindable(0):
        return found
    raise UserError("no free port on the loopback interface", where=HOST, fix="end some servers, then run again")


def _bindable(port: int) -> int | None:
    with socket.socket() as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])
    return None


def _end(project: Path, state: State) -> None:
    """SIGTERM to the supervisor, then SIGKILL to what is left of its process group."""
    (home(project) / "server.json").unlink(missing_ok=True)
    if runs(state.pid, state.start):
        with suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGTERM)  # it ends the server and waits for it
        deadline = time.monotonic() + STOP_SECONDS
        while runs(state.pid, state.start) and time.monotonic() < deadline:
            time.sleep(0.05)
        with suppress(ProcessLookupError, PermissionError):  # Darwin says "not permitted" of a group of zombies
            os.killpg(state.pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(state.pid, os.WNOHANG)  # where it was our child, the kernel may forget it now


def _refresh_prefect() -> None:
    """Prefect reads its settings once, at import: if that has been, have them read again."""
    if "prefect.context" in sys.modules:
        sys.modules["prefect.context"].refresh_global_settings_context()


def _supervise(project: Path, port: int, watch_seconds: float, host: str) -> None:
    """Run a server until it ends, until told to stop, or until nobody has used it for two looks."""
    signal.signal(signal.SIGTERM, _leave)
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", host, "--port", str(port)],
        cwd=project,
        env=_server_environment(project, port),
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        deserted = 0
        while server.poll() is None and deserted < 2:
            with suppress(subprocess.TimeoutExpired):
                server.wait(watch_seconds)
            deserted = deserted + 1 if _deserted(project, forget=deserted == 1) else 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.terminate()
        try:
            server.wait(STOP_SECONDS - 2)
        except subprocess.TimeoutExpired:
            server.kill()


def _deserted(project: Path, forget: bool) -> bool:
    """Whether nobody uses this supervisor's server, or the state names another one."""
    with _locked(project):
        state = _read(project)
        if state is None or state.pid != os.getpid():
            return True
        state = _without_dead_users(state)
        if state.users:
            _write(project, state)
        elif forget:
            (home(project) / "server.json").unlink()
        return not state.users


def _server_environment(project: Path, port: int) -> dict[str, str]:
    """The caller's environment, with nobody's Prefect settings but ours, and the login that it asks for."""
    kept = ("PREFECT_SERVER_API_AUTH_STRING",)
    others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") or name in kept}
    return {
        **others,
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home(project)),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_UI_API_URL": "/api",  # what its pages call, from wherever they are looked at
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _die_with_parent() -> None:
    """Linux: SIGTERM to the server when its supervisor dies, even by SIGKILL."""
    ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    _supervise(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
