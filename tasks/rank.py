"""One process of a launched stage: `python -m tasks.rank JOB.json`, started by torchrun or accelerate.

All processes build the stage together; the first one alone writes the artifact and the checkpoints, and has news.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from inverse_alignment.core.artifact import METRICS
from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.errors import UserError, no_room
from inverse_alignment.core.metrics import FileReport, Report, Stopped
from inverse_alignment.core.parallel import Group, group
from tasks.launch import NEWS, STOP_SECONDS, Job

LONGEST_WAIT = timedelta(days=1)
"""For the first process, which measures and writes while the others have nothing to do."""


class Quiet:
    """The report of a process that is not the first: the first one says the same."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Report.log`."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """See `Report.progress`."""

    def stopping(self) -> bool:
        """See `Report.stopping`; the first process is asked."""
        return False


class News(logging.Handler):
    """Where the first process says how far it is, and what it warns of."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = path

    def listen(self, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """A listener of `FileReport`."""
        self._say({"done": done, "total": total, "unit": unit, "values": dict(values)})

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self._say({"warning": record.getMessage()})

    def _say(self, news: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(news) + "\n")


def main(file: Path) -> int:
    """Build the stage of a job; 0 if it was built or stopped as asked."""
    rank = int(os.environ["RANK"])
    asked = _listen_for_sigterm()
    job = Job(**json.loads(file.read_text()))

    def say(end: Mapping[str, Any]) -> None:
        path = file.parent / f"rank-{rank}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"rank": rank, "at": time.time(), **end}))
        temporary.rename(path)

    say({"state": "running"})
    threading.Thread(target=_watch, args=(job, asked), daemon=True).start()
    runtime = RuntimeConfig.model_validate(job.runtime)
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            _process_group(runtime, job.processes) as us,
            _owned(Path(job.partial), us),
        ):
            out = Path(job.out) if rank == 0 else Path(scratch)
            report = _first_report(job, file.parent, asked.is_set) if rank == 0 else Quiet()
            end = _built(job, StageContext(out, Path(job.partial), report, runtime, job.seed))
            say(end)  # before the group is taken apart, where the others fail: the first to fail is to blame
            if end["state"] == "done":
                us.wait()
    except BaseException as error:
        end = _described(error)
        say(end)
    return int(end["state"] == "failed")


def _first_report(job: Job, folder: Path, asked_to_stop: Callable[[], bool]) -> Report:
    news = News(folder / NEWS)
    logging.getLogger("inverse_alignment").addHandler(news)
    return FileReport(Path(job.partial) / METRICS, news.listen, asked_to_stop)


def _built(job: Job, context: StageContext) -> dict[str, Any]:
    """How building the stage ended."""
    inputs = {name: Path(path) for name, path in job.inputs.items()}
    try:
        metrics = importlib.import_module(job.module).build(inputs, job.section(), context)
    except Stopped as stopped:
        return {"state": "stopped", "message": str(stopped)}
    except BaseException as error:
        return _described(error)
    return {"state": "done", "metrics": metrics}


@contextmanager
def _process_group(runtime: RuntimeConfig, processes: int) -> Iterator[Group]:
    """All processes, able to talk: over NCCL with a GPU each, or over gloo."""
    import torch

    from inverse_alignment.models.loading import pick_device

    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    gpu = pick_device(runtime.device).type == "cuda"
    if gpu:
        if torch.cuda.device_count() < processes:
            raise UserError(
                f"{processes} processes, but {torch.cuda.device_count()} GPUs",
                where="runtime.launcher.processes",
                fix="set it to the number of GPUs, or runtime.device=cpu",
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if gpu else "gloo", timeout=LONGEST_WAIT)
    try:
        yield group()
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _owned(partial: Path, us: Group) -> Iterator[None]:
    """The partial state, for these processes alone: those of a killed run may still write their last checkpoint."""
    handle = os.open(partial, os.O_RDONLY)
    try:
        if us.rank == 0:
            fcntl.flock(handle, fcntl.LOCK_EX)
        us.wait()
        yield
    finally:
        os.close(handle)


def _listen_for_sigterm() -> threading.Event:
    """Set by SIGTERM, which arrives more than once: from the group, from the launcher, when a parent dies."""
    asked = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return asked


def _watch(job: Job, asked: threading.Event) -> None:
    """Stop when the supervisor is gone, as if it had asked; and do not outlive it for long."""
    while _runs(job.supervisor, job.supervisor_since):
        time.sleep(0.5)
    asked.set()
    time.sleep(STOP_SECONDS)
    os._exit(1)


def _runs(pid: int, since: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - since) < 1.0
    except psutil.NoSuchProcess:
        return False


def _described(error: BaseException) -> dict[str, Any]:
    full = no_room(error)
    return {
        "state": "failed",
        "message": f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)[-3:]),
        "user_error": {"what": error.what, "where": error.where, "fix": error.fix}
        if isinstance(error, UserError)
        else None,
        "errno": full.errno if isinstance(full, OSError) else None,
        "filename": full.filename if isinstance(full, OSError) and isinstance(full.filename, str) else None,
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
