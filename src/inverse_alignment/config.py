"""`PipelineConfig`: the composition of the stages' configurations, and how it is loaded.

Precedence: defaults (params.yaml holds every one of them), then a preset, then `--set key.path=value`. The same schema
validates YAML, the command line and the form in the Prefect UI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from inverse_alignment.core.artifact import canonical_json, sha256_text
from inverse_alignment.core.configuration import NOT_IDENTITY, Section, identity_of
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.data.aggregate import AggregateSettings
from inverse_alignment.data.sources import JsonlSource, SourceConfig
from inverse_alignment.models.specs import CheckpointModel, InitialisedModel, ModelSpec
from inverse_alignment.optimise.settings import PpoConfig
from inverse_alignment.stages.evaluate import EvaluationConfig
from inverse_alignment.stages.refresh import RefreshConfig
from inverse_alignment.stages.reward_model import RewardConfig, TrainReward
from inverse_alignment.stages.rollout import RolloutConfig
from inverse_alignment.stages.select import NoSelection, SelectionConfig
from inverse_alignment.stages.sft import SftConfig, TrainSft

ARM_SECTIONS = ("selection", "refresh", "rollout", "ppo")
"""What one arm may set differently from another; everything else is their shared start."""


class DataConfig(Section):
    """The offline preference set."""

    sources: tuple[SourceConfig, ...] = Field(
        (JsonlSource(name="advice", path="data/advice/pairs.jsonl"),),
        min_length=1,
        description="files to pool, each with its format",
    )
    aggregate: AggregateSettings = Field(AggregateSettings(), description="how they are pooled, cleaned and split")


class ModelsConfig(Section):
    """What policy and reward model start from; their tokenizers may differ."""

    policy: ModelSpec = Field(InitialisedModel(), description="base of the policy")
    reward: ModelSpec = Field(InitialisedModel(), description="base of the reward model")


class TrackingConfig(Section):
    """Where runs are recorded for people. Bears no identity."""

    mlflow_uri: str = Field("sqlite:///mlflow.db", description="MLflow tracking store; empty switches tracking off")
    experiment: str = Field("inverse-alignment", description="MLflow experiment")


class PipelineConfig(Section):
    """Everything a run depends on."""

    data: DataConfig = Field(DataConfig(), description="the offline preference set")
    models: ModelsConfig = Field(ModelsConfig(), description="base models and their tokenizers")
    sft: SftConfig = Field(
        TrainSft(sources=("coach", "novice"), answers="both"), description="how the first policy, which is also the reference, is made"
    )
    reward: RewardConfig = Field(TrainReward(), description="how the first reward model is made")
    reference_sample: RolloutConfig = Field(
        RolloutConfig(prompts=128, samples=2),
        description="answers of the SFT policy on which every reward model is standardised",
    )
    rounds: int = Field(3, ge=1, le=50, description="rounds of: rollout, select, refresh, PPO")
    rollout: RolloutConfig = Field(RolloutConfig(), description="answers of the frozen policy that a selection looks at")
    selection: SelectionConfig = Field(NoSelection(), description="which pairs a refresh uses; arms set it")
    refresh: RefreshConfig = Field(RefreshConfig(), description="how the reward model is refreshed")
    ppo: PpoConfig = Field(PpoConfig(), description="policy optimisation")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="what is measured after every round")
    arms: dict[str, dict[str, Any]] = Field(
        {
            "none": {"selection": {"type": "none"}},
            "random": {"selection": {"type": "random"}},
            "similarity": {"selection": {"type": "similarity"}},
        },
        min_length=1,
        description="what is compared: a name, and what it sets in selection, refresh, rollout or ppo",
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="one independent run of every arm per seed")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="where and how stages run", json_schema_extra=NOT_IDENTITY)
    store: str = Field(
        "artifacts", description="folder or fsspec URL of the artifact store", json_schema_extra=NOT_IDENTITY
    )
    tracking: TrackingConfig = Field(
        TrackingConfig(), description="where runs are recorded", json_schema_extra=NOT_IDENTITY
    )

    @model_validator(mode="after")
    def _checkpoints_exist_where_they_are_used(self) -> PipelineConfig:
        for section, model in (("sft", self.models.policy), ("reward", self.models.reward)):
            if getattr(self, section).type == "checkpoint" and not isinstance(model, CheckpointModel):
                role = "policy" if section == "sft" else "reward"
                raise ValueError(f"{section}.type is checkpoint, so models.{role}.type must be checkpoint too")
        return self

    @model_validator(mode="after")
    def _arms_are_valid(self) -> PipelineConfig:
        for name in self.arms:
            self.for_arm(name)
        return self

    def for_arm(self, name: str) -> PipelineConfig:
        """This configuration with one arm's differences applied, and that arm alone.

        Raises:
            UserError: the arm is unknown, or sets something wrong.
        """
        if name not in self.arms:
            raise UserError(f"no arm '{name}'", where="arms", fix=nearest(name, list(self.arms)))
        overrides = self.arms[name]
        for section in overrides:
            if section not in ARM_SECTIONS:
                raise UserError(
                    f"an arm cannot set '{section}'",
                    where=f"arms.{name}.{section}",
                    fix=nearest(section, list(ARM_SECTIONS)),
                )
        sections = {
            key: validate(
                type(self).model_fields[key].annotation, merge(_plain(getattr(self, key)), override), f"arms.{name}.{key}"
            )
            for key, override in overrides.items()
        }
        return self.model_copy(update=sections)

    def identity(self) -> dict[str, Any]:
        """The part that decides results: no paths, no runtime, no tracking."""
        return identity_of(self)

    def digest(self) -> str:
        """sha256 of `identity()`."""
        return sha256_text(canonical_json(self.identity()))


def load(
    params: Path | None = None, preset: str | None = None, overrides: Sequence[str] = (), root: Path = Path(".")
) -> PipelineConfig:
    """Load `params.yaml` (or another file), then a preset, then `key.path=value` overrides.

    Raises:
        UserError: a file is missing or not YAML, a key is unknown, a value has a wrong type or is out of range.
    """
    path = params or root / "params.yaml"
    values = read_yaml(path)
    where = str(path)
    if preset is not None:
        values = merge(values, read_yaml(_preset_path(preset, root)))
        where += f" + preset {preset}"
    for override in overrides:
        values = merge(values, parse_override(override))
        where += f" + --set {override}"
    return validate(PipelineConfig, values, "", where)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: the file is missing, unreadable, or holds no mapping.
    """
    if not path.is_file():
        raise UserError("configuration file not found", where=str(path), fix="run from the project's folder, or name one")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
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
    raise UserError(f"no preset '{preset}'", where="presets/", fix=nearest(preset, presets(root)))


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`; the value is YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError("not of the form key.path=value", where=f"--set {text}", fix="write for example ppo.steps=10")
    try:
        parsed: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError("the value is not YAML", where=f"--set {text}", fix="quote it") from error
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, section by section.

    A section that changes its `type` starts afresh: keys of another variant mean nothing to it.
    """
    if "type" in over and over["type"] != base.get("type"):
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


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


def _annotated(kind: Any, prefix: str) -> Any:
    """Pydantic keeps a union's discriminator in the field, not in its annotation: put it back."""
    from typing import Annotated, Union, get_origin
    import types

    section = prefix.rpartition(".")[2]
    if get_origin(kind) in (Union, types.UnionType) and section in PipelineConfig.model_fields:
        return Annotated[kind, Field(discriminator="type")]
    return kind


def _explain(error: ValidationError, kind: Any, prefix: str, where: str) -> UserError:
    first = error.errors()[0]
    names = [str(part) for part in first["loc"]]
    owner, path = _walk(kind, names[:-1] if first["type"] == "extra_forbidden" else names)
    key = ".".join([part for part in (prefix, path) if part])
    if first["type"] == "extra_forbidden":
        fields = list(owner.model_fields) if owner is not None else []
        full = ".".join(part for part in (prefix, path, names[-1]) if part)
        return UserError("unknown key", where=_at(full, where), fix=nearest(names[-1], fields))
    if first["type"] == "value_error":
        return UserError(str(first["ctx"]["error"]), where=_at(key, where), fix="change one of the two keys")
    given = "" if isinstance(first["input"], (dict, BaseModel)) else f", got {first['input']!r}"
    described = owner.model_fields[names[-1]].description if owner is not None and names[-1] in owner.model_fields else None
    return UserError(
        f"{first['msg'][0].lower()}{first['msg'][1:]}{given}",
        where=_at(key, where),
        fix=f"{names[-1]}: {described}" if described else "see params.yaml, where every key is explained",
    )


def _walk(kind: Any, names: Sequence[str]) -> tuple[type[BaseModel] | None, str]:
    """Follow an error's location to the section it lies in; tags of unions are not part of the key's path."""
    from typing import get_args

    owner: type[BaseModel] | None = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    members = [kind] if owner is None else []
    path: list[str] = []
    for name in names:
        candidates = _sections(members)
        tagged = [c for c in candidates if "type" in c.model_fields and c.model_fields["type"].default == name]
        tagged += [c for c in candidates if "format" in c.model_fields and c.model_fields["format"].default == name]
        if tagged:
            owner, members = tagged[0], []
            continue
        path.append(name)
        if owner is not None and name in owner.model_fields:
            annotation = owner.model_fields[name].annotation
            last_owner, members = owner, [annotation]
            inner = _sections(members)
            if len(inner) == 1:
                owner = inner[0]
            elif not inner:
                owner = last_owner
        elif name.isdigit() and members:
            members = [arg for member in members for arg in get_args(member)]
    return owner, ".".join(path)


def _sections(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    from typing import get_args

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
