"""InfoNCE: log n where nothing can be told apart, and the lower the nearer two views of one row are."""

from __future__ import annotations

import math

import pytest
import torch

from inverse_alignment.maths.contrastive import info_nce


def test_features_that_cannot_be_told_apart_cost_log_n():
    same = torch.ones(5, 3)
    assert info_nce(same, same, 0.1).tolist() == pytest.approx([math.log(5)] * 5)


def test_it_falls_as_views_of_one_row_come_together():
    generator = torch.Generator().manual_seed(0)
    rows, noise = (torch.randn(6, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    losses = [float(info_nce(rows, rows + share * noise, 0.5).mean()) for share in (0.0, 0.5, 2.0)]
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.1
    mixed = info_nce(rows, rows.roll(1, 0), 0.5)  # the negative control: each beside another's view
    assert float(mixed.mean()) > losses[0] + 0.5


def test_only_directions_count_and_a_row_is_compared_with_all_of_the_other_views():
    first, second = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    scale = torch.tensor([[3.0], [0.5]])
    torch.testing.assert_close(info_nce(first * scale, second / scale, 0.7), info_nce(first, second, 0.7))
    cosines = [[0.8, 1.4 / math.sqrt(2)], [0.0, 1 / math.sqrt(2)]]
    expected = [math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(cosines)]
    assert info_nce(first, second, 1.0).tolist() == pytest.approx(expected)
