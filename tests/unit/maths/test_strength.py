"""Strength of preferences: means over those who judge, and strata that equal pairs share."""

from __future__ import annotations

import torch

from inverse_alignment.maths.strength import pair_strength, strata

GAPS = torch.tensor([[1.0, 5.0, 2.0], [3.0, -1.0, 4.0], [5.0, 0.0, float("inf")]])
JUDGES = torch.tensor([[True, False, True], [True, True, True], [True, False, False]])


def test_those_who_judge_are_counted_and_no_others():
    found = pair_strength(GAPS, JUDGES)
    assert found.mean.tolist() == [3.0, -1.0, 3.0]
    torch.testing.assert_close(found.std, torch.tensor([(8 / 3) ** 0.5, 0.0, 1.0]))


def test_of_a_pair_that_nobody_judges_all_do():
    found = pair_strength(GAPS[:2], torch.zeros(2, 3, dtype=torch.bool))
    assert found.mean.tolist() == GAPS[:2].mean(0).tolist()
    assert found.std.tolist() == GAPS[:2].std(0, correction=0).tolist()


def test_strata_are_of_equal_size_and_equal_pairs_are_together():
    assert strata(torch.tensor([7.0, 1.0, 5.0, 3.0, 9.0, 11.0]), 3).tolist() == [1, 0, 1, 0, 2, 2]
    assert strata(torch.tensor([1.0, 1.0, 1.0, 0.0]), 2).tolist() == [0, 0, 0, 0]
    assert strata(torch.arange(100.0), 10).bincount().tolist() == [10] * 10
