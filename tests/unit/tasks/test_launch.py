"""Real launchers and a toy stage: news come back, whoever fails is named, and nobody is left behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml
from pydantic import ValidationError

from inverse_alignment.config import load
from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.errors import UserError, no_room
from inverse_alignment.core.launchers import TRAINING_STAGES, Accelerate, InProcess, Torchrun
from inverse_alignment.core.metrics import FileReport, Stopped, never, read_metrics
from inverse_alignment.core.store import Store
from inverse_alignment.stages.registry import STAGES
from tasks import launch
from tasks.run_stage import Execute
from tests.unit.tasks.toy_launched import Counting

DDP = "launch/ddp.yaml"
EITHER = ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)]
LAUNCHERS = {"torchrun": Torchrun(processes=2), "accelerate": Accelerate(config=DDP, processes=2)}
TOY = "tests.unit.tasks.toy_launched"


def launched(folder: Path, launcher, asked=never, **counting):
    """Launch the toy stage in `folder`; its metrics, and what it said."""
    runtime = RuntimeConfig(device="cpu", launcher=launcher)
    for name in ("out", "partial"):
        (folder / name).mkdir(exist_ok=True)
    context = StageContext(folder / "out", folder / "partial", FileReport(folder / "m.jsonl"), runtime, seed=7)
    news: list[tuple[int, int, str, dict[str, float]]] = []
    metrics = launch.build(TOY, {"data": folder}, Counting(**counting), context, lambda *one: news.append(one), asked)
    return metrics, news


def started_in(folder: Path) -> list[psutil.Process]:
    """Launchers and processes of jobs below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if f"tasks.rank {folder}" in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.fixture(autouse=True)
def nobody_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield
    assert not started_in(tmp_path)


@pytest.mark.parametrize("launcher", EITHER)
def test_two_processes_build_a_stage_and_the_first_one_writes_and_has_news(tmp_path, caplog, launcher):
    with caplog.at_level(logging.WARNING, "tasks.launch"):
        metrics, news = launched(tmp_path, LAUNCHERS[launcher])
    assert metrics == {"met": 2, "odd": float("inf")}
    assert (tmp_path / "out" / "who.txt").read_text() == "0 of 2: [0, 1], ['data'], 7"
    assert news[-1][:3] == (3, 3, "steps") and news[-1][3]["met"] == 2.0
    rows = read_metrics(tmp_path / "partial" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[0] == {"step": 1, "met": 2.0, "nothing": None}
    assert caplog.messages == ["process 0 of 2 has started"]  # once, not by everyone


ENDS = {
    "1:raise": (launch.LaunchFailed, "process 1 of 2 of toy_launched failed: FloatingPointError: the loss is nan"),
    "0:raise": (launch.LaunchFailed, "process 0 of 2 of toy_launched failed: FloatingPointError: the loss is nan"),
    "1:kill": (launch.LaunchFailed, "process 1 of 2 of toy_launched ended without a word, as if killed. Last lines:"),
    "1:refuse": (UserError, "no source policy 'x'\n  where: sft.sources\n  fix:   did you mean 'y'?"),
    "0:full": (launch.LaunchFailed, "No space left on device: '/somewhere/model.safetensors'"),
}


@pytest.mark.parametrize(
    "ends", [pytest.param(ends, marks=[pytest.mark.slow] if ends[2:] in ("refuse", "full") else []) for ends in ENDS]
)
def test_a_process_that_ends_badly_ends_the_others_and_is_named(tmp_path, monkeypatch, ends):
    kind, message = ENDS[ends]
    monkeypatch.setenv("TOY_ENDS", ends)
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        launched(tmp_path, LAUNCHERS["torchrun"], steps=10_000)
    assert message in str(caught.value) and time.monotonic() - began < 60
    if ends.endswith("raise"):
        assert 'toy_launched.py", line' in str(caught.value)  # its last lines
    full = no_room(caught.value)
    assert (full is not None) == (ends == "0:full")
    assert full is None or (isinstance(full, OSError) and full.filename == "/somewhere/model.safetensors")
    assert not list((tmp_path / "out").iterdir())


def supervisor(folder: Path, launcher, steps=10_000, **environment: str) -> subprocess.Popen[str]:
    """A supervisor in a process of its own, some steps after the start."""
    order = [str(folder), json.dumps(launcher.model_dump(mode="json")), str(steps)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.tasks.supervising", *order],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip().isdigit(), process.communicate()[1]
    return process


@pytest.mark.parametrize("launcher", EITHER)
def test_sigterm_reaches_everyone_and_each_ends_after_its_step(tmp_path, launcher):
    process = supervisor(tmp_path, LAUNCHERS[launcher])
    assert len(started_in(tmp_path)) >= 3  # a launcher and two processes
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM and time.monotonic() - began < 25
    assert not started_in(tmp_path) and "Stopped" not in errors  # the signal, not an error, ended it
    assert int((tmp_path / "partial" / "step.txt").read_text()) < 10_000


@pytest.mark.parametrize("launcher", EITHER)
def test_when_the_supervisor_is_killed_nobody_lives_on(tmp_path, launcher):
    process = supervisor(tmp_path, LAUNCHERS[launcher])
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 25
    while started_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not started_in(tmp_path)


@pytest.mark.slow
def test_a_process_that_does_not_hear_is_killed_when_the_time_is_up(tmp_path):
    process = supervisor(tmp_path, LAUNCHERS["torchrun"], TOY_ENDS="1:hang")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert launch.STOP_SECONDS - 1 < time.monotonic() - began < 25


@pytest.mark.slow
def test_an_interrupt_ends_everyone_too(tmp_path):
    def interrupted() -> bool:
        if (tmp_path / "partial" / "step.txt").exists():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        launched(tmp_path, LAUNCHERS["torchrun"], interrupted, steps=10_000)
    assert not started_in(tmp_path)


@pytest.mark.slow
def test_asked_before_anything_was_done_it_stops_without_an_error(tmp_path):
    with pytest.raises(Stopped):
        launched(tmp_path, LAUNCHERS["torchrun"], lambda: True, steps=10_000)


@pytest.mark.slow
def test_a_launcher_that_cannot_start_says_so_with_its_last_lines(tmp_path):
    torn = tmp_path / "torn.yaml"
    torn.write_text("distributed_type: MULTI_GPU\nno_such_key: 1\ncompute_environment: LOCAL_MACHINE\n")
    with pytest.raises(launch.LaunchFailed, match=r"0 of 2 processes started\. Last lines:") as caught:
        launched(tmp_path, Accelerate(config=str(torn)))
    assert "no_such_key" in str(caught.value)


# what is refused before anything starts


def accelerate_file(folder: Path, **changes) -> str:
    settings = {**yaml.safe_load(Path(DDP).read_text()), **changes}
    (folder / "a.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "a.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distributed_type": "FSDP"}, "PPO cannot be trained sharded"),
        ({"distributed_type": "DEEPSPEED"}, "PPO cannot be trained sharded"),
        ({"distributed_type": "NO"}, "has distributed_type NO"),
        ({"num_machines": 2}, "is for several machines"),
    ],
)
def test_a_configuration_of_accelerate_that_cannot_work_is_refused(tmp_path, changes, message):
    runtime = RuntimeConfig(launcher=Accelerate(config=accelerate_file(tmp_path, **changes)))
    with pytest.raises(UserError, match=message) as caught:
        Execute(Store(tmp_path / "store"), runtime)
    assert caught.value.where.startswith("runtime.launcher.") and not (tmp_path / "store").exists()


def test_without_ppo_a_sharded_configuration_is_for_the_others(tmp_path):
    stages = tuple(stage for stage in TRAINING_STAGES if stage != "ppo")
    runtime = RuntimeConfig(
        launcher=Accelerate(config=accelerate_file(tmp_path, distributed_type="FSDP"), stages=stages)
    )
    launch.check(runtime)
    assert launch.launches(runtime, "sft") and not launch.launches(runtime, "ppo")
    deepspeed = Accelerate(config=accelerate_file(tmp_path, distributed_type="DEEPSPEED"), stages=stages)
    with pytest.raises(UserError, match="deepspeed is not installed"):
        launch.check(RuntimeConfig(launcher=deepspeed))


def test_a_file_that_is_none_is_refused(tmp_path):
    for config in (str(tmp_path / "nowhere.yaml"), str(tmp_path)):
        with pytest.raises(UserError, match="cannot be read"):
            launch.check(RuntimeConfig(launcher=Accelerate(config=config)))


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["runtime.launcher={type: torchrun, processes: 3}"], "sft.batch_size, which is 16"),
        (["runtime.launcher={type: torchrun, processes: 32, stages: [ppo]}", "ppo.minibatches=4"], "which is 64"),
        (
            ["runtime.launcher={type: torchrun, processes: 4}", "arms={a: {refresh: {batch_size: 30}}}"],
            "arms.a.refresh.batch_size, which is 30",
        ),
    ],
)
def test_batches_that_cannot_be_shared_out_are_refused(overrides, what):
    with pytest.raises(UserError, match=what) as caught:
        load(Path("params.yaml"), overrides=overrides)
    assert caught.value.where.startswith("runtime.launcher.processes")


def test_what_can_be_shared_out_is_not():
    found = load(Path("params.yaml"), overrides=["runtime.launcher={type: torchrun, processes: 3, stages: [ppo]}"])
    assert found.runtime.launcher == Torchrun(processes=3, stages=("ppo",))
    assert load(Path("params.yaml")).runtime.launcher == InProcess()
    with pytest.raises(ValidationError):
        RuntimeConfig(launcher=Torchrun.model_validate({"stages": ["rollout"]}))


def test_the_stages_that_train_are_those_that_keep_checkpoints():
    assert {*TRAINING_STAGES, "direct"} == {
        name for name, spec in STAGES.items() if spec.resumes
    }  # that in one process


def test_a_job_survives_json(tmp_path):
    config = load(Path("params.yaml"))
    runtime = RuntimeConfig(launcher=Torchrun())
    context = StageContext(tmp_path, tmp_path, FileReport(tmp_path / "m"), runtime, seed=3)
    for section in (config.sft, config.reward, config.refresh, config.ppo, config.token_reward):
        job = launch.Job.of("m", {"a": tmp_path}, section, context)
        again = launch.Job(**json.loads(json.dumps(vars(job))))
        assert again == job and again.section() == section
        assert RuntimeConfig.model_validate(again.runtime) == runtime
