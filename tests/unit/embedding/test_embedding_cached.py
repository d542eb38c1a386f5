"""A second look at the same texts embeds nothing; another encoder, or another text, is another matter."""

from __future__ import annotations

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
    embed = CachedEmbed(encoder, cache, "s" * 64)
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
    embed = CachedEmbed(encoder, cache, "s" * 64)
    embed(POOL)
    encoder.asked.clear()
    longer = [*POOL[:10], "a new text", *POOL[10:]]
    np.testing.assert_array_equal(embed(longer), LexicalEncoder(32)(longer))
    assert 0 < len(encoder.asked) < 2049 and "a new text" in encoder.asked


def test_another_encoder_does_not_find_them(tmp_path):
    encoder, cache = Counting(), DiskCache(tmp_path, 10**9)
    CachedEmbed(encoder, cache, "s" * 64)(POOL[:5])
    CachedEmbed(encoder, cache, "t" * 64)(POOL[:5])
    assert encoder.asked == POOL[:5] * 2


def test_no_texts(tmp_path):
    assert CachedEmbed(LexicalEncoder(32), DiskCache(tmp_path, 0), "s")([]).shape == (0, 32)
    assert CachedEmbed(LexicalEncoder(32), DiskCache(tmp_path, 0), "s").name == "lexical-32"
