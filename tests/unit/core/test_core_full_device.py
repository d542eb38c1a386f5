"""A full device: said in three lines, and everything finished, the partial state included, is still there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from inverse_alignment.core.artifact import list_files
from inverse_alignment.core.errors import UserError, no_room
from inverse_alignment.core.store import STAMP, Store, open_store

FULL = Path("/dev/full")  # every write to it ends in a real ENOSPC
needs_dev_full = pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no /dev/full")


def identity(k: int) -> dict[str, object]:
    return {"stage": "toy", "config": {"k": k}}


def make(store: Store, build, k: int = 1):
    return store.materialise("toy", "kind", (), identity(k), build)


def whole(out: Path, partial: Path) -> dict[str, float]:
    (out / "weights.bin").write_text("0123456789")
    return {"value": 1.0}


def onto_a_full_device(out: Path, partial: Path) -> dict[str, float]:
    (partial / "checkpoint").write_text("step 3")
    (out / "weights.bin").write_text("01234")
    FULL.write_text("56789")
    return {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@needs_dev_full
def test_a_stage_without_room_is_refused_and_nothing_finished_is_lost(store):
    finished = make(store, whole, k=0)
    before = {name: (store.root / "toy" / name).read_bytes() for name in list_files(store.root / "toy")}
    with pytest.raises(UserError) as refused:
        make(store, onto_a_full_device)
    assert refused.value.what == "no room left on the device, in stage toy"
    assert refused.value.where.startswith(f"store={store.root}, ") and "MB free" in refused.value.where
    assert "set store to a folder with room" in refused.value.fix
    assert isinstance(refused.value.__cause__, OSError)  # for whoever looks closer
    assert {name: (store.root / "toy" / name).read_bytes() for name in list_files(store.root / "toy")} == before
    assert make(store, whole, k=0).artifact == finished.artifact
    assert (store.partial("toy", identity(1)) / "checkpoint").read_text() == "step 3"
    assert not list_files(store.root / ".scratch")


@needs_dev_full
def test_with_room_again_it_goes_on_from_the_partial_state(store):
    with pytest.raises(UserError):
        make(store, onto_a_full_device)

    def resume(out: Path, partial: Path) -> dict[str, float]:
        assert (partial / "checkpoint").read_text() == "step 3"
        return whole(out, partial)

    assert not make(store, resume).reused
    assert not store.partial("toy", identity(1)).exists()


def raising(error: BaseException):
    def build(out: Path, partial: Path) -> dict[str, float]:
        (out / "half").write_text("half")
        raise error

    return build


def wrapped(inner: BaseException) -> Exception:
    outer = ValueError("while saving")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        wrapped(OSError(errno.ENOSPC, "x")),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),  # of safetensors
    ],
)
def test_a_quota_a_library_and_a_wrapped_error_say_the_same(store, error):
    with pytest.raises(UserError, match="no room left"):
        make(store, raising(error))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "denied"),
        ValueError("os error 28 without its brackets"),
        RuntimeError("boom"),
        Exception("no such file (os error 2)"),
    ],
)
def test_other_errors_stay_what_they_are_and_leave_nothing_half_written(store, error):
    assert no_room(error) is None
    with pytest.raises(type(error)) as raised:
        make(store, raising(error))
    assert raised.value is error
    assert not list_files(store.root / ".scratch")


def test_what_a_stage_says_itself_is_not_said_over(store):
    own = UserError("row 7 is null", where="a.jsonl", fix="fill it in")
    own.__cause__ = OSError(errno.ENOSPC, "x")
    with pytest.raises(UserError, match="row 7"):
        make(store, raising(own))


def test_a_file_outside_the_store_is_named(store, tmp_path):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "cache" / "x.arrow"))
    with pytest.raises(UserError) as refused:
        make(store, raising(error))
    assert refused.value.where == str((tmp_path / "cache" / "x.arrow").resolve())
    assert "set store" not in refused.value.fix


def test_a_cause_that_leads_back_to_itself_ends(store):
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert no_room(one) is None


def test_a_store_that_cannot_be_written_is_refused_before_anything_is_planned(tmp_path):
    (tmp_path / "taken").write_text("a file")
    for location in ("taken", "taken/store"):
        with pytest.raises(UserError, match=r"the artifact store cannot be written: .*taken is a file"):
            open_store(str(tmp_path / location))
    with pytest.raises(UserError, match="no file system for the artifact store"):
        open_store("nonsense://bucket/store")
    assert open_store(str(tmp_path / "new" / "store")).root == tmp_path / "new" / "store"
    assert not (tmp_path / "new").exists()


def test_a_store_that_turns_unwritable_is_refused_in_three_lines(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="the artifact store cannot be written: Not a directory"):
        make(Store(tmp_path / "taken"), whole)


def test_a_stamp_that_cannot_be_written_costs_time_not_the_artifact(store):
    folder = Path(make(store, whole).artifact.uri)
    stamp = folder / STAMP
    stamp.unlink()
    stamp.with_name(f"{STAMP}.{os.getpid()}").mkdir()  # in the way of the one that would be written
    assert make(store, whole).reused
    assert not stamp.exists()
