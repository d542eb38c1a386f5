"""What every stage of a configuration needs on its device, and which changes make it fit; the verb `plan --memory`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inverse_alignment.core.errors import UserError
from inverse_alignment.models.memory import GIB, Footprint, Need, Optimisation, Writing, together
from inverse_alignment.models.specs import CheckpointModel, InitialisedModel, ModelSpec

if TYPE_CHECKING:
    from inverse_alignment.config import PipelineConfig
    from inverse_alignment.models.footprint import Role
    from inverse_alignment.stages.evaluate import EvaluationConfig
    from inverse_alignment.stages.rollout import RolloutConfig

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MiB|GiB|MB|GB)", re.IGNORECASE)
UNITS = {"mib": 2**20, "gib": GIB, "mb": 10**6, "gb": 10**9}
TOLERANCE = 0.25
"""How far from what is measured a sum may be: see docs/memory.md."""
PARTS = ("policy", "reference", "reward", "value", "optimiser")
SPEED, RESULT = "changes nothing but speed", "changes the result"

Load = Callable[[Sequence[str]], "PipelineConfig"]
"""The configuration with more `--set` overrides."""


@dataclass(frozen=True)
class Device:
    """Where stages would run.

    Attributes:
        cuda: whether it is a GPU.
        size: bytes that are free there.
        name: for people.
    """

    cuda: bool
    size: int
    name: str


@dataclass(frozen=True)
class Unknown:
    """A stage that cannot be planned, because a model is not on this machine."""

    stage: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """An override that makes a stage need less, and what it costs."""

    override: str
    cost: str
    stage: str
    before: int
    after: int


# ------------------------------------------------------------------------------------------------- the device


def device_of(config: PipelineConfig, given: str | None) -> Device:
    """The device of a run: one that is given by its size alone (a GPU, unless the run asks for the CPU), or this one.

    Raises:
        UserError: the size is none, or a GPU is asked for and there is none.
    """
    if given is not None:
        cuda = config.runtime.device != "cpu"
        return Device(cuda, _bytes(given), f"a {'GPU' if cuda else 'machine'} of {given}")
    import torch

    from inverse_alignment.models.loading import pick_device

    if pick_device(config.runtime.device).type == "cuda":
        return Device(True, torch.cuda.mem_get_info()[0], torch.cuda.get_device_name())
    return Device(False, _free(), "this machine's memory")


def _bytes(text: str) -> int:
    match = SIZE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UserError("not a size", where=f"--device-memory {text}", fix="write for example 24GiB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def _free() -> int:
    """Memory that is free here, as far as this process may use it: a container's bound may be below the machine's."""
    import psutil

    root = Path("/sys/fs/cgroup")
    found = [psutil.virtual_memory().available]
    for bound, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        for folder in _groups(root):
            if (folder / bound).is_file() and (text := (folder / bound).read_text().strip()) != "max":
                found.append(int(text) - int((folder / used).read_text()))
    return min(found)


def _groups(root: Path) -> Iterator[Path]:
    """The control groups of this process, innermost first, in both hierarchies."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            yield from ((root / kinds / path.lstrip("/")), root / kinds)


# ------------------------------------------------------------------------------------------------- the models


def _footprint(spec: ModelSpec, role: Role, width: int, **how: Any) -> Footprint | None:
    """The sizes of a model; None where its configuration is not on this machine.

    A row counts as long as the next power of two, so that nearly equal lengths are followed once: only the mask of
    attention depends on it.
    """
    text = spec.model_copy(update={"context": 16}).model_dump_json()  # bears no sizes but the width
    return _traced(text, type(spec), role, 1 << (width - 1).bit_length(), tuple(how.items()))


@cache
def _traced(text: str, kind: type[ModelSpec], role: Role, width: int, how: tuple[tuple[str, Any], ...]) -> Any:
    from inverse_alignment.models.footprint import configuration_of, footprint, read_configuration

    spec = kind.model_validate_json(text)
    if isinstance(spec, InitialisedModel):
        return footprint(configuration_of(spec), role, width, **dict(how))
    path = _configuration(spec, f"models.{role}")
    return None if path is None else footprint(read_configuration(path, f"models.{role}"), role, width, **dict(how))


def _configuration(spec: CheckpointModel, key: str) -> Path | None:
    """The config.json of a checkpoint on this machine; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(spec.path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                "not a model's folder: it has no config.json", where=f"{folder} ({key}.path)", fix="correct it"
            )
        return folder / "config.json"
    try:
        found = try_to_load_from_cache(spec.path, "config.json", revision=spec.revision)
    except HFValidationError as error:
        raise UserError("neither a folder here nor a hub id", where=f"{key}.path", fix="correct it") from error
    return Path(found) if isinstance(found, str) else None


# ------------------------------------------------------------------------------------------------- the stages


def needs(config: PipelineConfig, device: Device) -> list[Need | Unknown]:
    """What each stage needs; of a stage that arms have different settings for, what the hungriest arm's needs."""
    from inverse_alignment.reward.family_settings import learns_from_both, training_of
    from inverse_alignment.selection.settings import NoSelection

    arms = [config.for_arm(name) for name in config.arms]
    refreshing = [arm for arm in arms if not isinstance(arm.selection, NoSelection)]
    stages: dict[str, list[Need | Unknown]] = {"sft": _sft(config, device), "rollout": _rollouts(config, arms)}
    training = training_of(config.reward)  # members of an ensemble are trained one at a time
    rows = 0 if training is None else (2 if learns_from_both(config.reward) else 1) * training.batch_size
    stages["reward_model"] = [_reward(config, "reward_model", rows, _first_dtype(config))]
    if any(_reads_tokens(arm) for arm in arms):
        stages["token_reward"] = [_reward(config, "token_reward", config.token_reward.batch_size, "float32")]
    stages["refresh"] = [_refresh(arm) for arm in refreshing]
    stages["ppo"] = [_ppo(arm, device) for arm in arms if arm.optimise.type == "ppo"]
    stages["direct"] = [_direct(arm) for arm in arms if arm.optimise.type != "ppo"]
    stages["evaluate"] = [_evaluate(config, bool(refreshing))]
    chosen = [_hungriest(found) for found in stages.values() if found]
    if device.cuda:  # each process has a GPU of its own
        return chosen
    return [need if isinstance(need, Unknown) else together(need, _processes(config, need.stage)) for need in chosen]


def _processes(config: PipelineConfig, stage: str) -> int:
    """How many processes share out the batches of a stage."""
    launcher = config.runtime.launcher
    return 1 if launcher.type == "none" or stage not in launcher.stages else launcher.processes


def _hungriest(found: list[Need | Unknown]) -> Need | Unknown:
    unknown = [need for need in found if isinstance(need, Unknown)]
    return unknown[0] if unknown else max((n for n in found if isinstance(n, Need)), key=lambda need: need.total)


def _unknown(stage: str, config: PipelineConfig, *roles: Role) -> Unknown:
    """A stage that cannot be planned, and the models that are not on this machine."""
    specs = {"policy": config.models.policy, "reward": config.models.reward}
    return Unknown(stage, tuple(spec.path for role in roles if isinstance(spec := specs[role], CheckpointModel)))


def _absent(*, policy: bool, reward: bool) -> list[Role]:
    there: list[tuple[Role, bool]] = [("policy", policy), ("reward", reward)]
    return [role for role, is_there in there if not is_there]


def _dtype(spec: ModelSpec) -> str:
    return spec.dtype if isinstance(spec, CheckpointModel) else "float32"


def _first_dtype(config: PipelineConfig) -> str:
    """In which numbers the first reward model is computed: a checkpoint's own while it is trained from it."""
    from inverse_alignment.reward.family_settings import training_of

    return "float32" if training_of(config.reward) is None else _dtype(config.models.reward)


def _sft(config: PipelineConfig, device: Device) -> list[Need | Unknown]:
    from inverse_alignment.models import memory
    from inverse_alignment.stages.sft import TrainSft

    if not isinstance(config.sft, TrainSft):
        return []
    spec = config.models.policy
    model = _footprint(spec, "policy", spec.context, dtype=_dtype(spec), training=True)
    if model is None:
        return [_unknown("sft", config, "policy")]
    processes = _processes(config, "sft")
    return [memory.sft(model, config.sft.batch_size // processes, spec.context, device.cuda, processes)]


def _writing(config: PipelineConfig, answer: int, rows: int) -> Writing:
    from inverse_alignment.generation.answers import Sampling

    context = config.models.policy.context
    at_once = min(rows, config.runtime.generation_rows) if rows else config.runtime.generation_rows
    return Writing(at_once, Sampling(answer, 1.0, context, at_once).prompt_tokens, answer)


def _rollouts(config: PipelineConfig, arms: Sequence[PipelineConfig]) -> list[Need | Unknown]:
    return [_rollout(config, rollout) for rollout in (config.reference_sample, *(arm.rollout for arm in arms))]


def _rollout(config: PipelineConfig, asked: RolloutConfig | EvaluationConfig) -> Need | Unknown:
    from inverse_alignment.models import memory
    from inverse_alignment.models.log_probs import LOOK_TOKENS

    writing = _writing(config, asked.max_new_tokens, asked.prompts * asked.samples)
    model = _footprint(config.models.policy, "policy", writing.width)
    if model is None:
        return _unknown("rollout", config, "policy")
    return memory.rollout(model, writing, LOOK_TOKENS, asked.generation.type != "hf")


def _refresh(arm: PipelineConfig) -> Need | Unknown:
    """Beside the incumbent; the rule meta keeps the weights and a gradient while it looks at answers of the policy."""
    from inverse_alignment.reward.settings import MetaRule

    rule, sequences = arm.refresh.rule, 2 * arm.refresh.batch_size
    if not isinstance(rule, MetaRule):
        return _reward(arm, "refresh", sequences, "float32", beside=1)
    looked_at = rule.prompts * arm.rollout.samples * _processes(arm, "refresh")  # every process looks at all of them
    return _reward(arm, "refresh", max(sequences, looked_at), "float32", beside=3)


def _reward_model(config: PipelineConfig, **how: Any) -> Footprint | None:
    """The sizes of a reward model as `reward` has it made."""
    from inverse_alignment.models.memory import believing
    from inverse_alignment.reward.ava_settings import AvaReward
    from inverse_alignment.reward.family_settings import rewards_tokens

    reward, spec = config.reward, config.models.reward
    model = _footprint(spec, "policy" if rewards_tokens(reward) else "reward", spec.context, **how)
    if model is None or not rewards_tokens(reward):
        return model
    if isinstance(reward, AvaReward):
        return believing(model, reward.q.type, reward.reward_weights)
    return believing(model, "none", True)


def _reward(config: PipelineConfig, stage: str, sequences: int, dtype: str, *, beside: int = 0) -> Need | Unknown:
    from inverse_alignment.models import memory

    spec = config.models.reward
    model = _reward_model(config, dtype=dtype, training=True)
    if model is None:
        return _unknown(stage, config, "reward")
    processes, beside_it = _processes(config, stage), beside * model.weights
    return memory.reward_training(
        stage, model, sequences // processes, spec.context, config.runtime.scoring_rows, beside_it, processes
    )


def _reads_tokens(arm: PipelineConfig) -> bool:
    return arm.ppo.credit.type == "token"


def _ppo(arm: PipelineConfig, device: Device) -> Need | Unknown:
    from inverse_alignment.models import memory
    from inverse_alignment.models.footprint import Adapters
    from inverse_alignment.reward.family_settings import whole_models

    ppo, spec = arm.ppo, arm.models.reward
    writing = _writing(arm, ppo.max_new_tokens, -(-ppo.batch_size // _processes(arm, "ppo")))
    lora = None if ppo.lora is None else Adapters(ppo.lora.rank, ppo.lora.targets)
    policy = _footprint(arm.models.policy, "policy", writing.width, adapters=lora)
    reward = _reward_model(arm, eager=ppo.credit.type == "abc")
    if policy is None or reward is None:
        return _unknown("ppo", arm, *_absent(policy=policy is not None, reward=reward is not None))
    processes = _processes(arm, "ppo")
    settings = Optimisation(
        batch=-(-ppo.batch_size // processes),
        minibatch=-(-ppo.batch_size // ppo.minibatches // processes),
        tokens=arm.runtime.training_tokens,
        separate=ppo.critic.type == "separate",
        moving=ppo.reference.type != "frozen",
        copied=device.cuda,
        here=not device.cuda,
    )
    scored = min(arm.runtime.scoring_rows, ppo.batch_size)
    models = whole_models(arm.reward) + _reads_tokens(arm)
    return memory.ppo(policy, reward, models, settings, writing, scored, spec.context)


def _direct(arm: PipelineConfig) -> Need | Unknown:
    from inverse_alignment.models import memory
    from inverse_alignment.models.footprint import Adapters
    from inverse_alignment.optimise.direct_settings import AvaD, AvaP, FixedAnchor, PpoMethod, Selm

    method, spec = arm.optimise, arm.models.policy
    assert not isinstance(method, PpoMethod)
    lora = None if method.lora is None else Adapters(method.lora.rank, method.lora.targets)
    model = _footprint(spec, "policy", spec.context, adapters=lora, training=True)
    if model is None:
        return _unknown("direct", arm, "policy")
    if isinstance(method, AvaD):
        believes = memory.believing(model, "pretrained", method.reward_weights)
        return memory.direct(believes, (1 + isinstance(method, AvaP)) * method.batch_size, spec.context, 1)
    fixed = isinstance(method.reference, FixedAnchor)
    references = 1 if fixed or lora is not None else 2
    return memory.direct(model, (3 if isinstance(method, Selm) else 2) * method.batch_size, spec.context, references)


def _evaluate(config: PipelineConfig, refreshes: bool) -> Need | Unknown:
    from inverse_alignment.models import memory
    from inverse_alignment.reward.family_settings import whole_models

    spec, there = config.models.reward, _rollout(config, config.evaluation)
    reward = _reward_model(config)
    if isinstance(there, Unknown) or reward is None:
        return _unknown("evaluate", config, *_absent(policy=not isinstance(there, Unknown), reward=reward is not None))
    models = whole_models(config.reward) * (1 + (config.data.aggregate.shares.audit > 0)) + refreshes
    return memory.evaluate(there, reward, models, config.runtime.scoring_rows, spec.context)


# ------------------------------------------------------------------------------------------------- what would help


def changes(load: Load, device: Device) -> tuple[list[Change], list[Need | Unknown]]:
    """The first overrides, in the order of what they cost, with which every stage fits; and what it then needs.

    Every candidate is loaded and planned like a configuration of the user's; one that lowers nothing is not offered. If
    all of them are not enough, all of them are returned.
    """
    found: list[Change] = []
    stuck: set[str] = set()
    while worst := [need for need in _failing(needs(load(_sets(found)), device), device) if need.stage not in stuck]:
        step = _next(load, device, _sets(found), worst[0])
        if step is None:
            stuck.add(worst[0].stage)
        else:
            found.append(step)
    found = _joined(found)
    kept = found if stuck else _needed(load, device, found)
    return kept, needs(load(_sets(kept)), device)


def _sets(found: Sequence[Change]) -> list[str]:
    return [change.override for change in found]


def _failing(found: Sequence[Need | Unknown], device: Device) -> list[Need]:
    """The stages that do not fit, the largest first."""
    known = [need for need in found if isinstance(need, Need) and need.total > device.size]
    return sorted(known, key=lambda need: -need.total)


def _joined(found: Sequence[Change]) -> list[Change]:
    """One change per key: the last of several halvings, from where the first began."""
    joined: dict[str, Change] = {}
    for change in found:
        key = change.override.partition("=")[0]
        before = joined[key].before if key in joined else change.before
        joined[key] = replace(change, before=before)
    return list(joined.values())


def _next(load: Load, device: Device, so_far: list[str], worst: Need) -> Change | None:
    for override, cost in _candidates(load(so_far), worst.stage):
        try:
            after = needs(load([*so_far, override]), device)
        except UserError:  # it does not go together with the rest
            continue
        total = next(need.total for need in after if isinstance(need, Need) and need.stage == worst.stage)
        if total < worst.total:
            return Change(override, cost, worst.stage, worst.total, total)
    return None


def _needed(load: Load, device: Device, found: list[Change]) -> list[Change]:
    """Those changes without which something would not fit, looked for among the dearest first."""
    for change in reversed(found):
        rest = [other for other in found if other is not change]
        try:
            fits = not _failing(needs(load(_sets(rest)), device), device)
        except UserError:
            continue
        if fits:
            return _needed(load, device, rest)
    return found


def _candidates(config: PipelineConfig, stage: str) -> Iterator[tuple[str, str]]:
    """Overrides that might make a stage need less, those first that change no result."""
    runtime, longest = config.runtime, config.models.policy.context
    for tokens in _halvings(runtime.training_tokens, longest):
        yield f"runtime.training_tokens={tokens}", SPEED
    for rows in _halvings(runtime.generation_rows, 1):
        yield f"runtime.generation_rows={rows}", SPEED
    for rows in _halvings(runtime.scoring_rows, 1):
        yield f"runtime.scoring_rows={rows}", SPEED
    if stage == "ppo":
        yield from _of_ppo(config)
    for section in ("sft", "reward", "token_reward", "refresh"):
        rows = getattr(config, section).model_dump().get("batch_size", 1)
        if rows > 1:
            yield f"{section}.batch_size={rows // 2}", RESULT
    nested = config.reward.model_dump().get("training", {}).get("batch_size", 1)
    if nested > 1:
        yield f"reward.training.batch_size={nested // 2}", RESULT
    for role, spec in (("policy", config.models.policy), ("reward", config.models.reward)):
        if isinstance(spec, CheckpointModel) and spec.dtype == "float32":
            yield f"models.{role}.dtype=bfloat16", RESULT
    for role, spec in (("policy", config.models.policy), ("reward", config.models.reward)):
        yield f"models.{role}.context={spec.context // 2}", RESULT


def _halvings(number: int, least: int) -> Iterator[int]:
    """Its half, a quarter, and so on; smaller ones too, as a half need not change anything yet."""
    while number > least:
        number = max(least, number // 2)
        yield number


def _of_ppo(config: PipelineConfig) -> Iterator[tuple[str, str]]:
    at = ["ppo", *(f"arms.{arm}.ppo" for arm, sections in config.arms.items() if "ppo" in sections)]
    for section in at:
        yield f"{section}.critic={{type: shared}}", RESULT
    for section in at:
        yield f"{section}.reference={{type: frozen}}", RESULT
    for section in at:
        yield f"{section}.lora={{rank: 16}}", RESULT


# ------------------------------------------------------------------------------------------------- what is shown


def show(load: Load, console: Console, given: str | None) -> bool:
    """Print what every stage needs and what would help; whether everything fits that is known.

    Args:
        given: the memory of a machine that is not here.

    Raises:
        UserError: a model cannot be planned, or the size is none.
    """
    config = load([])
    device = device_of(config, given)
    found = needs(config, device)
    console.print(_table(found, device))
    for line in _notes(config, found, device):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not _failing(found, device):
        return True
    helping, after = changes(load, device)
    for line in _advice(helping, after, device):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return False


def _table(found: Sequence[Need | Unknown], device: Device) -> Table:
    unit, size = _unit(found, device)
    title = f"{unit} on {escape(device.name)}; free: {_number(device.size, size)}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("stage", no_wrap=True)
    for name in (*PARTS, "gradients", "activations", "KV cache", "sum"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("most in", no_wrap=True)
    table.add_column("", no_wrap=True)
    for need in found:
        if isinstance(need, Unknown):
            table.add_row(need.stage, *[""] * (len(PARTS) + 3), "?", "", "[dim]unknown[/]")
            continue
        peak = need.peak
        parts = [*(need.kept.get(name, 0) for name in PARTS), peak.gradients, peak.activations, peak.cache]
        cells = [_number(part, size) if part else "[dim]-[/]" for part in parts]
        table.add_row(need.stage, *cells, _number(need.total, size), peak.name, _verdict(need, device))
    return table


def _unit(found: Sequence[Need | Unknown], device: Device) -> tuple[str, int]:
    """GiB, unless everything is small."""
    most = max((need.total for need in found if isinstance(need, Need)), default=device.size)
    return ("GiB", GIB) if most >= GIB else ("MiB", 2**20)


def _number(size: int, unit: int) -> str:
    number = size / unit
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def _verdict(need: Need, device: Device) -> str:
    if need.total > device.size:
        return "[red]does not fit[/]"
    return "[yellow]tight[/]" if need.total * (1 + TOLERANCE) > device.size else "[green]fits[/]"


def _notes(config: PipelineConfig, found: Sequence[Need | Unknown], device: Device) -> Iterator[str]:
    for name in sorted({name for need in found if isinstance(need, Unknown) for name in need.models}):
        yield f"{name} is not on this machine: its size is unknown until it is downloaded, as is what needs it."
    tight = [need.stage for need in found if isinstance(need, Need) and "tight" in _verdict(need, device)]
    if tight:
        yield f"tight: a sum may be {TOLERANCE:.0%} too low, so {' and '.join(tight)} may not fit."
    if config.runtime.launcher.type == "accelerate":
        yield "Sharding, if runtime.launcher.config asks for it, is not counted: each process is taken to hold all."
    yield "Rows are taken to be as long as the contexts allow. Data and the program itself are not counted."


def _advice(helping: Sequence[Change], after: Sequence[Need | Unknown], device: Device) -> Iterator[str]:
    failing = _failing(after, device)
    if not failing:
        yield "It fits with:"
    elif helping:
        yield "Nothing that can be set makes all of it fit; this comes closest:"
    unit, size = _unit(after, device)
    for change in helping:
        sizes = f"{change.stage} {_number(change.before, size)} -> {_number(change.after, size)} {unit}"
        yield f"  --set '{change.override}'   {sizes}; {change.cost}"
    for need in failing:
        yield f"{need.stage} still needs {_number(need.total, size)} {unit}: take a smaller model, or a larger device."
