"""Inverse alignment of one arm: the README's sentence, as plain Python that any driver can run."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.optimise.credit_settings import TokenCredit
from inverse_alignment.selection.settings import NoSelection
from tasks.stages import (
    aggregate,
    evaluate,
    ppo,
    refresh,
    reward_model,
    roll_out,
    select,
    sft,
    token_reward,
    tokenizers,
)


class Frozen(BaseModel):
    """Artifacts under names; small JSON, so that it can cross into a subflow."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Frozen):
    """What every seed and arm shares."""

    tokenizers: Artifact
    preferences: Artifact


class Start(Frozen):
    """What every arm of one seed starts from."""

    preferences: Artifact
    sft: Artifact
    reference_rollouts: Artifact
    reward: Artifact
    audit: Artifact | None
    token_head: Artifact | None
    evaluation: Artifact


class Round(Frozen):
    """What one round of an arm made. Without a refresh there is no selection, unless a direct method learns from it."""

    rollouts: Artifact
    selection: Artifact | None
    refresh: Artifact | None
    optimised: Artifact
    evaluation: Artifact


RunArm = Callable[[PipelineConfig, str, int, Start], tuple[Round, ...]]
"""Runs one arm for one seed: `inverse_alignment`, or the same as a subflow."""


def shared_data(config: PipelineConfig) -> Data:
    """The pooled preferences, and the tokenizers that cut them."""
    made = tokenizers(config)
    return Data(tokenizers=made, preferences=aggregate(config, made))


def shared_start(config: PipelineConfig, seed: int, data: Data) -> Start:
    """The SFT policy, the first reward model, its audit if there is to be one, and what they are worth."""
    preferences = data.preferences
    start = sft(config, seed, preferences, data.tokenizers)
    policy = start.part("policy")
    sample = roll_out(
        f"reference-s{seed}",
        config,
        seed,
        policy=policy,
        reference=policy,
        preferences=preferences,
        rollout=config.reference_sample,
    )
    given = {
        "preferences": preferences,
        "tokenizers": data.tokenizers,
        "reference_rollouts": sample,
        "sft": start,
    }
    reward = reward_model(f"reward-s{seed}", config, seed, split="train", **given)
    audit = None
    if config.data.aggregate.shares.audit > 0:
        audit = reward_model(f"audit-s{seed}", config, seed, split="audit", **given)
    token_head = None
    if any(isinstance(config.for_arm(arm).ppo.credit, TokenCredit) for arm in config.arms):
        token_head = token_reward(config, seed, preferences=preferences, reward=reward.part("model")).part("model")
    evaluation = evaluate(
        f"start-s{seed}",
        config,
        seed,
        policy=policy,
        reference=policy,
        reward=reward.part("model"),
        audit=audit.part("model") if audit else None,
        preferences=preferences,
    )
    return Start(
        preferences=preferences,
        sft=start,
        reference_rollouts=sample,
        reward=reward,
        audit=audit,
        token_head=token_head,
        evaluation=evaluation,
    )


def inverse_alignment(config: PipelineConfig, arm: str, seed: int, start: Start) -> tuple[Round, ...]:
    """Refresh the reward model where the policy now is, optimise the policy against it, and again."""
    config = config.for_arm(arm)
    preferences, reference = start.preferences, start.sft.part("policy")
    audit = start.audit.part("model") if start.audit else None
    policy, reward, state, seen = reference, start.reward, None, None
    rounds: list[Round] = []
    for round_ in range(1, config.rounds + 1):
        at = f"{arm}-s{seed}-r{round_}"
        rollouts = roll_out(
            f"{at}-rollout",
            config,
            seed,
            policy=policy,
            reference=reference,
            preferences=preferences,
            rollout=config.rollout,
        )
        selection = refreshed = before = None
        if not isinstance(config.selection, NoSelection):
            before = reward.part("model")
            selection = select(
                f"{at}-select",
                config,
                seed,
                preferences=preferences,
                rollouts=rollouts,
                policy=policy,
                reference=reference,
                reward=before,
            )
            reward = refreshed = refresh(
                f"{at}-refresh",
                config,
                seed,
                round_,
                reward=before,
                first_reward=start.reward.part("model"),
                selection=selection,
                preferences=preferences,
                rollouts=rollouts,
                reference_rollouts=start.reference_rollouts,
                policy=policy,
                seen=seen,
            )
            seen = refreshed.part("seen")
        optimised = ppo(
            f"{at}-ppo",
            config,
            seed,
            policy=policy,
            reference=reference,
            reward=reward.part("model"),
            preferences=preferences,
            state=state,
            token_head=start.token_head,
            audit=audit,
        )
        policy, state = optimised.part("policy"), optimised.part("state")
        evaluation = evaluate(
            f"{at}-evaluate",
            config,
            seed,
            policy=policy,
            reference=reference,
            reward=reward.part("model"),
            audit=audit,
            preferences=preferences,
            reward_before=before,
            rollouts=rollouts,
            ppo=optimised,
            start=start.evaluation,
        )
        rounds.append(
            Round(rollouts=rollouts, selection=selection, refresh=refreshed, optimised=optimised, evaluation=evaluation)
        )
    return tuple(rounds)
