"""How the stage reward_model makes models that believe something of every token: AVA, the Preference Transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inverse_alignment.core.context import StageContext
from inverse_alignment.core.records import Comparison
from inverse_alignment.models.beliefs import AvaObjective, Objective, PreferenceTransformerObjective
from inverse_alignment.models.loading import (
    load_policy,
    new_policy,
    pick_device,
    place,
    reward_model_from_trunk,
)
from inverse_alignment.models.specs import InitialisedModel, ModelSpec
from inverse_alignment.models.tqr import Tqr, TqrForm, new_tqr, save_tqr
from inverse_alignment.models.tqr_scores import TqrScorer
from inverse_alignment.models.trl_training import scheduled
from inverse_alignment.reward.ava import belief_rows, degeneration, fit_tqr
from inverse_alignment.reward.ava_settings import (
    AvaReward,
    FreshQ,
    PreferencesObjective,
    PreferenceTransformerReward,
    PretrainedQ,
)
from inverse_alignment.stages.reward_families import Made

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tqr(
    config: AvaReward | PreferenceTransformerReward,
    spec: ModelSpec,
    inputs: Mapping[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Comparison],
    held_out: list[Comparison],
    context: StageContext,
) -> Made:
    """Train one, and say what its summed rewards may stand for on both answers of held-out pairs."""
    form, objective = form_of(config), objective_of(config)
    model = place(_start(spec, form, inputs, tokenizer, context.seed), pick_device(context.runtime.device))
    given = scheduled(config, model.device, context)
    trained = fit_tqr(
        model,
        tokenizer,
        belief_rows(tokenizer, pairs, spec.context),
        given,
        objective,
        context.partial,
        context.report,
        context.runtime.checkpoint_seconds,
    )
    rows = context.runtime.scoring_rows
    seen = degeneration(
        model.eval(), belief_rows(tokenizer, held_out, spec.context), tokenizer.pad_token_id, rows * spec.context
    )
    metrics = {**trained, "pairs": len(pairs), "corr_return_length": _known(seen.length)}
    if form.q != "none":
        metrics["corr_return_log_prob"] = _known(seen.log_likelihood)
    return Made(
        TqrScorer(model, tokenizer, spec.context, rows),
        lambda folder: save_tqr(place(model, "cpu"), tokenizer, folder),
        model.size(),
        metrics,
    )


def form_of(config: AvaReward | PreferenceTransformerReward) -> TqrForm:
    """What the model is besides its weights."""
    match config:
        case PreferenceTransformerReward():
            return TqrForm(q="none", score="mean", uncertain=False)
        case AvaReward(q=PretrainedQ(alpha=alpha)):
            temperature = alpha
        case AvaReward(q=FreshQ()):
            temperature = config.beta
    score = config.objective.score if isinstance(config.objective, PreferencesObjective) else "sum"
    return TqrForm(config.q.type, temperature, config.reward_weights, config.log_std_bound, score)


def objective_of(config: AvaReward | PreferenceTransformerReward) -> Objective:
    """What is minimised."""
    if isinstance(config, PreferenceTransformerReward):
        return PreferenceTransformerObjective(config.label_smoothing)
    inverse = {
        "fresh": isinstance(config.q, FreshQ),
        **{name: getattr(config, name) for name in ("beta", "gamma", "consistency", "inverse")},
    }
    if isinstance(config.objective, PreferencesObjective):
        own = config.objective
        return AvaObjective(
            True, **inverse, negatives=own.negatives, floor=own.floor, cer=own.cer, cer_form=own.cer_form
        )
    return AvaObjective(False, **inverse)


def _start(
    spec: ModelSpec, form: TqrForm, inputs: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase, seed: int
) -> Tqr:
    """A model on the trunk of the SFT policy, of the reward model's base, or of fresh weights."""
    if isinstance(spec, InitialisedModel) and "trunk" not in inputs:
        return new_tqr(new_policy(spec, tokenizer, seed), form, seed)
    folder = inputs.get("trunk") or inputs["reward_model"]
    dtype = "float32" if isinstance(spec, InitialisedModel) else spec.dtype
    if form.q == "pretrained":
        return new_tqr(load_policy(folder, dtype), form, seed)
    return new_tqr(reward_model_from_trunk(folder, seed, dtype), form, seed)


def _known(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
