"""Selectors on cosines typed by hand: what they score, keep, refuse and leave out."""

from __future__ import annotations

import numpy as np
import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.selection.controls import select_all, select_random
from inverse_alignment.selection.keep import keep_above, keep_top
from inverse_alignment.selection.selection import Selection, shares
from inverse_alignment.selection.similarity import (
    SCORES,
    PairSimilarity,
    dissimilarity_scores,
    pair_similarity,
    similarity_scores,
)
from tests.unit.models import tiny

VECTORS = {  # unit vectors in the plane; the policy writes "here" and, to another prompt, "there"
    "here": (1.0, 0.0),
    "there": (0.0, 1.0),
    "near": (0.8, 0.6),
    "far": (-0.6, 0.8),
    "opposite": (-1.0, 0.0),
    "": (0.0, 0.0),
}


def embed(texts):
    return np.array([VECTORS[text] for text in texts], dtype=np.float32).reshape(len(texts), 2)


embed.name = "by hand"


def select_top(similarity, score, bound, k):
    return keep_top(similarity_scores(similarity, score, bound), k, "selection.keep")


def select_above(similarity, score, bound, least):
    return keep_above(similarity_scores(similarity, score, bound), least, "selection.keep")


def measured(same_prompt, keys=("p", "q", "p"), rollouts=("here", "there"), rollout_keys=("p", "q")):
    return pair_similarity(
        ["near", "near", "here"], ["far", "far", "near"], keys, rollouts, rollout_keys, embed, same_prompt
    )


def test_cosines_with_the_answers_to_the_same_prompt():
    found = measured(same_prompt=True)
    np.testing.assert_allclose(found.chosen, [0.8, 0.6, 1.0], atol=1e-6)
    np.testing.assert_allclose(found.rejected, [-0.6, 0.8, 0.8], atol=1e-6)
    np.testing.assert_allclose(found.between, [0.0, 0.0, 0.8], atol=1e-6)


def test_cosines_with_all_rollouts():
    found = measured(same_prompt=False)
    np.testing.assert_allclose(found.chosen, [0.8, 0.8, 1.0], atol=1e-6)
    np.testing.assert_allclose(found.rejected, [0.8, 0.8, 0.8], atol=1e-6)


def test_a_pair_without_rollouts_to_its_prompt_is_no_candidate():
    found = measured(same_prompt=True, keys=("p", "unasked", "p"))
    assert np.isnan(found.chosen[1]) and np.isnan(found.rejected[1])
    assert select_top(found, "mean", 1.0, 2).indices.tolist() == [0, 2]
    with pytest.raises(UserError, match=r"k is 3, but only 2 pairs of 3 are candidates \(1 without rollouts"):
        select_top(found, "mean", 1.0, 3)
    with pytest.raises(UserError, match="no pair's prompt is among the rollouts"):
        measured(same_prompt=True, keys=("x", "y", "z"))


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("pair_max", [0.8, 0.8, 1.0]),
        ("pair_min", [-0.6, 0.6, 0.8]),
        ("mean", [0.1, 0.7, 0.9]),
        ("chosen", [0.8, 0.6, 1.0]),
        ("rejected", [-0.6, 0.8, 0.8]),
        ("gap", [1.4, 0.2, 0.2]),
    ],
)
def test_scores_by_hand(score, expected):
    assert set(SCORES) == {"pair_max", "pair_min", "mean", "chosen", "rejected", "gap"}
    kept = select_top(measured(same_prompt=True), score, 1.0, 3)
    np.testing.assert_allclose(kept.scores, expected, atol=1e-6)


def similarity(chosen, between=None):
    chosen = np.array(chosen, dtype=np.float32)
    return PairSimilarity(chosen, chosen, np.zeros(len(chosen)) if between is None else np.array(between))


def test_the_best_are_kept_in_the_order_of_the_pool():
    kept = select_top(similarity([0.1, 0.9, 0.5, 0.7]), "mean", 1.0, 2)
    assert kept.indices.tolist() == [1, 3] and kept.weights.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(kept.scores, [0.9, 0.7], atol=1e-6)


def test_the_control_keeps_what_resembles_the_policy_least():
    found = similarity([0.1, 0.9, 0.5, 0.7], between=[0.99, 0.0, 0.0, 0.0])
    kept = keep_top(dissimilarity_scores(found, "mean", 0.95), 2, "selection.keep")
    assert kept.indices.tolist() == [2, 3]  # the first would be the least alike, but its answers are the same
    np.testing.assert_allclose(kept.scores, [-0.5, -0.7], atol=1e-6)


def test_ties_go_to_the_earlier_row():
    assert select_top(similarity([0.5, 0.7, 0.5, 0.5]), "mean", 1.0, 3).indices.tolist() == [0, 1, 2]


def test_answers_that_are_too_much_alike_are_left_out():
    found = similarity([0.9, 0.8, 0.1], between=[0.96, 0.5, 0.95])
    assert select_top(found, "mean", 0.95, 1).indices.tolist() == [1]  # the best has no signal
    assert select_top(found, "mean", 1.0, 1).indices.tolist() == [0]
    assert select_top(found, "mean", 0.95, 2).indices.tolist() == [1, 2]  # the bound itself is allowed
    with pytest.raises(UserError, match=r"1 with answers more alike than 0\.95"):
        select_top(found, "mean", 0.95, 3)


def test_a_bound_of_one_leaves_nothing_out():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(200, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert ((vectors * vectors).sum(1) > 1.0).any()  # rounding alone goes beyond one
    rows = {str(i): vectors[i] for i in range(200)}
    texts = list(rows)
    found = pair_similarity(
        texts, texts, ["p"] * 200, texts[:1], ["p"], lambda names: np.stack([rows[n] for n in names]), True
    )
    assert len(select_top(found, "mean", 1.0, 200)) == 200


def test_a_threshold_keeps_all_that_reach_it():
    found = similarity([0.1, 0.5, 0.9, 0.75], between=[0.0, 0.0, 0.99, 0.0])
    assert select_above(found, "mean", 0.95, 0.5).indices.tolist() == [1, 3]
    with pytest.raises(UserError, match=r"no pair reaches the score 0.8; the highest is 0.750"):
        select_above(found, "mean", 0.95, 0.8)


def test_k_larger_than_the_pool_is_refused():
    with pytest.raises(UserError, match="k is 5, but only 4 pairs"):
        select_random(4, 5, seed=0)
    with pytest.raises(UserError, match="k is 5, but only 4 pairs"):
        select_top(similarity([0.1, 0.2, 0.3, 0.4]), "mean", 1.0, 5)


def test_random_is_distinct_uniform_and_seeded():
    counts = np.zeros(10)
    for seed in range(2000):
        kept = select_random(10, 3, seed)
        assert len(set(kept.indices.tolist())) == 3 and np.isnan(kept.scores).all()
        counts[kept.indices] += 1
    # each row is expected 600 times, standard deviation √(2000 · .3 · .7) = 20.5
    assert abs(counts - 600).max() < 80
    assert select_random(100, 9, 5).indices.tolist() == select_random(100, 9, 5).indices.tolist()
    assert select_random(100, 9, 5).indices.tolist() != select_random(100, 9, 6).indices.tolist()


def test_all_keeps_every_row():
    assert select_all(4).indices.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("indices", "weights"), [([1, 1], [1, 1]), ([2, 1], [1, 1]), ([1, 2], [1, 0]), ([1, 2], [1]), ([[1]], [[1]])]
)
def test_an_impossible_selection_cannot_be_built(indices, weights):
    Selection(np.array([1, 2]), np.array([1.0, 0.5]), np.zeros(2))
    with pytest.raises(ValueError):
        Selection(np.array(indices), np.array(weights), np.zeros(np.shape(indices)))


def test_shares_count_both_authors_and_the_annotator():
    pool = [
        tiny.pair("p", "a", "b", 0, source_chosen="coach", source_rejected="poet", annotator="ann"),
        tiny.pair("p", "a", "b", 1, source_chosen="coach", source_rejected="coach", annotator="bob"),
        tiny.pair("p", "a", "b", 2, source_chosen="poet", source_rejected="novice", annotator="ann"),
    ]
    assert shares(pool) == {"source": {"coach": 3, "novice": 1, "poet": 2}, "annotator": {"ann": 2, "bob": 1}}
    kept = Selection(np.array([0, 2]), np.ones(2), np.zeros(2))
    assert shares(pool, kept) == {"source": {"coach": 1, "novice": 1, "poet": 2}, "annotator": {"ann": 2}}
