"""What a refresh presents, and champion against challenger."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.reward.refresh import judge, mix, pair_accuracy


@given(st.integers(1, 30), st.integers(0, 40), st.integers(2, 90), st.floats(0, 0.99), st.integers(0, 2**40))
@settings(max_examples=80, deadline=None)
def test_a_mix_presents_what_it_says(kept, others, seen, share, seed):
    pool = kept + others
    selected = np.sort(np.random.default_rng(seed).choice(pool, kept, replace=False))
    weights = 2.0 + np.arange(kept)
    mixed = mix(selected, weights, pool, seen, share, seed)
    assert len(mixed.indices) == len(mixed.weights) == seen
    assert mixed.replayed == min(round(seen * share), pool, seen - 1)
    mine = mixed.weights >= 2  # replayed pairs weigh 1
    assert (~mine).sum() == mixed.replayed
    counts = Counter(mixed.indices[mine].tolist())
    each = [counts[row] for row in selected.tolist()]
    assert sum(each) == mine.sum() and max(each) - min(each) <= 1  # everyone once before anyone twice
    weight_of = dict(zip(selected.tolist(), weights.tolist(), strict=True))
    assert all(weight_of[row] == w for row, w in zip(mixed.indices[mine], mixed.weights[mine], strict=True))
    assert len(set(mixed.indices[~mine].tolist())) == mixed.replayed  # without replacement


def test_a_mix_depends_on_its_seed_alone_and_is_shuffled():
    selected = np.arange(50)
    one, two, other = (mix(selected, np.ones(50), 200, 60, 0.5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.indices, two.indices)
    assert not np.array_equal(one.indices, other.indices)
    replayed = np.flatnonzero(mix(selected, np.full(50, 9.0), 200, 60, 0.5, 1).weights == 1)
    assert len(replayed) == 30 and replayed.min() < 10 and replayed.max() > 50  # spread over the presentation


def pairs(gap, noise, count=200, seed=0):
    generator = np.random.default_rng(seed)
    return np.full(count, gap) + noise * generator.normal(size=count), np.zeros(count)


def test_a_clearly_better_challenger_is_accepted_and_a_worse_one_is_not():
    champion, better, worse = pairs(0.5, 0.3), pairs(1.5, 0.3, seed=1), pairs(-0.5, 0.3, seed=2)
    decision = judge(champion, better, 0.95, 500, seed=0)
    # log σ(1.5) - log σ(0.5) = -0.2014 + 0.4741 = 0.2727 without noise
    assert decision.accepted and decision.gap.mean == pytest.approx(0.2727, abs=0.02)
    assert 0 < decision.gap.low < decision.gap.mean and decision.gap.pairs == 200
    assert 0 < decision.gap.detectable < 0.05
    refused = judge(champion, worse, 0.95, 500, seed=0)
    assert not refused.accepted and refused.gap.mean < 0
    assert refused.challenger_accuracy < 0.1 < 0.9 < refused.incumbent_accuracy


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


def test_ranking_accuracy_alone_does_not_decide():
    # Every pair ranked right by both, the challenger more sure of it: its likelihood is higher.
    decision = judge(pairs(0.5, 0.0), pairs(2.0, 0.0), 0.9, 200, 0)
    assert decision.accepted and decision.incumbent_accuracy == decision.challenger_accuracy == 1.0


def test_pair_accuracy_counts_a_tie_as_half():
    assert pair_accuracy(np.array([1.0, 0.0, 2.0, 1.0]), np.array([0.0, 1.0, 2.0, 0.5])) == 0.625
