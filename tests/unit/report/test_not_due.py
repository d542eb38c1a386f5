"""A round in which no refresh was due, in every place that tells of refreshes."""

from __future__ import annotations

import json

import pytest

from inverse_alignment.report import analysis, figures
from inverse_alignment.report.collect import collect
from inverse_alignment.report.comparison import Comparison
from inverse_alignment.report.costs import spent
from inverse_alignment.report.headline import headline
from inverse_alignment.report.page import render
from inverse_alignment.report.summary import summarise
from inverse_alignment.report.table import gate_cell, gate_word
from tests.unit.report import synthetic

STOOD = {"refreshed": False, "accepted": False, "gate": "paired", "pairs": 0, "pairs_seen": 0, "drift_mmd": 0.002}
SHAPE = {"arms": ("none", "similarity"), "rounds": 3, "seeds": (0, 1)}


def stood(folder, when) -> Comparison:
    """With the arm's refreshes not due in some (seed, round)."""
    folders = synthetic.make(folder, **SHAPE, gold=True)
    for seed, number in when:
        path = folders[f"refresh.similarity.s{seed}.r{number}"] / "gate.json"
        path.write_text(json.dumps(STOOD))
    return collect(folders, title="A comparison", config_digest="c" * 64, **SHAPE)


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Comparison:
    return stood(tmp_path_factory.mktemp("half"), [(0, 2), (1, 2), (1, 3)])


def test_a_refresh_that_was_not_due_is_no_refusal(half, tmp_path):
    before, due = (analysis.accepted_of(each, "similarity") for each in (stood(tmp_path, []), half))
    assert before[1] == 6 and due[1] == 3 and due[0] <= before[0]
    rounds = [run.rounds for run in half.of_arm("similarity")]
    assert gate_cell([rounds[0][1]]) == gate_word(rounds[0][1].gate) == "not due"
    assert gate_cell([each[1] for each in rounds]) == "0 of 0 accepted"
    assert gate_cell([each[2] for each in rounds]).endswith("of 1 accepted")
    told = summarise(half, 1.0, "c" * 64, spent(half, tmp_path))["arms"]["similarity"]["rounds"]
    assert [seed["accepted"] for seed in told[1]["per_seed"]] == [None, None]
    assert told[2]["per_seed"][1]["accepted"] is None is not told[2]["per_seed"][0]["accepted"]


def test_the_page_says_so(half):
    page = render(half)
    assert "no refresh due" in page and "of 3" in page
    assert figures.gates(half).description == "none never refreshed; similarity accepted 3 of 3"


def test_an_arm_that_was_never_due_is_said_to_have_refreshed_never(tmp_path):
    never = stood(tmp_path, [(seed, number) for seed in (0, 1) for number in (1, 2, 3)])
    assert analysis.accepted_of(never, "similarity") == (0, 0)
    assert not any("accepted" in line for line in headline(never).findings)
    assert "similarity never refreshed" in figures.gates(never).description
