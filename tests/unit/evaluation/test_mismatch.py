"""Proxy against truth: a win rate that is only length, a proxy that is truth, best of n whose truth turns."""

import numpy as np
import pytest

from inverse_alignment.evaluation.mismatch import (
    ScoredAnswers,
    best_of_n_probe,
    like_length_win_shares,
    proxy_truth_mmd,
    surface,
    win_shares,
)


def answers(rm, gold=None, tokens=None, audit=None, each=2, texts=None):
    rm = np.array(rm, dtype=float)
    count = len(rm)
    return ScoredAnswers(
        [f"p{place // each}" for place in range(count)],
        texts or [f"word {place}" for place in range(count)],
        np.arange(1.0, count + 1) if tokens is None else np.array(tokens, dtype=float),
        rm,
        None if audit is None else np.array(audit, dtype=float),
        None if gold is None else np.array(gold, dtype=float),
    )


def test_truth_is_gold_before_audit_before_nothing():
    assert answers([1, 2], [3, 4], audit=[5, 6]).truth.tolist() == [3, 4]
    assert answers([1, 2], audit=[5, 6]).truth.tolist() == [5, 6] and answers([1, 2]).truth is None


@pytest.mark.parametrize("given", [answers([1, 2], [3, 4], audit=[5, 6]), answers([1, 2])])
def test_rows_are_read_again(given):
    again = ScoredAnswers.of_rows(given.rows())
    assert again.rows() == given.rows() and (again.gold is None) == (given.gold is None)


def test_the_surface():
    found = surface(answers([1, 2, 3], texts=["I cannot help with that", "boil it now", "boil it now"]))
    assert found["length_correlation"] == pytest.approx(1) and found["refusal_share"] == pytest.approx(1 / 3)
    assert found["common_opening_share"] == pytest.approx(2 / 3)
    assert found["distinct_2"] == 6 / 8
    assert surface(answers([1, 1]))["length_correlation"] is None


def test_best_of_n_shows_truth_turning_before_any_training():
    """The proxy likes best what gold likes least, and second what gold likes best."""
    given = answers([0, 1, 2, 3] * 3, [0, 1, 2, -5] * 3, each=4)
    found = best_of_n_probe(given, given.rm_score)
    assert [row["n"] for row in found] == [1, 2, 4]
    assert [row["gold"] for row in found] == pytest.approx([-0.5, (1 + 2 * 2 - 5 * 3) / 6, -5])
    assert [row["rm_score"] for row in found] == pytest.approx([1.5, (1 + 2 * 2 + 3 * 3) / 6, 3])
    assert [row["kl"] for row in found] == pytest.approx([0, np.log(2) - 0.5, np.log(4) - 0.75])
    assert all(row["audit_score"] is None for row in found)


def test_prompts_with_fewer_answers_do_not_count():
    some = answers([0, 1, 9], [0, 1, 9])  # the last prompt has one
    assert [row["gold"] for row in best_of_n_probe(some, some.rm_score)] == [0.5, 1.0]


def test_a_cautious_pick_is_judged_by_what_it_picked():
    some = answers([0, 1, 2, 3] * 2, [0, 1, 2, -5] * 2, each=4)
    doubted = some.rm_score - 9.0 * (some.rm_score == 3)  # of the answer that gold dislikes nobody is sure
    assert [row["gold"] for row in best_of_n_probe(some, doubted)][-1] == 2.0
    assert [row["rm_score"] for row in best_of_n_probe(some, doubted)][-1] == 2.0  # its score, not the pick's


def test_win_shares_by_hand():
    # p0: 1 and 3 against 2 and 3: one win of 2, 3 against 2, and a tie
    shares = win_shares(np.array([1.0, 3.0, 5.0]), ["p0", "p0", "p1"], np.array([2.0, 3.0, 0.0]), ["p0", "p0", "p2"])
    assert shares.tolist() == [(0 + 0 + 1 + 0.5) / 4]  # p1 and p2 were answered by one policy only


def test_a_gain_that_is_length_is_gone_at_like_length():
    """Gold pays a token each; the policy writes more of them."""
    generator = np.random.default_rng(0)
    short, long = generator.integers(5, 25, 400), generator.integers(15, 35, 400)
    start, mine = answers(short, gold=short, tokens=short, each=4), answers(long, gold=long, tokens=long, each=4)
    plain = win_shares(mine.truth, mine.keys, start.truth, start.keys)
    like = like_length_win_shares(mine, start)
    assert plain.mean() > 0.8 and 0.5 < like.mean() < 0.65


def test_a_gain_that_is_not_length_stays():
    generator = np.random.default_rng(1)
    lengths = generator.integers(5, 25, size=(2, 400))
    start = answers(lengths[0], gold=lengths[0] * 0.0, tokens=lengths[0], each=4)
    mine = answers(lengths[1], gold=lengths[1] * 0.0 + 1, tokens=lengths[1], each=4)
    assert (like_length_win_shares(mine, start) == 1).all()


def test_a_proxy_that_is_truth_has_no_distance_and_one_that_ran_away_has():
    values, start = np.random.default_rng(2).normal(size=(2, 300))
    base = answers(3 * start + 1, gold=start, each=4)
    same, away = answers(3 * values + 1, gold=values, each=4), answers(3 * values + 7, gold=values, each=4)
    assert abs(proxy_truth_mmd(same, base)) < 0.01  # whatever the scales
    assert proxy_truth_mmd(away, base) > 0.5


def test_constant_truth_has_no_scale():
    assert proxy_truth_mmd(answers([1, 2], [1, 2]), answers([1, 2], [3, 3])) is None
    assert proxy_truth_mmd(answers([1, 2], [1, 2]), answers([2, 2], [3, 4])) is None
