"""Stages that train, in processes of their own: started by torchrun or accelerate, watched, and never left behind.

The launcher gets a session of its own. What a process has to do is a JSON file; what it says comes back through files
beside it: news of the first process line by line, and how each one ended. Nothing is pickled.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.launchers import Accelerate, InProcess, Torchrun
from inverse_alignment.core.metrics import Stopped

STOP_SECONDS = 22.0
"""From SIGTERM to SIGKILL for the processes; whoever sent ours is patient for somewhat longer."""
CRASH_SECONDS = 5.0
"""What the others get once one has failed."""
POLL_SECONDS = 0.1
LAST_LINES = 15
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TPU")
"""Kinds of accelerate's configuration in which a process does not hold the whole model, or no torchrun starts it."""
JOB, NEWS, OUTPUT = "job.json", "news.jsonl", "output.log"

Listener = Callable[[int, int, str, Mapping[str, float]], None]
log = logging.getLogger(__name__)


class LaunchFailed(RuntimeError):
    """A process of a launched stage ended with an error, or without a word."""


def launches(runtime: RuntimeConfig, stage: str) -> bool:
    """Whether a stage runs in processes of its own."""
    return not isinstance(runtime.launcher, InProcess) and stage in runtime.launcher.stages


def check(runtime: RuntimeConfig) -> None:
    """Refuse a launcher that cannot work, before anything is started.

    Raises:
        UserError: accelerate's configuration cannot be read, needs what is not installed, or is not for these stages.
    """
    launcher = runtime.launcher
    if not isinstance(launcher, Accelerate):
        return
    where = "runtime.launcher.config"
    try:
        settings = yaml.safe_load(Path(launcher.config).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        fix = "name a file that `accelerate config` wrote, or one of launch/"
        raise UserError(f"{launcher.config} cannot be read: {error}", where=where, fix=fix) from error
    kind = str(settings.get("distributed_type", "NO")) if isinstance(settings, Mapping) else "NO"
    if kind in ("NO", "TPU", "MEGATRON_LM"):
        fix = "use MULTI_GPU, FSDP or DEEPSPEED"
        raise UserError(f"{launcher.config} has distributed_type {kind}", where=where, fix=fix)
    if int(settings.get("num_machines") or 1) > 1:
        raise UserError(f"{launcher.config} is for several machines", where=where, fix="set num_machines: 1")
    if kind in SHARDED and "ppo" in launcher.stages:
        raise UserError(
            f"PPO cannot be trained sharded, as {launcher.config} asks for ({kind}): every process samples with all of "
            "the policy",
            where="runtime.launcher.stages",
            fix="leave ppo out of it, so that PPO runs in one process; or use torchrun, or launch/ddp.yaml",
        )
    if kind == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "deepspeed is not installed", where=where, fix="pip install deepspeed, or use launch/fsdp2.yaml"
        )


@dataclass(frozen=True)
class Job:
    """What every process of a launched stage has to do, as JSON."""

    module: str
    inputs: dict[str, str]
    config_type: str
    config: dict[str, Any]
    out: str
    partial: str
    runtime: dict[str, Any]
    seed: int
    processes: int
    supervisor: int
    supervisor_since: float

    @staticmethod
    def of(module: str, inputs: Mapping[str, Path], config: Section, context: StageContext) -> Job:
        """The job that builds a stage."""
        launcher = context.runtime.launcher
        assert not isinstance(launcher, InProcess)
        return Job(
            module=module,
            inputs={name: str(path.absolute()) for name, path in inputs.items()},
            config_type=f"{type(config).__module__}:{type(config).__qualname__}",
            config=config.model_dump(mode="json"),
            out=str(context.out.absolute()),
            partial=str(context.partial.absolute()),
            runtime=context.runtime.model_dump(mode="json"),
            seed=context.seed,
            processes=launcher.processes,
            supervisor=os.getpid(),
            supervisor_since=psutil.Process().create_time(),
        )

    def section(self) -> Section:
        """The stage's configuration."""
        module, _, name = self.config_type.partition(":")
        kind: type[Section] = getattr(importlib.import_module(module), name)
        return kind.model_validate(self.config)


def command(launcher: Torchrun | Accelerate, job: Path) -> list[str]:
    """The command line that starts `tasks.rank` in every process."""
    if isinstance(launcher, Torchrun):
        start = ["torch.distributed.run", "--standalone", f"--nproc-per-node={launcher.processes}", "-m"]
    else:
        start = ["accelerate.commands.launch", f"--config_file={launcher.config}"]
        start += [f"--num_processes={launcher.processes}", "--main_process_port=0", "--module"]
    return [sys.executable, "-m", *start, "tasks.rank", str(job)]


def build(
    module: str,
    inputs: Mapping[str, Path],
    config: Section,
    context: StageContext,
    listen: Listener,
    asked_to_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Build a stage in processes of its own; its headline metrics.

    Raises:
        Stopped: somebody asked, and a checkpoint was written.
        UserError: the stage refuses its inputs or its configuration.
        LaunchFailed: a process failed; the others are ended, and its last lines are in the message.
    """
    with tempfile.TemporaryDirectory(prefix="inverse-alignment-") as folder:
        launched = _Launched(Path(folder), Job.of(module, inputs, config, context), context.runtime)
        try:
            launched.follow(listen, asked_to_stop)
        except BaseException:
            launched.end(STOP_SECONDS)
            raise
        return launched.result()


class _Launched:
    """A launcher with all that it started."""

    def __init__(self, folder: Path, job: Job, runtime: RuntimeConfig) -> None:
        assert not isinstance(runtime.launcher, InProcess)
        self._folder, self._job = folder, job
        self._file = folder / JOB
        self._file.write_text(json.dumps(vars(job)))
        self._read = 0
        self._asked = self._killed = False
        threads = runtime.threads or max(1, (os.cpu_count() or 1) // job.processes)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with (folder / OUTPUT).open("wb") as output:
            self._launcher = subprocess.Popen(
                command(runtime.launcher, self._file),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def follow(self, listen: Listener, asked_to_stop: Callable[[], bool]) -> None:
        """Pass on the news until all processes have ended."""
        deadline = float("inf")
        while self._launcher.poll() is None or self._alive():
            self._pass_on(listen)
            if asked_to_stop() and not self._asked:
                self._asked = True
                self._signal_group(signal.SIGTERM)
                deadline = time.monotonic() + STOP_SECONDS
            if any(end["state"] == "failed" for end in self._ends().values()):
                deadline = min(deadline, time.monotonic() + CRASH_SECONDS)
            if time.monotonic() > deadline:
                self._kill()
            time.sleep(POLL_SECONDS)
        self._pass_on(listen)

    def end(self, seconds: float) -> None:
        """Ask all processes to end, and see to it that they do."""
        self._signal_group(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        try:
            while (self._launcher.poll() is None or self._alive()) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        finally:
            self._kill()

    def result(self) -> dict[str, Any]:
        """What the stage returned, or what went wrong, raised."""
        ends = self._ends()
        failed = sorted((end for end in ends.values() if end["state"] == "failed"), key=lambda end: end["at"])
        silent = sorted(rank for rank, end in ends.items() if end["state"] == "running")
        if self._asked and (silent or len(ends) < self._job.processes):
            raise Stopped("stopped before a checkpoint could be written; the one before it is still there")
        if failed and (self._killed or not silent):
            raise self._failure(failed[0])
        if silent:
            raise LaunchFailed(f"{self._who(silent[0])} ended without a word, as if killed{self._last_lines()}")
        if len(ends) < self._job.processes:
            raise LaunchFailed(f"{len(ends)} of {self._job.processes} processes started{self._last_lines()}")
        if stopped := [end["message"] for end in ends.values() if end["state"] == "stopped"]:
            raise Stopped(stopped[0])
        metrics: dict[str, Any] = ends[0]["metrics"]
        return metrics

    def _failure(self, end: Mapping[str, Any]) -> Exception:
        if user := end.get("user_error"):
            return UserError(**user)
        failure = LaunchFailed(f"{self._who(end['rank'])} failed: {end['message']}\n{end['traceback']}")
        if end.get("errno"):
            failure.__cause__ = OSError(end["errno"], os.strerror(end["errno"]), end.get("filename"))
        return failure

    def _who(self, rank: int) -> str:
        return f"process {rank} of {self._job.processes} of {self._job.module.rpartition('.')[2]}"

    def _last_lines(self) -> str:
        text = (self._folder / OUTPUT).read_text(encoding="utf-8", errors="replace")
        return ". Last lines:\n" + "\n".join(text.splitlines()[-LAST_LINES:])

    def _ends(self) -> dict[int, dict[str, Any]]:
        """How far each process is that has started, or how it ended."""
        found = [json.loads(path.read_text()) for path in self._folder.glob("rank-*.json")]
        return {end["rank"]: end for end in found}

    def _pass_on(self, listen: Listener) -> None:
        path = self._folder / NEWS
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        progress = None
        for line in whole.splitlines():
            news = json.loads(line)
            if "warning" in news:
                log.warning("%s", news["warning"])
            else:
                progress = news
        if progress is not None:
            listen(progress["done"], progress["total"], progress["unit"], progress["values"])

    def _alive(self) -> list[psutil.Process]:
        """Every process that was started for this job, whoever its parent is now: its file is on the command line."""
        name, found = str(self._file), []
        for process in psutil.process_iter(["cmdline", "status"]):
            if name in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def _signal_group(self, number: int) -> None:
        """Signal the launcher and what shares its group: accelerate does not pass signals on."""
        try:
            os.killpg(self._launcher.pid, number)
        except ProcessLookupError:
            return

    def _kill(self) -> None:
        alive = self._alive()
        self._killed = self._killed or bool(alive)
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._launcher.wait()
