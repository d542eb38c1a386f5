"""PPO as a stage with every way to share a score out among tokens: without a share it is the sparse one, to the bit."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter

from inverse_alignment.core.artifact import external
from inverse_alignment.optimise.credit_settings import CreditConfig
from tests.stages import chain

WAYS = ("uniform", "red", "abc", "potential", "token")


@pytest.fixture(scope="module")
def trained(built):
    """Digest and rows of metrics of PPO under a credit, as the stage leaves them; each trained once."""
    run = chain.Chain(built.root / "credit", dict(built.made))
    head = {"token_reward": chain.token_reward(run) / "model"}
    inputs, done = chain.ppo_inputs(run, "reward"), {}

    def train(**credit):
        name = json.dumps(credit, sort_keys=True).translate({ord(c): "-" for c in '{}": ,.'})
        if name not in done:
            config = chain.PPO.model_copy(update={"credit": TypeAdapter(CreditConfig).validate_python(credit)})
            more = head if credit["type"] == "token" else {}
            out = run.run(name, "ppo", {**inputs, **more}, chain.ppo_stage(config))
            rows = (run.partial(name) / "metrics.jsonl").read_text().splitlines()
            done[name] = external("ppo", out).digest, [json.loads(row) for row in rows]
        return done[name]

    return train


@pytest.mark.parametrize(
    "credit", [{"type": "token", "share": 0.0}, {"type": "red", "mix": 0.0}, {"type": "abc", "mix": 0.0}]
)
def test_without_a_share_every_credit_is_the_sparse_one(trained, credit):
    digest, rows = trained(type="terminal")
    mine, measured = trained(**credit)
    if (
        credit["type"] == "token"
    ):  # it scores as the sparse one does; red and abc read the model per token, in other batches
        assert mine == digest
    assert [row["policy_loss"] for row in measured if "policy_loss" in row] == pytest.approx(
        [row["policy_loss"] for row in rows if "policy_loss" in row], abs=1e-5
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_credit_samples_the_same_first_answers_and_then_learns_something_else(trained, way):
    sparse, rows = trained(type="terminal")
    dense, measured = trained(type=way)
    assert dense != sparse
    same = ("tokens", "kl", "ended_share")
    assert [measured[0][name] for name in same] == [rows[0][name] for name in same]
    assert measured[0]["rm_score"] == pytest.approx(rows[0]["rm_score"], abs=1e-6)
    assert measured[0]["value_loss"] != rows[0]["value_loss"]
