"""What must hold of a selection whatever the cosines are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.selection.keep import keep_above, keep_top
from inverse_alignment.selection.similarity import SCORES, PairSimilarity, similarity_scores

COSINES = st.lists(
    st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(-1000, 900)),
    min_size=2,
    max_size=12,
    unique_by=lambda row: row[0],
)


def similarity(rows):
    chosen, rejected, between = (np.array(column) / 1000 for column in zip(*rows, strict=True))
    return PairSimilarity(chosen, rejected, between)


@given(COSINES, st.randoms(use_true_random=False), st.data())
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_pool_does_not_matter(rows, random, data):
    k = data.draw(st.integers(1, len(rows)))
    order = list(range(len(rows)))
    random.shuffle(order)
    kept = keep_top(similarity_scores(similarity(rows), "chosen", 0.95), k, "keep")  # distinct: no ties to break
    moved = keep_top(similarity_scores(similarity([rows[i] for i in order]), "chosen", 0.95), k, "keep")
    assert sorted(order[i] for i in moved.indices) == kept.indices.tolist()


@given(COSINES, st.sampled_from(sorted(SCORES)), st.data())
@settings(max_examples=100, deadline=None)
def test_nothing_that_was_left_out_scores_higher_than_what_was_kept(rows, score, data):
    bound = data.draw(st.floats(-1, 1))
    found = similarity_scores(similarity(rows), score, bound)
    scores, allowed = found.values, found.allowed
    if not allowed.any():
        return
    k = data.draw(st.integers(1, int(allowed.sum())))
    kept = keep_top(found, k, "keep")
    assert len(kept) == k and allowed[kept.indices].all()
    out = np.setdiff1d(np.flatnonzero(allowed), kept.indices)
    assert not len(out) or scores[out].max() <= kept.scores.min()
    above = keep_above(found, float(kept.scores.min()), "keep")
    assert set(kept.indices) <= set(above.indices)
