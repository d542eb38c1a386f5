"""The race against TRL's RewardTrainer: both do the same work, and a result that does not count says so."""

from __future__ import annotations

import copy

import pytest

from benchmarks.reward_vs_trl.__main__ import race, tokens, verdict


def lap(contestant, round_, wall, loss):
    return {"contestant": contestant, "round": round_, "wall_seconds": wall, "cpu_seconds": wall, "held_out_loss": loss}


SECONDS = {"theirs": 4.0, "theirs_grouped": 3.0, "ours": 2.0, "bare": 1.5}
RAW = [
    lap(name, round_, wall * (1 + round_), 0.6 + 0.01 * round_) for round_ in range(3) for name, wall in SECONDS.items()
]


def test_a_ratio_is_the_median_over_rounds_of_what_took_turns():
    found = verdict(RAW[::-1], 12)
    assert (found["ratio"], found["of_bare_loop"], found["valid"]) == (1.5, 0.75, True)
    assert found["ratios"] == {"theirs": 2.0, "theirs_grouped": 1.5, "ours": 1.0, "bare": 0.75}
    assert found["pairs_per_second"]["theirs_grouped"] == 2.0  # of the median round, 6 s
    assert found["held_out_loss"]["ours"] == pytest.approx(0.61)


@pytest.mark.parametrize(
    ("off", "reason"), [(1e-3, "of the same batches"), (0.04, "each in its own order"), (float("nan"), "by nan")]
)
def test_other_losses_do_not_count(off, reason):
    worse = copy.deepcopy(RAW)
    for row in worse:
        row["held_out_loss"] += off if row["contestant"] == "ours" else 0.0
    found = verdict(worse, 12)
    assert not found["valid"] and any(reason in each for each in found["reasons"])


def test_what_padding_costs_is_counted():
    rows = [{"chosen_ids": [1] * 4, "rejected_ids": [1] * 2}, {"chosen_ids": [1], "rejected_ids": [1] * 4}]
    assert tokens(rows) == {"mean": 2.75, "mean_of_longer": 4, "longest": 4, "padding_saved": 1 - 11 / 16}


@pytest.mark.slow
def test_given_the_same_batches_all_train_the_same_model():
    found = race(None, pairs=32, rounds=1, threads=1)
    losses = found["held_out_loss"]
    assert losses["bare"] == pytest.approx(losses["ours"], abs=1e-5)
    assert losses["theirs_grouped"] == pytest.approx(losses["ours"], abs=1e-5)
    assert abs(losses["theirs"] - losses["ours"]) > 1e-4  # the negative control: other batches
    assert len(found["raw"]) == 4 and found["settings"]["data"] == "world"
