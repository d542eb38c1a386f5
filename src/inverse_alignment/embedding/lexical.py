"""An offline sentence encoder: hashed word and character n-grams, L2-normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WORDS = r"\w+|[!?.,]"  # punctuation is style, and style is what tells source policies apart


class LexicalEncoder:
    """Words, word pairs and character 3-grams hashed into d signed buckets; counts damped by the square root.

    Stateless, hence equal texts have equal vectors in every run and on every shard. It sees spelling and style, not
    meaning: use a sentence-transformers model where meaning matters.
    """

    def __init__(self, dimensions: int) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer

        half = dimensions // 2
        common = {"norm": None, "alternate_sign": True, "lowercase": True}
        self._words = HashingVectorizer(n_features=dimensions - half, ngram_range=(1, 2), token_pattern=WORDS, **common)
        self._letters = HashingVectorizer(n_features=half, analyzer="char_wb", ngram_range=(3, 3), **common)
        self._dimensions = dimensions

    @property
    def name(self) -> str:
        """See `Embed.name`."""
        return f"lexical-{self._dimensions}"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embed.__call__`."""
        if not texts:
            return np.zeros((0, self._dimensions), dtype=np.float32)
        parts = [vectorizer.transform(texts).toarray() for vectorizer in (self._words, self._letters)]
        return normalise(np.concatenate([np.sign(part) * np.sqrt(np.abs(part)) for part in parts], axis=1))


def normalise(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one, float32; a zero row stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0).astype(np.float32)
