"""The benchmark of bad input: its judge is not fooled, and its cases hold."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bad_input.__main__ import CASES, CONTROLS, Result, dropped, lost, refused, summarise
from benchmarks.bad_input.case import Case, Control, unclear
from benchmarks.bad_input.project import Project, Said, copy, prepare

CASE = Case("toy", lambda project: None, ("is null",), ("a.jsonl", "row 7"), ("fill it in",))
CLEAR = Said("", "error: is null\n  where: a.jsonl, row 7\n  fix:   fill it in\n", 2, 1.0, 1.0)
CHEAP = (  # the others are slow checks
    "missing-file",
    "null-chosen",
    "hh-diverging-before-the-last-turn",
    "two-sources-of-one-name",
    "no-such-model",
    "negative-kl-coefficient",
    "unknown-encoder",
    "store-that-cannot-be-written",
    "no-room-left-before-training",
)


def test_names_are_unique_and_there_are_enough_of_them() -> None:
    names = [case.name for case in (*CASES, *CONTROLS)]
    assert len(set(names)) == len(names) and len(CASES) >= 45


def test_a_clear_refusal_has_no_fault() -> None:
    assert unclear(CASE, CLEAR) == []


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (replace(CLEAR, code=1), "exit code 1, not 2"),
        (replace(CLEAR, code=0), "exit code 0, not 2"),
        (replace(CLEAR, out="Traceback (most recent call last):"), "a traceback"),
        (replace(CLEAR, err=f"WARNING noise\n{CLEAR.err}"), "4 lines instead of error, where and fix"),
        (replace(CLEAR, err="KeyError: 'chosen'\n"), "1 lines instead of error, where and fix"),
        (replace(CLEAR, err=CLEAR.err.replace("  fix:", "  hint:")), "3 lines instead of error, where and fix"),
        (replace(CLEAR, err=CLEAR.err.replace("row 7", "row 8")), "where does not name 'row 7'"),
        (replace(CLEAR, err=CLEAR.err.replace("is null", "is bad")), "error does not name 'is null'"),
        (replace(CLEAR, err=CLEAR.err.replace("fill it in", "")), "fix is empty"),
        (replace(CLEAR, seconds=10.5), "10.5 s to the message, more than 10"),
    ],
)
def test_each_fault_is_named(said: Said, fault: str) -> None:
    assert fault in unclear(CASE, said)


def test_counts_leave_out_what_could_not_be_tried() -> None:
    results = [
        Result("toy", ("run",), CLEAR),
        Result("slow", ("run",), replace(CLEAR, seconds=11.0), ("slow",), ("sft/1",)),
        Result("absent", ("run",), None, skipped="no device"),
        Result(CONTROLS[0].name, ("stage", "aggregate"), CLEAR, ("dropped 3",)),
    ]
    found = summarise(results)
    assert {name: found[name] for name in ("cases", "clear", "lost", "slowest_seconds", "skipped")} == {
        "cases": 3,
        "clear": 1,
        "lost": 1,
        "slowest_seconds": 11.0,
        "skipped": ["absent"],
    }
    assert (found["controls"], found["controls_failed"]) == (1, [CONTROLS[0].name])
    assert json.loads(json.dumps(found))["details"][0]["message"][0] == "error: is null"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has run."""
    project = prepare(tmp_path_factory.mktemp("bad-input") / "base", lambda text: None)
    planned = project.plan()
    assert planned is not None and planned[0] == planned[1]
    return project


@pytest.mark.parametrize(
    "name", [case.name if case.name in CHEAP else pytest.param(case.name, marks=pytest.mark.slow) for case in CASES]
)
def test_a_case_is_clear_and_loses_nothing(name: str, base: Project, tmp_path: Path) -> None:
    (case,) = [case for case in CASES if case.name == name]
    result = refused(case, copy(base, tmp_path / "project"), base)
    if result.skipped:
        pytest.skip(result.skipped)
    slow = [fault for fault in result.faults if "s to the message" in fault]  # a busy machine is no unclear message
    assert set(result.faults) == set(slow) and result.lost == ()


@pytest.mark.parametrize(
    "control",
    [CONTROLS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in CONTROLS[1:])],
    ids=lambda c: c.name,
)
def test_bad_rows_are_dropped_and_counted(control: Control, base: Project, tmp_path: Path) -> None:
    assert dropped(control, copy(base, tmp_path / "project")).faults == ()
    reason = next(iter(control.dropped))
    wrong = replace(control, dropped={**control.dropped, reason: control.dropped[reason] + 1})
    assert dropped(wrong, copy(base, tmp_path / "again")).faults[0].startswith("dropped {")


def test_a_lost_a_changed_and_a_half_written_artifact_are_seen(base: Project, tmp_path: Path) -> None:
    project = copy(base, tmp_path / "project")
    had = base.finished()
    assert len(had) > 10 and lost(project, base, had) == []
    sft, reward = (next(name for name in had if name.startswith(stage)) for stage in ("sft/", "reward_model/"))
    shutil.rmtree(project / "artifacts" / sft)
    weights = project / "artifacts" / reward / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    project.write("artifacts/.scratch/key/half", "half")
    found = lost(project, base, had)
    assert sft in found and reward in found and ".scratch/key/half" in found
    assert found[-1].startswith("a corrected run reuses (")
