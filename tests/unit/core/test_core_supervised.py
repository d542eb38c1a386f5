"""A supervised command ends with its block and with its owner, and takes what it started along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from inverse_alignment.core import supervised as module
from inverse_alignment.core.supervised import supervised

FAMILY = """\
import os, signal, subprocess, sys, time
{prelude}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("pids", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def family(prelude: str = "") -> list[str]:
    """A command with a child of its own, both of which would stay for ten minutes."""
    return [sys.executable, "-c", FAMILY.format(prelude=prelude)]


def pids(log: Path) -> list[psutil.Process]:
    """The family's processes, as soon as they have said so."""
    for _ in range(600):
        for line in log.read_text().splitlines() if log.exists() else []:
            if line.startswith("pids "):
                return [psutil.Process(int(pid)) for pid in line.split()[1:]]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they end soon; nobody here has to reap them."""
    for _ in range(200):
        if not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
            return True
        time.sleep(0.05)
    return False


def test_the_group_ends_with_the_block_and_the_log_stays(tmp_path):
    log = tmp_path / "new" / "log"
    with supervised(family(), log, {}) as running:
        members = pids(log)
        assert running.status() is None
        assert all(os.getsid(p.pid) == running.guard.pid != os.getsid(0) for p in members)
    assert gone(members) and running.status() is not None
    assert log.read_text().startswith("pids ")


def test_it_ends_with_an_error_of_the_block_too(tmp_path):
    with pytest.raises(ZeroDivisionError), supervised(family(), tmp_path / "log", {}):
        members = pids(tmp_path / "log")
        raise ZeroDivisionError
    assert gone(members)


def test_who_does_not_heed_sigterm_is_killed(tmp_path, monkeypatch):
    deaf = family("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    text = Path(module.__file__).read_text().replace("GRACE_SECONDS = 10.0", "GRACE_SECONDS = 0.5")
    (tmp_path / "hasty_guard.py").write_text(text)
    monkeypatch.setattr(module, "__name__", "hasty_guard")
    with supervised(deaf, tmp_path / "log", {"PYTHONPATH": str(tmp_path)}):
        members = pids(tmp_path / "log")
        began = time.monotonic()
    assert gone(members) and 0.4 < time.monotonic() - began < 8


def test_sigterm_reaches_the_command(tmp_path):
    polite = family("signal.signal(signal.SIGTERM, lambda *_: (print('goodbye', flush=True), sys.exit(0)))")
    with supervised(polite, tmp_path / "log", {}):
        pids(tmp_path / "log")
    assert "goodbye" in (tmp_path / "log").read_text()


def test_it_ends_with_an_owner_that_is_killed(tmp_path):
    owner = (
        "import sys, time; from pathlib import Path\n"
        "from inverse_alignment.core.supervised import supervised\n"
        "with supervised(sys.argv[2:], Path(sys.argv[1]), {}): time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", owner, str(tmp_path / "log"), *family()])
    try:
        members = pids(tmp_path / "log")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert gone(members)


def test_the_status_is_that_of_the_command_and_what_it_left_behind_ends(tmp_path):
    leaves = family()
    leaves[-1] = leaves[-1].rpartition("time.sleep")[0] + "sys.exit(7)"
    with supervised(leaves, tmp_path / "log", {}) as running:
        for _ in range(200):
            if running.status() is not None:
                break
            time.sleep(0.05)
        assert running.status() == 7
        orphans = pids_of_log(tmp_path / "log")
    assert gone(orphans)


def pids_of_log(log: Path) -> list[psutil.Process]:
    line = next(line for line in log.read_text().splitlines() if line.startswith("pids "))
    return [psutil.Process(int(pid)) for pid in line.split()[1:] if psutil.pid_exists(int(pid))]


def test_the_environment_is_added_to_our_own(tmp_path, monkeypatch):
    monkeypatch.setenv("OURS", "yes")
    show = [sys.executable, "-c", "import os; print(os.environ['OURS'], os.environ['ADDED'])"]
    with supervised(show, tmp_path / "log", {"ADDED": "too"}) as running:
        assert running.guard.wait(60) == 0
    assert (tmp_path / "log").read_text() == "yes too\n"
