"""An encoder that remembers: texts it has embedded before are read, not embedded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from inverse_alignment.core.blocks import blocks, digest
from inverse_alignment.core.protocols import Cache, Embed


class CachedEmbed:
    """`Embed` by another encoder, in blocks (see `core.blocks`), each kept under the digest of its texts.

    Args:
        make: the encoder; it is made for the first text that is not known.
        space: digest of everything that decides a vector besides its text.
    """

    def __init__(self, make: Callable[[], Embed], cache: Cache, space: str) -> None:
        self._make, self._cache, self._space = make, cache, space

    @cached_property
    def _encoder(self) -> Embed:
        return self._make()

    def __reduce__(self) -> tuple[Any, ...]:  # another process makes its own encoder
        return CachedEmbed, (self._make, self._cache, self._space)

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
