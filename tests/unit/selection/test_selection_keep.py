"""Ways to keep: ties, limits, clusters, weights; and pools that are hardly any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.embedding.lexical import LexicalEncoder
from inverse_alignment.selection.controls import select_length_matched
from inverse_alignment.selection.intersection import intersect
from inverse_alignment.selection.keep import (
    keep_above,
    keep_top,
    keep_top_per_cluster,
    keep_weighted,
    prompt_clusters,
    quotas,
    scored,
    tie_order,
)
from inverse_alignment.selection.selection import Selection

NAN = float("nan")


def scores(*values, ties=None, allowed=None):
    order = np.arange(len(values)) if ties is None else np.array(ties)
    return scored(np.array(values, dtype=np.float64), order, None if allowed is None else np.array(allowed))


def test_ties_go_by_their_order_and_not_by_rows():
    assert keep_top(scores(1, 1, 1, 2), 2, "at").indices.tolist() == [0, 3]
    assert keep_top(scores(1, 1, 1, 2, ties=[2, 1, 0, 3]), 2, "at").indices.tolist() == [2, 3]


def test_the_order_of_ties_is_that_of_ids_wherever_they_stand():
    ids = [f"desk/{number}" for number in range(200)]
    ranks = tie_order(ids)
    assert sorted(ranks) == list(range(200))
    assert abs(np.corrcoef(ranks, np.arange(200))[0, 1]) < 0.2  # nothing of the order they stand in
    assert tie_order(ids[::-1]).tolist() == ranks[::-1].tolist()
    assert sorted(tie_order(["a", "a", "b"])) == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, NAN]), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_the_pool_does_not_matter(values, random):
    ids, order = [str(number) for number in range(len(values))], list(range(len(values)))
    random.shuffle(order)
    clusters = np.arange(len(values)) % 3

    def kept(rows, keep):
        found = keep(scored(np.array(values)[rows], tie_order([ids[row] for row in rows])), clusters[rows])
        return {rows[row]: weight for row, weight in zip(found.indices, found.weights, strict=True)}

    known = int(np.isfinite(values).sum())
    for keep in (
        lambda s, c: keep_top(s, max(1, known // 2), "at"),
        lambda s, c: keep_top_per_cluster(s, c, max(1, known // 2), "at"),
        lambda s, c: keep_above(s, 1.0, "at"),
        lambda s, c: keep_weighted(s, s.values, "at"),
    ):
        try:
            plain = kept(list(range(len(values))), keep)
        except UserError:
            with pytest.raises(UserError):
                kept(order, keep)
        else:
            assert kept(order, keep) == pytest.approx(plain, rel=1e-12)


def test_one_pair_all_equal_and_all_unknown():
    assert keep_top(scores(3), 1, "at").indices.tolist() == [0]
    assert keep_weighted(scores(-1e9), np.array([-1e9]), "at").weights.tolist() == [1.0]
    assert keep_top_per_cluster(scores(3), np.array([0]), 1, "at").indices.tolist() == [0]
    assert keep_weighted(scores(2, 2, 2), np.full(3, 2.0), "at").weights.tolist() == [1.0, 1.0, 1.0]
    assert keep_above(scores(2, 2, 2), 2.0, "at").indices.tolist() == [0, 1, 2]
    unknown = scores(NAN, NAN)
    with pytest.raises(UserError, match="k is 1, but only 0 pairs of 2 have a score") as error:
        keep_top(unknown, 1, "selection.keep")
    assert error.value.where == "selection.keep.k"
    with pytest.raises(UserError, match="no pair reaches the score 0"):
        keep_above(unknown, 0, "selection.keep")
    with pytest.raises(UserError, match="there is no pair to weight: 0 of 2 have a score") as error:
        keep_weighted(unknown, unknown.values, "selection.keep")
    assert error.value.where == "selection.keep"
    with pytest.raises(UserError, match="k is 1, but only 0 pairs"):
        keep_top_per_cluster(unknown, np.zeros(2, dtype=int), 1, "selection.keep")


def test_what_is_not_allowed_is_never_kept():
    some = scores(5, 4, 3, allowed=[False, True, True])
    assert keep_top(some, 1, "at").indices.tolist() == [1]
    assert keep_above(some, 0, "at").indices.tolist() == [1, 2]
    assert keep_weighted(some, some.values, "at").indices.tolist() == [1, 2]
    assert keep_top_per_cluster(some, np.array([0, 1, 1]), 2, "at").indices.tolist() == [1, 2]


def test_weights_by_hand_and_those_too_small_for_a_float():
    kept = keep_weighted(scores(1, 2, NAN, -9000), np.log([1.0, 3.0, 1.0, 1.0]) + np.array([0, 0, 0, -9000]), "at")
    assert kept.indices.tolist() == [0, 1]
    np.testing.assert_allclose(kept.weights, [0.5, 1.5], rtol=1e-12)
    assert kept.scores.tolist() == [1.0, 2.0]


def test_clusters_get_their_share_of_k_and_keep_their_best():
    values, clusters = scores(9, 8, 7, 6, 1, 0), np.array([0, 0, 0, 0, 1, 1])
    assert keep_top(values, 3, "at").indices.tolist() == [0, 1, 2]
    assert keep_top_per_cluster(values, clusters, 3, "at").indices.tolist() == [0, 1, 4]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.data())
def test_shares_add_up_to_k_and_are_never_above_what_is_there(sizes, data):
    if not sum(sizes):
        return
    k = data.draw(st.integers(0, sum(sizes)))
    found = quotas(np.array(sizes), k)
    assert found.sum() == k and (found <= sizes).all() and (abs(found - np.array(sizes) * k / sum(sizes)) < 1).all()


def test_clusters_of_prompts_do_not_depend_on_the_pool():
    texts = [f"How do I water a {plant}?" for plant in ("fig", "palm", "fern", "rose")] * 2
    texts += [f"Which train goes to {town}?" for town in ("Rome", "Bonn", "Lyon", "Graz")] * 3
    prompts = [Prompt.from_text(text) for text in texts]
    found = prompt_clusters(prompts, LexicalEncoder(256), 2, seed=1)
    assert len(set(found[:8])) == len(set(found[8:])) == 1 and found[0] != found[-1]
    assert prompt_clusters(prompts[::-1], LexicalEncoder(256), 2, seed=1).tolist() == found[::-1].tolist()
    once = prompt_clusters(prompts[:4] + prompts[8:12], LexicalEncoder(256), 2, seed=1)
    assert once.tolist() == [*found[:4], *found[8:12]]
    assert len(set(prompt_clusters(prompts, LexicalEncoder(256), 8, seed=1))) == 8  # as many as there are prompts


def test_prompts_that_embed_alike_are_one_cluster_without_a_warning():
    prompts = [Prompt.from_text(text) for text in ("a b", "A b", "a B", "A B", "c d")]
    assert len(set(prompt_clusters(prompts, LexicalEncoder(64), 3, seed=0))) == 2


# --- controls and combinations ----------------------------------------------------------------------------------------


def test_matched_lengths_are_those_that_were_picked():
    generator = np.random.default_rng(0)
    chosen, rejected = generator.integers(10, 500, size=(2, 400))
    picked = np.flatnonzero(chosen > 400)
    counts = np.zeros(400)
    for seed in range(200):
        found = select_length_matched(picked, chosen, rejected, 4, seed)
        assert len(found) == len(picked) and (found.weights == 1).all() and np.isnan(found.scores).all()
        counts[found.indices] += 1
    quarter = np.quantile(chosen, 0.75, method="lower")
    assert not counts[chosen <= quarter].any()  # the longest quarter of chosen answers, as what was picked
    assert (counts[chosen > quarter] > 0).all()  # and all of it, picked before or not
    again = select_length_matched(picked, chosen, rejected, 4, 7).indices.tolist()
    assert again == select_length_matched(picked, chosen, rejected, 4, 7).indices.tolist()
    assert again != select_length_matched(picked, chosen, rejected, 4, 8).indices.tolist()


def test_the_strata_of_both_answers_are_matched_one_by_one():
    chosen, rejected = np.array([1, 1, 9, 9] * 5), np.array([1, 9, 1, 9] * 5)
    found = select_length_matched(np.array([1, 5, 2]), chosen, rejected, 2, 0).indices
    assert sorted(found % 4) == [1, 1, 2]


def test_equal_lengths_and_a_pool_that_is_picked_whole_never_run_out():
    same = np.full(7, 33)
    assert select_length_matched(np.array([0, 3]), same, same, 5, 0).indices.shape == (2,)
    lengths = np.arange(7)
    assert select_length_matched(np.arange(7), lengths, lengths, 5, 0).indices.tolist() == list(range(7))


def chosen_rows(rows, weights):
    return Selection(np.array(rows), np.array(weights, dtype=float), np.zeros(len(rows)))


def test_an_intersection_by_hand():
    both = intersect([chosen_rows([0, 2, 5], [1, 2, 3]), chosen_rows([2, 3, 5], [4, 9, 2])], "selection")
    assert both.indices.tolist() == [2, 5] and np.isnan(both.scores).all()
    np.testing.assert_allclose(both.weights, [8 / 7, 6 / 7], rtol=1e-12)
    three = intersect([chosen_rows([1, 2], [1, 1]), chosen_rows([2, 3], [1, 1]), chosen_rows([2], [5])], "selection")
    assert three.indices.tolist() == [2] and three.weights.tolist() == [1.0]


def test_an_empty_intersection_says_how_many_each_kept():
    with pytest.raises(UserError, match="no pair is kept by all of the selectors, which keep 2, 1") as error:
        intersect([chosen_rows([0, 1], [1, 1]), chosen_rows([2], [1])], "selection")
    assert error.value.where == "selection.of"
