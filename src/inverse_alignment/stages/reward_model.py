"""preferences + tokenizer (+ checkpoint) -> a reward model with its calibration on the fixed reference sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.records import Comparison
from inverse_alignment.models.specs import ModelSpec
from inverse_alignment.reward.ava_settings import AvaReward, PreferenceTransformerReward
from inverse_alignment.reward.family_settings import EnsembleReward, InformReward, LaplaceReward, OdinReward, WarmReward
from inverse_alignment.reward.settings import LoraRule
from inverse_alignment.reward.training_settings import (
    CheckpointReward,
    EnsembleStrength,
    HeldOutStop,
    InfoNceContrast,
    TrainReward,
    ValuePrefixes,
)

RewardConfig = Annotated[
    TrainReward
    | EnsembleReward
    | WarmReward
    | OdinReward
    | InformReward
    | LaplaceReward
    | AvaReward
    | PreferenceTransformerReward
    | CheckpointReward,
    Field(discriminator="type"),
]


class RewardStage(Section):
    """Identity of the stage."""

    reward: RewardConfig
    model: ModelSpec
    split: Literal["train", "audit"] = Field("train", description="whose pairs it is trained on")


def build(inputs: Mapping[str, Path], config: RewardStage, context: StageContext) -> dict[str, Any]:
    """Write `model/`: a reward model of some family, its tokenizer, and `calibration.json`.

    It is a sequence classifier with one label, unless `reward.json` says more: see `models.reward_scores`.
    """
    from inverse_alignment.core.parallel import group
    from inverse_alignment.core.records import Rollout, read_jsonl
    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.evaluation.reward_accuracy import longer_wins, score_pairs
    from inverse_alignment.models.reward_scores import Calibration, save_calibration

    sample = read_jsonl(inputs["reference_rollouts"] / "rollouts.jsonl", Rollout)
    made = _make(inputs, config, sample, context)
    if group().rank:
        return {}  # the first process has the same weights
    scorer = made.scorer
    calibration = Calibration.of(scorer([r.prompt for r in sample], [r.response for r in sample]))
    held_out = read_split(inputs["preferences"], "validation")
    correct = score_pairs(scorer, held_out).correct()
    made.save(context.out / "model")
    save_calibration(calibration, context.out / "model")
    return {
        **made.metrics,
        "parameters": made.parameters,
        "validation_accuracy": float(correct.mean()),
        "validation_longer_wins": float(longer_wins(held_out).mean()),
        "validation_pairs": len(held_out),
    }


def _make(inputs: Mapping[str, Path], config: RewardStage, sample: Any, context: StageContext) -> Any:
    """The reward model as its family makes it: a `stages.reward_families.Made`."""
    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.stages.reward_families import Made, Recipe, ensemble, inform, laplace, odin, warm
    from inverse_alignment.text.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(inputs["tokenizers"] / "reward").tokenizer
    limit, rows = config.model.context, context.runtime.scoring_rows

    def new(seed: int, outputs: int = 1) -> Any:
        return _start(tokenizer, inputs, config, context, seed, outputs)

    if isinstance(config.reward, CheckpointReward):
        return Made.of_classifier(new(context.seed), tokenizer, limit, rows, {})
    pairs, held_out = (read_split(inputs["preferences"], split) for split in (config.split, "validation"))
    if isinstance(config.reward, TrainReward):
        model = new(context.seed)
        metrics = _train(new, model, tokenizer, pairs, held_out, config.reward, limit, context)
        return Made.of_classifier(model, tokenizer, limit, rows, metrics)
    if isinstance(config.reward, (AvaReward, PreferenceTransformerReward)):
        from inverse_alignment.stages.tqr_reward import tqr

        held_out = read_split(inputs["preferences"], "validation")
        return tqr(config.reward, config.model, inputs, tokenizer, pairs, held_out, context)
    training = config.reward.training

    def fit(model: Any, shown: Sequence[Comparison], within: StageContext) -> dict[str, Any]:
        return _train(new, model, tokenizer, shown, held_out, training, limit, within)

    recipe = Recipe(tokenizer, pairs, sample, limit, rows, context, new, fit)
    match config.reward:
        case EnsembleReward():
            return ensemble(config.reward, recipe)
        case WarmReward():
            return warm(config.reward, recipe)
        case OdinReward():
            return odin(config.reward, recipe)
        case InformReward():
            return inform(config.reward, recipe)
        case LaplaceReward():
            return laplace(config.reward, recipe)


def _start(
    tokenizer: Any, inputs: Mapping[str, Path], config: RewardStage, context: StageContext, seed: int, outputs: int
) -> Any:
    """A model to train, or the checkpoint as it is.

    Args:
        seed: of a fresh score head, or of all weights of a model that is made here.
        outputs: of the score head.
    """
    from inverse_alignment.models.loading import (
        load_reward_model,
        new_reward_model,
        pick_device,
        place,
        reward_model_from_trunk,
    )
    from inverse_alignment.models.specs import InitialisedModel

    spec = config.model
    if isinstance(config.reward, CheckpointReward):
        model = load_reward_model(inputs["reward_model"])
    elif "trunk" in inputs:
        model = reward_model_from_trunk(inputs["trunk"], seed, outputs=outputs)
    elif isinstance(spec, InitialisedModel):
        model = new_reward_model(spec, tokenizer, seed, outputs)
    else:
        model = reward_model_from_trunk(inputs["reward_model"], seed, spec.dtype, outputs)
    model.config.pad_token_id = tokenizer.pad_token_id
    return place(model, pick_device(context.runtime.device))


def _train(
    new: Callable[[int], Any],
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Comparison],
    held_out: Sequence[Comparison],
    config: TrainReward,
    max_tokens: int,
    context: StageContext,
) -> dict[str, Any]:
    """Train a classifier with one label, in place.

    Args:
        new: models to train besides, by the seed of what is fresh in them.
        held_out: pairs that may say when to stop.
    """
    from inverse_alignment.core.parallel import group
    from inverse_alignment.reward.bradley_terry import pair_rows
    from inverse_alignment.reward.held_out import HeldOut
    from inverse_alignment.reward.strength import treated
    from inverse_alignment.stages.pair_strength import find_strength, tell_strength

    def rows(of: Sequence[Comparison]) -> list[dict[str, Any]]:
        return pair_rows(tokenizer, of, [1.0] * len(of), max_tokens)

    def member(some: Any, seed: int, within: StageContext) -> Any:
        made = new(seed)
        _fit(made, tokenizer, some, config, within)
        return made

    stop, strength, shown, pad = config.stop, config.strength, rows(pairs), tokenizer.pad_token_id
    watch = None
    if isinstance(stop, HeldOutStop):
        watch = HeldOut(rows(held_out[: stop.pairs]), pad, stop.every, stop.patience)
    found: dict[str, Any] = {"pairs": len(pairs), "identical_pairs": len(pairs) - len(shown)}
    if not isinstance(strength, EnsembleStrength):
        return {**_fit(model, tokenizer, shown, config, context, watch), **found}
    known = find_strength(shown, strength, pad, member, context)
    taught = treated(shown, known.mean.numpy(), strength, config.use_margins)
    with_margins = config.model_copy(update={"use_margins": True})
    found |= _fit(model, tokenizer, taught, with_margins, context, watch)
    if group().rank == 0:
        flipped = round(strength.flip * len(shown))
        found |= tell_strength(model, shown, pairs, known, flipped, pad, context.out)
    return found


def _fit(
    model: Any, tokenizer: Any, rows: Any, config: TrainReward, context: StageContext, watch: Any = None
) -> dict[str, Any]:
    """Train on rows of pairs, through adapters if that is asked for; afterwards it is a plain model either way."""
    from inverse_alignment.models.adapters import adapt_trunk, merge_adapters
    from inverse_alignment.models.trl_training import scheduled
    from inverse_alignment.reward.bradley_terry import fit

    rule = config.weights
    if isinstance(rule, LoraRule):
        adapt_trunk(model, rule.rank, rule.alpha, rule.targets, context.seed, "reward.weights.targets")
    trained = fit(
        model,
        tokenizer,
        rows,
        scheduled(config, model.device, context),
        _pair_loss(config),
        context.partial,
        context.report,
        context.runtime.checkpoint_seconds,
        held_out=watch,
    )
    if isinstance(rule, LoraRule):
        merge_adapters(model)
    return trained


def _pair_loss(config: TrainReward) -> Any:
    from inverse_alignment.reward.bradley_terry import PairLoss

    asked: dict[str, float] = {}
    if isinstance(config.prefixes, ValuePrefixes):
        asked |= {"smoothness": config.prefixes.smoothness, "look_ahead": config.prefixes.look_ahead}
    if isinstance(config.contrast, InfoNceContrast):
        found = config.contrast
        asked |= {"contrast": found.weight, "temperature": found.temperature, "dropout": found.dropout}
    return PairLoss(config.label_smoothing, config.centring, config.use_margins, **asked)
