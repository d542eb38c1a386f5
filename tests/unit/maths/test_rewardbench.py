"""RewardBench's scores: published numbers, numbers by hand, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.maths.rewardbench import (
    answer_margins,
    best_of_credit,
    determination,
    overall_score,
    percentile_interval,
    ratio_draws,
    ties_credits,
)

EIGHTHS = st.integers(-24, 24).map(lambda number: number / 8)


def array(*values):
    return np.array(values, dtype=float)


@pytest.mark.parametrize(
    ("scores", "right", "credit"),
    [
        ((2, 1), 1, 1.0),
        ((1, 2), 1, 0.0),
        ((1, 1), 1, 0.5),
        ((3, 1, 2, 0), 1, 1.0),
        ((3, 1, 3, 0), 1, 0.5),
        ((3, 3, 3, 0), 1, 1 / 3),
        ((3, 3, 3, 3), 1, 0.25),
        ((1, 3, 3, 0), 1, 0.0),
        ((3, 3, 3, 0), 2, 2 / 3),
    ],
)
def test_best_of_by_hand(scores, right, credit):
    assert best_of_credit(array(*scores), right) == pytest.approx(credit, abs=1e-15)


@given(st.lists(EIGHTHS, min_size=2, max_size=6), st.integers(1, 5), st.sampled_from([np.exp, lambda x: 7 * x - 3]))
@settings(deadline=None)
def test_only_the_order_of_scores_counts(scores, right, grow):
    right = min(right, len(scores) - 1)
    values = array(*scores)
    assert best_of_credit(grow(values), right) == best_of_credit(values, right)


def test_random_scores_earn_a_quarter_of_best_of_four():
    generator = np.random.Generator(np.random.Philox(key=1))
    credits = [best_of_credit(row, 1) for row in generator.normal(size=(4000, 4))]
    assert abs(np.mean(credits) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_margins_by_hand():
    assert answer_margins(array(2, 1.5, 1.75, 1, -1), 3) == (0.5, 0.5)
    assert answer_margins(array(0, 1, -1), 1) == (-1, 0)


@pytest.mark.parametrize("function", [best_of_credit, answer_margins])
@pytest.mark.parametrize("right", [0, 2, 3])
def test_a_prompt_needs_right_and_wrong_answers(function, right):
    with pytest.raises(ValueError, match=f"{right} right answers among 2"):
        function(array(1, 2), right)


def ties(*questions):
    """The subset's score, from (scores of the reference, scores of the tied question, how many of these are right)."""
    asked = [(answer_margins(array(*r), 1), answer_margins(array(*t), right)) for r, t, right in questions]
    columns = zip(*((r.gap, t.gap, t.spread) for r, t in asked), strict=True)
    return float(ties_credits(*(array(*column) for column in columns)).mean())


def test_ties_give_the_number_of_the_released_code():
    first = ((2, 0, -1), (2, 1.8, 1.5, 0.5, -1), 3)
    second = ((0, 1, -1), (3, 1, 0.5, 0), 2)
    assert ties(first, second) == pytest.approx(0.64928223, abs=1e-8)


def test_each_part_of_a_ties_credit_by_hand():
    # both right, the tied gap alone is above the spread; tanh(1/2 - 1)
    assert ties_credits(array(1), array(3), array(2))[0] == pytest.approx(0.8 + 0.01 * np.tanh(-0.5), abs=1e-15)
    # the tied one is wrong; tanh(-2/2 - 1)
    assert ties_credits(array(4), array(-2), array(2))[0] == pytest.approx(0.3 + 0.01 * np.tanh(-2), abs=1e-15)
    # the reference alone is wrong
    assert ties_credits(array(-1), array(3), array(1))[0] == pytest.approx(0.5 + 0.01 * np.tanh(-2), abs=1e-15)
    # gaps equal to the spread are not above it
    assert ties_credits(array(1), array(1), array(1))[0] == pytest.approx(0.6, abs=1e-15)
    assert ties_credits(array(0), array(0), array(1))[0] == pytest.approx(0.01 * np.tanh(-1), abs=1e-15)


def test_equal_right_answers_take_the_limit():
    assert ties_credits(array(3, -2, 0), array(2, 1, 0), array(0, 0, 0)).tolist() == pytest.approx([1.01, 0.49, 0.0])
    near = ties_credits(array(1, -1), array(2, 1), array(1e-9, 1e-9))
    assert near == pytest.approx(ties_credits(array(1, -1), array(2, 1), array(0, 0)), abs=1e-12)


def test_single_numbers_are_plain_ones():
    numbers = [
        best_of_credit(array(1, 0), 1),
        *answer_margins(array(2, 1, 0), 2),
        determination(array(1, 2), array(1, 3)),
    ]
    assert {type(each) for each in (*numbers, *percentile_interval(0.5, array(0, 1)))} == {float}


def test_a_constant_reward_earns_nothing_on_ties():
    assert ties(((1, 1, 1), (1, 1, 1, 1), 2)) == 0.0


def test_ties_know_margins_but_no_unit():
    question = ((2, 0, -1), (2, 1.8, 1.5, 0.5, -1), 3)
    scaled = tuple(tuple(5 * x + 1 for x in part) for part in question[:2])
    bent = tuple(tuple(np.exp(3 * x) for x in part) for part in question[:2])
    assert ties((*scaled, 3)) == pytest.approx(ties(question), abs=1e-12)
    assert ties((*bent, 3)) < ties(question) - 0.1


def test_what_ties_refuse():
    with pytest.raises(ValueError, match="negative"):
        ties_credits(array(1, 1), array(1, 1), array(0, -1))
    for shapes in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        with pytest.raises(ValueError, match="gaps"):
            ties_credits(*(np.ones(size) for size in shapes))


SECTIONS = {  # the example in RewardBench's README: accuracy and number of prompts of every subset
    0.6089385: ((0.5, 100), (0.5894736842105263, 95), (0.7052631578947368, 95), (0.5714285714285714, 28), (0.725, 40)),
    0.4495614: (
        *((0.5405405405405406, 37), (0.52, 100), (0.43283582089552236, 134), (0.391304347826087, 92)),
        *((0.46808510638297873, 47), (0.3695652173913043, 46)),
    ),
    0.7216216: ((0.97, 100), (1, 100), (1, 154), (0.284, 250), (0.8235294117647058, 136)),
    0.4667567: (
        *((0.2953020134228188, 984), (0.6280487804878049, 164), (0.6341463414634146, 164), (0.7073170731707317, 164)),
        *((0.6646341463414634, 164), (0.5487804878048781, 164), (0.6463414634146342, 164)),
    ),
}


def test_the_published_example_of_rewardbench():
    found = [sum(a * n for a, n in subsets) / sum(n for _, n in subsets) for subsets in SECTIONS.values()]
    assert found == pytest.approx(list(SECTIONS), abs=5e-8)
    assert overall_score(found) == pytest.approx(0.5617196, abs=5e-8)


def test_prior_sets_count_half():
    assert overall_score([1.0, 0.5, 0.5, 1.0], 0.75) == pytest.approx((3 + 0.375) / 4.5, abs=1e-15)
    assert overall_score([0.25, 0.75]) == 0.5
    assert overall_score([0.5], 0.0) == pytest.approx(0.5 / 1.5, abs=1e-15)
    # the leaderboard's columns of ArmoRM
    assert overall_score([96.9, 76.8, 92.2, 97.3], 74.3) == pytest.approx(89.0, abs=0.05)
    with pytest.raises(ValueError, match="no section"):
        overall_score([])


def test_draws_are_ratios_of_what_was_drawn():
    draws = ratio_draws(array(2, 0), array(2, 3), 7, resamples=400)
    assert len(draws) == 400
    assert sorted(set(np.round(draws, 12))) == [0.0, 0.4, 1.0]  # both of one kind, or one of each: 2 of 5
    assert np.mean(draws == 0.4) == pytest.approx(0.5, abs=0.1)
    assert (draws == ratio_draws(array(2, 0), array(2, 3), 7, resamples=400)).all()
    assert (draws != ratio_draws(array(2, 0), array(2, 3), 8, resamples=400)).any()
    assert len(ratio_draws(array(1), array(1), 0)) == 2000


def test_their_spread_is_the_standard_error():
    credits = np.random.Generator(np.random.Philox(key=3)).random(400)
    assert ratio_draws(credits, np.ones(400), 0).std() == pytest.approx(credits.std() / 20, rel=0.1)


def test_prompts_with_many_pairs_are_one_unit():
    """Ten times the same pair tells no more than one."""
    credits = np.random.Generator(np.random.Philox(key=4)).integers(0, 2, 50).astype(float)
    one = ratio_draws(credits, np.ones(50), 0)
    assert ratio_draws(10 * credits, np.full(50, 10.0), 0) == pytest.approx(one, abs=1e-12)
    apart = ratio_draws(np.repeat(credits, 10), np.ones(500), 0)
    assert apart.std() < 0.5 * one.std()


def test_what_draws_refuse():
    for credits, weights in ((array(), array()), (array(1), array(1, 1))):
        with pytest.raises(ValueError, match="credits of"):
            ratio_draws(credits, weights, 0)
    for weight in (0, -1):
        with pytest.raises(ValueError, match="not positive"):
            ratio_draws(array(1, 1), array(1, weight), 0)


def test_percentiles_by_hand():
    draws = np.arange(101.0)
    assert percentile_interval(3.0, draws) == pytest.approx((3.0, 2.5, 97.5))
    assert percentile_interval(3.0, draws, 0.8) == pytest.approx((3.0, 10.0, 90.0))
    with pytest.raises(ValueError, match="no draws"):
        percentile_interval(3.0, array())


def test_determination_by_hand():
    assert determination(array(1, 2, 3), array(-2, -4, -6)) == pytest.approx(1.0)
    assert determination(array(0, 1, 0, 1), array(0, 0, 1, 1)) == 0.0
    assert determination(array(1, 2, 3), array(1, 3, 2)) == pytest.approx(0.25)
    assert determination(array(1, 1), array(1, 2)) == 0.0
    assert determination(array(1, 2), array(1, 1)) == 0.0
    assert determination(array(1), array(1)) == 0.0
    for x, y in ((array(), array()), (array(1, 2), array(1))):
        with pytest.raises(ValueError, match="values and"):
            determination(x, y)


@given(st.lists(st.tuples(EIGHTHS, EIGHTHS), min_size=1, max_size=8))
@settings(deadline=None)
def test_determination_is_a_share_and_knows_no_unit(pairs):
    x, y = np.array(pairs).T
    found = determination(x, y)
    assert 0 <= found <= 1 + 1e-12
    assert determination(3 * x + 5, -2 * y) == pytest.approx(found, abs=1e-9)
