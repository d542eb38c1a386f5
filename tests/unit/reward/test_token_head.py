"""Token heads from minimal edits: rows and labels, a synthetic vocabulary that must be learned, exact resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from inverse_alignment.core.metrics import FileReport
from inverse_alignment.maths.edits import BAD, GOOD, NEUTRAL
from inverse_alignment.models.loading import save_model
from inverse_alignment.models.token_heads import token_head_from_trunk
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward.token_head import TokenCollator, edit_rows, fit_token_head, separation
from inverse_alignment.text.render import encode_full, encode_prompt
from tests.unit.models import tiny

TOKENS = tiny.tokenizer()
WORSE, BETTER = 40, 41  # of a synthetic vocabulary; the rest is neutral


class Killed(Exception):
    """As if the process had died."""


class Report(FileReport):
    """Dies at a step."""

    die_at = -1

    def progress(self, done, total, unit):
        if done == self.die_at:
            raise Killed
        super().progress(done, total, unit)


def synthetic(count: int, seed: int) -> list[dict[str, Any]]:
    """Answers to one prompt in a vocabulary of ten neutral tokens; one bad token is replaced by one good one."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    rows = []
    for _ in range(count):
        tokens, place = generator.integers(10, 20, size=8), generator.integers(8)
        for token, label in ((WORSE, BAD), (BETTER, GOOD)):
            ids, labels = tokens.copy(), np.zeros(8, dtype=int)
            ids[place], labels[place] = token, label
            row = {"input_ids": [2, 3, *ids.tolist(), 1], "token_labels": [0, 0, *labels.tolist(), 0]}
            rows.append({**row, "start": 2, "weight": 1.0, "certainty": 1.0})
    return rows


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """The folder of a 2-layer causal language model."""
    folder = tmp_path_factory.mktemp("trunk")
    save_model(tiny.policy(), TOKENS, folder)
    return folder


def train(trunk, partial, rows, neutral_weight=0.5, epochs=4, die_at=-1, checkpoint_seconds=3600.0):
    partial.mkdir(exist_ok=True)
    report = Report(partial / "metrics.jsonl")
    report.die_at = die_at
    given = arguments(
        partial=partial, device="cpu", seed=0, epochs=epochs, learning_rate=1e-2, batch_size=16, warmup_share=0.1
    )
    model = token_head_from_trunk(trunk)
    return model, fit_token_head(model, TOKENS, rows, given, neutral_weight, partial, report, checkpoint_seconds)


def test_it_learns_which_token_is_bad_and_which_is_good(tmp_path, trunk):
    model, metrics = train(trunk, tmp_path / "p", synthetic(120, 0))
    held_out = synthetic(40, 1)
    measured = separation(model.eval(), held_out, TOKENS.pad_token_id, 512)
    assert measured["bad"] < -1 and measured["good"] > 1 and measured["sign_accuracy"] == 1.0
    assert abs(measured["neutral"]) < 0.1
    batch = TokenCollator(TOKENS.pad_token_id)(held_out)
    with torch.no_grad():
        rewards = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    labels, counts = batch["token_labels"], batch["counts"]
    assert (rewards[labels == BAD] < 0).all() and (rewards[labels == GOOD] > 0).all()
    assert rewards[counts & (labels == NEUTRAL)].abs().mean() < 0.1
    assert metrics["steps"] == 60


def test_labels_that_are_turned_round_are_learned_turned_round(tmp_path, trunk):
    """Negative control: the labels decide, not the tokens."""
    rows = [{**row, "token_labels": [-label for label in row["token_labels"]]} for row in synthetic(60, 0)]
    model, _ = train(trunk, tmp_path / "p", rows)
    measured = separation(model.eval(), synthetic(40, 1), TOKENS.pad_token_id, 512)
    assert measured["good"] < 0 < measured["bad"] and measured["sign_accuracy"] == 0.0


def test_a_price_on_neutral_tokens_keeps_them_quiet(tmp_path, trunk):
    def loudness(weight):
        model, _ = train(trunk, tmp_path / str(weight), synthetic(30, 0), neutral_weight=weight)
        batch = TokenCollator(TOKENS.pad_token_id)(synthetic(40, 1))
        with torch.no_grad():
            rewards = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return float(rewards.squeeze(-1)[batch["counts"] & (batch["token_labels"] == NEUTRAL)].abs().mean())

    assert loudness(1.0) < 0.5 * loudness(0.0)


def test_rows_of_a_pair_by_hand():
    pair = tiny.pair("hi", chosen="the cat sat", rejected="the dog sat", weight=2.0, soft_label=0.75)
    rejected, chosen = edit_rows(TOKENS, [pair], 64, 0.9)
    start = len(encode_prompt(TOKENS, pair.prompt, 32))
    assert rejected["input_ids"] == encode_full(TOKENS, pair.prompt, pair.rejected, 64)
    assert chosen["input_ids"] == encode_full(TOKENS, pair.prompt, pair.chosen, 64)
    for row, text, label in ((rejected, " dog", BAD), (chosen, " cat", GOOD)):
        assert (row["start"], row["weight"], row["certainty"]) == (start, 2.0, 0.75)
        assert row["token_labels"][:start] == [NEUTRAL] * start
        marked = [i for i, found in enumerate(row["token_labels"]) if found == label]
        assert TOKENS.decode([row["input_ids"][i] for i in marked]) == text
        assert set(row["token_labels"]) == {NEUTRAL, label}


def test_pairs_that_differ_too_much_or_not_at_all_make_no_rows():
    alike = tiny.pair("hi", "the cat sat on the mat", "the cat sat on the mat")
    far = tiny.pair("hi", "the cat sat on the mat", "a dog and a cat")
    near = tiny.pair("hi", "the cat sat on the mat", "the cat sat on a mat")
    assert edit_rows(TOKENS, [alike, far], 64, 0.4) == []
    assert len(edit_rows(TOKENS, [alike, far, near], 64, 0.4)) == 2
    assert len(edit_rows(TOKENS, [alike, far, near], 64, 1.0)) == 4
    assert edit_rows(TOKENS, [near], 64, 0.05) == []


def test_a_pair_counts_as_much_as_its_weight(tmp_path, trunk):
    right, wrong = synthetic(30, 0), synthetic(30, 5)
    wrong = [{**row, "token_labels": [-label for label in row["token_labels"]]} for row in wrong]
    heavy = [{**row, "weight": 5.0} for row in right]
    model, _ = train(trunk, tmp_path / "a", heavy + wrong)
    assert separation(model.eval(), synthetic(40, 1), TOKENS.pad_token_id, 512)["sign_accuracy"] == 1.0
    heavy = [{**row, "weight": 5.0} for row in wrong]
    model, _ = train(trunk, tmp_path / "b", right + heavy)
    assert separation(model.eval(), synthetic(40, 1), TOKENS.pad_token_id, 512)["sign_accuracy"] == 0.0


def test_a_batch_counts_the_tokens_of_answers():
    batch = TokenCollator(0)(
        [
            {"input_ids": [7, 8, 9], "token_labels": [0, 1, 0], "start": 1, "weight": 1.0, "certainty": 1.0},
            {"input_ids": [7, 8], "token_labels": [0, -1], "start": 1, "weight": 2.0, "certainty": 0.5},
        ]
    )
    assert batch["counts"].tolist() == [[False, True, True], [False, True, False]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["token_labels"].tolist() == [[0, 1, 0], [0, -1, 0]]
    assert batch["weights"].tolist() == [1.0, 2.0] and batch["certainty"].tolist() == [1.0, 0.5]


def test_nothing_to_measure_is_nothing(trunk):
    empty = {"good": None, "bad": None, "neutral": None, "sign_accuracy": None}
    assert separation(token_head_from_trunk(trunk), [], 0, 512) == empty


def test_a_killed_fit_ends_with_the_same_bytes(tmp_path, trunk):
    rows = synthetic(40, 0)
    straight, expected = train(trunk, tmp_path / "straight", rows, checkpoint_seconds=1e-9)
    with pytest.raises(Killed):
        train(trunk, tmp_path / "killed", rows, die_at=13, checkpoint_seconds=1e-9)
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-10"]
    torch.manual_seed(123)
    resumed, metrics = train(trunk, tmp_path / "killed", rows, checkpoint_seconds=1e-9)
    assert tiny.same(tiny.weights(resumed), tiny.weights(straight)) and metrics == expected
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "straight")]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 2
