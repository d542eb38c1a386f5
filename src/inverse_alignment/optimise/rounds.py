"""Where a round of PPO begins: which policy, with what of the last round's state, priced against which reference."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from inverse_alignment.models.adapters import adapter_weights, load_adapters
from inverse_alignment.models.loading import load_policy
from inverse_alignment.optimise.ppo import ADAPTERS, Learner, load_learner
from inverse_alignment.optimise.reference import follow
from inverse_alignment.optimise.settings import ContinueStart, InterpolateStart, LastRoundReference, PpoConfig, SftStart


@torch.no_grad()
def starting_policy(last: Path, sft: Path, config: PpoConfig) -> PreTrainedModel:
    """The model that a round begins with; where adapters learn, the one below them.

    Args:
        last: folder of the last round's policy.
        sft: folder of the SFT policy.
    """
    if config.lora is not None or isinstance(config.start, SftStart):
        return load_policy(sft)
    policy = load_policy(last)
    if isinstance(config.start, InterpolateStart):
        for weight, old in zip(policy.parameters(), load_policy(sft).parameters(), strict=True):
            weight.copy_(old.lerp(weight, config.start.share))
    return policy


def begin_round(learner: Learner, state: Path, config: PpoConfig, reward_digest: str) -> None:
    """Make a new learner, whose model is the `starting_policy`, one that begins another round, in place.

    Only a round that goes on from the last one takes over optimisers, critic and KL coefficient: they belong to the
    policy that they grew up with. The count of iterations goes on in any case, since it says which prompts and which
    noise come next. A critic that is new, or was fitted to another reward, learns alone at first.

    Args:
        state: what `save_learner` wrote at the end of the last round.
        reward_digest: of the reward model of this round.
    """
    if isinstance(config.start, ContinueStart):
        if load_learner(learner, state) != reward_digest:
            learner.warmup = config.value_warmup_steps
    else:
        learner.step = int(json.loads((state / "state.json").read_text())["step"])
        if config.lora is not None and isinstance(config.start, InterpolateStart):
            load_adapters(learner.policy, state / ADAPTERS)
            _weaken(learner.policy, config.start.share)
    if isinstance(config.reference, LastRoundReference):
        follow(learner.reference, learner.policy, 1.0)


@torch.no_grad()
def _weaken(policy: PreTrainedModel, share: float) -> None:
    """Scale what adapters add: `W + (α / r) s B A` lies on the way from W to `W + (α / r) B A`."""
    for name, weight in adapter_weights(policy).items():
        if "lora_B" in name:
            weight.mul_(share)
