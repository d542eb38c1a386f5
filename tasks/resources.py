"""The accelerator slot: one stage at a time on the devices this process can see.

A slot is an OS lock with its owner's name in it, so that it is free again the moment its owner is dead. (Prefect's own
concurrency limits are polled, and keep the slot of a killed process for minutes.) On a machine with several GPUs start
one worker per GPU, each with its own `CUDA_VISIBLE_DEVICES`: each has a slot of its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TextIO

from inverse_alignment.core.context import RuntimeConfig

POLL_SECONDS = 1.0
REMIND_SECONDS = 60.0

log = logging.getLogger(__name__)


class GpuSlot:
    """The right to use the visible devices. Taking it twice in one process is one taking."""

    def __init__(self, runtime: RuntimeConfig, folder: Path | None = None) -> None:
        folder = folder or Path(tempfile.gettempdir()) / f"inverse-alignment-{os.getuid()}"
        self.path = folder / f"gpu-{visible_devices().replace(',', '-') or 'all'}.lock"
        self.needed = uses_gpu(runtime)
        self._file: TextIO | None = None

    def acquire(self, owner: str) -> None:
        """Wait for the slot, saying now and then for whom; returns at once where no accelerator is used."""
        if not self.needed or self._file is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        reminded = -REMIND_SECONDS
        while not _try_lock(file):
            if time.monotonic() - reminded > REMIND_SECONDS:
                reminded = time.monotonic()
                log.warning("%s waits for the GPU, which %s has", owner, self.path.read_text().strip() or "another run")
            time.sleep(POLL_SECONDS)
        file.truncate(0)
        file.write(f"{owner} (pid {os.getpid()})\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the slot back; harmless if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None


def uses_gpu(runtime: RuntimeConfig) -> bool:
    """Whether a stage that wants an accelerator will find one, as far as can be said without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return runtime.device != "cpu" and not hidden and Path("/dev/nvidiactl").exists()


def visible_devices() -> str:
    """`CUDA_VISIBLE_DEVICES`, or nothing where it is not set."""
    return "".join(
        letter for letter in os.environ.get("CUDA_VISIBLE_DEVICES", "") if letter.isalnum() or letter in ",-"
    )


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
