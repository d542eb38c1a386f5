"""`inverse-alignment recover`: numbers and table on tiny models, a planted alignment found, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from tests.unit.models import tiny

ROOT = Path(__file__).parents[2]
TOKENS = tiny.tokenizer()
CAT = TOKENS.encode(" cat", add_special_tokens=False)[0]


def aligned():
    """A policy that has learned to speak of cats."""
    policy = tiny.policy(0, 2.0)
    head = torch.nn.Linear(policy.config.hidden_size, len(TOKENS), bias=False)
    head.weight.data.copy_(policy.lm_head.weight)
    with torch.no_grad():
        states = policy.base_model(torch.arange(2, 60).unsqueeze(0)).last_hidden_state[0]
        direction = states.mean(0) / states.mean(0).norm() ** 2
        head.weight[CAT] += 4.0 * direction
    policy.lm_head = head
    policy.config.tie_word_embeddings = False
    return policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("recover")
    tiny.saved(tiny.reward_model(), made / "artifact" / "model")
    tiny.saved(aligned(), made / "policy")
    tiny.saved(tiny.policy(0, 2.0), made / "reference")
    rows = [{"prompt": f"why {i}", "chosen": f"a cat {i}", "rejected": f"a dog {i}"} for i in range(30)]
    (made / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    (made / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return made


def call(folder, *words):
    short = (
        "--max-new-tokens",
        "8",
        "--learning-rate",
        "0.01",
        "--epochs",
        "4",
        "--samples",
        "2",
        "--batch-size",
        "16",
    )
    params = ("--params", str(folder / "params.yaml"))
    return CliRunner().invoke(app, ["recover", *map(str, words), *short, *params])


def test_a_planted_alignment_is_found_and_every_number_is_defined(folder):
    out = folder / "found.json"
    run = call(
        folder, folder / "policy", folder / "reference", folder / "pairs.jsonl",
        "--reward", folder / "artifact", "--json", out,
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    found = json.loads(out.read_text())
    assert found["told_apart"]["low"] > 0.5 and found["agreement"]["implicit"]["order"] > 0.6
    assert found["gap"] == found["agreement"]["reward_model"]["order"] - found["accuracy"]["recovered"]["mean"]
    assert "of held-out pairs" in run.output and "less accuracy on labelled pairs" in run.output
    names = {*found, *found["told_apart"], *found["agreement"], *found["agreement"]["implicit"], *found["accuracy"]}
    text = (ROOT / "docs/metrics.md").read_text()
    defined = re.search(r"^## recover$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert defined is not None and set(re.findall(r"^\| `([^`]+)` \|", defined[1], re.MULTILINE)) == names


def test_without_a_reward_model_there_is_no_gap(folder):
    out = folder / "without.json"
    run = call(
        folder, folder / "policy", folder / "reference", folder / "pairs.jsonl", "--loss", "hinge", "--json", out
    )
    assert run.exit_code == 0, run.output
    found = json.loads(out.read_text())
    assert found["gap"] is None and set(found["agreement"]) == {"implicit"} and found["loss"] == "hinge"


def test_a_policy_is_not_told_from_itself(folder):
    """Negative control."""
    out = folder / "same.json"
    run = call(folder, folder / "policy", folder / "policy", folder / "pairs.jsonl", "--json", out)
    assert run.exit_code == 0, run.output
    found = json.loads(out.read_text())
    assert found["told_apart"]["low"] < 0.5 < found["told_apart"]["high"]
    assert found["agreement"]["implicit"]["correlation"] is None  # its implicit reward is zero everywhere


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("policy", "reference", "few.jsonl"), "4 prompts are too few"),
        (("nowhere", "reference", "pairs.jsonl"), "no node of the plan has that name"),
        (("artifact", "reference", "pairs.jsonl"), "not a causal language model"),
    ],
)
def test_what_is_refused(folder, words, says):
    run = call(folder, *(folder / word if word != "nowhere" else word for word in words))
    assert run.exit_code == 2 and says in run.output
