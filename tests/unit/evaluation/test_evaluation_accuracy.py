"""Accuracy of a reward model, by hand: offline, per source policy, and on the policy's own answers."""

from __future__ import annotations

import numpy as np
import pytest

from inverse_alignment.core.records import Prompt, Rollout
from inverse_alignment.evaluation.reward_accuracy import (
    PairScores,
    by_source,
    gold_rewards,
    longer_wins,
    on_policy_pairs,
    score_pairs,
)
from tests.unit.models import tiny

PAIRS = [
    tiny.pair("p", "one two three", "one", 0, source_chosen="coach", source_rejected="poet"),
    tiny.pair("p", "one", "one two", 1, source_chosen="poet", source_rejected="poet"),
    tiny.pair("q", "a b", "c d", 2, source_chosen="coach", source_rejected="novice"),
]


def rollout(prompt, response, sample):
    return Rollout(
        prompt=Prompt.from_text(prompt),
        response=response,
        sample=sample,
        log_prob=-1.0,
        ref_log_prob=-1.0,
        kl_estimate=0.0,
        tokens=3,
        ended=True,
    )


ROLLOUTS = [rollout("p", "bad", 0), rollout("q", "good", 0), rollout("p", "good", 1), rollout("p", "fair", 2)]
GOLD = np.array([0.0, 1.0, 1.0, 1.0])


def test_a_tie_is_half_right():
    scores = PairScores(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    assert scores.correct().tolist() == [1.0, 0.5, 0.0]


def test_both_answers_are_scored_with_their_own_prompt():
    def score(prompts, responses):
        return np.array([float(f"{ord(p.text())}.{len(r)}") for p, r in zip(prompts, responses, strict=True)])

    found = score_pairs(score, PAIRS)
    assert found.chosen.tolist() == [112.13, 112.3, 113.3] and found.rejected.tolist() == [112.3, 112.7, 113.3]


def test_longer_wins_counts_words():
    assert longer_wins(PAIRS).tolist() == [1.0, 0.0, 0.5]


def test_by_source_counts_a_pair_once_for_each_of_its_authors():
    assert by_source(PAIRS, np.array([1.0, 1.0, 0.0])) == {
        "coach": {"pairs": 2, "rm_accuracy": 0.5, "longer_wins": 0.75},
        "novice": {"pairs": 1, "rm_accuracy": 0.0, "longer_wins": 0.5},
        "poet": {"pairs": 2, "rm_accuracy": 1.0, "longer_wins": 0.5},
    }


def test_on_policy_pairs_join_answers_to_one_prompt_that_gold_tells_apart():
    pairs = on_policy_pairs(ROLLOUTS, GOLD)
    assert pairs.better.tolist() == [2, 3] and pairs.worse.tolist() == [0, 0]
    assert pairs.accuracy(np.array([0.5, -9.0, 0.7, 0.5])) == pytest.approx(0.75)  # one right, one tie
    assert pairs.accuracy(-GOLD) == 0.0 and pairs.accuracy(GOLD) == 1.0


def test_without_pairs_there_is_no_accuracy():
    pairs = on_policy_pairs(ROLLOUTS, np.ones(4))
    assert pairs.accuracy(np.ones(4)) is None
    assert on_policy_pairs([], np.empty(0)).accuracy(np.empty(0)) is None


def test_gold_is_asked_about_prompt_and_answer():
    assert gold_rewards(lambda prompt, text: len(prompt.text() + text), ROLLOUTS).tolist() == [4, 5, 5, 5]
