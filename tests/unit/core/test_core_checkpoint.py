"""A checkpoint is whole or absent."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inverse_alignment.core import checkpoint
from inverse_alignment.core.checkpoint import SEAL, adopt, damage, newest, save, steps


def writer(text: str):
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "weights.bin").write_text(text)
        (folder / "deep" / "state.json").write_text("{}")

    return write


def truncate(folder: Path) -> None:
    (folder / "weights.bin").write_text("")


def flip(folder: Path) -> None:
    content = bytearray((folder / "weights.bin").read_bytes())
    content[1] ^= 1
    (folder / "weights.bin").write_bytes(content)


def swap(folder: Path) -> None:
    shutil.copyfile(folder.parent / "checkpoint-1" / "weights.bin", folder / "weights.bin")


def swap_all(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "checkpoint-1", folder)


def remove(folder: Path) -> None:
    (folder / "deep" / "state.json").unlink()


def add(folder: Path) -> None:
    (folder / "more.bin").write_text("x")


def unseal(folder: Path) -> None:
    (folder / SEAL).unlink()


def cut_seal(folder: Path) -> None:
    (folder / SEAL).write_text((folder / SEAL).read_text()[:9])


def other_json(folder: Path) -> None:
    (folder / SEAL).write_text("[1]")


DAMAGE = {
    truncate: "weights.bin has 0 bytes instead of 3",
    flip: "weights.bin holds other bytes than were sealed",
    swap: "weights.bin holds other bytes than were sealed",
    swap_all: "seal.json is that of step 1",
    remove: "deep/state.json is missing",
    add: "more.bin does not belong to it",
    unseal: "seal.json is missing: it was never finished",
    cut_seal: "seal.json is not JSON",
    other_json: "seal.json is not the manifest of a checkpoint",
}


@pytest.mark.parametrize("spoil", DAMAGE, ids=lambda spoil: spoil.__name__)
def test_a_damaged_one_is_named_and_passed_over(tmp_path, caplog, spoil):
    first = save(tmp_path, 1, writer("one"))
    second = save(tmp_path, 2, writer("two"))
    assert newest(tmp_path) == second and not caplog.records
    spoil(second)
    assert damage(tmp_path, 2) == DAMAGE[spoil]
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == first
    said = f"checkpoint-2 is passed over: {DAMAGE[spoil]}; going on from checkpoint-1 ({tmp_path})"
    assert [record.getMessage() for record in caplog.records] == [said]
    assert steps(tmp_path) == [1]
    truncate(first)
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) is None
    assert caplog.records[-1].getMessage().startswith("checkpoint-1 is passed over: weights.bin has 0 bytes")
    assert "; starting over (" in caplog.records[-1].getMessage()


def test_none_yet(tmp_path):
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None


def test_steps_are_numbers_and_two_are_kept(tmp_path):
    for step in (8, 9, 10):
        save(tmp_path, step, writer(str(step)))
        assert newest(tmp_path) == tmp_path / f"checkpoint-{step}"
    assert steps(tmp_path) == [9, 10]  # as text, 9 would be the newest


def test_a_damaged_one_does_not_count_among_the_two(tmp_path):
    """7 is resumed from because 8 is damaged; after 9 it is 7 that 9 falls back to."""
    for step in (7, 8):
        save(tmp_path, step, writer("abc"))
    flip(tmp_path / "checkpoint-8")
    assert newest(tmp_path) == tmp_path / "checkpoint-7"
    save(tmp_path, 9, writer("abc"))
    assert steps(tmp_path) == [7, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-7", "checkpoint-9"]


def test_going_on_after_damage_keeps_what_is_new(tmp_path):
    """10 and 20 are damaged, 5 is resumed from: saving 7 must not be swept away as older than those."""
    for step in (10, 20):
        flip(save(tmp_path, step, writer(str(step))))
    save(tmp_path, 7, writer("seven"))
    assert steps(tmp_path) == [7]
    assert newest(tmp_path) == tmp_path / "checkpoint-7"


def test_a_step_saved_twice_is_the_second(tmp_path):
    save(tmp_path, 3, writer("a"))
    assert (save(tmp_path, 3, writer("b")) / "weights.bin").read_text() == "b"
    assert newest(tmp_path) == tmp_path / "checkpoint-3"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_folder_written_by_others_can_be_adopted(tmp_path):
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        writer("x")(folder)
        assert damage(tmp_path, step) == "seal.json is missing: it was never finished"
        adopt(tmp_path, step)
        assert damage(tmp_path, step) is None
    assert steps(tmp_path) == [2, 3]


def test_rows_beside_it_are_part_of_it_as_far_as_they_went(tmp_path):
    rows = tmp_path / "metrics.jsonl"
    rows.write_text('{"step": 1}\n')
    save(tmp_path, 1, writer("one"))
    rows.write_text('{"step": 1}\n{"step": 2}\n')
    save(tmp_path, 2, writer("two"))
    rows.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')  # those after it are written again
    assert damage(tmp_path, 2) is None
    rows.write_text('{"step": 1}\n{"step": 7}\n')
    assert damage(tmp_path, 2) == "metrics.jsonl beside it holds other bytes than were sealed"
    rows.write_text('{"step": 1}\n{"st')
    assert damage(tmp_path, 2) == "metrics.jsonl beside it has 16 bytes instead of 24"
    assert damage(tmp_path, 1) is None
    rows.unlink()
    assert damage(tmp_path, 1) == "metrics.jsonl beside it is missing"


def test_all_is_on_disk_before_the_rename_and_the_rename_before_anything_goes(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    for step in (1, 2):
        save(tmp_path, step, writer("x"))
    happened: list[tuple[str, str]] = []
    renamed, removed, synced = Path.rename, shutil.rmtree, os.fsync

    def relative(path: Path | str) -> str:
        return os.path.relpath(path, tmp_path)

    def fsync(handle: int) -> None:
        happened.append(("fsync", relative(os.readlink(f"/proc/self/fd/{handle}"))))
        synced(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(
        Path, "rename", lambda *paths: (happened.append(("rename", relative(paths[1]))), renamed(*paths))[1]
    )
    monkeypatch.setattr(
        checkpoint.shutil,
        "rmtree",
        lambda path, **more: (happened.append(("remove", relative(path))), removed(path, **more)),
    )
    save(tmp_path, 3, writer("x"))
    temporary = ".checkpoint-3.tmp"
    order = [
        happened.index(event)
        for event in (
            ("fsync", f"{temporary}/deep"),
            ("fsync", f"{temporary}/{SEAL}.tmp"),
            ("rename", f"{temporary}/{SEAL}"),
            ("rename", "checkpoint-3"),
            ("fsync", "."),
            ("remove", "checkpoint-1"),
        )
    ]
    assert order == sorted(order)
    before = {event for event in happened[: order[4]] if event[0] == "fsync"}
    files = {
        "metrics.jsonl",
        temporary,
        f"{temporary}/deep",
        f"{temporary}/weights.bin",
        f"{temporary}/deep/state.json",
    }
    assert before == {("fsync", name) for name in (*files, f"{temporary}/{SEAL}.tmp")}


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


def test_the_manifest_is_json_with_size_and_hash_of_every_file(tmp_path):
    manifest = json.loads((save(tmp_path, 4, writer("four")) / SEAL).read_text())
    assert manifest["step"] == 4 and manifest["rows"] == {}
    assert set(manifest["files"]) == {"weights.bin", "deep/state.json"}
    digest = "04efaf080f5a3e74e1c29d1ca6a48569382cbbcd324e8d59d2b83ef21c039f00"  # printf four | sha256sum
    assert manifest["files"]["weights.bin"] == {"bytes": 4, "sha256": digest}
