"""Direct alignment of one arm, beside the arms that refresh a reward model: the same rounds without RL."""

from __future__ import annotations

from flows.inverse_alignment import Round, Start, inverse_alignment
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.optimise.direct_settings import PpoMethod
from inverse_alignment.selection.settings import NoSelection
from tasks.stages import evaluate, optimise_directly, roll_out, select


def arm(config: PipelineConfig, name: str, seed: int, start: Start) -> tuple[Round, ...]:
    """One arm as its `optimise` says: PPO against a reward model that is refreshed, or a direct method."""
    ppo = isinstance(config.for_arm(name).optimise, PpoMethod)
    return (inverse_alignment if ppo else direct)(config, name, seed, start)


def direct(config: PipelineConfig, arm: str, seed: int, start: Start) -> tuple[Round, ...]:
    """Ask the policy, select pairs near its answers if that is wanted, optimise it on them, and again."""
    config = config.for_arm(arm)
    preferences, reference, reward = start.preferences, start.sft.part("policy"), start.reward.part("model")
    policy = reference
    state: Artifact | None = None
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
        selection = None
        if not isinstance(config.selection, NoSelection):
            selection = select(
                f"{at}-select",
                config,
                seed,
                preferences=preferences,
                rollouts=rollouts,
                policy=policy,
                reference=reference,
                reward=reward,
            )
        optimised = optimise_directly(
            f"{at}-direct",
            config,
            seed,
            policy=policy,
            reference=reference,
            preferences=preferences,
            selection=selection,
            rollouts=rollouts,
            reward=reward,
            state=state,
        )
        policy, state = optimised.part("policy"), optimised.part("state")
        evaluation = evaluate(
            f"{at}-evaluate",
            config,
            seed,
            policy=policy,
            reference=reference,
            reward=reward,
            audit=start.audit.part("model") if start.audit else None,
            preferences=preferences,
            start=start.evaluation,
        )
        rounds.append(
            Round(rollouts=rollouts, selection=selection, refresh=None, optimised=optimised, evaluation=evaluation)
        )
    return tuple(rounds)
