"""The artifact store: built once, whole or absent, never trusted blindly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import store_worker

from inverse_alignment.core.artifact import RECORD, RUNTIME, external
from inverse_alignment.core.fingerprint import fingerprint
from inverse_alignment.core.store import STAMP, RemoteStore, Store, changed_fields, open_store

IDENTITY = {"stage": "toy", "config": {"k": 1, "kl": {"coefficient": 0.05}}, "inputs": {"data": "d" * 64}}
FILES = {"policy/weights.bin": "0123456789", "policy/deep/config.json": "{}", "log.txt": "x"}


class Builder:
    """A stage that writes `FILES` and counts how often it was asked."""

    def __init__(self, text: str = "0123456789") -> None:
        self.count, self.text = 0, text

    def __call__(self, out: Path, partial: Path) -> dict[str, float]:
        self.count += 1
        for name, text in {**FILES, "policy/weights.bin": self.text}.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text)
        (out / RUNTIME).write_text(str(self.count))  # where it ran: may differ every time
        return {"value": 1.0}


def make(store: Store, build, identity=IDENTITY):
    return store.materialise("toy", "kind", ("policy",), identity, build)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_is_there_is_reused(store):
    build = Builder()
    first, second = make(store, build), make(store, build)
    assert (first.reused, second.reused, build.count) == (False, True, 1)
    assert first.artifact == second.artifact
    assert second.metrics == {"value": 1.0}
    assert store.find("toy", {**IDENTITY, "config": {"k": 2}}) is None
    assert not store.partial("toy", IDENTITY).exists()
    assert (store.local(first.artifact) / "log.txt").read_text() == "x"


def test_digests_are_those_of_the_same_bytes_elsewhere(store, tmp_path):
    made = make(store, Builder()).artifact
    for name, text in FILES.items():
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text(text)
    assert made.digest == external("x", tmp_path / "other").digest
    assert made.part("policy").digest == external("x", tmp_path / "other/policy").digest
    assert external("x", Path(made.part("policy").uri)).digest == made.part("policy").digest


def test_where_it_ran_is_recorded_but_bears_no_identity(tmp_path):
    build = Builder()
    one, two = (make(Store(tmp_path / name), build) for name in ("one", "two"))
    assert one.artifact.digest == two.artifact.digest
    texts = [(Path(entry.artifact.uri) / RUNTIME).read_text() for entry in (one, two)]
    assert texts == ["1", "2"]
    records = [(Path(entry.artifact.uri) / RECORD).read_bytes() for entry in (one, two)]
    assert records[0] == records[1]


def flip_a_byte(folder: Path) -> None:
    (folder / "policy/weights.bin").write_text("0123456780")


def delete_a_file(folder: Path) -> None:
    (folder / "log.txt").unlink()


def cut_the_record(folder: Path) -> None:
    (folder / RECORD).write_text((folder / RECORD).read_text()[:40])


def lose_the_record(folder: Path) -> None:
    (folder / RECORD).unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, delete_a_file, cut_the_record, lose_the_record])
def test_damage_is_set_aside_and_built_again(store, damage):
    build = Builder()
    folder = Path(make(store, build).artifact.uri)
    damage(folder)
    assert store.find("toy", IDENTITY) is None
    again = make(store, build)
    assert (again.reused, build.count) == (False, 2)
    assert make(store, build).reused
    aside = store.root / ".damaged" / f"toy-{fingerprint(IDENTITY)}"
    assert aside.is_dir()
    assert {name: (folder / name).read_text() for name in FILES} == FILES


def empty(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize("harm", [Path.unlink, empty])
def test_a_new_time_or_a_lost_stamp_is_no_damage(store, harm):
    build = Builder()
    folder = Path(make(store, build).artifact.uri)
    os.utime(folder / "log.txt", (1, 1))
    assert make(store, build).reused
    harm(folder / STAMP)
    assert make(store, build).reused
    assert build.count == 1
    assert json.loads((folder / STAMP).read_text()).keys() == FILES.keys()


def test_a_crash_leaves_nothing_visible_and_keeps_partial_state(store):
    def crash(out: Path, partial: Path):
        (out / "half.txt").write_text("half")
        (partial / "checkpoint").write_text("step 3")
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        make(store, crash)
    assert store.find("toy", IDENTITY) is None
    assert not (store.root / "toy").exists()

    def resume(out: Path, partial: Path):
        assert (partial / "checkpoint").read_text() == "step 3"
        assert list(out.iterdir()) == []  # not what the crash left
        return Builder()(out, partial)

    assert not make(store, resume).reused
    assert not store.partial("toy", IDENTITY).exists()


def start(root: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, store_worker.__file__, str(root), mode], stdout=subprocess.PIPE, text=True)


def test_two_processes_build_once(tmp_path):
    workers = [start(tmp_path, "live") for _ in range(2)]
    said = [worker.communicate(timeout=30)[0].split() for worker in workers]
    assert (tmp_path / "builds").read_text() == "x"
    assert said[0][0] == said[1][0]
    assert sorted(reused for _, reused in said) == ["False", "True"]


def test_kill_9_frees_the_lock_and_the_next_run_goes_on(tmp_path):
    killed = start(tmp_path, "die")
    killed.communicate(timeout=30)
    assert killed.returncode == -9
    store = Store(tmp_path / "store")
    assert store.find("toy", store_worker.IDENTITY) is None
    assert (store.partial("toy", store_worker.IDENTITY) / "checkpoint.txt").read_text() == "so far"
    assert start(tmp_path, "live").communicate(timeout=30)[0].split()[1] == "False"
    assert (tmp_path / "builds").read_text() == "xx"
    entry = store.find("toy", store_worker.IDENTITY)
    assert entry is not None
    assert (Path(entry.artifact.uri) / "half.txt").read_text() == "whole"


def test_why_it_has_to_run_names_what_differs_from_the_nearest(store):
    assert store.why_missing("toy", IDENTITY) == "never built"
    make(store, Builder())
    make(store, Builder(), {**IDENTITY, "stage": "other", "config": {"k": 9, "kl": {"coefficient": 0.5}}})
    wanted = {**IDENTITY, "config": {"k": 1, "kl": {"coefficient": 0.1}}}
    assert store.why_missing("toy", wanted) == "config.kl.coefficient: 0.05 -> 0.1"
    moved = {**IDENTITY, "inputs": {"data": "e" * 64}}
    assert store.why_missing("toy", moved) == "inputs.data: dddddddd… -> eeeeeeee…"
    many = {**IDENTITY, "config": dict.fromkeys("abcde", 1)}
    assert store.why_missing("toy", many).endswith("; and 4 more")


def test_why_it_has_to_run_after_damage(store):
    folder = Path(make(store, Builder()).artifact.uri)
    flip_a_byte(folder)
    assert store.why_missing("toy", IDENTITY) == "its files were changed or removed"
    cut_the_record(folder)
    assert store.why_missing("toy", IDENTITY) == "its files were changed or removed"
    assert store.why_missing("toy", {**IDENTITY, "stage": "s"}) == "never built"


def test_changed_fields_of_shapes_that_differ():
    assert changed_fields({"a": {"b": 1}, "c": 1}, {"a": 2, "d": None}) == ['a: {"b": 1} -> 2', "c: 1 -> null"]
    assert changed_fields(IDENTITY, IDENTITY) == []
    (long,) = changed_fields({"a": ["x"]}, {"a": ["y" * 30] * 30})
    assert long.startswith('a: ["x"] -> ["yyy') and long.endswith("…") and len(long) < 110


# --- on an fsspec URL ------------------------------------------------------------------------------------------------


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/store"


def remote_folder(store: RemoteStore) -> str:
    return f"{store.base}/toy/{fingerprint(IDENTITY)}"


def test_what_one_machine_built_another_finds(url, tmp_path):
    build = Builder()
    made = make(RemoteStore(url, tmp_path / "one"), build)
    other = RemoteStore(url, tmp_path / "two")
    found = make(other, build)
    assert (found.reused, build.count) == (True, 1)
    assert found.artifact.digest == made.artifact.digest
    assert found.artifact.parts == made.artifact.parts
    assert Path(found.artifact.uri).is_relative_to(tmp_path / "two")
    assert {name: (Path(found.artifact.uri) / name).read_text() for name in FILES} == FILES


def test_a_remote_folder_without_record_is_no_artifact(url, tmp_path):
    build = Builder()
    one = RemoteStore(url, tmp_path / "one")
    make(one, build)
    one.files.rm(f"{remote_folder(one)}/{RECORD}")
    other = RemoteStore(url, tmp_path / "two")
    assert other.find("toy", IDENTITY) is None
    assert not make(other, build).reused
    assert other.files.exists(f"{remote_folder(other)}/{RECORD}")


def test_the_record_is_uploaded_last(url, tmp_path):
    """Cut the upload short after every file in turn: only the whole one is an artifact."""
    uploads = len(FILES) + 1
    for allowed in range(uploads + 1):
        place = f"{url}/{allowed}"
        store = RemoteStore(place, tmp_path / f"one-{allowed}")
        put, left = store.files.put_file, [allowed]

        def cut(*args, put=put, left=left, **kwargs):
            if not left[0]:
                raise ConnectionError("cut")
            left[0] -= 1
            return put(*args, **kwargs)

        store.files.put_file = cut
        try:
            if allowed < uploads:
                with pytest.raises(ConnectionError):
                    make(store, Builder())
            else:
                make(store, Builder())
        finally:
            store.files.put_file = put
        found = RemoteStore(place, tmp_path / f"two-{allowed}").find("toy", IDENTITY)
        assert (found is not None) == (allowed == uploads)


def test_the_first_writer_wins(url, tmp_path):
    one, two = RemoteStore(url, tmp_path / "one"), RemoteStore(url, tmp_path / "two")

    def overtaken(out: Path, partial: Path):
        make(one, Builder("first"))
        return Builder("second")(out, partial)

    late = make(two, overtaken)
    first = make(one, Builder())
    assert late.artifact.digest == first.artifact.digest
    assert (Path(late.artifact.uri) / "policy/weights.bin").read_text() == "first"
    assert two.files.cat_file(f"{remote_folder(two)}/policy/weights.bin") == b"first"


def test_a_damaged_cache_is_fetched_again(url, tmp_path):
    build = Builder()
    store = RemoteStore(url, tmp_path / "one")
    flip_a_byte(Path(make(store, build).artifact.uri))
    found = make(store, build)
    assert (found.reused, build.count) == (True, 1)
    assert (Path(found.artifact.uri) / "policy/weights.bin").read_text() == "0123456789"


def test_a_location_with_a_scheme_is_remote(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    assert type(open_store("artifacts")) is Store
    assert open_store("artifacts").root == tmp_path / "artifacts"
    remote = open_store(url)
    assert isinstance(remote, RemoteStore)
    assert remote.root.is_absolute()
