"""A sentence-transformers model behind the `Embed` protocol. The only importer of sentence_transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.embedding.lexical import normalise


class SentenceTransformerEncoder:
    """Embeds with a local sentence-transformers model, its weights read as safetensors.

    Raises:
        UserError: the folder holds no such model.
    """

    def __init__(self, folder: Path, device: str, rows: int) -> None:
        from sentence_transformers import SentenceTransformer

        safe: dict[str, Any] = {
            "trust_remote_code": False,
            "local_files_only": True,
            "model_kwargs": {"use_safetensors": True},
        }
        try:
            self._model = SentenceTransformer(str(folder), device=device, **safe)
        except Exception as error:  # sentence-transformers, transformers and json each raise types of their own
            said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise UserError(
                f"sentence-transformers cannot load the encoder: {said[0]}",
                where=str(folder),
                fix="give a folder that SentenceTransformer.save wrote, or set the encoder's type to lexical",
            ) from error
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
