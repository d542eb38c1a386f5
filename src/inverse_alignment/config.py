"""`PipelineConfig`: the composition of the stages' configurations, and how it is loaded.

Precedence: defaults (params.yaml holds every one of them), then a preset, then `--set key.path=value`. The same schema
validates YAML, the command line and the form in the Prefect UI.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from inverse_alignment.core.artifact import canonical_json, sha256_text
from inverse_alignment.core.configuration import NOT_IDENTITY, Section, identity_of
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.launchers import InProcess
from inverse_alignment.data.aggregate import AggregateSettings
from inverse_alignment.data.sources import JsonlSource, SourceConfig, TableSource
from inverse_alignment.generation.settings import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE, VllmGeneration
from inverse_alignment.models.specs import CheckpointModel, InitialisedModel, ModelSpec
from inverse_alignment.optimise.credit_settings import AttentionCredit, DenseCredit, RedistributedCredit, TokenCredit
from inverse_alignment.optimise.direct_settings import OptimiseConfig, PpoMethod
from inverse_alignment.optimise.settings import PpoConfig
from inverse_alignment.reward.family_settings import (
    EnsembleReward,
    has_outputs,
    is_classifier,
    rewards_tokens,
    says_how_sure,
    training_of,
)
from inverse_alignment.reward.settings import (
    DriftTrigger,
    ExtremesRule,
    MetaRule,
    PolicyNegativesRule,
    RefreshConfig,
)
from inverse_alignment.reward.training_settings import UnknownStrength
from inverse_alignment.selection.settings import NoSelection, SelectionConfig, compares_rollouts
from inverse_alignment.stages.evaluate import EvaluationConfig
from inverse_alignment.stages.reward_model import RewardConfig, TrainReward
from inverse_alignment.stages.rollout import RolloutConfig
from inverse_alignment.stages.sft import SftConfig, TrainSft
from inverse_alignment.stages.token_reward import TokenRewardConfig

_BOOL, _TIMESTAMP = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"
ARM_SECTIONS = ("selection", "refresh", "rollout", "ppo", "optimise")
"""What one arm may set differently from another; everything else is their shared start."""
LEAST_PROMPT = 8
"""Tokens of the policy's context that the longest answer must leave to its prompt."""


class DataConfig(Section):
    """The offline preference set."""

    sources: tuple[SourceConfig, ...] = Field(
        (JsonlSource(name="advice", path="data/advice/pairs.jsonl"),),
        min_length=1,
        description="files to pool, each with its format",
    )
    evaluation_sets: tuple[SourceConfig, ...] = Field(
        (), description="files whose prompts must not be among the pooled rows; they are used for nothing else"
    )
    aggregate: AggregateSettings = Field(AggregateSettings(), description="how they are pooled, cleaned and split")

    @model_validator(mode="after")
    def _some_pairs(self) -> DataConfig:
        if all(isinstance(source, TableSource) and source.kind != "preference" for source in self.sources):
            raise UserError(
                "no source holds preferences",
                where="data.sources",
                fix="add one with kind: preference; a reward model cannot do without",
            )
        return self


class ModelsConfig(Section):
    """What policy and reward model start from; their tokenizers may differ."""

    policy: ModelSpec = Field(InitialisedModel(), description="base of the policy")
    reward: ModelSpec = Field(InitialisedModel(), description="base of the reward model")


class TrackingConfig(Section):
    """Where runs are recorded for people. Bears no identity."""

    mlflow_uri: str = Field("sqlite:///mlflow.db", description="MLflow tracking store; empty switches tracking off")
    experiment: str = Field("inverse-alignment", description="MLflow experiment")
    system_metrics: bool = Field(False, description="sample CPU, memory, disk, network and GPUs while stages run")


class PipelineConfig(Section):
    """Everything a run depends on."""

    data: DataConfig = Field(DataConfig(), description="the offline preference set")
    models: ModelsConfig = Field(ModelsConfig(), description="base models and their tokenizers")
    sft: SftConfig = Field(
        TrainSft(sources=("coach", "novice"), answers="both"),
        description="how the first policy, which is also the reference, is made",
    )
    reward: RewardConfig = Field(TrainReward(), description="how the first reward model is made")
    token_reward: TokenRewardConfig = Field(
        TokenRewardConfig(), description="how a token-level reward model is made, for ppo.credit.type token alone"
    )
    reference_sample: RolloutConfig = Field(
        RolloutConfig(prompts=0, samples=2),
        description="answers of the SFT policy on which every reward model is standardised",
    )
    rounds: int = Field(3, ge=1, le=50, description="rounds of: rollout, select, refresh, PPO")
    rollout: RolloutConfig = Field(
        RolloutConfig(prompts=0), description="answers of the frozen policy; a selection looks at them"
    )
    selection: SelectionConfig = Field(NoSelection(), description="which pairs a refresh uses; arms set it")
    refresh: RefreshConfig = Field(RefreshConfig(), description="how the reward model is refreshed")
    optimise: OptimiseConfig = Field(
        PpoMethod(), description="how policies are optimised: PPO, or a direct method without RL"
    )
    ppo: PpoConfig = Field(PpoConfig(), description="policy optimisation by PPO")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="what is measured after every round")
    arms: dict[str, dict[str, Any]] = Field(
        {
            "none": {"selection": {"type": "none"}},
            "random": {"selection": {"type": "random"}},
            "similarity": {"selection": {"type": "similarity"}},
        },
        min_length=1,
        description="what is compared: a name, and what it sets in selection, refresh, rollout, ppo or optimise; "
        "null: left out",
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="one independent run of every arm per seed")
    runtime: RuntimeConfig = Field(
        RuntimeConfig(), description="where and how stages run", json_schema_extra=NOT_IDENTITY
    )
    store: str = Field(
        "artifacts", description="folder or fsspec URL of the artifact store", json_schema_extra=NOT_IDENTITY
    )
    tracking: TrackingConfig = Field(
        TrackingConfig(), description="where runs are recorded", json_schema_extra=NOT_IDENTITY
    )

    @model_validator(mode="before")
    @classmethod
    def _ppo_samples_itself(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            _refuse_ppo_generation(values.get("ppo"), "ppo")
        return values

    @model_validator(mode="before")
    @classmethod
    def _without_arms_left_out(cls, values: Any) -> Any:
        """A preset can add arms to those of params.yaml; null takes one away."""
        arms = values.get("arms") if isinstance(values, Mapping) else None
        if not isinstance(arms, Mapping):
            return values
        return {**values, "arms": {name: arm for name, arm in arms.items() if arm is not None}}

    @model_validator(mode="after")
    def _every_split_is_used(self) -> PipelineConfig:
        for split, share in self.data.aggregate.shares:
            if not share > 0 and split != "audit":
                raise ValueError(f"data.aggregate.shares.{split} is {share:g}, but every run uses all four splits")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> PipelineConfig:
        """See `load`; a `UserError` passes through pydantic as it is."""
        for section, role in (("sft", "policy"), ("reward", "reward")):
            model = getattr(self.models, role)
            if getattr(self, section).type == "checkpoint" and not isinstance(model, CheckpointModel):
                raise UserError(
                    f"{section}.type is checkpoint, but there is no checkpoint to use",
                    where=f"models.{role}.type",
                    fix=f"set models.{role} to {{type: checkpoint, path: ...}}, or {section}.type to train",
                )
            if isinstance(model, InitialisedModel) and model.hidden_size % model.heads:
                raise UserError(
                    f"{model.heads} heads do not divide hidden_size {model.hidden_size}",
                    where=f"models.{role}.heads",
                    fix="choose a divisor",
                )
        _check_demonstrations(self)
        _check_caution(self, self.evaluation.caution.type, "evaluation.caution.type")
        _check_answers(self, ("reference_sample", "rollout", "ppo", "evaluation"), "")
        _check_vllm(self, ("reference_sample", "rollout", "evaluation"), "")
        _check_shares(self, tuple(_SECTIONS), "")
        for name in self.arms:
            _check_answers(self.for_arm(name), tuple(self.arms[name]), f"arms.{name}.")
            _check_vllm(self.for_arm(name), tuple(self.arms[name]), f"arms.{name}.")
            _check_shares(self.for_arm(name), tuple(self.arms[name]), f"arms.{name}.")
            _check_selection(self.for_arm(name), f"arms.{name}.")
            _check_family(self.for_arm(name), name, tuple(self.arms[name]))
            _check_refresh(self.for_arm(name), name, tuple(self.arms[name]))
        return self

    def for_arm(self, name: str) -> PipelineConfig:
        """This configuration with one arm's differences applied, and that arm alone.

        Raises:
            UserError: the arm is unknown, or sets something wrong.
        """
        if name not in self.arms:
            raise UserError(f"no arm '{name}'", where="arms", fix=nearest(name, list(self.arms)))
        overrides = self.arms[name]
        for section, override in overrides.items():
            if section not in ARM_SECTIONS:
                raise UserError(
                    f"an arm cannot set '{section}'",
                    where=f"arms.{name}.{section}",
                    fix=nearest(section, list(ARM_SECTIONS)),
                )
            if not isinstance(override, Mapping):
                raise UserError(
                    f"should be a section of keys, got {override!r}",
                    where=f"arms.{name}.{section}",
                    fix="write what differs, for example {type: random}",
                )
        _refuse_ppo_generation(overrides.get("ppo"), f"arms.{name}.ppo")
        fields = type(self).model_fields
        sections = {
            key: validate(fields[key].annotation, merge(_plain(getattr(self, key)), override), f"arms.{name}.{key}")
            for key, override in overrides.items()
        }
        return self.model_copy(update=sections)

    def identity(self) -> dict[str, Any]:
        """The part that decides results: no paths, no runtime, no tracking; every arm with all it may set."""
        arms: dict[str, Any] = {}
        for name in self.arms:
            arm = self.for_arm(name)
            arms[name] = {section: identity_of(getattr(arm, section)) for section in ARM_SECTIONS}
        return {**identity_of(self), "arms": arms}

    def digest(self) -> str:
        """sha256 of `identity()`."""
        return sha256_text(canonical_json(self.identity()))


def _check_demonstrations(config: PipelineConfig) -> None:
    """Some source holds the kind of rows that SFT is to learn from."""
    if not isinstance(config.sft, TrainSft):
        return
    held = {f"{source.kind if isinstance(source, TableSource) else 'preference'}s" for source in config.data.sources}
    wanted = ["preferences" if kind == "pairs" else kind for kind in config.sft.learn_from]
    if not held.intersection(wanted):
        raise UserError(
            f"SFT learns from {' and '.join(config.sft.learn_from)}, but no source holds any",
            where="sft.learn_from",
            fix="add pairs, or a source whose kind is demonstration or judgement",
        )


def _check_answers(config: PipelineConfig, sections: Sequence[str], prefix: str) -> None:
    """The longest answer leaves room for a prompt, and minibatches are of equal size."""
    context = config.models.policy.context
    for section in sections:
        longest = getattr(getattr(config, section), "max_new_tokens", 0)
        if longest > context - LEAST_PROMPT:
            raise UserError(
                f"answers of {longest} tokens leave less than {LEAST_PROMPT} of the policy's {context} to the prompt",
                where=f"{prefix}{section}.max_new_tokens",
                fix=f"at most {context - LEAST_PROMPT}, or a larger models.policy.context",
            )
    ppo = config.ppo
    if "ppo" in sections and ppo.batch_size % ppo.minibatches:
        raise UserError(
            f"{ppo.minibatches} minibatches do not divide a batch of {ppo.batch_size}",
            where=f"{prefix}ppo.minibatches",
            fix="choose a divisor of ppo.batch_size",
        )


def _check_refresh(config: PipelineConfig, name: str, overrides: Sequence[str]) -> None:
    """The policy's answers are what the rule and the trigger of an arm's refresh ask of them.

    Args:
        config: of the arm alone.
        overrides: sections that the arm sets itself.
    """
    if isinstance(config.selection, NoSelection):
        return

    def key(path: str) -> str:
        return _key(path, name, overrides)

    rule, trigger = config.refresh.rule, config.refresh.trigger
    if isinstance(rule, (MetaRule, ExtremesRule)) and config.rollout.samples < 2:
        raise UserError(
            f"the rule {rule.type} compares the policy's answers to a prompt, but there is one to each",
            where=key("refresh.rule.type"),
            fix=f"set {key('rollout.samples')} to 2 or more",
        )
    if isinstance(rule, PolicyNegativesRule) and config.rollout.split != "train":
        raise UserError(
            f"the rule policy_negatives needs answers to prompts of the train split, not of {config.rollout.split}",
            where=key("refresh.rule.type"),
            fix=f"set {key('rollout.split')} to train",
        )
    if isinstance(trigger, DriftTrigger):
        _check_drift(config, trigger, key)


def _check_drift(config: PipelineConfig, trigger: DriftTrigger, key: Callable[[str], str]) -> None:
    """The measure can be taken, and the threshold is one that it can cross."""
    for name, sample in (("rollout", config.rollout), ("reference_sample", config.reference_sample)):
        if trigger.measure == "variance" and sample.samples < 2:
            raise UserError(
                f"variance is that among answers to a prompt, but {name} has one answer to each",
                where=key("refresh.trigger.measure"),
                fix=f"set {key(f'{name}.samples')} to 2 or more",
            )
        if trigger.measure == "ess" and sample.temperature != 1.0:
            raise UserError(
                f"ess compares likelihoods at temperature 1, but {name} is sampled at {sample.temperature:g}",
                where=key("refresh.trigger.measure"),
                fix=f"set {key(f'{name}.temperature')} to 1, or measure mmd",
            )
    if trigger.measure == "ess" and trigger.threshold > 1:
        raise UserError(
            f"the measure ess is a share, and always below {trigger.threshold:g}",
            where=key("refresh.trigger.threshold"),
            fix="set it between 0 and 1",
        )


_SECTIONS = {"sft": "sft", "reward": "reward_model", "token_reward": "token_reward", "refresh": "refresh", "ppo": "ppo"}
"""Sections with a batch size, and the stages that they are for."""


def _check_shares(config: PipelineConfig, sections: Sequence[str], prefix: str) -> None:
    """The launcher's processes can share out every batch."""
    launcher = config.runtime.launcher
    if isinstance(launcher, InProcess):
        return
    processes = launcher.processes
    for section in sections:
        trained = training_of(config.reward) if section == "reward" else getattr(config, section)
        batch = getattr(trained, "batch_size", None)
        if batch is None or _SECTIONS.get(section) not in launcher.stages:
            continue
        if section == "reward" and has_outputs(config.reward):
            raise UserError(
                f"a reward model of type {config.reward.type} is trained by one process"
                f"{'' if config.reward.type != 'ensemble' else ', if its members share a trunk'}",
                where="runtime.launcher.stages",
                fix="leave reward_model out of them, or set reward.type to train",
            )
        if section == "ppo" and batch // config.ppo.minibatches < processes:
            fix = f"at most {batch // config.ppo.minibatches}, the rows of a minibatch"
        elif section != "ppo" and batch % processes:
            fix = "choose a number that divides it"
        else:
            continue
        raise UserError(
            f"{processes} processes cannot share out {prefix}{section}.batch_size, which is {batch}",
            where="runtime.launcher.processes",
            fix=f"{fix}, or leave {_SECTIONS[section]} out of runtime.launcher.stages",
        )


def _check_selection(config: PipelineConfig, prefix: str) -> None:
    """There is what the selector looks at."""
    if compares_rollouts(config.selection) and config.rollout.samples < 2:
        raise UserError(
            "influence compares a policy's answers to one prompt, but rollout.samples asks for one",
            where=f"{prefix}selection.type",
            fix="set rollout.samples to at least 2, or choose another type",
        )


def _check_family(config: PipelineConfig, name: str, overrides: Sequence[str]) -> None:
    """Whoever looks into the reward model, or trains it further, has one sequence classifier to do it with.

    Args:
        config: of the arm alone.
        overrides: sections that the arm sets itself.
    """
    _check_caution(config, config.ppo.caution.type, _key("ppo.caution.type", name, overrides))
    _check_strength(config.reward)
    kind, credit = config.reward.type, config.ppo.credit
    if isinstance(credit, DenseCredit) and not rewards_tokens(config.reward):
        raise UserError(
            f"dense credit needs a reward for every token, and a reward model of type {kind} has none",
            where=_key("ppo.credit.type", name, overrides),
            fix="set reward.type to ava or preference_transformer, or this to red, uniform or terminal",
        )
    if is_classifier(config.reward):
        return
    if not isinstance(config.selection, NoSelection):
        raise UserError(
            f"a reward model of type {kind} cannot be refreshed: only one sequence classifier can",
            where=_key("selection.type", name, overrides),
            fix="set it to none, or reward.type to train",
        )
    if isinstance(credit, (RedistributedCredit, AttentionCredit, TokenCredit)):
        raise UserError(
            f"{credit.type} credit looks into one sequence classifier, and a reward model of type {kind} is none",
            where=_key("ppo.credit.type", name, overrides),
            fix="set it to terminal, uniform or potential, or reward.type to train",
        )


def _check_strength(reward: RewardConfig) -> None:
    """The strength of pairs is found out for one classifier alone: it takes several models already."""
    training = training_of(reward)
    if training is reward or not isinstance(training, TrainReward):
        return
    if not isinstance(training.strength, UnknownStrength):
        raise UserError(
            f"a reward model of type {reward.type} does not ask how strong its pairs are",
            where="reward.training.strength.type",
            fix="set it to off, or reward.type to train",
        )


def _check_caution(config: PipelineConfig, caution: str, where: str) -> None:
    """The reward model says what the caution asks for."""
    if caution == "worst_case" and not isinstance(config.reward, EnsembleReward):
        raise UserError(
            f"the worst case is that among members, and a reward model of type {config.reward.type} has none",
            where=where,
            fix="set reward.type to ensemble, or another caution",
        )
    if caution != "mean" and not says_how_sure(config.reward):
        raise UserError(
            f"the caution {caution} asks how sure the reward model is, which type {config.reward.type} does not say",
            where=where,
            fix="set reward.type to ensemble, or the caution to mean",
        )


def _key(path: str, arm: str, overrides: Sequence[str]) -> str:
    """Where an arm's value was set: in the arm, or for all arms."""
    return f"arms.{arm}.{path}" if path.partition(".")[0] in overrides else path


def _check_vllm(config: PipelineConfig, sections: Sequence[str], prefix: str) -> None:
    """Who is to be sampled by vLLM is sampled at a temperature that vLLM samples at."""
    lowest, highest = LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE
    for section in sections:
        sampled = getattr(config, section)
        if not isinstance(sampled, (RolloutConfig, EvaluationConfig)):
            continue
        if isinstance(sampled.generation, VllmGeneration) and not lowest <= sampled.temperature <= highest:
            raise UserError(
                f"vLLM samples at temperatures from {lowest:g} to {highest:g}, not at {sampled.temperature:g}",
                where=f"{prefix}{section}.temperature",
                fix="change it, or set generation of this section to {type: hf}",
            )


def _refuse_ppo_generation(ppo: Any, where: str) -> None:
    """In place of "unknown key": who asks for it deserves the reason."""
    if isinstance(ppo, Mapping) and "generation" in ppo:
        raise UserError(
            "PPO samples with the very policy that it trains, in this process: a vLLM server would need its weights "
            "anew in every iteration, which is not supported",
            where=f"{where}.generation",
            fix="remove it; reference_sample, rollout and evaluation, whose policies are frozen, take generation",
        )


def load(
    params: Path | None = None, preset: str | None = None, overrides: Sequence[str] = (), root: Path = Path(".")
) -> PipelineConfig:
    """Load `params.yaml` (or another file), then a preset, then `key.path=value` overrides.

    Raises:
        UserError: a file is missing or not YAML, a key is unknown, a value has a wrong type or is out of range, or two
            values do not fit together.
    """
    path = params or root / "params.yaml"
    values = read_yaml(path)
    where = str(path)
    if preset is not None:
        values = merge(values, read_yaml(_preset_path(preset, root)))
        where += f" + preset {preset}"
    changes: dict[str, Any] = {}  # applied together: a new type must not drop a key that was set before it
    for override in overrides:
        changes = merge(changes, parse_override(override))
        where += f" + --set {override}"
    values = merge(values, changes)
    return validate(PipelineConfig, values, "", where)


class _Yaml(yaml.SafeLoader):
    """YAML in which `off`, `no`, `on`, `yes` and dates are texts, and a key stands once in its section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `SafeConstructor.construct_mapping`."""
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _TIMESTAMP)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: the file is missing, unreadable, or holds no mapping.
    """
    if not path.is_file():
        raise UserError(
            "configuration file not found", where=str(path), fix="run from the project's folder, or name it"
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Yaml)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("not valid YAML", where=f"{path}: {_one_line(error)}", fix="correct the file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"holds a {type(values).__name__}, not a mapping", where=str(path), fix="start with a key")
    return values


def presets(root: Path = Path(".")) -> list[str]:
    """Names of the presets shipped in `presets/`."""
    return sorted(path.stem for path in (root / "presets").glob("*.yaml"))


def _preset_path(preset: str, root: Path) -> Path:
    path = root / "presets" / f"{preset}.yaml"
    if path.is_file():
        return path
    if Path(preset).is_file():
        return Path(preset)
    own = [path.name for path in Path().glob("*.yaml") if path.stem not in ("params", "dvc", "prefect")]
    near = nearest(preset, [*presets(root), *own])
    raise UserError(f"no preset '{preset}', and no such file", where="presets/, and the current folder", fix=near)


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`; the value is YAML, except that nothing is the empty text (`null` is null).

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError("not of the form key.path=value", where=f"--set {text}", fix="write for example ppo.steps=10")
    try:
        parsed: Any = yaml.load(value, _Yaml) if value else ""  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        fix = "quote the value, or close its bracket"
        raise UserError("the value is not YAML", where=f"--set {text}", fix=fix) from error
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section; `{"0": ...}` on top of a list is its first element's.

    A section that changes its `type` starts afresh: keys of another variant mean nothing to it.

    Raises:
        UserError: a list has no such element.
    """
    if "type" in over and over["type"] != base.get("type", over["type"]):
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            merged[key] = merge(before, value)
        elif isinstance(value, Mapping) and isinstance(before, (list, tuple)) and all(map(_is_place, value)):
            merged[key] = _placed(key, before, value)
        else:
            merged[key] = value
    return merged


def _is_place(key: Any) -> bool:
    return isinstance(key, str) and key.isdecimal()


def _placed(name: str, before: Sequence[Any], over: Mapping[str, Any]) -> list[Any]:
    """A list with some elements changed; `{}` changes none."""
    found = list(before)
    for place, value in over.items():
        if int(place) >= len(found):
            raise UserError(
                f"there is no element {place}: {name} has {len(found)}",
                where=f"{name}.{place}",
                fix="count from 0, or set the whole list",
            )
        found[int(place)] = merge({place: found[int(place)]}, {place: value})[place]
    return found


def validate(kind: Any, values: Any, prefix: str, where: str = "") -> Any:
    """Validate plain values against a section, a union of sections or any annotated type.

    Raises:
        UserError: names the key's path and the nearest valid name.
    """
    from pydantic import TypeAdapter

    adapter = TypeAdapter(PipelineConfig if kind is PipelineConfig else _annotated(kind, prefix))
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise _explain(error, kind, prefix, where) from error
    except UserError as error:  # of a validator of ours, which does not know the file
        raise UserError(error.what, where=_at(error.where, where), fix=error.fix) from error


def _annotated(kind: Any, prefix: str) -> Any:
    """Pydantic keeps a union's discriminator in the field, not in its annotation: put it back."""
    section = prefix.rpartition(".")[2]
    if get_origin(kind) in (Union, types.UnionType) and section in PipelineConfig.model_fields:
        return Annotated[kind, Field(discriminator="type")]
    return kind


def _explain(error: ValidationError, kind: Any, prefix: str, where: str) -> UserError:
    """The first thing that is wrong; a misspelt key before the key that is missing because of it."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    names = [str(part) for part in first["loc"]]
    unknown = first["type"] == "extra_forbidden"
    place = _walk(kind, names[:-1] if unknown else names)
    key = ".".join(part for part in (prefix, *place.path) if part)
    if unknown:
        valid = list(place.sections[0].model_fields) if place.sections else []
        full = f"{key}.{names[-1]}".strip(".")
        return UserError("unknown key", where=_at(full, where), fix=nearest(names[-1], valid))
    if first["type"].startswith("union_tag"):
        tag = first["ctx"]["discriminator"].strip("'")
        variants = [str(section.model_fields[tag].default) for section in place.sections]
        named = first["ctx"].get("tag")
        close = nearest(named, variants) if named else ""
        return UserError(
            f"unknown {tag} '{named}'" if named else f"no {tag} is given",
            where=_at(f"{key}.{tag}", where),
            fix=f"{f'{close} ' if close.startswith('did') else ''}valid: {', '.join(variants)}",
        )
    if first["type"] == "value_error":
        return UserError(str(first["ctx"]["error"]), where=_at(key, where), fix="change the values so that they agree")
    variants = [str(_tag(section)) for section in place.sections]
    tag = "type" if place.sections and "type" in place.sections[0].model_fields else "format"
    choose = f"choose one, for example {{{tag}: {variants[0]}}}; valid: {', '.join(variants)}" if variants[1:] else ""
    advice = choose or place.advice or "see params.yaml, where every key is explained"
    return UserError(_what(first), where=_at(key, where), fix=advice)


_WORDS = {
    "missing": "this key is required",
    "invalid_key": "a key should be a text",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "string_type": "should be a text",
    "tuple_type": "should be a list",
    "dict_type": "should be a section of keys",
    "model_type": "should be a section of keys",
    "model_attributes_type": "should be a section of keys",
}


def _what(problem: Mapping[str, Any]) -> str:
    """What is wrong with a value, in words that need no knowledge of pydantic."""
    kind, given = problem["type"], problem["input"]
    said = _WORDS.get(kind) or problem["msg"].removeprefix("Input ").removeprefix("String ")
    if kind == "missing":
        return said
    if kind == "too_short":
        least = problem["ctx"]["min_length"]
        said = f"should have at least {'one item' if least == 1 else f'{least} items'}"
    if isinstance(given, (dict, BaseModel)):
        return f"{said}, got a section of keys"
    return f"{said}, got {'null' if given is None else repr(given)}"


@dataclass(frozen=True)
class _Place:
    """Where an error lies: its key, the sections that may stand there, and what the nearest described key means."""

    path: tuple[str, ...]
    sections: tuple[type[BaseModel], ...]
    advice: str


def _walk(kind: Any, names: Sequence[str]) -> _Place:
    """Follow an error's location. Tags of unions are part of it, but not of the key's path."""
    here: tuple[type[BaseModel], ...] = tuple(_sections([kind]))
    path: list[str] = []
    advice = ""
    for name in names:
        tagged = [section for section in here if _tag(section) == name]
        fields = [section.model_fields[name] for section in here if name in section.model_fields]
        if tagged and (len(here) > 1 or not fields):
            here = (tagged[0],)
            continue
        path.append(name)
        if fields:
            here = tuple(_sections([field.annotation for field in fields]))
            advice = f"{name}: {fields[0].description}" if fields[0].description else advice
    return _Place(tuple(path), here, advice)


def _tag(section: type[BaseModel]) -> Any:
    field = section.model_fields.get("type") or section.model_fields.get("format")
    return field.default if field else None


def _sections(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        else:
            found += _sections([arg for arg in get_args(annotation) if arg is not Ellipsis])
    return found


def _at(key: str, where: str) -> str:
    return f"{key or 'the whole configuration'}{f' ({where})' if where else ''}"


def _plain(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
