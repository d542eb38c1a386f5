"""The race against TRL's RewardTrainer: both do the same work, and a result that does not count says so."""

from __future__ import annotations

import copy

import pytest

from benchmarks.reward_vs_trl.__main__ import race, tokens, verdict


def lap(contestant, round_, wall, loss):
    return {"contestant": contestant, "round": round_, "wall_seconds": wall, "cpu_seconds": wall, "held_out_loss": loss}


RAW = [
    lap(name, round_, wall * (1 + round_), 0.6 + 0.01 * round_)
    for round_ in range(3)
    for name, wall in (("theirs", 3.0), ("ours", 2.0), ("bare", 1.5))
]


def test_a_ratio_is_the_median_over_rounds_of_what_took_turns():
    found = verdict(RAW[::-1], 0.0, 12)
    assert (found["ratio"], found["of_bare_loop"], found["valid"]) == (1.5, 0.75, True)
    assert found["pairs_per_second"] == {"ours": 3.0, "theirs": 2.0, "bare": 4.0}  # of the median round, 4, 6 and 3 s
    assert found["held_out_loss"]["ours"] == pytest.approx(0.61)


def test_other_losses_do_not_count():
    assert verdict(RAW, 1e-3, 12)["reasons"] == [
        "of the same batches, the losses differ by +0.001, more than 0.0001",
    ]
    worse = copy.deepcopy(RAW)
    for row in worse:
        row["held_out_loss"] += 0.03 * (row["contestant"] == "ours")
    assert not verdict(worse, 0.0, 12)["valid"]
    assert not verdict(RAW, float("nan"), 12)["valid"]


def test_what_padding_costs_is_counted():
    rows = [{"chosen_ids": [1] * 4, "rejected_ids": [1] * 2}, {"chosen_ids": [1], "rejected_ids": [1] * 4}]
    assert tokens(rows) == {"mean": 2.75, "mean_of_longer": 4, "longest": 4, "padding_saved": 1 - 11 / 16}


def test_given_the_same_batches_both_train_the_same_model():
    found = race(None, pairs=32, rounds=1, threads=1)
    assert abs(found["loss_difference"]["same_batches"]) < 1e-5
    assert found["held_out_loss"]["bare"] == pytest.approx(found["held_out_loss"]["ours"], abs=1e-5)
    assert len(found["raw"]) == 3 and found["settings"]["data"] == "world"
