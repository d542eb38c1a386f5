"""The cache believes nothing that it cannot check, and harms nobody who shares it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from inverse_alignment.core.cache import DiskCache

SPACE, UNIT, OTHER = "a" * 64, "b" * 64, "c" * 64
ARRAYS = {"vectors": np.arange(6, dtype=np.float32).reshape(2, 3), "counts": np.array([1, 2])}


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache", 10**9)


def file_of(cache):
    (path,) = cache.root.rglob("*.safetensors")
    return path


def test_what_was_kept_comes_back(cache):
    assert cache.get(SPACE, UNIT) is None
    cache.put(SPACE, UNIT, ARRAYS)
    found = cache.get(SPACE, UNIT)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    assert cache.get(SPACE, OTHER) is None and cache.get(OTHER, UNIT) is None
    assert (cache.hits, cache.misses) == (1, 3)


def test_a_view_is_kept_as_what_it_shows(cache):
    turned = np.arange(6.0).reshape(2, 3).T
    cache.put(SPACE, UNIT, {"turned": turned, "empty": np.zeros((0, 4), dtype=np.float32)})
    found = cache.get(SPACE, UNIT)
    assert np.array_equal(found["turned"], turned) and found["empty"].shape == (0, 4)


def flip_last(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [flip_last, lambda data: data[:40], lambda data: b"", lambda data: b"\xff" * 80, lambda data: data + b"x"]
)
def test_a_damaged_file_is_dropped_not_trusted(cache, damage):
    cache.put(SPACE, UNIT, ARRAYS)
    path = file_of(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(SPACE, UNIT) is None
    assert not path.exists()
    cache.put(SPACE, UNIT, ARRAYS)
    assert np.array_equal(cache.get(SPACE, UNIT)["vectors"], ARRAYS["vectors"])


def test_a_file_under_a_wrong_name_is_not_believed(cache):
    """Names are cut short; the whole digests lie inside."""
    cache.put(SPACE, UNIT, ARRAYS)
    longer = UNIT[:40] + "d" * 24
    assert cache.get(SPACE, longer) is None


def test_what_was_used_longest_ago_goes_first(cache):
    for number in range(4):
        cache.put(SPACE, f"{number}" * 64, ARRAYS)
        os.utime(next(cache.root.rglob(f"{number}*.safetensors")), ns=(number, number))
    assert cache.prune() == 0
    assert cache.get(SPACE, "0" * 64) is not None  # used just now
    size = file_of_number(cache, 1).stat().st_size
    assert DiskCache(cache.root, 2 * size).prune() == 2 * size
    assert [cache.get(SPACE, f"{number}" * 64) is not None for number in range(4)] == [True, False, False, True]


def file_of_number(cache, number):
    return next(cache.root.rglob(f"{number}*.safetensors"))


def test_what_a_killed_writer_left_is_pruned_with_the_rest(cache):
    cache.put(SPACE, UNIT, ARRAYS)
    left = file_of(cache).with_name("x.safetensors.123.part")
    left.write_bytes(b"half")
    assert DiskCache(cache.root, 0).prune() > 4
    assert not list(cache.root.rglob("*.safetensors*"))


def test_a_place_that_cannot_be_written_only_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    cache = DiskCache(tmp_path / "file" / "cache", 10**9)
    cache.put(SPACE, UNIT, ARRAYS)
    assert cache.get(SPACE, UNIT) is None and cache.prune() == 0


WRITER = """
import sys, numpy as np
from pathlib import Path
from inverse_alignment.core.cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), 10**9)
wrong = 0
for turn in range(40):
    for unit in range(5):
        array = np.full(20_000, unit, dtype=np.float32)
        kept = cache.get("a" * 64, str(unit) * 64)
        wrong += kept is not None and not np.array_equal(kept["x"], array)
        cache.put("a" * 64, str(unit) * 64, {"x": array})
print(wrong, cache.misses)
"""


def test_two_processes_share_it(tmp_path):
    """Files are replaced under the reader's eyes; it never sees half of one, nor drops a good one."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        wrong, misses = writer.communicate(timeout=120)[0].split()
        assert wrong == "0" and int(misses) <= 5
    assert not list(tmp_path.rglob("*.part"))
