"""Reward-model training: what weights, labels and margins change, and that a killed run ends with the same bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from inverse_alignment.core.metrics import FileReport
from inverse_alignment.models.reward_scores import RewardScorer
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.optimise.supervised import IGNORED, demonstrations, fine_tune
from inverse_alignment.reward.bradley_terry import PairLoss, fit, pair_rows
from tests.unit.models import tiny

PLAIN = PairLoss(smoothing=0.0, centring=0.01, use_margins=False)
GOOD, BAD = ["the cat", "a cat sat", "cat on the mat", "the cat."], ["a dog", "the dog sat", "dog on the mat", "a dog."]
PAIRS = [tiny.pair(f"q{i}", GOOD[i % 4], BAD[(i // 4) % 4], i) for i in range(48)]


class Killed(BaseException):
    """Stands in for a kill: nothing of ours catches it."""


class Report(FileReport):
    """Writes metrics where a stage does, and dies at a step if told to."""

    die_at = -1

    def progress(self, done, total, unit):
        if done == self.die_at:
            raise Killed


def train(partial, pairs=PAIRS, weights=None, loss=PLAIN, epochs=2.0, die_at=-1, checkpoint_seconds=3600.0, flip=None):
    partial.mkdir(exist_ok=True)
    model = tiny.reward_model()
    report = Report(partial / "metrics.jsonl")
    report.die_at = die_at
    rows = pair_rows(tiny.tokenizer(), pairs, weights or [1.0] * len(pairs), 48)
    given = arguments(
        partial=partial, device="cpu", seed=0, epochs=epochs, learning_rate=5e-3, batch_size=4, warmup_share=0.1
    )
    metrics = fit(model, tiny.tokenizer(), rows, given, loss, partial, report, checkpoint_seconds)
    return model, metrics


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The fit of all pairs, what it measured, and where its rows are."""
    folder = tmp_path_factory.mktemp("plain")
    return *train(folder), folder


def first_loss(partial):
    return json.loads((partial / "metrics.jsonl").read_text().splitlines()[0])["loss"]


def accuracy(model, pairs):
    score = RewardScorer(model, tiny.tokenizer(), 48, 64)
    prompts = [pair.prompt for pair in pairs]
    return float((score(prompts, [p.chosen for p in pairs]) > score(prompts, [p.rejected for p in pairs])).mean())


def flipped(pair, number):
    return tiny.pair(pair.prompt.text(), pair.rejected, pair.chosen, number)


def test_it_learns_a_separable_preference(tmp_path, plain):
    fresh = [tiny.pair("new", good, bad) for good in GOOD for bad in BAD]
    model, metrics, _ = plain
    assert accuracy(model, fresh) > 0.9
    assert metrics["steps"] == 24 and metrics["train_loss"] < 0.6
    backwards, _ = train(tmp_path / "back", [flipped(pair, i) for i, pair in enumerate(PAIRS)])
    assert accuracy(backwards, fresh) < 0.1


def test_pairs_of_almost_no_weight_teach_almost_nothing(tmp_path):
    wrong = [flipped(pair, 100 + i) for i, pair in enumerate(PAIRS)]
    weights = [1.0] * len(PAIRS) + [1e-6] * len(wrong)
    heeded, _ = train(tmp_path / "a", PAIRS + wrong, weights)
    assert accuracy(heeded, PAIRS) > 0.9
    turned, _ = train(tmp_path / "b", PAIRS + wrong, weights[::-1])
    assert accuracy(turned, PAIRS) < 0.1  # the same pairs, the other half believed


def test_a_pairs_own_weight_multiplies_the_selectors():
    pair = tiny.pair("q", "yes", "no", weight=0.5, margin=0.25)
    row = pair_rows(tiny.tokenizer(), [pair], [3.0], 48)[0]
    assert row["weight"] == 1.5 and row["margin"] == 0.25
    assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tiny.tokenizer().eos_token_id
    plain = pair_rows(tiny.tokenizer(), [tiny.pair("q", "yes", "no")], [1.0], 48)[0]
    assert plain["margin"] == 0.0 and plain["soft_label"] == plain["weight"] == 1.0
    doubted = tiny.pair("q", "yes", "no", soft_label=0.75)
    assert pair_rows(tiny.tokenizer(), [doubted], [1.0], 48)[0]["soft_label"] == 0.75


def test_a_pairs_own_weight_decides_whom_the_model_believes(tmp_path):
    def weighted(pairs, weight):
        return [pair.model_copy(update={"weight": weight}) for pair in pairs]

    wrong = [flipped(pair, 100 + i) for i, pair in enumerate(PAIRS)]
    heeded, _ = train(tmp_path / "a", weighted(PAIRS, 1.0) + weighted(wrong, 1e-6))
    turned, _ = train(tmp_path / "b", weighted(PAIRS, 1e-6) + weighted(wrong, 1.0))
    assert accuracy(heeded, PAIRS) > 0.9 and accuracy(turned, PAIRS) < 0.1
    scaled, _ = train(tmp_path / "c", weighted(PAIRS, 0.25), epochs=0.5)
    same, _ = train(tmp_path / "d", PAIRS, epochs=0.5)
    assert tiny.same(tiny.weights(scaled), tiny.weights(same))  # only weights relative to each other count


@pytest.mark.slow
def test_soft_labels_say_how_sure_the_model_becomes(tmp_path, plain):
    def gap(model):
        score = RewardScorer(model, tiny.tokenizer(), 48, 64)
        prompts = [pair.prompt for pair in PAIRS]
        return float((score(prompts, [p.chosen for p in PAIRS]) - score(prompts, [p.rejected for p in PAIRS])).mean())

    def labelled(soft_label):
        return [pair.model_copy(update={"soft_label": soft_label}) for pair in PAIRS]

    certain, _ = train(tmp_path / "b", labelled(1.0))
    assert tiny.same(tiny.weights(plain[0]), tiny.weights(certain))  # no label is a certain one
    gaps = {p: gap(train(tmp_path / f"p{p}", labelled(p), epochs=8)[0]) for p in (0.5, 0.7, 0.9)}
    # the best gap of a pair is log(p / (1 - p)): 0, 0.847 and 2.197
    assert abs(gaps[0.5]) < 0.1 and gaps[0.7] == pytest.approx(0.847, abs=0.2)
    assert gaps[0.9] == pytest.approx(2.197, abs=0.4)


def test_smoothing_changes_the_fit(tmp_path, plain):
    _, smooth = train(tmp_path / "b", loss=PairLoss(0.3, 0.01, False))
    # With a third of the labels doubted the loss cannot fall below the entropy of a label, H(0.3) = 0.611 nats.
    assert plain[1]["train_loss"] < 0.6 < 0.611 < smooth["train_loss"]


def test_centring_pulls_the_scores_of_a_pair_towards_zero(tmp_path):
    def offset(model):
        score = RewardScorer(model, tiny.tokenizer(), 48, 64)
        prompts = [pair.prompt for pair in PAIRS]
        sums = score(prompts, [p.chosen for p in PAIRS]) + score(prompts, [p.rejected for p in PAIRS])
        return float(np.abs(sums).mean())

    loose, _ = train(tmp_path / "a", loss=PairLoss(0.0, 0.0, False))
    tight, _ = train(tmp_path / "b", loss=PairLoss(0.0, 1.0, False))
    assert offset(tight) < offset(loose)


def test_margins_count_only_when_asked_for(tmp_path):
    strong = [pair.model_copy(update={"margin": 1.0}) for pair in PAIRS]
    ignored, _ = train(tmp_path / "a", strong, epochs=0.5)
    without, _ = train(tmp_path / "b", PAIRS, epochs=0.5)
    used, _ = train(tmp_path / "c", strong, epochs=0.5, loss=PairLoss(0.0, 0.01, True))
    assert tiny.same(tiny.weights(ignored), tiny.weights(without))
    assert not tiny.same(tiny.weights(used), tiny.weights(without))


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    pairs = [pair.model_copy(update={"margin": float("nan")}) for pair in PAIRS]
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        train(tmp_path, pairs, loss=PairLoss(0.0, 0.01, True))


@pytest.mark.parametrize("die_at", [13, 24])
def test_a_killed_fit_ends_with_the_same_bytes(tmp_path, die_at, plain):
    straight, expected, folder = plain
    with pytest.raises(Killed):
        train(tmp_path / "killed", die_at=die_at, checkpoint_seconds=1e-9)
    kept = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert kept == {13: ["checkpoint-10"], 24: ["checkpoint-10", "checkpoint-20"]}[die_at]
    torch.manual_seed(123)
    resumed, metrics = train(tmp_path / "killed", checkpoint_seconds=1e-9)
    assert tiny.same(tiny.weights(resumed), tiny.weights(straight))
    assert metrics == expected
    rows = [(where / "metrics.jsonl").read_text() for where in (tmp_path / "killed", folder)]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 3  # steps 10, 20 and the last


def test_a_damaged_checkpoint_is_passed_over(tmp_path, plain):
    with pytest.raises(Killed):
        train(tmp_path / "killed", die_at=24, checkpoint_seconds=1e-9)
    (tmp_path / "killed" / "checkpoint-20" / "model.safetensors").write_bytes(b"torn")
    resumed, _ = train(tmp_path / "killed", checkpoint_seconds=3600.0)
    assert tiny.same(tiny.weights(resumed), tiny.weights(plain[0]))
    assert not (tmp_path / "killed" / "checkpoint-20").exists()


def tune(partial, die_at=-1, checkpoint_seconds=3600.0):
    partial.mkdir(exist_ok=True)
    model = tiny.policy()
    report = Report(partial / "metrics.jsonl")
    report.die_at = die_at
    rows = demonstrations(tiny.tokenizer(), [(pair.prompt, pair.chosen) for pair in PAIRS], 48)
    given = arguments(
        partial=partial, device="cpu", seed=0, epochs=2, learning_rate=5e-3, batch_size=4, warmup_share=0.1
    )
    return model, fine_tune(model, tiny.tokenizer(), rows, given, partial, report, checkpoint_seconds)


def test_supervised_tuning_learns_and_goes_on_to_the_bit(tmp_path):
    straight, expected = tune(tmp_path / "straight")
    assert expected["train_loss"] < first_loss(tmp_path / "straight")
    with pytest.raises(Killed):
        tune(tmp_path / "killed", die_at=17, checkpoint_seconds=1e-9)
    resumed, metrics = tune(tmp_path / "killed")
    assert tiny.same(tiny.weights(resumed), tiny.weights(straight)) and metrics == expected


def test_only_answer_tokens_carry_a_loss():
    rows = demonstrations(tiny.tokenizer(), [(tiny.PROMPTS[1], "the cat")], 48)
    ids, labels = rows[0]["input_ids"], rows[0]["labels"]
    start = labels.count(IGNORED)
    assert labels[:start] == [IGNORED] * start and labels[start:] == ids[start:]
    assert tiny.tokenizer().decode(ids[start:]) == "the cat<|end|>"
