"""What is done about weak preferences, and that it helps where labels are wrong."""

from __future__ import annotations

import numpy as np
import torch

from inverse_alignment.maths.pairwise import bradley_terry_loss
from inverse_alignment.maths.strength import pair_strength
from inverse_alignment.reward.strength import shown_to, treated
from inverse_alignment.reward.training_settings import EnsembleStrength

U = np.array([0.5, -2.0, 1.0, -0.25, 3.0])
ROWS = [
    {"chosen_ids": [1, i], "rejected_ids": [2, i], "margin": 0.5, "soft_label": 1.0, "weight": 1.0} for i in range(5)
]


def turned(rows):
    return [row["chosen_ids"][0] == 2 for row in rows]


def test_the_weakest_are_turned_round_and_twice_is_never():
    found = treated(ROWS, U, EnsembleStrength(flip=0.4), use_margins=True)
    assert turned(found) == [False, True, False, True, False]
    assert treated(found, U, EnsembleStrength(flip=0.4), use_margins=True) == ROWS
    assert treated(ROWS, U, EnsembleStrength(), use_margins=True) == ROWS


def test_the_weakest_of_the_rest_and_the_strongest_are_doubted():
    settings = EnsembleStrength(flip=0.2, soften=0.4, soften_strong=0.2, soft_label=0.8)
    found = treated([{**ROWS[0], "soft_label": 0.7}, *ROWS[1:]], U, settings, use_margins=True)
    assert turned(found) == [False, True, False, False, False]
    assert [row["soft_label"] for row in found] == [0.7, 1.0, 1.0, 0.8, 0.8]  # who is less sure already stays so


def test_margins_follow_the_strength_and_turn_with_the_pair():
    settings = EnsembleStrength(flip=0.2, margin=2.0)
    assert [row["margin"] for row in treated(ROWS, U, settings, use_margins=False)] == [1.0, 4.0, 2.0, 0.0, 6.0]
    assert [row["margin"] for row in treated(ROWS, U, settings, use_margins=True)] == [1.5, 4.5, 2.5, 0.5, 6.5]


def test_a_member_sees_its_share_and_the_seed_decides_which():
    assert (
        shown_to(10, 0.5, 1).tolist() == sorted(set(shown_to(10, 0.5, 1).tolist())) and len(shown_to(10, 0.5, 1)) == 5
    )
    assert shown_to(10, 0.5, 1).tolist() != shown_to(10, 0.5, 2).tolist()
    assert shown_to(10, 1.0, 1).tolist() == list(range(10))


def fitted(differences, labels):
    """A linear reward model by gradient descent."""
    weights = torch.zeros(differences.shape[1], dtype=torch.float64, requires_grad=True)
    ones = torch.ones(len(differences), dtype=torch.float64)
    for _ in range(200):
        gap = (differences @ weights) * labels
        (slope,) = torch.autograd.grad(bradley_terry_loss(gap, 0 * gap, ones, 0 * ones, ones), weights)
        weights = (weights - slope).detach().requires_grad_()
    return weights.detach()


def test_weak_pairs_are_enriched_in_wrong_labels_and_turning_them_round_helps():
    generator = torch.Generator().manual_seed(0)
    differences = torch.randn(400, 20, generator=generator, dtype=torch.float64)
    truth = torch.randn(20, generator=generator, dtype=torch.float64)
    right = torch.sign(differences @ truth)
    labels = torch.where(torch.rand(400, generator=generator) < 0.25, -right, right)
    wrong = labels != right
    gaps, judges = [], []
    for member in range(6):
        seen = torch.from_numpy(shown_to(400, 0.5, member))
        judge = torch.ones(400, dtype=torch.bool)
        judge[seen] = False
        gaps.append((differences @ fitted(differences[seen], labels[seen])) * labels)
        judges.append(judge)
    strength = pair_strength(torch.stack(gaps), torch.stack(judges)).mean
    weak = strength.argsort()[:80]  # the weakest fifth
    assert float(wrong[weak].double().mean()) > 0.7 > 2 * float(wrong.double().mean())
    better = labels.clone()
    better[weak] *= -1

    def clean(labels):
        return float((torch.sign(differences @ fitted(differences, labels)) == right).double().mean())

    assert float((better == right).double().mean()) > float((labels == right).double().mean()) + 0.08
    assert clean(better) > clean(labels)
    strong = strength.argsort()[-80:]  # the negative control
    worse = labels.clone()
    worse[strong] *= -1
    assert clean(worse) < clean(labels)
