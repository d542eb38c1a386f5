"""`make up` and `make down`: a Prefect server, an MLflow server and a worker per pool, for as long as somebody wants.

The Prefect server is the project's own (`tasks/server.py`), pinned. What else is started stands in
`.prefect/services.json` with pid and start time, so that `down` ends exactly that, and nothing that came later under
the same number. Everything listens on the loopback interface, where no login is needed on a machine of one's own; on
any other address both servers are refused without one.

Light on purpose, like `tasks/server.py`: nothing here imports Prefect or MLflow.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from inverse_alignment.core.errors import UserError
from tasks import server
from tasks.processes import runs

MLFLOW_PORT = 5000
STARTUP_SECONDS = 120.0
STOP_SECONDS = 35.0  # a worker gives its flows 30 s to write a checkpoint
HEARTBEAT_SECONDS = 30
AUTH_STRING = "PREFECT_SERVER_API_AUTH_STRING"
ADMIN = ("MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD")
SECRET_KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # noqa: S105 - the variable's name
MLFLOW = "mlflow"


@dataclass(frozen=True)
class Service:
    """A process that `up` has started, the head of a process group of its own."""

    pid: int
    start: float
    url: str = ""

    def runs(self) -> bool:
        """Whether it is this very process that has the number."""
        return runs(self.pid, self.start)


@dataclass(frozen=True)
class Up:
    """What `up` says: addresses, and what stands where."""

    prefect: str
    mlflow: str
    workers: tuple[str, ...]


def up(project: Path, mlflow_uri: str, host: str = server.HOST) -> Up:
    """Start what does not run yet; what runs is left alone.

    Args:
        project: its folder.
        mlflow_uri: `tracking.mlflow_uri`; a server is started for a database, none for one that has an address.
        host: the address the servers listen on.

    Raises:
        UserError: another address than loopback without a login, or a server does not start.
    """
    project = project.resolve()
    require_login(host, os.environ)
    url = server.start(project, host)
    services = _running(project)
    if MLFLOW not in services and mlflow_uri and not mlflow_uri.startswith("http"):
        services[MLFLOW] = _start_mlflow(project, mlflow_uri, host)
        _write(project, services)
    _close_stale_runs(project, url)
    for pool in server.WORK_POOLS:
        if f"worker-{pool}" not in services:
            services[f"worker-{pool}"] = _start_worker(project, url, pool)
            _write(project, services)
    if MLFLOW in services:
        _wait(project, services[MLFLOW])
    return Up(url, services[MLFLOW].url if MLFLOW in services else mlflow_uri, tuple(server.WORK_POOLS))


def down(project: Path) -> list[str]:
    """End what `up` has started, workers first, so that their runs are stopped while there is a server to tell."""
    project = project.resolve()
    services = _running(project)
    workers = [name for name in services if name != MLFLOW]
    ended = [name for name in (*workers, MLFLOW) if name in services]
    _end([services[name] for name in workers])
    _end([services[name] for name in services if name == MLFLOW])
    _path(project).unlink(missing_ok=True)
    return [*ended, *(["prefect"] if server.stop(project) else [])]


def mlflow_page(mlflow_uri: str, project: Path) -> str:
    """The page of MLflow that compares runs, or the command that opens it."""
    running = _running(project.resolve()).get(MLFLOW)
    address = mlflow_uri if mlflow_uri.startswith("http") else running.url if running else ""
    if address:
        return f"{address}/#/experiments"
    return f"mlflow ui --backend-store-uri {mlflow_uri}" if mlflow_uri else "tracking is switched off"


def require_login(host: str, environment: Mapping[str, str]) -> None:
    """Refuse to be reachable from elsewhere without logins: whoever reaches a Prefect server can run code.

    Raises:
        UserError: one of the two servers would ask nobody who he is.
    """
    if is_loopback(host):
        return
    where = f"--host {host}"
    if not environment.get(AUTH_STRING):
        raise UserError(
            "Prefect's server would let everybody in who reaches it",
            where=where,
            fix=f"set {AUTH_STRING} to user:password, or stay on {server.HOST}",
        )
    if missing := [name for name in (*ADMIN, SECRET_KEY) if not environment.get(name)]:
        raise UserError(
            "MLflow's server would let everybody in who reaches it",
            where=where,
            fix=f"set {', '.join(missing)}, or stay on {server.HOST}",
        )
    if importlib.util.find_spec("flask_wtf") is None:
        raise UserError("MLflow's login is not installed", where=where, fix="pip install 'mlflow[auth]'")


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _start_mlflow(project: Path, uri: str, host: str) -> Service:
    port = server._port(MLFLOW_PORT)
    command = ["-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri]
    if not is_loopback(host):
        command += ["--app-name", "basic-auth"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    return _start(project, MLFLOW, command, quiet, f"http://{_reachable(host)}:{port}")


def _start_worker(project: Path, url: str, pool: str) -> Service:
    command = ["-m", "prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-{os.uname().nodename}"]
    command += ["--limit", str(server.WORK_POOLS[pool].limit)]
    settings = {
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(server.home(project)),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "DO_NOT_TRACK": "1",
        **_login(),
    }
    return _start(project, f"worker-{pool}", command, settings)


def _start(project: Path, name: str, arguments: list[str], settings: Mapping[str, str], url: str = "") -> Service:
    with (server.home(project) / f"{name}.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=project,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    start = psutil.Process(process.pid).create_time()
    process.returncode = 0  # it is meant to outlive us: no ResourceWarning
    return Service(process.pid, start, url)


def _close_stale_runs(project: Path, url: str) -> None:
    """Runs that died with the machine would keep their deployment's next run waiting."""
    settings = {"PREFECT_API_URL": url, "PREFECT_HOME": str(server.home(project))}
    command = [sys.executable, "-c", "from tasks.flow_process import close_stale_runs; close_stale_runs()"]
    environment = {**os.environ, **settings, **_login()}
    subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, check=True)


def _login() -> dict[str, str]:
    return {"PREFECT_API_AUTH_STRING": login} if (login := os.environ.get(AUTH_STRING)) else {}


def _wait(project: Path, service: Service) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while not _answers(service.url):
        if not service.runs() or time.monotonic() > deadline:
            raise UserError(
                "the MLflow server does not answer",
                where=str(server.home(project) / f"{MLFLOW}.log"),
                fix="read the end of that file, then `make down` and `make up`",
            )
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with server.opener(url).open(f"{url}/health", timeout=2.0):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False


def _reachable(host: str) -> str:
    return server.HOST if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound


def _end(services: list[Service]) -> None:
    """SIGTERM to all, time to end for all at once, then SIGKILL to what is left of their groups."""
    for service in services:
        with suppress(ProcessLookupError):
            os.kill(service.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while any(service.runs() for service in services) and time.monotonic() < deadline:
        time.sleep(0.1)
    for service in services:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(service.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(service.pid, os.WNOHANG)


def _running(project: Path) -> dict[str, Service]:
    try:
        values = json.loads(_path(project).read_text())
    except FileNotFoundError:
        return {}
    return {name: found for name, of in values.items() if (found := Service(**of)).runs()}


def _write(project: Path, services: Mapping[str, Service]) -> None:
    server.write_json(_path(project), {name: asdict(service) for name, service in services.items()})


def _path(project: Path) -> Path:
    return server.home(project) / "services.json"
