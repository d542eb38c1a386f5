"""A checkpoint is whole or absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inverse_alignment.core.checkpoint import SEAL, is_sealed, newest, prune, save, seal, steps


def writer(text: str):
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "weights.bin").write_text(text)
        (folder / "deep" / "state.json").write_text("{}")

    return write


def truncate(folder: Path) -> None:
    (folder / "weights.bin").write_text("")


def corrupt(folder: Path) -> None:
    (folder / "weights.bin").write_text("x" * len((folder / "weights.bin").read_text()))


def remove(folder: Path) -> None:
    (folder / "deep" / "state.json").unlink()


def unseal(folder: Path) -> None:
    (folder / SEAL).unlink()


def cut_seal(folder: Path) -> None:
    (folder / SEAL).write_text((folder / SEAL).read_text()[:9])


@pytest.mark.parametrize("damage", [truncate, corrupt, remove, unseal, cut_seal])
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    save(tmp_path, 1, writer("one"))
    second = save(tmp_path, 2, writer("two"))
    assert newest(tmp_path) == second
    damage(second)
    assert not is_sealed(second)
    assert newest(tmp_path) == tmp_path / "checkpoint-1"
    damage(tmp_path / "checkpoint-1")
    assert newest(tmp_path) is None


def test_none_yet(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None


def test_steps_are_numbers_and_two_are_kept(tmp_path):
    for step in (8, 9, 10):
        save(tmp_path, step, writer(str(step)))
        assert newest(tmp_path) == tmp_path / f"checkpoint-{step}"
    assert steps(tmp_path) == [9, 10]  # as text, 9 would be the newest


def test_going_on_after_damage_keeps_what_is_new(tmp_path):
    """10 and 20 are damaged, 5 is resumed from: saving 7 must not be swept away as older than those."""
    for step in (10, 20):
        corrupt(save(tmp_path, step, writer(str(step))))
    save(tmp_path, 7, writer("seven"))
    assert steps(tmp_path) == [7]
    assert newest(tmp_path) == tmp_path / "checkpoint-7"


def test_a_step_saved_twice_is_the_second(tmp_path):
    save(tmp_path, 3, writer("a"))
    assert (save(tmp_path, 3, writer("b")) / "weights.bin").read_text() == "b"


def test_a_folder_written_by_others_can_be_sealed(tmp_path):
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        writer("x")(folder)
        assert not is_sealed(folder)
        seal(folder)
        seal(folder)
        assert is_sealed(folder)
    prune(tmp_path, 3)
    assert steps(tmp_path) == [2, 3]


KILLED = """
import os, signal, sys
from pathlib import Path
from inverse_alignment.core import checkpoint
root, where = Path(sys.argv[1]), sys.argv[2]
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
def write(folder):
    (folder / "weights.bin").write_text("half")
    if where == "write":
        die()
    (folder / "weights.bin").write_text("whole")
    if where == "rename":
        Path.rename = lambda self, to: die() if to.name == "checkpoint-2" else os.rename(self, to)
checkpoint.save(root, 2, write)
"""


@pytest.mark.parametrize("where", ["write", "rename"])
def test_kill_9_before_the_rename_leaves_the_one_before(tmp_path, where):
    save(tmp_path, 1, writer("one"))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where], check=False)
    assert done.returncode == -9
    assert (tmp_path / ".checkpoint-2.tmp" / "weights.bin").read_text() == ("half" if where == "write" else "whole")
    assert newest(tmp_path) == tmp_path / "checkpoint-1"
    assert newest(tmp_path) is not None
    assert (save(tmp_path, 2, writer("two")) / "weights.bin").read_text() == "two"
    assert newest(tmp_path) == tmp_path / "checkpoint-2"
