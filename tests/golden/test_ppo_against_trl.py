"""One iteration of TRL 1.12's PPOTrainer, and the same numbers from this project's maths: equal within 1e-5.

`benchmarks/ppo_vs_trl/golden.py` ran PPOTrainer on a tiny random policy, value model and reward model and kept what
went in and came out. To make the file again (the environment is the one of `python -m benchmarks.ppo_vs_trl`):

    .venv-trl112/bin/python benchmarks/ppo_vs_trl/golden.py tests/golden

Where the two have different conventions, the difference is made explicit here:

- *Where the score is paid.* TRL pays it one step after the end token, in a state of its own (the end token was read,
  nothing follows), which has a value and is trained. Ours pays it with the end token; the state after it is worth
  zero. An answer that fills the whole length has no such state in TRL either. Hence TRL's rewards and value targets are
  ours under the mask `paid`, one position longer than the answer `said`. Both give the same advantages where that last
  value equals the score and the score is discounted once more (`test_the_end_state_is_all_that_differs`).
- *Whitening.* TRL divides by the sample's standard deviation (n - 1), ours by the population's (n); both take the
  statistics over `said`. Beyond that TRL sets advantages to zero, as ours does.
- *Masks.* TRL's are True at padding, ours at what counts. TRL fills log-probabilities at padding with 1, so that their
  difference is zero there; ours ignores what lies outside the mask.
- *KL.* Both price k1, the difference of log-probabilities of the sampled token.
- *Missing end.* Both subtract the penalty from the score of an answer without the end token, before anything else.
- *Value loss.* Both have the factor ½ and the larger of the clipped and the free error. TRL adds `vf_coef` times it to
  the policy's loss and has one optimiser; the models share no weight, so that two optimisers take the same step.
- *Gradient norms.* TRL's PPOTrainer clips none.
- *Temperature.* TRL divides logits by the temperature plus 1e-7.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from inverse_alignment.maths.advantages import Advantages, generalised_advantages
from inverse_alignment.maths.credit import terminal_rewards
from inverse_alignment.maths.kl import k1
from inverse_alignment.maths.masked import masked_whiten
from inverse_alignment.maths.surrogate import policy_loss, value_loss
from inverse_alignment.models.log_probs import chosen_log_probs

HERE = Path(__file__).parent
AGREES = 1e-5
DIFFERS = 1e-3
STEPS = 4  # two passes of two minibatches


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """The run's settings."""
    found: dict[str, Any] = json.loads((HERE / "ppo_trl112.json").read_text())
    return found


@pytest.fixture(scope="module")
def trl() -> dict[str, Tensor]:
    """What went into PPOTrainer and what came out."""
    return load_file(HERE / "ppo_trl112.safetensors")


@pytest.fixture(scope="module")
def said(trl: dict[str, Tensor], facts: dict[str, Any]) -> Tensor:
    """The answers' tokens, the end token included."""
    return trl["responses"] != facts["pad_token"]


@pytest.fixture(scope="module")
def paid(said: Tensor) -> Tensor:
    """The answers' tokens, and TRL's state after the end where there is room for one."""
    return torch.cat([said[:, :1], said[:, :-1]], 1)


def distance(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a - b).abs().max())


def shaped_scores(trl: dict[str, Tensor], facts: dict[str, Any]) -> Tensor:
    """The reward model's scores after the penalty for a missing end."""
    ended = (trl["responses"] == facts["end_token"]).any(-1)
    return trl["raw_scores"] - facts["settings"]["missing_eos_penalty"] * ~ended


def rewards_of(trl: dict[str, Tensor], facts: dict[str, Any], mask: Tensor, sign: float = 1.0) -> Tensor:
    """Our rewards, from TRL's log-probabilities and scores."""
    ratios = k1(trl["logprobs"], trl["ref_logprobs"])
    return terminal_rewards(shaped_scores(trl, facts), sign * ratios, mask, facts["settings"]["kl_coef"])


def estimate_of(trl: dict[str, Tensor], facts: dict[str, Any], rewards: Tensor, mask: Tensor) -> Advantages:
    """Our advantages and returns, from TRL's values."""
    settings = facts["settings"]
    return generalised_advantages(rewards, trl["values"], mask, settings["gamma"], settings["lam"])


def as_sample(whitened: Tensor, mask: Tensor) -> Tensor:
    """Whitened with the population's variance, as if with the sample's."""
    n = mask.sum()
    return whitened * torch.sqrt((n - 1) / n)


def test_the_answers_have_every_length_and_ending(said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]):
    ended = (trl["responses"] == facts["end_token"]).any(-1)
    assert said.sum(-1).tolist() == [6, 6, 5, 4, 3, 2, 1, 6]
    assert ended.tolist() == [False, True, True, True, True, True, True, False]


def test_masks(said: Tensor, paid: Tensor, trl: dict[str, Tensor]):
    assert torch.equal(said, ~trl["padding_mask"])
    assert torch.equal(said | paid, ~trl["padding_mask_p1"])


def test_scores_and_rewards(paid: Tensor, said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]):
    rewards = rewards_of(trl, facts, paid)
    assert distance(shaped_scores(trl, facts), trl["scores"]) < AGREES
    assert distance(rewards, trl["rewards"]) < AGREES
    assert distance(rewards_of(trl, facts, paid, sign=-1.0), trl["rewards"]) > DIFFERS
    assert distance(rewards_of(trl, facts, said), trl["rewards"]) > DIFFERS
    assert distance(trl["raw_scores"], trl["scores"]) > DIFFERS  # the penalty for a missing end is in


def test_advantages_and_returns(paid: Tensor, said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]):
    estimate = estimate_of(trl, facts, trl["rewards"], paid)
    assert distance(estimate.advantages, trl["advantages"]) < AGREES
    assert distance(estimate.returns, trl["returns"]) < AGREES
    assert distance(estimate_of(trl, facts, trl["rewards"], said).advantages, trl["advantages"]) > DIFFERS
    assert distance(estimate_of(trl, facts, -trl["rewards"], paid).returns, trl["returns"]) > DIFFERS


def test_the_end_state_is_all_that_differs(paid: Tensor, said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]):
    extra = paid & ~said  # TRL's states after the end
    scores = shaped_scores(trl, facts)
    values = torch.where(extra, scores.unsqueeze(-1), trl["values"])
    theirs = estimate_of({**trl, "values": values}, facts, trl["rewards"], paid)
    ratios = k1(trl["logprobs"], trl["ref_logprobs"])
    discounted = torch.where(extra.any(-1), facts["settings"]["gamma"] * scores, scores)
    rewards = terminal_rewards(discounted, ratios, said, facts["settings"]["kl_coef"])
    ours = estimate_of(trl, facts, rewards, said)
    assert distance(ours.advantages, theirs.advantages * said) < AGREES
    assert distance(ours.returns, theirs.returns * said) < AGREES
    assert distance(ours.advantages, trl["advantages"] * said) > DIFFERS


def test_whitening(paid: Tensor, said: Tensor, trl: dict[str, Tensor]):
    ours = masked_whiten(trl["advantages"], said)
    assert distance(as_sample(ours, said), trl["whitened"]) < AGREES
    assert distance(ours, trl["whitened"]) > DIFFERS  # n = 33: the two variances are told apart
    wrong = masked_whiten(trl["advantages"], paid)
    assert distance(as_sample(wrong, paid) * said, trl["whitened"]) > DIFFERS
    assert distance(masked_whiten(trl["advantages"], ~said), trl["whitened"]) > DIFFERS


@pytest.mark.parametrize("step", range(STEPS))
def test_policy_losses(step: int, said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]):
    rows, clip = trl[f"step{step}.micro_batch_inds"], facts["settings"]["cliprange"]
    given = trl[f"step{step}.new_logprobs"], trl["logprobs"][rows], trl["whitened"][rows]
    theirs = trl[f"step{step}.pg_loss"]
    result = policy_loss(*given, said[rows], clip)
    assert distance(result.loss, theirs) < AGREES
    if step:  # from the second step on there is a ratio, hence something to clip
        assert result.clipped > 0
        assert distance(policy_loss(given[0], given[1], -given[2], said[rows], clip).loss, theirs) > DIFFERS
        assert distance(policy_loss(given[1], given[0], given[2], said[rows], clip).loss, theirs) > DIFFERS
        assert distance(policy_loss(*given, said[rows], 1.0 - 1e-6).loss, theirs) > DIFFERS


@pytest.mark.parametrize("step", range(STEPS))
def test_value_losses(step: int, paid: Tensor, said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]):
    rows, clip = trl[f"step{step}.micro_batch_inds"], facts["settings"]["cliprange_value"]
    given = trl[f"step{step}.vpred"], trl["values"][rows], trl["returns"][rows]
    theirs = trl[f"step{step}.vf_loss"]
    result = value_loss(*given, paid[rows], clip)
    assert distance(result.loss, theirs) < AGREES
    assert distance(value_loss(*given, said[rows], clip).loss, theirs) > DIFFERS
    assert distance(2 * result.loss, theirs) > DIFFERS
    if step:
        assert result.clipped > 0
        assert distance(value_loss(*given, paid[rows], 1e9).loss, theirs) > DIFFERS


class Replay:
    """TRL's minibatches with our maths, from its weights before the first step."""

    def __init__(self, trl: dict[str, Tensor], facts: dict[str, Any], said: Tensor, paid: Tensor) -> None:
        self.trl, self.settings, self.said, self.paid = trl, facts["settings"], said, paid
        shape = LlamaConfig(**facts["model"])
        self.policy, self.reference = LlamaForCausalLM(shape), LlamaForCausalLM(shape)
        self.value = LlamaForSequenceClassification(LlamaConfig(**facts["model"], num_labels=1))
        for name in ("policy", "reference", "value"):
            load_weights(getattr(self, name), trl, f"before.{name}.")
        self.ids = torch.cat([trl["queries"], trl["responses"]], 1)
        self.prompt = trl["queries"].shape[1]
        self.pad = facts["pad_token"]

    def log_probs(self, model: LlamaForCausalLM, rows: Tensor) -> Tensor:
        """Of the answers' tokens (b, t)."""
        logits = model(**self._inputs(rows)).logits[:, self.prompt - 1 : -1] / self.settings["temperature"]
        targets = self.trl["responses"][rows]
        return chosen_log_probs(logits.flatten(0, 1), targets.flatten()).view(targets.shape)

    def values(self, rows: Tensor) -> Tensor:
        """Of the states in which the answers' tokens were chosen (b, t)."""
        hidden = self.value.model(**self._inputs(rows)).last_hidden_state
        return self.value.score(hidden)[:, self.prompt - 1 : -1].squeeze(-1)

    def experience(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Old log-probabilities, old values, whitened advantages and returns, all from the weights."""
        everyone = torch.arange(len(self.ids))
        with torch.no_grad():
            old, reference = (self.log_probs(model, everyone) for model in (self.policy, self.reference))
            values = torch.where(self.paid, self.values(everyone), 0)
        ratios = torch.where(self.said, k1(old, reference), 0)
        rewards = terminal_rewards(self.trl["scores"], ratios, self.paid, self.settings["kl_coef"])
        estimate = generalised_advantages(rewards, values, self.paid, self.settings["gamma"], self.settings["lam"])
        return old, values, as_sample(masked_whiten(estimate.advantages, self.said), self.said), estimate.returns

    def run(self, steps: int, sign: float = 1.0, mask: Tensor | None = None) -> None:
        """Take TRL's first steps; `sign` and `mask` spoil the policy's loss."""
        old, values, whitened, returns = self.experience()
        mask = self.said if mask is None else mask
        rate, clip, value_clip = (self.settings[key] for key in ("learning_rate", "cliprange", "cliprange_value"))
        optimizers = [
            torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0) for model in (self.policy, self.value)
        ]
        for step in range(steps):
            rows = self.trl[f"step{step}.micro_batch_inds"]
            new = self.log_probs(self.policy, rows)
            policy_loss(new, old[rows], sign * whitened[rows], mask[rows], clip).loss.backward()
            free = value_loss(self.values(rows), values[rows], returns[rows], self.paid[rows], value_clip)
            (self.settings["vf_coef"] * free.loss).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    def furthest(self, when: str) -> dict[str, float]:
        """Largest distance of any parameter of each model from TRL's."""
        return {
            name: max(
                distance(weight.detach(), self.trl[f"{when}.{name}.{key}"])
                for key, weight in getattr(self, name).named_parameters()
            )
            for name in ("policy", "value")
        }

    def _inputs(self, rows: Tensor) -> dict[str, Any]:
        mask = self.ids[rows] != self.pad
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": self.ids[rows], "attention_mask": mask.long(), "position_ids": positions}


def load_weights(model: torch.nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Parameters from the file; tied ones are there once."""
    own = dict(model.named_parameters())
    given = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    assert own.keys() == given.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])


def test_log_probs_and_values(paid: Tensor, said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]):
    replay = Replay(trl, facts, said, paid)
    old, values, whitened, returns = replay.experience()
    reference = replay.log_probs(replay.reference, torch.arange(len(said))).detach()
    for ours, theirs, mask in (
        (old, "logprobs", said),
        (reference, "ref_logprobs", said),
        (values, "values", paid),
        (whitened, "whitened", said),
        (returns, "returns", paid),
    ):
        assert distance(ours[mask], trl[theirs][mask]) < AGREES, theirs


@pytest.mark.parametrize("steps", [1, STEPS])
def test_updated_parameters(steps: int, paid: Tensor, said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]):
    replay = Replay(trl, facts, said, paid)
    replay.run(steps)
    found = replay.furthest(f"after{steps - 1}")
    assert max(found.values()) < AGREES, found


@pytest.mark.parametrize("wrong", ["sign", "mask"])
def test_a_wrong_loss_updates_otherwise(
    wrong: str, paid: Tensor, said: Tensor, trl: dict[str, Tensor], facts: dict[str, Any]
):
    replay = Replay(trl, facts, said, paid)
    replay.run(1, **({"sign": -1.0} if wrong == "sign" else {"mask": ~said | (said.sum(-1) == 6).unsqueeze(-1)}))
    assert replay.furthest("after0")["policy"] > DIFFERS
