"""A sentence-transformers model behind the `Embed` protocol. The only importer of sentence_transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inverse_alignment.embedding.lexical import normalise


class SentenceTransformerEncoder:
    """Embeds with a local sentence-transformers model."""

    def __init__(self, folder: Path, device: str, rows: int) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), device=device, trust_remote_code=False, local_files_only=True)
        self._rows, self._name = rows, folder.name

    @property
    def name(self) -> str:
        """See `Embed.name`."""
        return f"sentence-transformers-{self._name}"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embed.__call__`."""
        vectors = self._model.encode(list(texts), batch_size=self._rows, convert_to_numpy=True, show_progress_bar=False)
        empty = np.array([not text.strip() for text in texts], dtype=bool)
        vectors = np.asarray(vectors, dtype=np.float64).reshape(len(texts), -1)
        vectors[empty] = 0.0
        return normalise(vectors)
