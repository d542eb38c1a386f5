"""A command in a session of its own that ends with its owner, even with one that is killed.

Between the two stands a guard. It leads the command's process group and reads a pipe that only the owner holds open:
when the pipe ends, because the owner closed it or is dead, the guard ends the whole group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class Supervised:
    """A running command.

    Attributes:
        guard: the process that leads the group and ends with the command's exit status.
        log: where stdout and stderr of the group go.
    """

    guard: subprocess.Popen[bytes]
    log: Path

    def status(self) -> int | None:
        """The exit status of the command, None while it runs."""
        return self.guard.poll()


@contextmanager
def supervised(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[Supervised]:
    """Run a command for as long as the block lasts.

    Args:
        command: a program that exists, and its arguments.
        log: written anew.
        environment: added to this process's own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        guard = subprocess.Popen(
            [sys.executable, "-m", __name__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield Supervised(guard, log)
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            guard.wait(GRACE_SECONDS + 5)
        with suppress(ProcessLookupError, PermissionError):  # Darwin says "not permitted" of a group of zombies
            os.killpg(guard.pid, signal.SIGKILL)  # what outlived the command
        guard.wait()


def _guard(command: Sequence[str]) -> int:
    """Run the command until it ends or the pipe does; its exit status."""
    # A handler, not SIG_IGN: the command would inherit that.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_owner, args=(process,), daemon=True).start()
    return process.wait()


def _end_with_owner(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1 << 10):  # not `sys.stdin`, whose lock this thread would hold when Python ends
        pass
    os.killpg(0, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[1:]))
