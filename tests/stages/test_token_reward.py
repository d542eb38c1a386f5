"""The stage that trains a token head: from a reward model and pairs to a folder that judges answers."""

from __future__ import annotations

import pytest
import torch

from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.records import Prompt, write_jsonl
from inverse_alignment.generation.answers import Answer
from inverse_alignment.models.token_scores import TokenHead
from inverse_alignment.stages.token_reward import TokenRewardConfig, TokenRewardStage, build
from inverse_alignment.text.render import encode_response
from tests.unit.models import tiny

NOUNS = ("mat", "dog", "cat", "end")


def pairs(count, start=0):
    """'the ... sat' is better than 'a ... sat', whatever stands between."""
    words = [f"{NOUNS[i % 4]} {NOUNS[(i // 4) % 4]} sat {i}" for i in range(start, start + count)]
    return [tiny.pair(f"q {i}", f"the {words[i]}", f"a {words[i]}", i) for i in range(count)]


def run(tmp_path, config):
    folder = tmp_path / "preferences"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", pairs(64))
    write_jsonl(folder / "validation.jsonl", pairs(12, 64))
    reward = tiny.saved(tiny.reward_model(), tmp_path / "reward")
    out, partial = tmp_path / "out", tmp_path / "partial"
    out.mkdir()
    partial.mkdir()
    context = StageContext(out, partial, FileReport(partial / "metrics.jsonl"), RuntimeConfig(device="cpu"), seed=0)
    stage = TokenRewardStage(token_reward=config, context=48)
    return build({"preferences": folder, "reward": reward}, stage, context), out


def test_it_learns_what_was_edited_and_its_folder_judges_answers(tmp_path):
    metrics, out = run(tmp_path, TokenRewardConfig(epochs=4, learning_rate=1e-2, batch_size=8, most_edited=0.4))
    assert metrics["pairs"] == 64 and metrics["validation_pairs"] == 12 and metrics["steps"] == 64
    assert metrics["validation_bad"] < -0.5 and metrics["validation_good"] > 0.5
    assert metrics["validation_sign_accuracy"] > 0.9 and abs(metrics["validation_neutral"]) < 0.1
    head = TokenHead.load(out / "model", tiny.tokenizer(), torch.device("cpu"), 48, 8)
    answers = []
    for text in ("the dog sat", "a dog sat"):
        answers.append(Answer([], encode_response(tiny.tokenizer(), text), True, text))
    good, bad = head.token_rewards([Prompt.from_text("q 7")] * 2, answers)
    assert good[0] > 0 > bad[0] and abs(good[1:]).max() < good[0]


def test_without_minimal_edits_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match=r"none of 64 pairs differ in at most 1% of their tokens"):
        run(tmp_path, TokenRewardConfig(most_edited=0.01))
