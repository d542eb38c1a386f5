"""What a refresh presents, and champion against challenger."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.reward.refresh import judge, mix


@given(st.integers(1, 30), st.integers(0, 40), st.integers(2, 90), st.floats(0, 0.99), st.integers(0, 2**40))
@settings(max_examples=80, deadline=None)
def test_a_mix_presents_what_it_says(kept, others, seen, share, seed):
    pool = kept + others
    selected = np.sort(np.random.default_rng(seed).choice(pool, kept, replace=False))
    weights = 2.0 + np.arange(kept)
    mixed = mix(selected, weights, pool, seen, share, seed)
    assert len(mixed.indices) == len(mixed.weights) == seen
    assert mixed.replayed == min(round(seen * share), pool, seen - 1)
    mine = mixed.selected
    assert (mixed.weights[~mine] == 1).all() and (~mine).sum() == mixed.replayed
    counts = Counter(mixed.indices[mine].tolist())
    each = [counts[row] for row in selected.tolist()]
    assert sum(each) == mine.sum() and max(each) - min(each) <= 1  # everyone once before anyone twice
    weight_of = dict(zip(selected.tolist(), (weights / weights.mean()).tolist(), strict=True))
    assert all(weight_of[row] == w for row, w in zip(mixed.indices[mine], mixed.weights[mine], strict=True))
    assert len(set(mixed.indices[~mine].tolist())) == mixed.replayed  # without replacement


def test_a_mix_depends_on_its_seed_alone_and_is_shuffled():
    selected = np.arange(50)
    one, two, other = (mix(selected, np.ones(50), 200, 60, 0.5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.indices, two.indices)
    assert not np.array_equal(one.indices, other.indices)
    replayed = np.flatnonzero(~mix(selected, np.full(50, 9.0), 200, 60, 0.5, 1).selected)
    assert len(replayed) == 30 and replayed.min() < 10 and replayed.max() > 50  # spread over the presentation


def test_only_weights_relative_to_each_other_count_against_the_replay():
    selected, weights = np.arange(3), np.array([1.0, 2.0, 3.0])
    plain, tiny = (mix(selected, scale * weights, 50, 30, 0.4, 0) for scale in (1.0, 1e-6))
    np.testing.assert_allclose(plain.weights, tiny.weights, rtol=1e-12)
    by_row = {0: 0.5, 1: 1.0, 2: 1.5}  # their mean is 2
    assert all(
        w == by_row[row] for row, w in zip(plain.indices[plain.selected], plain.weights[plain.selected], strict=True)
    )
    assert plain.weights[plain.selected].mean() == 1.0 and (plain.weights[~plain.selected] == 1.0).all()


def pairs(gap, noise, count=200, seed=0):
    generator = np.random.default_rng(seed)
    return np.full(count, gap) + noise * generator.normal(size=count), np.zeros(count)


def right(share, gap=1.0, count=200):
    """Scores that rank a share of the pairs as labelled, all with the same gap."""
    signs = np.where(np.arange(count) < share * count, 1.0, -1.0)
    return gap * signs, np.zeros(count)


def test_a_clearly_better_challenger_is_accepted_and_a_worse_one_is_not():
    champion, better, worse = right(0.6), right(0.9), right(0.3)
    decision = judge(champion, better, 0.95, 500, seed=0)
    # At the best scale σ(b) is the share p: p log p + (1-p) log(1-p) is -0.325083 at 0.9 and -0.673012 at 0.6
    assert decision.accepted and decision.gap.mean == pytest.approx(0.347929, abs=1e-5)
    assert 0 < decision.gap.low < decision.gap.mean and decision.gap.pairs == 200
    assert (decision.incumbent_accuracy, decision.challenger_accuracy) == (0.6, 0.9)
    refused = judge(champion, worse, 0.95, 500, seed=0)
    # the wrong way round more often than not: scale 0, log ½ a pair
    assert not refused.accepted and refused.gap.mean == pytest.approx(0.673012 - 0.693147, abs=1e-5)


def test_an_equal_challenger_is_refused():
    champion = pairs(0.5, 0.3)
    assert not judge(champion, champion, 0.5, 500, seed=0).accepted


def test_more_confidence_asks_for_more():
    champion = pairs(0.5, 1.0, 40)
    slightly = (champion[0] + 0.02 + 0.3 * np.random.default_rng(5).normal(size=40), champion[1])
    easy, hard = (judge(champion, slightly, confidence, 500, seed=0) for confidence in (0.5, 0.99))
    assert easy.gap.mean == hard.gap.mean and hard.gap.low < easy.gap.low and hard.gap.detectable > easy.gap.detectable
    assert not hard.accepted


def test_more_pairs_detect_less():
    few, many = (judge(pairs(0.5, 0.3, n), pairs(0.6, 0.3, n, 1), 0.9, 200, 0).gap.detectable for n in (50, 800))
    assert many == pytest.approx(few / 4, rel=0.3)


def test_being_surer_of_the_same_ranking_is_no_reason_to_replace():
    decision = judge(right(0.8, gap=0.5), right(0.8, gap=4.0), 0.5, 200, 0)
    assert not decision.accepted and decision.gap.mean == pytest.approx(0.0, abs=1e-9)


def test_reported_accuracy_counts_a_tie_as_half():
    scores = np.array([1.0, 0.0, 2.0, 1.0]), np.array([0.0, 1.0, 2.0, 0.5])
    assert judge(scores, scores, 0.5, 100, 0).incumbent_accuracy == 0.625


def test_the_gate_knows_no_scale():
    champion, challenger = pairs(0.5, 1.0, 300), pairs(1.0, 1.0, 300, 1)
    plain = judge(champion, challenger, 0.9, 300, 0)
    loud = judge(champion, [scores * 50 for scores in challenger], 0.9, 300, 0)
    assert plain.accepted and loud.accepted
    assert loud.gap.mean == pytest.approx(plain.gap.mean, abs=1e-6)


def test_no_incumbent_is_so_bad_that_a_reversed_or_an_empty_challenger_replaces_it():
    good = pairs(1.0, 1.0, 200)
    reversed_ = [good[1], good[0]]
    empty = [np.zeros(200), np.zeros(200)]
    sure_and_wrong = [scores * 1000 for scores in pairs(0.05, 1.0, 200, 2)]
    for incumbent in (sure_and_wrong, reversed_, empty):
        assert not judge(incumbent, reversed_, 0.5, 300, 0).accepted
        assert not judge(incumbent, empty, 0.5, 300, 0).accepted
        assert judge(incumbent, good, 0.9, 300, 0).accepted
