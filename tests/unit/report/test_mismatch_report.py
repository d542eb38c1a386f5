"""What the report says of the mismatch: the planted fall is told, its absence too, and few runs stay few runs."""

from __future__ import annotations

import pytest

from inverse_alignment.maths.bootstrap import Interval
from inverse_alignment.maths.overoptimisation import Fit
from inverse_alignment.report import mismatch, table
from inverse_alignment.report.collect import collect
from inverse_alignment.report.comparison import Comparison
from inverse_alignment.report.page import render
from tests.unit.report import synthetic


def read(folder, seeds=(0,), gold=True, audit=False, rounds=3, arms=("none", "similarity")) -> Comparison:
    folders = synthetic.make(folder, arms=arms, rounds=rounds, seeds=seeds, gold=gold, audit=audit)
    return collect(folders, title="T", config_digest="c" * 64, arms=arms, seeds=seeds, rounds=rounds)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Comparison:
    return read(tmp_path_factory.mktemp("one"), audit=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Comparison:
    return read(tmp_path_factory.mktemp("many"), seeds=(0, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def blind(tmp_path_factory) -> Comparison:
    return read(tmp_path_factory.mktemp("blind"), gold=False, rounds=1)


def test_the_four_questions_are_answered(one):
    answers = dict(mismatch.four_answers(one))
    assert "“none”" in answers["Is the policy better?"] and "at like length" in answers["Is the policy better?"]
    assert "one seed" in answers["How sure is that?"]
    assert answers["Is it over-optimised?"].startswith("Yes") and "“none”" in answers["Is it over-optimised?"]
    assert "“similarity”" not in answers["Is it over-optimised?"]
    assert "found 3 things" in answers["Is it over-optimised?"]
    assert "“similarity” accepted" in answers["What did the refresh do?"]


def test_nothing_is_claimed_where_nothing_is_known(blind):
    answers = dict(mismatch.four_answers(blind))
    assert answers["Is the policy better?"].startswith("Nobody can say")
    assert answers["Is it over-optimised?"].startswith("That cannot be seen")
    assert mismatch.curves(blind) == [] == mismatch.trust(blind)
    assert mismatch.cost_columns(blind) == mismatch.COST_COLUMNS


def test_several_seeds_are_said_to_be_several(many):
    assert dict(mismatch.four_answers(many))["How sure is that?"].startswith("5 seeds")


def test_curves_of_few_and_of_many_runs(one, many):
    assert [curve.by_run for curve in (*mismatch.curves(one), *mismatch.curves(many))] == [False, False, True, True]
    none = mismatch.curves(many)[0]
    assert none.fit and none.fit.b.low > 0 and "past it" in none.sentence()


def test_several_reward_models_have_the_laws_own_term(many):
    run = many.of_arm("similarity")[0]
    steps = [round_.curve[0].step for round_ in run.rounds]
    accepted = [round_.gate.accepted for round_ in run.rounds]
    assert [mismatch.models_until(run, step) for step in steps] == [
        1,
        1 + accepted[1],
        1 + accepted[1] + accepted[2],
    ]
    assert mismatch.models_until(run, steps[1] - 1) == 1 == mismatch.models_until(run, 0)
    none, similarity = mismatch.curves(many)
    assert none.refreshed is None and none.of_refreshes() == ""
    assert similarity.refreshed is not None and "log d/k" in similarity.of_refreshes()
    assert similarity.fit is not None and similarity.refreshed.residual != similarity.fit.residual
    assert similarity.of_refreshes() in render(many)


@pytest.mark.parametrize(
    ("peak", "now", "said"),
    [
        (Interval(2.0, 1.5, 2.5), 3.0, "past it."),
        (Interval(2.0, 1.5, 2.5), 1.0, "before it."),
        (Interval(2.0, 1.5, float("inf")), 3.0, "as near as can be told."),
    ],
)
def test_where_the_last_policies_are(peak, now, said):
    fit = Fit(Interval(1.0, 0.9, 1.1), Interval(0.5, 0.4, 0.6), peak, 0.1)
    sentence = mismatch.ArmCurve("x", fit, "", now, True).sentence()
    assert sentence.endswith(said) and "a 1.00 (0.90 to 1.10)" in sentence
    assert ("∞" in sentence) == (peak.high == float("inf"))


def test_no_peak_and_no_curve():
    fit = Fit(Interval(1.0, 0.9, 1.1), Interval(0.1, -0.1, 0.3), Interval(9.0, 3.0, float("inf")), 0.1)
    assert "no peak can be told" in mismatch.ArmCurve("x", fit, "", 1.0, True).sentence()
    none, other = (mismatch.ArmCurve(name, None, "too close", 1.0, False) for name in "xy")
    assert none.sentence() == ""
    assert mismatch.without_curve([none, other]) == "No curve: “x” and “y” (too close)."
    assert mismatch.without_curve([mismatch.ArmCurve("x", fit, "", 1.0, True)]) == ""


def test_the_drawn_curve_begins_at_the_start_and_follows_the_fit():
    fit = Fit(Interval(1.0, 0.9, 1.1), Interval(0.5, 0.4, 0.6), Interval(2.0, 1.5, 2.5), 0.1)
    drawn = mismatch.ArmCurve("x", fit, "", 1.0, True).points(0.3, 1.0)
    assert drawn[0] == (0.0, 0.3) and drawn[-1] == (1.0, pytest.approx(1.3))  # log 1 = 0
    assert mismatch.ArmCurve("x", None, "too close", 1.0, True).points(0.3, 1.0) == []


def test_which_metric_to_trust(one, many):
    few, more = mismatch.trust(one), mismatch.trust(many)
    assert few and all(row.interval is None and row.checkpoints == 6 for row in few)
    assert [row.rho for row in more] == sorted((row.rho for row in more), reverse=True)
    assert all(row.interval and row.interval.low <= row.rho <= row.interval.high for row in more)
    assert {row.metric for row in more} < set(mismatch.RM_METRICS)  # without an audit model


def test_costs_are_before_and_after(one):
    start, none, _ = mismatch.costs(one)
    assert start.arm == "SFT start" and start.values[0] == "50\N{NO-BREAK SPACE}%"
    assert none.values[-1].startswith("3.200 → 3.2") and none.values[-1] != start.values[-1]
    assert mismatch.cost_columns(one)[-2:] == mismatch.OPTIONAL_COLUMNS[-2:]  # nobody judges


def test_the_table_in_the_terminal_has_the_probe_where_there_is_one(one, blind):
    assert table.columns(one)[-1] == "probe, nats per token" and not {"probe, nats per token"} & set(
        table.columns(blind)
    )
    before, after = (table.cells(one, [evaluation])[-1] for evaluation in (one.starts[0].evaluation, one.runs[0].final))
    assert before == "3.200" and after > before


@pytest.mark.parametrize("name", ["one", "many", "blind"])
def test_the_page_has_it(name, request):
    comparison = request.getfixturevalue(name)
    page = render(comparison)
    for question, _ in mismatch.four_answers(comparison):
        assert f"<dt>{question}</dt>" in page
    assert ("Answers grew by half." in page) and ("Least squares" in page) == (name != "blind")
    assert ("Spearman" in page) == (name != "blind") and "None" not in page.partition('id="mismatch"')[2][:6000]
