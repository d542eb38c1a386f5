"""The mutation check: it finds a missing test, and its lists are those of `maths` as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mutation.__main__ import listed
from benchmarks.mutation.mutants import mutants

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks/mutation"
SOURCE = b'''
def mean(values, mask, least=0):
    """The mean of what counts, at least zero."""
    total = sum(values[1:] if mask else values)
    if total < least:
        raise ValueError("no")
    return total / len(values) - 1
'''


def test_the_changes_of_a_function() -> None:
    found = {mutant.name: mutant.source.decode() for mutant in mutants(SOURCE, "toy")}
    for name in (
        "toy.mean: total < least -> total <= least",
        "toy.mean: total < least -> total > least",
        "toy.mean: mask -> ~mask",
        "toy.mean: 0 -> 1",
        "toy.mean: 1 -> 2",
        "toy.mean: total / len(values) - 1 -> total / len(values) + 1",
        "toy.mean: total / len(values) - 1 -> total / len(values)",
        "toy.mean: total / len(values) -> len(values) / total",
        "toy.mean: values[1:] if mask else values -> values if mask else values[1:]",
        'toy.mean: raise ValueError("no") -> pass',
    ):
        assert name in found, name
    changed = found["toy.mean: total / len(values) - 1 -> total / len(values) + 1"]
    assert changed == SOURCE.decode().replace("total / len(values) - 1", "(total / len(values) + 1)")
    assert len(set(found.values())) == len(found)  # no two are the same
    for source in found.values():
        compile(source, "toy", "exec")


CONTROL = """
import json
import sys

from benchmarks.mutation.__main__ import MATHS, survival
from benchmarks.mutation.mutants import Mutant

source = (MATHS / "overlap.py").read_text()
found = {}
for tests in ("test_something", "test_nothing"):
    chosen = []
    for name, old, new in (
        ("the same", "", ""),
        ("another sign", "written + len", "written - len"),
        ("an exception", "        left[token] -= 1", "        raise RuntimeError"),
        ("no end", "        left[token] -= 1", "        while True: pass"),
        ("more memory than it may take", "        left[token] -= 1", "        values += [0.0] * 10**9"),
    ):
        assert old in source
        chosen.append(Mutant("overlap", "prefix_f1", name, source.replace(old, new).encode()))
    result = survival(chosen, [f"{sys.argv[1]}/{tests}.py"], 2)
    found[tests] = {"alive": sorted(result.alive), "stopped": result.stopped}
killed = source.replace("        left[token] -= 1", "        __import__('os').kill(__import__('os').getpid(), 9)")
for name, tests, source in (
    ("failing tests", "test_wrong", source),
    ("not python", "test_something", "raise RuntimeError"),
    ("killed", "test_something", killed),
):
    try:
        survival([Mutant("overlap", "prefix_f1", name, source.encode())], [f"{sys.argv[1]}/{tests}.py"], 1)
    except SystemExit as problem:
        found[name] = str(problem)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_tests_notice_and_what_they_do_not(tmp_path: Path) -> None:
    """Negative control: tests that compare notice a change, tests that do not compare notice only what crashes."""
    head = "from inverse_alignment.maths.overlap import prefix_f1\n\n\ndef test_it():\n    "
    for name, body in {
        "something": "assert prefix_f1([1, 9, 2], [1, 2]) == [0.0, 2 / 3, 0.5]",
        "nothing": "prefix_f1([1, 9, 2], [1, 2])",
        "wrong": "assert prefix_f1([1], [1]) == [1.0]",
    }.items():
        (tmp_path / f"test_{name}.py").write_text(head + body + "\n")
    done = subprocess.run(
        [sys.executable, "-c", CONTROL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["test_something"] == {"alive": ["the same"], "stopped": ["no end"]}
    assert found["test_nothing"] == {"alive": ["another sign", "the same"], "stopped": ["no end"]}
    assert "the tests fail as it is" in found["failing tests"]
    assert "cannot be made: not python" in found["not python"]
    assert "killed from outside, testing killed" in found["killed"]


def test_no_change_of_maths_survives_and_the_equivalent_ones_are_still_there() -> None:
    assert json.loads((FOLDER / "survivors.json").read_text()) == []
    reasons = json.loads((FOLDER / "equivalent.json").read_text())
    names = {mutant.name for mutant in listed()}
    assert set(reasons) <= names and all(reason.endswith(".") for reason in reasons.values())
    assert len(names) > 20 * len(reasons)
