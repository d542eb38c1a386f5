"""Randomness keyed by what it is for, so that batching, order and restarts cannot change it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def derive_seed(*key: str | int) -> int:
    """A 63-bit seed for one purpose: sha256 over the parts of its name.

    >>> derive_seed("ppo", 0) != derive_seed("ppo", 1)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniforms(seeds: Sequence[int], length: int) -> np.ndarray:
    """One row of `length` uniform numbers in [0, 1) per seed, float64 of shape (len(seeds), length).

    Row i depends on seeds[i] alone. Counter-based (Philox), hence the same on every platform.
    """
    import numpy as np

    rows = [np.random.Generator(np.random.Philox(key=seed)).random(length) for seed in seeds]
    return np.stack(rows) if rows else np.empty((0, length))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, for library code that takes no generator (weight initialisation, TRL)."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
