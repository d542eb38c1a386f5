"""Slots: one run at a time on each accelerator of this machine, whoever started it: a worker, a shell or DVC.

A slot is an OS lock on a file with its owner's name in it, so that it is free again the moment its owner is dead, by
`kill -9` too. (Prefect's own concurrency limits are polled, and keep the slot of a killed process for minutes.)

A run needs as many devices as its launcher has processes, and takes the first of those it can see: `cuda` is the first
of `CUDA_VISIBLE_DEVICES`, or of the machine. Workers that are to run side by side get different devices there, all of
them by index or all by UUID. `INVERSE_ALIGNMENT_SLOT` names something else to take turns at, for example the cores of a
machine without GPU that several people use.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.launchers import InProcess
from inverse_alignment.core.store import Entry
from inverse_alignment.stages.registry import STAGES
from tasks.run_stage import Node, Stages

POLL_SECONDS = 1.0
REMIND_SECONDS = 60.0
SLOT = "INVERSE_ALIGNMENT_SLOT"
DEVICES = Path("/dev")

Waiting = Callable[[float, str], None]
"""Told after how many seconds of waiting for whom; called every `POLL_SECONDS`."""
log = logging.getLogger(__name__)


class Slots:
    """The right to use the devices of a run. Taking it twice in one process is one taking.

    Args:
        runtime: says whether and how many devices are used.
        folder: where the lock files are; by default one for all projects of this user.
    """

    def __init__(self, runtime: RuntimeConfig, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir()) / f"inverse-alignment-{os.getuid()}"
        self.names = needed(runtime)
        self._held: dict[str, TextIO] = {}

    def acquire(self, owner: str, waiting: Waiting | None = None) -> None:
        """Wait until all slots are ours, in one order for everybody; at once where no device is used."""
        try:
            for name in sorted(set(self.names) - set(self._held)):
                self._held[name] = self._take(name, owner, waiting or _remind(owner))
        except BaseException:  # a cancel, while waiting for the second of two
            self.release()
            raise

    def release(self) -> None:
        """Give the slots back; harmless if none is held."""
        while self._held:
            _, file = self._held.popitem()
            file.truncate(0)
            file.close()

    def _take(self, name: str, owner: str, waiting: Waiting) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / f"{name}.lock").open("a+")
        began = time.monotonic()
        try:
            while not _try_lock(file):
                file.seek(0)
                waiting(time.monotonic() - began, file.read().strip() or "another run")
                time.sleep(POLL_SECONDS)
        except BaseException:
            file.close()
            raise
        file.truncate(0)
        file.write(f"{owner}, process {os.getpid()}\n")
        file.flush()
        return file


class HoldsSlots:
    """An observer that has the slots while a stage runs that wants an accelerator."""

    def __init__(self, slots: Slots, stages: Stages = STAGES) -> None:
        self.slots, self.stages = slots, stages

    def started(self, node: Node, why: str) -> None:
        """See `Observer.started`."""
        if self.stages[node.stage].gpu:
            self.slots.acquire(node.name)

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """The slots stay as they are."""

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`."""
        self.slots.release()

    def failed(self, node: Node, error: BaseException) -> None:
        """See `Observer.failed`."""
        self.slots.release()


def needed(runtime: RuntimeConfig) -> tuple[str, ...]:
    """The slots that a run takes, as far as can be said without importing torch."""
    if name := os.environ.get(SLOT):
        return (_file_name(name),)
    if runtime.device == "cpu":
        return ()
    processes = 1 if isinstance(runtime.launcher, InProcess) else runtime.launcher.processes
    return tuple(f"gpu-{_file_name(device)}" for device in visible_devices()[:processes])


def visible_devices() -> tuple[str, ...]:
    """Indices or UUIDs of the GPUs that CUDA shows to this process; none where there is no driver."""
    present = len([device for device in DEVICES.glob("nvidia[0-9]*") if device.name[6:].isdigit()])
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not present or named is None:
        return tuple(str(index) for index in range(present))
    devices: list[str] = []
    for device in (part.strip() for part in named.split(",")):
        if device in ("", "-1"):  # CUDA too stops reading there
            break
        devices.append(device)
    return tuple(devices)


def _remind(owner: str) -> Waiting:
    """A warning now and then, where nobody else shows the waiting."""
    reminded = -REMIND_SECONDS

    def remind(seconds: float, holder: str) -> None:
        nonlocal reminded
        if seconds - reminded >= REMIND_SECONDS:
            reminded = seconds
            log.warning("%s waits for the device, which %s has", owner, holder)

    return remind


def _file_name(text: str) -> str:
    return re.sub(r"[^\w-]", "-", text)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
