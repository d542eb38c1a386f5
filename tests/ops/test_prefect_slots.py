"""Slots: taken one after the other by real processes, free again when their owner is dead."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.launchers import Torchrun
from tasks import prefect_driver, slots
from tasks.run_stage import Node
from tasks.slots import HoldsSlots, Slots, needed

ROOT = Path(__file__).parents[2]
OWNER = """
import sys
from pathlib import Path
from inverse_alignment.core.context import RuntimeConfig
from tasks.slots import Slots
slots = Slots(RuntimeConfig(), Path(sys.argv[1]))
slots.acquire("ppo-s0")
print("has it", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with two GPUs, as far as device files say."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(slots, "DEVICES", tmp_path)
    monkeypatch.setattr(slots, "POLL_SECONDS", 0.05)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(slots.SLOT, raising=False)


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the slot called desk."""
    monkeypatch.setenv(slots.SLOT, "desk")
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.communicate()


def test_who_comes_second_waits_and_hears_for_whom(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    heard: list[str] = []

    def waiting(seconds: float, holder: str) -> None:
        heard.append(holder)
        if len(heard) == 3:
            assert owner.stdin is not None
            owner.stdin.write("\n")
            owner.stdin.flush()

    mine = Slots(RuntimeConfig(), tmp_path)
    mine.acquire("ppo-s1", waiting)
    assert len(heard) >= 3 and set(heard) == {f"ppo-s0, process {owner.pid}"}
    assert (tmp_path / "desk.lock").read_text().startswith("ppo-s1, process ")
    mine.release()
    assert (tmp_path / "desk.lock").read_text() == ""


def test_a_killed_owner_has_it_no_more(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    def waiting(seconds: float, holder: str) -> None:
        owner.kill()
        owner.wait()

    Slots(RuntimeConfig(), tmp_path).acquire("ppo-s1", waiting)
    assert owner.returncode == -9


class _Cancelled(BaseException):
    """As Prefect's signal of a cancel."""


def test_a_cancel_while_waiting_for_the_second_device_gives_the_first_back(tmp_path: Path) -> None:
    second = Slots(RuntimeConfig(), tmp_path)
    second.names = ("gpu-1",)
    second.acquire("other")
    both = Slots(RuntimeConfig(launcher=Torchrun(processes=2)), tmp_path)

    def waiting(seconds: float, holder: str) -> None:
        assert slots._try_lock((tmp_path / "gpu-0.lock").open("a+")) is False
        raise _Cancelled

    with pytest.raises(_Cancelled):
        both.acquire("mine", waiting)
    Slots(RuntimeConfig(), tmp_path).acquire("third", lambda seconds, holder: pytest.fail("gpu-0 is taken"))


@pytest.mark.parametrize(
    ("visible", "runtime", "expected"),
    [
        (None, RuntimeConfig(), ("gpu-0",)),
        (None, RuntimeConfig(launcher=Torchrun(processes=2)), ("gpu-0", "gpu-1")),
        (None, RuntimeConfig(device="cpu"), ()),
        ("1", RuntimeConfig(), ("gpu-1",)),
        ("1,0", RuntimeConfig(), ("gpu-1",)),
        ("MIG-4f/1/0", RuntimeConfig(), ("gpu-MIG-4f-1-0",)),
        ("", RuntimeConfig(), ()),
        ("-1", RuntimeConfig(), ()),
        ("1,-1,0", RuntimeConfig(launcher=Torchrun(processes=2)), ("gpu-1",)),
    ],
)
def test_a_run_needs_the_first_devices_that_it_sees(
    visible: str | None, runtime: RuntimeConfig, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert needed(runtime) == expected


def test_a_machine_without_gpus_needs_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(slots, "DEVICES", tmp_path / "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert needed(RuntimeConfig()) == ()


class Empty(Section):
    """A stage without configuration."""


def test_only_stages_that_want_an_accelerator_take_it(tmp_path: Path) -> None:
    mine, other = Slots(RuntimeConfig(), tmp_path), Slots(RuntimeConfig(), tmp_path)
    holds = HoldsSlots(mine)
    holds.started(Node("a", "aggregate", {}, Empty()), "never built")
    other.acquire("other", lambda seconds, holder: pytest.fail("it is taken"))
    other.release()
    holds.started(Node("p", "ppo", {}, Empty()), "never built")
    with pytest.raises(_Cancelled):
        other.acquire("other", lambda seconds, holder: (_ for _ in ()).throw(_Cancelled))
    holds.failed(Node("p", "ppo", {}, Empty()), RuntimeError())
    other.acquire("other", lambda seconds, holder: pytest.fail("it is taken"))


def test_a_run_that_waits_says_so_now_and_then(
    owner: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(prefect_driver, "PROGRESS_SECONDS", 0.2)
    run_log = prefect_driver.RunLog(Slots(RuntimeConfig(), tmp_path))

    def say(message: str, *values: object) -> None:
        said.append(message % values)
        if len(said) == 2:
            owner.kill()

    monkeypatch.setattr(run_log, "_say", say)
    run_log.started(Node("p", "ppo", {}, Empty()), "never built")
    waits = [line for line in said if line.startswith(f"waits for the device, which ppo-s0, process {owner.pid} has")]
    assert len(waits) >= 2 and said[-1] == "building: never built"
