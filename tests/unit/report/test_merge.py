"""Several runs as one: arms keep their runs and lineage, and what cannot be compared is refused."""

from __future__ import annotations

import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.report.collect import collect
from inverse_alignment.report.comparison import Comparison
from inverse_alignment.report.merge import merged
from inverse_alignment.report.page import render
from tests.unit.report import synthetic


def read(folder, seeds=(0, 1), rounds=1, arms=("none", "similarity")) -> Comparison:
    folders = synthetic.make(folder, arms=arms, rounds=rounds, seeds=seeds, gold=True)
    return collect(folders, title="T", config_digest="c" * 64, arms=arms, seeds=seeds, rounds=rounds)


def test_one_is_itself(tmp_path):
    one = read(tmp_path)
    assert merged({"a": one}) is one


def test_arms_of_both_over_common_seeds(tmp_path):
    a, b = read(tmp_path / "a"), read(tmp_path / "b", seeds=(1, 2), arms=("none",))
    both = merged({"a": a, "b": b})
    assert both.arms == ("a/none", "a/similarity", "b/none") and both.seeds == (1,)
    assert [start.seed for start in both.starts] == [1] and both.title == "a against b"
    (run,) = both.of_arm("b/none")
    assert run.rounds == b.runs[0].rounds
    assert both.lineage["ppo.b/none.s1.r1"] == b.lineage["ppo.none.s1.r1"]
    page = render(both)
    assert "a/similarity" in page and "b/none" in page


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = read(tmp_path / "a")
    with pytest.raises(UserError, match="different numbers of rounds"):
        merged({"a": one, "b": read(tmp_path / "b", rounds=2)})
    with pytest.raises(UserError, match="no seed in common"):
        merged({"a": one, "b": read(tmp_path / "c", seeds=(5,))})
    node = one.lineage["sft.s0"].model_copy(update={"digest": "other"})
    other = one.model_copy(update={"lineage": {**one.lineage, "sft.s0": node}})
    with pytest.raises(UserError, match="different SFT policies"):
        merged({"a": one, "b": other})
