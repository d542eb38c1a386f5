"""How far two reward models see the same in answers: ranks within a prompt and correlation, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.evaluation.audit import agreement, correlation
from inverse_alignment.evaluation.reward_accuracy import AnswerPairs, answer_pairs
from tests.unit.evaluation.test_evaluation_accuracy import rollout

ROLLOUTS = [
    rollout("p", "a", 0),
    rollout("q", "a", 0),
    rollout("p", "b", 1),
    rollout("p", "c", 2),
    rollout("q", "a", 1),
]
PAIRS = answer_pairs(ROLLOUTS)


def test_pairs_are_of_different_answers_to_one_prompt():
    assert list(zip(PAIRS.left.tolist(), PAIRS.right.tolist(), strict=True)) == [(0, 2), (0, 3), (2, 3)]
    none = answer_pairs(ROLLOUTS[:2])
    assert len(none.left) == len(none.right) == 0


def test_agreement_counts_pairs_ranked_alike_and_a_tie_of_either_as_half():
    scores = np.array([1.0, 9.0, 2.0, 3.0, 9.0])
    assert agreement(PAIRS, scores, np.array([5.0, 0.0, 6.0, 7.0, 0.0])) == 1.0
    assert agreement(PAIRS, scores, -scores) == 0.0
    assert agreement(PAIRS, scores, np.array([1.0, 0.0, 3.0, 2.0, 0.0])) == pytest.approx(2 / 3)
    assert agreement(PAIRS, scores, np.array([1.0, 0.0, 2.0, 2.0, 0.0])) == pytest.approx(2.5 / 3)
    assert agreement(PAIRS, scores, np.ones(5)) == 0.5  # a model that knows nothing


def test_without_pairs_nothing_agrees_or_disagrees():
    empty = np.array([], dtype=np.int64)
    assert agreement(AnswerPairs(empty, empty), np.ones(2), np.ones(2)) is None


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=5, max_size=5), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_neither_scale_nor_offset_of_a_model_matters_and_none_is_the_first(values, scale):
    scores, audit = np.array(values, dtype=np.float64).T
    found = agreement(PAIRS, scores, audit)
    assert found == agreement(PAIRS, audit, scores) == agreement(PAIRS, scores, audit * scale + 3)
    reverse = agreement(PAIRS, scores, -audit)
    assert found is not None and reverse is not None and found + reverse == pytest.approx(1)


def test_correlation_by_hand():
    # deviations (-1, 0, 1) and (-2, 1, 1): covariance 3/3, standard deviations sqrt(2/3) and sqrt(6/3)
    assert correlation(np.array([0.0, 1.0, 2.0]), np.array([1.0, 4.0, 4.0])) == pytest.approx(3 / 12**0.5)
    assert correlation(np.array([0.0, 1.0, 2.0]), np.array([6.0, 4.0, 2.0])) == pytest.approx(-1)


def test_a_constant_correlates_with_nothing():
    assert correlation(np.full(7, 0.1), np.arange(7.0)) is None
    assert correlation(np.arange(7.0), np.full(7, 0.1)) is None
