"""A pool in pieces: equal to the bit however it is shared out, equal to the plain product, and small in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.cache import DiskCache
from inverse_alignment.embedding.cached import CachedEmbed
from inverse_alignment.embedding.lexical import LexicalEncoder
from inverse_alignment.selection import nearest as products
from inverse_alignment.selection.best import best
from inverse_alignment.selection.nearest import embedded, nearest, nearest_of_key, rows_of
from inverse_alignment.selection.similarity import pair_similarity

WORDS = ["basil", "water", "sun", "pot", "leaf", "cut", "feed", "move", "wait", "turn"]


def unit_vectors(seed, *shape):
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def answers(seed, count):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 5)) for _ in range(count)]


def test_the_largest_product_in_tiles(monkeypatch):
    vectors, others = unit_vectors(0, 23, 8), unit_vectors(1, 11, 8)
    expected = np.array([max(float(a @ b) for b in others) for a in vectors])
    np.testing.assert_allclose(nearest(vectors, others), expected, rtol=1e-5)
    monkeypatch.setattr(products, "ROWS", 7)
    monkeypatch.setattr(products, "COLUMNS", 3)
    np.testing.assert_allclose(nearest(vectors, others), expected, rtol=1e-5)
    assert (nearest(-others, others) < 1.0).all()  # not the largest size
    with pytest.raises(ValueError, match="nothing is near"):
        nearest(vectors, others[:0])


def test_among_the_others_of_ones_own_key():
    vectors, others = unit_vectors(0, 4, 8), unit_vectors(1, 3, 8)
    found = nearest_of_key(vectors, ["p", "q", "p", "x"], others, rows_of(["q", "p", "p"]))
    expected = [max(vectors[0] @ others[1], vectors[0] @ others[2]), vectors[1] @ others[0]]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-5)
    assert np.isnan(found[3]) and not np.isnan(found[2])


class Shares:
    """Work on a few shards of whole items, each in another order than the items come in."""

    def __init__(self, count):
        self.count = count

    def __call__(self, work, items):
        items = list(items)
        done = {}
        for shard in range(self.count):
            for place in reversed(range(shard, len(items), self.count)):
                done[place] = work(items[place])
        return (done[place] for place in range(len(items)))


def measured(pool, rollouts, same_prompt=False, **more):
    keys = [f"p{i % 7}" for i in range(len(pool))]
    rollout_keys = [f"p{i % 9}" for i in range(len(rollouts))]
    embed = more.pop("embed", LexicalEncoder(64))
    return pair_similarity(pool, pool[::-1], keys, rollouts, rollout_keys, embed, same_prompt, **more)


@pytest.mark.parametrize("same_prompt", [False, True])
@pytest.mark.parametrize("shards", [2, 3, 7])
def test_any_sharding_gives_identical_bytes(same_prompt, shards):
    pool, rollouts = [f"{text} {i}" for i, text in enumerate(answers(0, 4000))], answers(1, 60)
    whole = measured(pool, rollouts, same_prompt)
    shared = measured(pool, rollouts, same_prompt, spread=Shares(shards))
    for name in ("chosen", "rejected", "between"):
        assert getattr(whole, name).tobytes() == getattr(shared, name).tobytes()


def test_the_plain_product_says_the_same():
    pool, rollouts, embed = answers(0, 900), answers(1, 60), LexicalEncoder(64)
    found = measured(pool, rollouts)
    chosen, rejected, policy = embed(pool), embed(pool[::-1]), embed(rollouts)
    np.testing.assert_allclose(found.chosen, (chosen @ policy.T).max(1), rtol=1e-5)
    np.testing.assert_allclose(found.rejected, (rejected @ policy.T).max(1), rtol=1e-5)
    np.testing.assert_allclose(found.between, (chosen * rejected).sum(1), rtol=1e-4, atol=1e-6)


def test_what_is_known_already_changes_no_byte(tmp_path):
    pool, rollouts = answers(0, 3000), answers(1, 60)
    fresh = measured(pool, rollouts)
    for _ in range(2):
        embed = CachedEmbed(lambda: LexicalEncoder(64), DiskCache(tmp_path, 10**9), "s" * 64)
        assert measured(pool, rollouts, embed=embed).chosen.tobytes() == fresh.chosen.tobytes()


def test_many_answers_of_the_policy_lie_on_disk(tmp_path):
    rollouts = answers(1, 500)
    held, mapped = (embedded(rollouts, LexicalEncoder(64), most, tmp_path) for most in (500 * 64 * 4, 500 * 64 * 4 - 1))
    assert not isinstance(held, np.memmap) and isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(held, mapped)
    pool = answers(0, 300)
    small = measured(pool, rollouts, most_bytes=1000, folder=tmp_path)
    assert small.chosen.tobytes() == measured(pool, rollouts).chosen.tobytes()
    assert embedded([], LexicalEncoder(64), 0, tmp_path).shape == (0, 64)


def test_pairs_are_read_as_they_are_needed():
    """No more than a block is ever held: the texts may come from a file."""
    held, most = [0], [0]

    class Lazy(list):
        def __iter__(self):
            for i in range(len(self)):
                held[0] += 1
                most[0] = max(most[0], held[0])
                yield list.__getitem__(self, i)

    pool = Lazy(f"{text} {i}" for i, text in enumerate(answers(0, 6000)))

    def told(done, total, unit):
        held[0] = 0

    pair_similarity(pool, pool, pool, answers(1, 5), ["p"] * 5, LexicalEncoder(16), False, told)
    assert 0 < most[0] <= 3 * 2048


def test_progress_reaches_the_total():
    told = []
    measured(answers(0, 3000), answers(1, 5), progress=lambda *words: told.append(words))
    assert len(told) > 1 and told[-1] == (3000, 3000, "pairs compared")
    assert [done for done, *_ in told] == sorted({done for done, *_ in told})


VALUES = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.integers(1, 5), st.randoms(use_true_random=False), st.data())
def test_the_best_of_all_are_the_best_of_the_bests_of_any_parts(values, parts, random, data):
    values = np.array(values, dtype=np.float64)
    k = data.draw(st.integers(0, len(values)))
    ties = np.array(random.sample(range(100), len(values)))
    whole = best(values, ties, k)
    assert whole.tolist() == sorted(range(len(values)), key=lambda row: (-values[row], ties[row]))[:k]
    shard = np.array([random.randrange(parts) for _ in values])
    kept = [np.flatnonzero(shard == s) for s in range(parts)]
    kept = np.concatenate([rows[best(values[rows], ties[rows], min(k, len(rows)))] for rows in kept])
    assert kept[best(values[kept], ties[kept], k)].tolist() == whole.tolist()
