"""Drift: what each measure says at its ends, which side of the threshold asks, and what cannot be measured."""

from __future__ import annotations

import math

import numpy as np
import pytest

from inverse_alignment.embedding.lexical import LexicalEncoder
from inverse_alignment.reward import drift
from inverse_alignment.reward.drift import Drift, crossed, distance, still_counting, variance_left
from inverse_alignment.reward.settings import DriftTrigger, ScheduleTrigger

WORDS = ["sun", "rain", "wind", "snow", "hail", "fog"]


def texts(seed, words, count=60):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, 4)) for _ in range(count)]


def test_answers_in_other_words_are_far_and_more_of_the_same_is_near():
    embed = LexicalEncoder(256)
    near = distance(texts(0, WORDS), texts(1, WORDS), embed)
    far = distance(texts(0, WORDS), texts(1, ["bread", "cheese", "wine", "salt"]), embed)
    some = distance(texts(0, WORDS), texts(1, WORDS)[:30] + texts(2, ["bread", "cheese"], 30), embed)
    assert abs(near) < 0.02 < some < far


def test_of_long_lists_answers_all_along_them_are_compared(monkeypatch):
    monkeypatch.setattr(drift, "MOST_ANSWERS", 20)
    asked = []

    def embed(given):
        asked.append(list(given))
        return LexicalEncoder(64)(given)

    long = [f"answer {i}" for i in range(100)]
    assert distance(long, long[:7], embed) is not None
    assert len(asked[0]) == 20 and asked[0][0] == "answer 0" and asked[0][-1] == "answer 99" and asked[1] == long[:7]
    assert len(set(asked[0])) == 20


def test_a_single_answer_has_no_distance():
    assert distance(["one"], ["one", "two"], LexicalEncoder(64)) is None
    assert distance(["one", "two"], ["one"], LexicalEncoder(64)) is None


def test_the_share_that_still_counts_is_that_of_the_weights():
    then = np.array([-3.0, -2.0, -4.0, -1.0])
    assert still_counting(then, then) == 1.0
    assert still_counting(then - 500.0, then) == pytest.approx(1.0)  # all alike less likely: nobody counts for more
    doubled = then + np.array([math.log(2), 0, 0, 0])
    assert still_counting(doubled, then) == pytest.approx(25 / 7 / 4)  # (2 + 1 + 1 + 1)² / (4 + 3) of 4
    assert still_counting(then + np.array([900.0, 0, 0, 0]), then) == 0.25  # one alone


def test_the_variance_is_a_share_of_that_on_the_reference_sample():
    keys = ["a", "a", "b", "b"]
    assert variance_left(np.array([0.0, 1.0, 5.0, 6.0]), keys, np.array([0.0, 2.0, 1.0, 3.0]), keys) == 0.25
    assert variance_left(np.array([0.0, 1.0]), ["a", "b"], np.array([0.0, 2.0]), ["a", "a"]) is None
    assert variance_left(np.array([0.0, 1.0]), ["a", "a"], np.array([0.0, 2.0]), ["a", "b"]) is None
    assert variance_left(np.array([0.0, 1.0]), ["a", "a"], np.array([2.0, 2.0]), ["a", "a"]) is None


@pytest.mark.parametrize(
    ("measure", "asks", "rests"), [("mmd", 0.31, 0.3), ("ess", 0.29, 0.3), ("variance", 0.29, 0.3)]
)
def test_each_measure_asks_on_its_own_side_of_the_threshold(measure, asks, rests):
    trigger = DriftTrigger(measure=measure, threshold=0.3)
    calm = {"mmd": 0.0, "ess": 1.0, "answers": 9, "variance": 1.0}
    assert crossed(trigger, Drift(**{**calm, measure: asks}))
    assert not crossed(trigger, Drift(**{**calm, measure: rests}))
    assert not crossed(trigger, Drift(**{**calm, measure: None}))
    wild = {"mmd": 9.0, "ess": 0.0, "answers": 9, "variance": 0.0}
    assert not crossed(trigger, Drift(**{**wild, measure: rests}))  # the others do not decide


def test_a_schedule_does_not_look_at_the_drift():
    assert crossed(ScheduleTrigger(), Drift(0.0, None, None, None))
    names = set(Drift(0.0, None, None, None).metrics())
    assert names == {"drift_mmd", "drift_ess", "drift_answers", "drift_variance"}
