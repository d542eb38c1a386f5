"""Arms without RL beside those with: their rounds are as wide, and what they have not is not shown."""

from __future__ import annotations

from typing import Any

import pytest

from inverse_alignment.maths.bootstrap import Interval
from inverse_alignment.report import analysis, certainty, figures, mismatch
from inverse_alignment.report.certainty import SFT, Gain
from inverse_alignment.report.collect import collect
from inverse_alignment.report.comparison import Comparison, CurvePoint
from inverse_alignment.report.headline import headline
from inverse_alignment.report.page import render
from tests.unit.report import synthetic

ARMS = ("none", "random", "similarity")


def as_direct(comparison: Comparison, arm: str, keeps_selection: bool, golds: tuple[float, ...]) -> Comparison:
    """The same with an arm that has 117 optimiser steps a round, no PPO, and these golds at the ends."""

    def at(round_: Any, gold: float) -> Any:
        evaluation = round_.evaluation.model_copy(update={"gold_reward": gold})
        end = CurvePoint(step=117 * round_.round, gold=gold, rm_score=evaluation.rm_score, kl=evaluation.kl_to_sft)
        selection = round_.selection if keeps_selection else None
        update = {"evaluation": evaluation, "curve": (end,), "training": (), "alarms": (), "gate": None}
        return round_.model_copy(update={**update, "selection": selection})

    runs = [
        run.model_copy(update={"rounds": tuple(at(*each) for each in zip(run.rounds, golds, strict=True))})
        if run.arm == arm
        else run
        for run in comparison.runs
    ]
    return comparison.model_copy(update={"runs": tuple(runs)})


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folders = synthetic.make(tmp_path_factory.mktemp("mixed"), arms=ARMS, rounds=2, seeds=(0,), gold=True)
    one = collect(folders, title="T", config_digest="c" * 64, arms=ARMS, seeds=(0,), rounds=2)
    return as_direct(as_direct(one, "random", True, (0.9, 1.2)), "similarity", False, (-0.4, -1.5))


def test_what_an_arm_is(mixed: Comparison) -> None:
    assert [mixed.is_direct(arm) for arm in ARMS] == [False, True, True]
    assert [mixed.selects(arm) for arm in ARMS] == [False, True, False]
    assert not any(mixed.refreshes(arm) for arm in ARMS)


def test_rounds_are_as_wide_as_those_of_ppo(mixed: Comparison) -> None:
    direct, ppo = figures._clock(mixed, "random"), figures._clock(mixed, "none")
    places = [direct(point) for point in analysis.paths_of(mixed, "random")[0]]
    assert places == [0.0, synthetic.STEPS, 2 * synthetic.STEPS]
    assert all(ppo(point) == point.step for point in analysis.paths_of(mixed, "none")[0])
    assert figures._clock_name(mixed).startswith("PPO step (")
    only = mixed.model_copy(
        update={"arms": ARMS[1:], "runs": tuple(mixed.of_arm("random") + mixed.of_arm("similarity"))}
    )
    assert (
        figures._clock_name(only) == "optimiser step"
        and figures._clock(only, "random")(only.runs[0].rounds[0].curve[0]) == 117
    )
    assert 'id="training"' not in render(only)


def test_few_evaluations_are_enough_to_see_gold_fall_while_the_score_rises(mixed: Comparison) -> None:
    assert analysis.overoptimised_of(mixed, "similarity", analysis.GOLD) == 0
    assert analysis.overoptimised_of(mixed, "random", analysis.GOLD) is None
    answer = dict(mismatch.four_answers(mixed))["Is it over-optimised?"]
    assert answer.startswith("Yes") and "“similarity”" in answer and "“random”" not in answer


def test_the_page_leaves_out_what_no_arm_has(mixed: Comparison) -> None:
    page = render(mixed)
    assert 'id="gate"' not in page and 'href="#gate"' not in page
    assert 'id="selection"' in page and "Nothing is selected by “none” and “similarity”." in page
    assert "No curve: “random” and “similarity” (" in page
    assert [picture.title for picture in figures.selection_by_source(mixed)] == ["Pairs picked by random"]


def test_the_best_and_the_worse_are_named_and_the_rest_left_to_the_table(mixed: Comparison) -> None:
    def gain(arm: str, low: float, mean: float, high: float) -> Gain:
        return Gain(arm, SFT, Interval(mean, low, high), 10, 5, None)

    best = [gain(arm, 0.1, mean, 0.9) for arm, mean in (("a", 0.5), ("b", 0.4), ("c", 0.3))]
    said = certainty._said([*best, gain("d", -0.1, 0.0, 0.2), gain("e", -0.5, -0.3, -0.1)])
    assert said.endswith("“c” +0.30 (+0.10 to +0.90); worse: “e” −0.30 (−0.50 to −0.10); 1 more in the table")
    assert "“d”" not in said
    assert "more in the table" not in certainty._said([*best, gain("d", -0.1, 0.0, 0.2)])


def test_the_headline_says_who_is_best_at_equal_kl(mixed: Comparison) -> None:
    def moved(run: Any, kls: tuple[float, ...], golds: tuple[float, ...]) -> Any:
        rounds = [
            round_.model_copy(
                update={"evaluation": round_.evaluation.model_copy(update={"kl_to_sft": kl, "gold_reward": gold})}
            )
            for round_, kl, gold in zip(run.rounds, kls, golds, strict=True)
        ]
        return run.model_copy(update={"rounds": tuple(rounds)})

    paths = {
        "none": ((4.0, 8.0), (1.0, 2.0)),
        "random": ((1.0, 2.0), (0.9, 1.2)),
        "similarity": ((1.0, 2.0), (0.0, 0.0)),
    }
    runs = tuple(moved(run, *paths[run.arm]) for run in mixed.runs)
    start = mixed.starts[0]
    starts = (start.model_copy(update={"evaluation": start.evaluation.model_copy(update={"gold_reward": 0.0})}),)
    said = headline(mixed.model_copy(update={"runs": runs, "starts": starts}))
    assert "“none” ends with the highest" in said.verdict
    assert any("At 2.00 nats" in text and "in “random”: 1.20, “none” 0.50;" in text for text in said.findings)


def test_one_reward_model_of_all_arms_is_shown_once(mixed: Comparison) -> None:
    first = mixed.runs[0].final.offline_by_source
    runs = [
        run.model_copy(
            update={
                "rounds": tuple(
                    one.model_copy(
                        update={"evaluation": one.evaluation.model_copy(update={"offline_by_source": first})}
                    )
                    for one in run.rounds
                )
            }
        )
        for run in mixed.runs
    ]
    same = mixed.model_copy(update={"runs": tuple(runs)})
    assert analysis.one_reward_model(analysis.by_source(same)) and not analysis.one_reward_model(
        analysis.by_source(mixed)
    )
    assert "the one reward model of all arms" in render(same) and "the one reward model of all arms" not in render(
        mixed
    )
