"""A second look at the same texts embeds nothing; another encoder, or another text, is another matter."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np

from inverse_alignment.core.cache import DiskCache
from inverse_alignment.embedding.cached import CachedEmbed
from inverse_alignment.embedding.lexical import LexicalEncoder

POOL = [f"Water the basil {i} times, then wait for {i * i} days." for i in range(3000)]


class Counting:
    """An encoder that remembers what it was asked."""

    name = "counting"

    def __init__(self):
        self.inner, self.asked = LexicalEncoder(32), []

    def __call__(self, texts):
        self.asked += texts
        return self.inner(texts)


def test_a_second_round_embeds_only_new_texts(tmp_path):
    encoder, cache = Counting(), DiskCache(tmp_path, 10**9)
    embed = CachedEmbed(lambda: encoder, cache, "s" * 64)
    first = embed(POOL)
    assert encoder.asked == POOL
    np.testing.assert_array_equal(first, LexicalEncoder(32)(POOL))
    encoder.asked.clear()
    rollouts = [f"The policy says {i}." for i in range(400)]
    again, new = embed(POOL), embed(rollouts)
    assert encoder.asked == rollouts
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(new, LexicalEncoder(32)(rollouts))


def test_a_longer_pool_embeds_the_blocks_that_changed(tmp_path):
    encoder, cache = Counting(), DiskCache(tmp_path, 10**9)
    embed = CachedEmbed(lambda: encoder, cache, "s" * 64)
    embed(POOL)
    encoder.asked.clear()
    longer = [*POOL[:10], "a new text", *POOL[10:]]
    np.testing.assert_array_equal(embed(longer), LexicalEncoder(32)(longer))
    assert 0 < len(encoder.asked) < 2049 and "a new text" in encoder.asked


def test_another_encoder_does_not_find_them(tmp_path):
    encoder, cache = Counting(), DiskCache(tmp_path, 10**9)
    CachedEmbed(lambda: encoder, cache, "s" * 64)(POOL[:5])
    CachedEmbed(lambda: encoder, cache, "t" * 64)(POOL[:5])
    assert encoder.asked == POOL[:5] * 2


def test_no_texts(tmp_path):
    assert CachedEmbed(partial(LexicalEncoder, 32), DiskCache(tmp_path, 0), "s")([]).shape == (0, 32)
    assert CachedEmbed(partial(LexicalEncoder, 32), DiskCache(tmp_path, 0), "s").name == "lexical-32"


def test_an_encoder_is_made_for_the_first_text_that_is_not_known(tmp_path):
    cache = DiskCache(tmp_path, 10**9)
    known = CachedEmbed(partial(LexicalEncoder, 32), cache, "s")(POOL[:9])
    forbidden = CachedEmbed(lambda: 1 / 0, cache, "s")
    np.testing.assert_array_equal(forbidden(POOL[:9]), known)


def test_it_travels_without_its_encoder(tmp_path):
    embed = CachedEmbed(partial(LexicalEncoder, 32), DiskCache(tmp_path, 10**9), "s")
    here = embed(POOL[:9])
    there = pickle.loads(pickle.dumps(embed))
    assert "_encoder" not in vars(there)
    np.testing.assert_array_equal(there(POOL[:9]), here)
