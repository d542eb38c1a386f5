"""One typed function per stage: which inputs it takes, under which names, and what of the configuration it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.data.sources import SourceConfig
from inverse_alignment.data.sources import reference as dataset_reference
from inverse_alignment.embedding.settings import EncoderConfig, SentenceEncoder
from inverse_alignment.models.checks import require_encoder, require_policy, require_reward_model
from inverse_alignment.models.specs import CheckpointModel, InitialisedModel, ModelSpec
from inverse_alignment.optimise.credit_settings import TokenCredit
from inverse_alignment.optimise.direct_settings import MOVING, Anchored, AvaD, Irft, PpoMethod, Selm
from inverse_alignment.reward.family_settings import training_of
from inverse_alignment.reward.settings import DriftTrigger, GateOn, ScheduleTrigger
from inverse_alignment.selection.settings import inputs_of, pairs_asked_for, sentence_encoders
from inverse_alignment.stages.aggregate import AggregateStage
from inverse_alignment.stages.compare import CompareStage
from inverse_alignment.stages.direct import DirectStage
from inverse_alignment.stages.evaluate import EvaluateStage
from inverse_alignment.stages.ppo import PpoStage
from inverse_alignment.stages.refresh import RefreshStage
from inverse_alignment.stages.reward_model import CheckpointReward, RewardStage
from inverse_alignment.stages.rollout import RolloutConfig, RolloutStage
from inverse_alignment.stages.select import SelectStage
from inverse_alignment.stages.sft import SftStage, TrainSft
from inverse_alignment.stages.token_reward import TokenRewardStage
from inverse_alignment.stages.tokenizers import TokenizersConfig
from tasks import external
from tasks.run_stage import run_stage


def tokenizers(config: PipelineConfig) -> Artifact:
    """The tokenizers of policy and reward model, trained on the data or copied from their checkpoints."""
    models = config.models
    trains = isinstance(models.policy, InitialisedModel) or isinstance(models.reward, InitialisedModel)
    inputs = {
        **(_sources(config.data.sources, "data.sources", config) if trains else {}),
        **_model("policy_model", models.policy, "models.policy", config),
        **_model("reward_model", models.reward, "models.reward", config),
    }
    sources = config.data.sources if trains else ()
    stage = TokenizersConfig(policy=models.policy, reward=models.reward, sources=sources)
    return run_stage("tokenizers", "tokenizers", inputs, stage)


def aggregate(config: PipelineConfig, tokenizers: Artifact) -> Artifact:
    """All sources as one preference set, with provenance and splits."""
    data, models = config.data, config.models
    stage = AggregateStage(
        sources=data.sources,
        evaluation=data.evaluation_sets,
        aggregate=data.aggregate,
        context=models.policy.context,
        reward_context=models.reward.context,
        least_train_pairs=max(pairs_asked_for(config.for_arm(arm).selection) for arm in config.arms),
        source_policies=config.sft.sources if isinstance(config.sft, TrainSft) else (),
        gold=config.evaluation.gold.type,
    )
    inputs = {
        **_sources(data.sources, "data.sources", config),
        **_sources(data.evaluation_sets, "data.evaluation_sets", config),
        "tokenizers": tokenizers,
    }
    return run_stage("aggregate", "aggregate", inputs, stage)


def sft(config: PipelineConfig, seed: int, preferences: Artifact, tokenizers: Artifact) -> Artifact:
    """The first policy, which is also the frozen reference."""
    model = config.models.policy
    inputs = {
        "preferences": preferences,
        "tokenizers": tokenizers,
        **_model("policy_model", model, "models.policy", config),
    }
    return run_stage(f"sft-s{seed}", "sft", inputs, SftStage(sft=config.sft, model=model), seed)


def roll_out(
    node: str,
    config: PipelineConfig,
    seed: int,
    *,
    policy: Artifact,
    reference: Artifact,
    preferences: Artifact,
    rollout: RolloutConfig,
) -> Artifact:
    """Answers sampled from a frozen policy."""
    inputs = {"policy": policy, "reference": reference, "preferences": preferences}
    stage = RolloutStage(rollout=rollout, context=config.models.policy.context)
    return run_stage(node, "rollout", inputs, stage, seed)


def reward_model(
    node: str,
    config: PipelineConfig,
    seed: int,
    *,
    split: Literal["train", "audit"],
    preferences: Artifact,
    tokenizers: Artifact,
    reference_rollouts: Artifact,
    sft: Artifact,
) -> Artifact:
    """A reward model of one split, standardised on the reference sample: the first one, or the one that audits it."""
    reward, models = config.reward, config.models
    inputs = {
        "preferences": preferences,
        "tokenizers": tokenizers,
        "reference_rollouts": reference_rollouts,
        **_model("reward_model", models.reward, "models.reward", config),
    }
    same = isinstance(models.policy, InitialisedModel) and models.policy == models.reward
    training = training_of(reward)
    if training is not None and training.start == "sft" and same:
        inputs["trunk"] = sft.part("policy")
    stage = RewardStage(reward=reward, model=models.reward, split=split)
    return run_stage(node, "reward_model", inputs, stage, seed)


def token_reward(config: PipelineConfig, seed: int, *, preferences: Artifact, reward: Artifact) -> Artifact:
    """The token-level reward model that `ppo.credit.type: token` asks; on the first reward model's trunk."""
    stage = TokenRewardStage(token_reward=config.token_reward, context=config.models.reward.context)
    inputs = {"preferences": preferences, "reward": reward}
    return run_stage(f"token-reward-s{seed}", "token_reward", inputs, stage, seed)


def select(
    node: str,
    config: PipelineConfig,
    seed: int,
    *,
    preferences: Artifact,
    rollouts: Artifact,
    policy: Artifact,
    reference: Artifact,
    reward: Artifact,
) -> Artifact:
    """The part of the offline set that a refresh will use; only what the selector looks at is an input."""
    selection, models = config.selection, config.models
    seen = inputs_of(selection)
    given = {"rollouts": rollouts, "policy": policy, "reference": reference, "reward": reward}
    inputs: dict[str, Artifact] = {"preferences": preferences}
    inputs |= {name: artifact for name, artifact in given.items() if name in seen}
    for name, encoder in sentence_encoders(selection):
        inputs[name] = _encoder(encoder, f"selection.{name}", config)["encoder"]
    stage = SelectStage(
        selection=selection,
        context=models.policy.context if "policy" in seen else None,
        reward_context=models.reward.context if "reward" in seen else None,
    )
    return run_stage(node, "select", inputs, stage, seed)


def refresh(
    node: str,
    config: PipelineConfig,
    seed: int,
    round_: int,
    *,
    reward: Artifact,
    first_reward: Artifact,
    selection: Artifact,
    preferences: Artifact,
    rollouts: Artifact,
    reference_rollouts: Artifact,
    policy: Artifact,
    seen: Artifact | None,
) -> Artifact:
    """The calibrated challenger, or the incumbent where no refresh is due or the gate refuses it.

    Args:
        first_reward: an input only where every refresh starts from it.
        policy: an input only where the trigger asks it.
        seen: the answers near which the incumbent was last refreshed; None before the first refresh.
    """
    settings, models = config.refresh, config.models
    gate, trigger = settings.gate, settings.trigger
    drift = trigger if isinstance(trigger, DriftTrigger) else None
    asks = drift is not None and drift.measure == "ess"
    judge = _encoder(gate.encoder, "refresh.gate.encoder", config) if isinstance(gate, GateOn) else {}
    watch = _encoder(drift.encoder, "refresh.trigger.encoder", config) if drift else {}
    optional = {
        "first_reward": first_reward if settings.start == "first" else None,
        "policy": policy if asks else None,
        "seen": seen,
        "encoder": judge.get("encoder"),
        "drift_encoder": watch.get("encoder"),
    }
    inputs = {
        "reward": reward,
        "selection": selection,
        "preferences": preferences,
        "rollouts": rollouts,
        "reference_rollouts": reference_rollouts,
        **{name: artifact for name, artifact in optional.items() if artifact is not None},
    }
    stage = RefreshStage(
        refresh=settings,
        context=models.reward.context,
        policy_context=models.policy.context if asks else 0,
        due=not isinstance(trigger, ScheduleTrigger) or (round_ - 1) % trigger.every == 0,
    )
    return run_stage(node, "refresh", inputs, stage, seed)


def ppo(
    node: str,
    config: PipelineConfig,
    seed: int,
    *,
    policy: Artifact,
    reference: Artifact,
    reward: Artifact,
    preferences: Artifact,
    state: Artifact | None,
    token_head: Artifact | None,
    audit: Artifact | None,
) -> Artifact:
    """The policy after some steps of PPO against a reward model, and the state to go on from.

    Args:
        audit: it only looks on, and only where there are looks.
    """
    inputs = {"policy": policy, "reference": reference, "reward": reward, "preferences": preferences}
    if audit is not None and config.ppo.watch.every:
        inputs["audit"] = audit
    if state is not None:
        inputs["state"] = state
    if token_head is not None and isinstance(config.ppo.credit, TokenCredit):
        inputs["token_reward"] = token_head
    models = config.models
    stage = PpoStage(ppo=config.ppo, context=models.policy.context, reward_context=models.reward.context)
    return run_stage(node, "ppo", inputs, stage, seed)


def optimise_directly(
    node: str,
    config: PipelineConfig,
    seed: int,
    *,
    policy: Artifact,
    reference: Artifact,
    preferences: Artifact,
    selection: Artifact | None,
    rollouts: Artifact,
    reward: Artifact,
    state: Artifact | None,
) -> Artifact:
    """The policy after a round of a direct method; only what the method looks at is an input."""
    method, models = config.optimise, config.models
    assert not isinstance(method, PpoMethod)  # whose arms have a flow of their own
    ranks = isinstance(method, Selm)
    optional = {
        "selection": selection,
        "rollouts": rollouts if isinstance(method, (Selm, Irft)) else None,
        "reward": reward if ranks else None,
        "state": state if isinstance(method, AvaD) or _moves_alone(method) else None,
    }
    inputs = {
        "policy": policy,
        "reference": reference,
        "preferences": preferences,
        **{name: artifact for name, artifact in optional.items() if artifact is not None},
    }
    stage = DirectStage(
        method=method, context=models.policy.context, reward_context=models.reward.context if ranks else 0
    )
    return run_stage(node, "direct", inputs, stage, seed)


def _moves_alone(method: Anchored) -> bool:
    """Whether the reference is a model of its own, which goes on moving in the next round."""
    return isinstance(method.reference, MOVING) and method.lora is None


def evaluate(
    node: str,
    config: PipelineConfig,
    seed: int,
    *,
    policy: Artifact,
    reference: Artifact,
    reward: Artifact,
    preferences: Artifact,
    audit: Artifact | None = None,
    reward_before: Artifact | None = None,
    rollouts: Artifact | None = None,
    ppo: Artifact | None = None,
    start: Artifact | None = None,
) -> Artifact:
    """What a policy is worth, and whether the reward model still sees it.

    Args:
        start: the evaluation of the SFT policy, whose answers this policy's are held against.
    """
    cache, files = _cache(config), {"over_refusal": config.evaluation.over_refusal, "probe": config.evaluation.probe}
    optional = {
        **{"audit": audit, "reward_before": reward_before, "rollouts": rollouts, "ppo": ppo, "start": start},
        **{name: external.data_file(path, f"evaluation.{name}", cache) for name, path in files.items() if path},
    }
    inputs = {
        "policy": policy,
        "reference": reference,
        "reward": reward,
        "preferences": preferences,
        **{name: artifact for name, artifact in optional.items() if artifact is not None},
    }
    models = config.models
    stage = EvaluateStage(
        evaluation=config.evaluation, context=models.policy.context, reward_context=models.reward.context
    )
    return run_stage(node, "evaluate", inputs, stage, seed)


def compare(config: PipelineConfig, preferences: Artifact, results: Mapping[str, Artifact]) -> Artifact:
    """Every arm, seed and round side by side, with the report's page."""
    stage = CompareStage(
        title=f"Inverse alignment on {', '.join(source.name for source in config.data.sources)}",
        arms=tuple(config.arms),
        seeds=config.seeds,
        rounds=config.rounds,
        config_digest=config.digest(),
    )
    return run_stage("compare", "compare", {"preferences": preferences, **results}, stage)


def _sources(sources: Sequence[SourceConfig], where: str, config: PipelineConfig) -> dict[str, Artifact]:
    return {
        f"source.{source.name}": _source(source, f"{where}[{index}]", config) for index, source in enumerate(sources)
    }


def _source(source: SourceConfig, where: str, config: PipelineConfig) -> Artifact:
    part = dataset_reference(source)
    if part is None:
        return external.data_file(source.path, f"{where}.path", _cache(config))
    return external.dataset(source.path, part, where, _cache(config))


def _model(name: str, spec: ModelSpec, where: str, config: PipelineConfig) -> dict[str, Artifact]:
    """The checkpoint a model starts from; what its files show to be wrong is refused here, before anything runs."""
    if not isinstance(spec, CheckpointModel):
        return {}
    found = external.model(spec.path, spec.revision, where, _cache(config))
    if not found.pending:
        if name == "policy_model":
            require_policy(Path(found.uri), where, spec.context)
        else:
            trained = isinstance(config.reward, CheckpointReward)
            require_reward_model(Path(found.uri), where, spec.context, trained)
    return {name: found}


def _encoder(encoder: EncoderConfig | None, where: str, config: PipelineConfig) -> dict[str, Artifact]:
    if not isinstance(encoder, SentenceEncoder):
        return {}
    found = external.model(encoder.path, encoder.revision, where, _cache(config))
    if not found.pending:
        require_encoder(Path(found.uri), where)
    return {"encoder": found}


def _cache(config: PipelineConfig) -> Path:
    return Path("artifacts" if "://" in config.store else config.store)
