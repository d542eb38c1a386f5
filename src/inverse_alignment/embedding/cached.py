"""An encoder that remembers: texts it has embedded before are read, not embedded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inverse_alignment.core.blocks import blocks, digest
from inverse_alignment.core.protocols import Cache, Embed


class CachedEmbed:
    """`Embed` by another encoder, in blocks (see `core.blocks`), each kept under the digest of its texts."""

    def __init__(self, encoder: Embed, cache: Cache, space: str) -> None:
        self._encoder, self._cache, self._space = encoder, cache, space

    @property
    def name(self) -> str:
        """See `Embed.name`."""
        return self._encoder.name

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embed.__call__`."""
        return np.concatenate([self._block(block) for block in blocks(texts, str)] or [self._encoder([])])

    def _block(self, texts: list[str]) -> np.ndarray:
        unit = digest(texts)
        kept = self._cache.get(self._space, unit)
        if kept is not None:
            return kept["vectors"]
        vectors = self._encoder(texts)
        self._cache.put(self._space, unit, {"vectors": vectors})
        return vectors
