from __future__ import annotations

import pytest

from inverse_alignment.text.tokenizers import train_tokenizer

TEXTS = ["the cat sat on the mat. ", "a dog and a cat.\n\nthe end"] * 20


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer with a handful of merges."""
    return train_tokenizer(TEXTS, 300)
