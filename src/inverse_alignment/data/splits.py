"""Which split a prompt belongs to: a pure function of the prompt and the configuration.

Nothing else enters, so adding a source or changing the order of sources moves no prompt, and every pair of one prompt,
from whatever file, lies in one split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import Field, model_validator

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.records import Split
from inverse_alignment.core.seeding import derive_seed

HELD_OUT_FIRST: tuple[Split, ...] = ("test", "gate", "validation", "audit", "train")


class SplitShares(Section):
    """Expected share of prompts in each split; they sum to 1."""

    train: float = Field(0.7, gt=0, le=1, description="trains SFT and reward models; selections draw from it")
    validation: float = Field(0.1, ge=0, lt=1, description="accuracy of the first reward model, while tuning")
    gate: float = Field(0.1, ge=0, lt=1, description="decides whether a refreshed reward model replaces the old one")
    test: float = Field(0.1, ge=0, lt=1, description="reported at the end, used for nothing else")
    audit: float = Field(
        0.0, ge=0, lt=1, description="trains a second reward model that nothing is optimised against; 0: there is none"
    )

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitShares:
        total = math.fsum((self.train, self.validation, self.gate, self.test, self.audit))
        if not math.isclose(total, 1, abs_tol=1e-9):
            raise ValueError(f"the shares of the splits sum to {total:g}, not to 1")
        return self


def hashed_split(prompt_id: str, shares: SplitShares, seed: int) -> Split:
    """The split of a prompt by the hash rule.

    `u(prompt, seed)` is uniform in [0, 1); test takes the lowest values, then gate, validation, audit and train.
    """
    u, upper = _uniform(prompt_id, seed), 0.0
    for split in HELD_OUT_FIRST[:-1]:
        upper += getattr(shares, split)
        if u < upper:
            return split
    return "train"


def stated_split(prompt_id: str, stated: Iterable[Split], shares: SplitShares, seed: int) -> Split:
    """The split of a prompt whose rows state splits of their own.

    A prompt seen in several goes to the one held out most (test, gate, validation, audit, train). Gate and audit are
    carved out of train by the hash rule, with their shares in train + gate + audit, because public files have no such
    splits. Carving twice changes nothing.
    """
    seen = set(stated)
    split = next(name for name in HELD_OUT_FIRST if name in seen)
    if split != "train":
        return split
    u, whole = _uniform(prompt_id, seed), shares.train + shares.gate + shares.audit
    if u < shares.gate / whole:
        return "gate"
    return "audit" if u < (shares.gate + shares.audit) / whole else "train"


def _uniform(prompt_id: str, seed: int) -> float:
    return derive_seed("split", seed, prompt_id) / 2**63
