"""How sure the report says it is: paired by seed, by prompt where there is one seed, and never without a unit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inverse_alignment.report import certainty
from inverse_alignment.report.analysis import grouped
from inverse_alignment.report.certainty import SFT, baselines, gain_of, gains
from inverse_alignment.report.collect import collect
from inverse_alignment.report.comparison import Comparison
from inverse_alignment.report.headline import headline
from inverse_alignment.report.page import render
from tests.unit.report import synthetic

ARMS = ("none", "random", "similarity")


def read(folder: Any, seeds: tuple[int, ...] = (0,), gold: bool = True, worth: Any = None) -> Comparison:
    """A comparison of one round; `worth` gives the prompts' golds by the name of an evaluation."""
    folders = synthetic.make(folder, arms=ARMS, rounds=1, seeds=seeds, gold=gold)
    for name, golds in (worth or {}).items():
        rows = [
            {"prompt_key": key, "gold": value, "audit_score": None} for key, values in golds.items() for value in values
        ]
        (folders[name] / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return collect(folders, title="T", config_digest="c" * 64, arms=ARMS, seeds=seeds, rounds=1)


def with_gold(comparison: Comparison, **golds: list[float]) -> Comparison:
    """The same with these final golds of the arms' seeds; `start` is the SFT policy's."""

    def at(one: Any, gold: float) -> Any:
        return one.model_copy(update={"evaluation": one.evaluation.model_copy(update={"gold_reward": gold})})

    runs = []
    for arm in comparison.arms:
        for run, gold in zip(comparison.of_arm(arm), golds[arm], strict=True):
            runs.append(run.model_copy(update={"rounds": (at(run.rounds[0], gold),)}))
    starts = [at(start, gold) for start, gold in zip(comparison.starts, golds["start"], strict=True)]
    return comparison.model_copy(update={"runs": tuple(runs), "starts": tuple(starts)})


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return with_gold(
        read(tmp_path_factory.mktemp("five"), seeds=(0, 1, 2, 3, 4)),
        start=[0.0, 1.0, 2.0, 3.0, 4.0],
        none=[0.5, 1.5, 2.5, 3.5, 4.5],
        random=[0.5, 1.5, 2.5, 3.5, 4.5],
        similarity=[1.0, 2.1, 3.2, 4.3, 0.0],
    )


def test_seeds_are_the_units_and_gains_are_paired(five):
    against = gain_of(five, "none", SFT)
    assert against.gain == (0.5, 0.5, 0.5) and (against.units, against.higher) == (5, 5)
    # of 25 pairs of runs (i + 1/2 over j) those with j <= i, 15, are higher
    assert against.improvement.mean == pytest.approx(15 / 25)
    other = gain_of(five, "similarity", "none")
    # differences 0.5, 0.6, 0.7, 0.8, -4.5: one is cut at either end
    assert other.gain.mean == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    assert other.gain.low < 0 < other.gain.high and other.higher == 4


def test_arms_that_are_one_run_gain_nothing(five):
    same = gain_of(five, "random", "none")
    assert same.gain == (0.0, 0.0, 0.0) and same.higher == 0 and same.improvement.mean == 0.5


def test_what_arms_are_held_against(five):
    assert baselines(five) == (SFT, "none", "random")
    pairs = [(gain.arm, gain.against) for gain in gains(five)]
    assert pairs == [
        *((arm, SFT) for arm in ARMS),
        ("random", "none"),
        ("similarity", "none"),
        ("similarity", "random"),
    ]


def test_few_seeds_are_said_to_be_few(five, tmp_path):
    two = with_gold(
        read(tmp_path, seeds=(0, 1)), start=[0.0, 0.0], none=[1.0, 2.0], random=[1.0, 2.0], similarity=[3.0, 3.0]
    )
    assert "too narrow" in certainty.caption(two) and "Too narrow" in certainty.sentence(two)
    assert "too narrow" not in certainty.caption(five) and "Too narrow" not in certainty.sentence(five)
    assert certainty.sentence(five).startswith("5 seeds.")
    assert "“none” and “random” +0.50 (+0.50 to +0.50)" in certainty.sentence(five)


def test_one_seed_is_paired_by_prompt(tmp_path):
    golds = {
        "start.s0": {"a": [0.0, 2.0], "b": [4.0], "c": [1.0]},
        "evaluate.none.s0.r1": {"a": [2.0, 2.0], "b": [5.0], "c": [2.0]},
        "evaluate.random.s0.r1": {"b": [4.0], "a": [1.0], "c": [1.0]},  # in another order
        "evaluate.similarity.s0.r1": {"a": [1.0], "b": [0.0]},  # of other prompts
    }
    one = read(tmp_path, worth=golds)
    assert one.starts[0].worth == {"a": 1.0, "b": 4.0, "c": 1.0}
    gain = gain_of(one, "none", SFT)
    assert gain.gain == (1.0, 1.0, 1.0) and (gain.units, gain.higher, gain.improvement) == (3, 3, None)
    assert gain_of(one, "random", SFT).gain == (0.0, 0.0, 0.0)
    assert gain_of(one, "similarity", SFT) is None is gain_of(one, "similarity", "none")
    said = certainty.sentence(one)
    assert said.startswith("Not across runs: one seed.") and "over 3 prompts" in said and "“none” +1.00" in said
    assert "another seed may tell another story" in certainty.caption(one)
    assert "How sure that is" in render(one) and "another seed may tell" in render(one)


def test_nothing_is_known_without_gold(tmp_path):
    blind = read(tmp_path, gold=False)
    assert gains(blind) == [] and "How sure that is" not in render(blind)
    assert certainty.sentence(blind).startswith("Not across runs")


def test_the_same_is_said_once():
    assert grouped({"a": "x", "b": "x", "c": "y", "d": "x"}) == "“a”, “b” and “d” x; “c” y"
    assert grouped({}) == ""


def test_the_verdict_names_the_arms_that_the_best_is_not_told_from(five):
    clear = with_gold(
        five,
        start=[0.0] * 5,
        none=[1.0, 1.1, 1.2, 1.3, 1.4],
        random=[1.5, 1.0, 1.3, 1.2, 1.35],
        similarity=[0.1] * 5,
    )
    verdict = headline(clear).verdict
    assert verdict.startswith("“random” ends with the highest") and verdict.endswith("not told apart from “none”.")
    best = with_gold(five, start=[0.0] * 5, none=[2.0] * 5, random=[1.0] * 5, similarity=[0.5] * 5)
    assert "told apart" not in headline(best).verdict
