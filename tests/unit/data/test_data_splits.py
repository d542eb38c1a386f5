"""Splits are a function of the prompt alone."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from inverse_alignment.core.records import SPLITS
from inverse_alignment.data.splits import SplitShares, hashed_split, stated_split

SHARES = SplitShares()
WITH_AUDIT = SplitShares(train=0.5, validation=0.1, gate=0.1, test=0.1, audit=0.2)
ids = st.text(alphabet="0123456789abcdef", min_size=16, max_size=16)


def test_golden_assignments():
    """A change here moves prompts between splits of everybody's data."""
    letters = {"train": ".", "validation": "v", "gate": "g", "test": "T", "audit": "a"}
    for shares, expected in ((SHARES, "..T......T...vT..T..vgv."), (WITH_AUDIT, "..T....a.T...vT..T..vgv.")):
        assert "".join(letters[hashed_split(f"{n:016x}", shares, 0)] for n in range(24)) == expected


@given(prompt=ids, seed=st.integers(0, 100))
def test_the_hash_rule_is_the_one_described(prompt, seed):
    digest = hashlib.sha256(f"str:split\x1fint:{seed}\x1fstr:{prompt}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    expected = "test" if u < 0.1 else "gate" if u < 0.2 else "validation" if u < 0.3 else "train"
    assert hashed_split(prompt, SHARES, seed) == expected
    expected = "audit" if expected == "train" and u < 0.5 else expected
    assert hashed_split(prompt, WITH_AUDIT, seed) == expected


def test_an_audit_split_is_taken_out_of_train_alone():
    """Nobody's held-out prompts move when the audit is switched on."""
    moved = {(hashed_split(f"{n:016x}", SHARES, 0), hashed_split(f"{n:016x}", WITH_AUDIT, 0)) for n in range(2000)}
    assert moved == {(split, split) for split in SPLITS if split != "audit"} | {("train", "audit")}


def test_shares_are_met():
    n = 20_000
    counts = dict.fromkeys(SPLITS, 0)
    for i in range(n):
        counts[hashed_split(f"{i:016x}", WITH_AUDIT, 3)] += 1
    for split in SPLITS:
        share = getattr(WITH_AUDIT, split)
        sigma = (share * (1 - share) / n) ** 0.5
        assert abs(counts[split] / n - share) < 4 * sigma


def test_the_seed_matters():
    names = [f"{i:016x}" for i in range(200)]
    assert [hashed_split(n, SHARES, 0) for n in names] != [hashed_split(n, SHARES, 1) for n in names]


@given(prompt=ids)
def test_a_share_of_zero_is_empty(prompt):
    shares = SplitShares(train=0.9, validation=0.1, gate=0, test=0)
    assert hashed_split(prompt, shares, 0) in ("train", "validation")
    assert hashed_split(prompt, SplitShares(train=1, validation=0, gate=0, test=0), 0) == "train"


@given(prompt=ids, stated=st.sets(st.sampled_from(SPLITS), min_size=1))
def test_the_split_held_out_most_wins(prompt, stated):
    split = stated_split(prompt, stated, WITH_AUDIT, 0)
    if stated == {"train"}:
        assert split in ("train", "gate", "audit")
    else:
        assert split == next(name for name in ("test", "gate", "validation", "audit") if name in stated)


@settings(max_examples=200)
@given(prompt=ids)
def test_carving_twice_changes_nothing(prompt):
    once = stated_split(prompt, ["train"], WITH_AUDIT, 0)
    assert stated_split(prompt, [once], WITH_AUDIT, 0) == once


@pytest.mark.parametrize(
    ("shares", "split", "expected"),
    [(SHARES, "gate", 0.1 / 0.8), (SHARES, "audit", 0.0), (WITH_AUDIT, "gate", 0.125), (WITH_AUDIT, "audit", 0.25)],
)
def test_gate_and_audit_are_carved_out_of_train_with_their_shares(shares, split, expected):
    n = 20_000
    carved = sum(stated_split(f"{i:016x}", ["train"], shares, 0) == split for i in range(n)) / n
    assert abs(carved - expected) <= 4 * (expected * (1 - expected) / n) ** 0.5


@pytest.mark.parametrize("shares", [{"train": 0.5}, {"train": 0.8}, {"train": 1.7, "test": -0.9}, {"trian": 0.7}])
def test_shares_that_are_no_shares_are_refused(shares):
    with pytest.raises(ValidationError):
        SplitShares(**shares)
