"""An early stop: it keeps what was best on pairs that nobody learned from, and survives being killed."""

from __future__ import annotations

import json

import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward import bradley_terry
from inverse_alignment.reward.bradley_terry import fit, pair_rows
from inverse_alignment.reward.held_out import HeldOut
from tests.unit.models import tiny
from tests.unit.reward.test_reward_training import BAD, GOOD, PAIRS, PLAIN, Killed, Report, flipped

FRESH = [tiny.pair("new", good, bad) for good in GOOD for bad in BAD]
AGAINST = [flipped(pair, i) for i, pair in enumerate(FRESH)]


def rows_of(pairs):
    return pair_rows(tiny.tokenizer(), pairs, [1.0] * len(pairs), 48)


def train(partial, held_out, every=5, patience=2, die_at=-1, checkpoint_seconds=3600.0):
    partial.mkdir(exist_ok=True)
    model, report = tiny.reward_model(), Report(partial / "metrics.jsonl")
    report.die_at = die_at
    watch = HeldOut(rows_of(held_out), 0, every, patience)
    given = arguments(
        partial=partial, device="cpu", seed=0, epochs=2, learning_rate=5e-3, batch_size=4, warmup_share=0.1
    )
    rows = rows_of(PAIRS)
    metrics = fit(model, tiny.tokenizer(), rows, given, PLAIN, partial, report, checkpoint_seconds, held_out=watch)
    return model, metrics, watch.look(model)


def looks(partial):
    return [row for row in read_metrics(partial / "metrics.jsonl") if "held_out_loss" in row]


def test_what_only_gets_worse_is_ended_and_the_start_comes_back(tmp_path):
    model, metrics, _ = train(tmp_path, AGAINST)
    assert metrics["best_step"] == 0 and metrics["steps"] == 10
    assert tiny.same(tiny.weights(model), tiny.weights(tiny.reward_model()))
    assert [row["step"] for row in looks(tmp_path)] == [5, 10]


def test_what_helps_goes_on_to_its_last_step_and_the_best_is_kept(tmp_path):
    _, metrics, found = train(tmp_path, FRESH, every=7)
    seen = looks(tmp_path)
    assert metrics["steps"] == 24 and [row["step"] for row in seen] == [7, 14, 21, 24]
    best = min(seen, key=lambda row: row["held_out_loss"])
    assert (metrics["best_step"], metrics["held_out_loss"]) == (best["step"], best["held_out_loss"])
    assert found == {name: best[name] for name in found}
    assert found["held_out_accuracy"] > 0.9 and found["held_out_loss"] < 0.5


@pytest.mark.parametrize(("held_out", "die_at"), [(AGAINST, 11), pytest.param(FRESH, 24, marks=pytest.mark.slow)])
def test_a_killed_training_ends_where_it_would_have(tmp_path, held_out, die_at):
    straight, expected, _ = train(tmp_path / "straight", held_out, every=4, patience=3)
    with pytest.raises(Killed):
        train(tmp_path / "killed", held_out, every=4, patience=3, die_at=die_at, checkpoint_seconds=1e-9)
    assert list((tmp_path / "killed").glob("checkpoint-*/best.safetensors"))
    resumed, metrics, _ = train(tmp_path / "killed", held_out, every=4, patience=3, checkpoint_seconds=1e-9)
    assert tiny.same(tiny.weights(resumed), tiny.weights(straight)) and metrics == expected
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "straight")]
    assert rows[0] == rows[1]


def test_a_look_changes_nothing_of_the_training(tmp_path):
    _, _, _ = train(tmp_path / "watched", FRESH, every=3, patience=99)
    _, _, _ = train(tmp_path / "rarely", FRESH, every=24)
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]
        for name in ("watched", "rarely")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_a_model_that_is_spread_over_processes_cannot_be_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(bradley_terry, "apart", lambda model: tiny.reward_model())
    with pytest.raises(UserError, match="an early stop keeps weights by itself") as refused:
        fit(
            tiny.reward_model(),
            tiny.tokenizer(),
            rows_of(PAIRS),
            {},
            PLAIN,
            tmp_path,
            None,
            3600,
            held_out=HeldOut(rows_of(FRESH), 0, 1, 1),
        )
    assert "reward.stop.type=last" in json.dumps(str(refused.value))
