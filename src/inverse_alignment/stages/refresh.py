"""incumbent reward model + selected pairs -> calibrated challenger, or the incumbent where the gate refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.embedding.settings import EncoderConfig, LexicalEncoder
from inverse_alignment.reward.settings import FullRule, RefreshRule


class GateOn(Section):
    """Champion and challenger on held-out pairs near the policy; the champion stays unless the challenger is better."""

    type: Literal["paired"] = "paired"
    confidence: float = Field(
        0.8, ge=0.5, lt=1, description="one-sided bootstrap confidence that the challenger explains the pairs better"
    )
    aligned_share: float = Field(
        0.5, gt=0, le=1, description="share of the gate split, nearest to the policy's rollouts, that is judged on"
    )
    resamples: int = Field(2000, ge=100, description="bootstrap resamples")
    encoder: EncoderConfig = Field(LexicalEncoder(), description="what measures nearness to the rollouts")


class GateOff(Section):
    """Every challenger is accepted: shows what the gate does."""

    type: Literal["off"] = "off"


class RefreshConfig(Section):
    """How a reward model is refreshed on the selected pairs.

    Weights of selected pairs are divided by their mean, and a replayed pair weighs 1. The loss of a batch is
    `Σ w l / Σ w` over its pairs: within a batch, only weights relative to each other count.
    """

    rule: RefreshRule = Field(FullRule(), description="which weights learn, and from which pairs")
    start: Literal["last", "first"] = Field(
        "last", description="what a refresh starts from: the incumbent, or the first reward model again"
    )
    pairs_seen: int = Field(
        900, ge=2, description="pairs presented in training, selected and replayed together; equal for every arm"
    )
    replay_share: float = Field(0.33, ge=0, lt=1, description="share of those that is drawn from the whole train split")
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(32, ge=1, description="pairs per optimiser step")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="assumed probability that a label is wrong")
    centring: float = Field(0.01, ge=0, description="weight of the penalty on the squared sum of a pair's scores")
    use_margins: bool = Field(False, description="subtract the data's preference strength from the score gap")
    gate: Annotated[GateOn | GateOff, Field(discriminator="type")] = Field(
        GateOn(), description="whether and how a refreshed model must prove itself"
    )


class RefreshStage(Section):
    """Identity of the stage."""

    refresh: RefreshConfig
    context: int = Field(description="most tokens of prompt and answer together, in the reward model's tokens")


def build(inputs: Mapping[str, Path], config: RefreshStage, context: StageContext) -> dict[str, Any]:
    """Write `model/` (the challenger, or the incumbent's very bytes where the gate refused) and `gate.json`."""
    import json
    import shutil

    from inverse_alignment.core.parallel import group
    from inverse_alignment.models.loading import load_reward_model, pick_device, place, save_model
    from inverse_alignment.models.reward_scores import RewardScorer, load_calibrated, save_calibration
    from inverse_alignment.reward.rules import closed, open_up
    from inverse_alignment.text.tokenizers import load_tokenizer

    device, rows = pick_device(context.runtime.device), context.runtime.scoring_rows
    incumbent = load_calibrated(inputs["reward"], device, config.context, rows)
    tokenizer = load_tokenizer(inputs["reward"]).tokenizer
    start, rule = inputs["reward" if config.refresh.start == "last" else "first_reward"], config.refresh.rule
    model = place(load_reward_model(start), device)
    open_up(model, rule, context.seed)
    trained = _train(place(model, device), tokenizer, inputs, config, context)
    if group().rank:
        return {}  # the first process has the same weights
    model = closed(model, rule, start)
    challenger = _calibrate(RewardScorer(model, tokenizer, config.context, rows), inputs)
    verdict = {
        **_judge(incumbent, challenger, inputs, config.refresh, context),
        "pairs_seen": config.refresh.pairs_seen,
    }
    if verdict["accepted"]:
        save_model(place(model, "cpu"), tokenizer, context.out / "model")
        save_calibration(challenger.calibration, context.out / "model")
    else:
        shutil.copytree(inputs["reward"], context.out / "model")
    (context.out / "gate.json").write_text(json.dumps(verdict, indent=1, sort_keys=True))
    return {**trained, **{name: value for name, value in verdict.items() if value is not None}}


def _train(
    model: Any, tokenizer: Any, inputs: Mapping[str, Path], config: RefreshStage, context: StageContext
) -> dict[str, Any]:
    import json

    import numpy as np

    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.models.trl_training import arguments
    from inverse_alignment.reward.bradley_terry import PairLoss, fit, pair_rows
    from inverse_alignment.reward.refresh import mix

    settings = config.refresh
    pool = read_split(inputs["preferences"], "train")
    kept = [json.loads(line) for line in (inputs["selection"] / "selection.jsonl").read_text().splitlines()]
    chosen = mix(
        np.array([row["row"] for row in kept]),
        np.array([row["weight"] for row in kept]),
        len(pool),
        settings.pairs_seen,
        settings.replay_share,
        derive_seed("refresh", context.seed),
    )
    trained = fit(
        model,
        tokenizer,
        pair_rows(tokenizer, [pool[i] for i in chosen.indices], chosen.weights.tolist(), config.context),
        arguments(
            partial=context.partial,
            device=model.device.type,
            seed=context.seed,
            epochs=1,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            warmup_share=settings.warmup_share,
        ),
        PairLoss(settings.label_smoothing, settings.centring, settings.use_margins),
        context.partial,
        context.report,
        context.runtime.checkpoint_seconds,
    )
    return {**trained, "gradient_steps": trained["steps"], "replayed": chosen.replayed}


def _calibrate(scorer: Any, inputs: Mapping[str, Path]) -> Any:
    from inverse_alignment.core.records import Rollout, read_jsonl
    from inverse_alignment.models.reward_scores import CalibratedReward, Calibration

    sample = read_jsonl(inputs["reference_rollouts"] / "rollouts.jsonl", Rollout)
    return CalibratedReward(scorer, Calibration.of(scorer([r.prompt for r in sample], [r.response for r in sample])))


def _judge(
    incumbent: Any, challenger: Any, inputs: Mapping[str, Path], config: RefreshConfig, context: StageContext
) -> dict[str, Any]:
    import math

    from inverse_alignment.core.records import Rollout, read_jsonl
    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.evaluation.reward_accuracy import score_pairs
    from inverse_alignment.maths.grouping import within_group_variance
    from inverse_alignment.reward.refresh import judge

    rollouts = read_jsonl(inputs["rollouts"] / "rollouts.jsonl", Rollout)
    prompts, keys = [r.prompt for r in rollouts], [r.prompt.key for r in rollouts]
    answers = [r.response for r in rollouts]
    variances = {
        f"reward_variance_{when}": within_group_variance(reward(prompts, answers), keys)
        for when, reward in (("before", incumbent), ("after", challenger))
    }
    known = {name: None if math.isnan(value) else value for name, value in variances.items()}
    pairs = _gate_pairs(rollouts, inputs, config.gate, context)
    confidence, resamples = (
        (config.gate.confidence, config.gate.resamples) if isinstance(config.gate, GateOn) else (0.5, 100)
    )
    decision = judge(
        score_pairs(incumbent.scorer, pairs),
        score_pairs(challenger.scorer, pairs),
        confidence,
        resamples,
        derive_seed("gate", context.seed),
    )
    return {
        "gate": config.gate.type,
        "accepted": decision.accepted or isinstance(config.gate, GateOff),
        "gain": decision.gap.mean,
        "low": decision.gap.low,
        "detectable": decision.gap.detectable,
        "pairs": decision.gap.pairs,
        "incumbent_accuracy": decision.incumbent_accuracy,
        "challenger_accuracy": decision.challenger_accuracy,
        **known,
    }


def _gate_pairs(rollouts: Any, inputs: Mapping[str, Path], gate: Any, context: StageContext) -> Any:
    """The part of the gate split nearest to the policy: its prompts are in no refresh set, it was drawn before any."""
    import numpy as np

    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.selection.similarity import SCORES, pair_similarity
    from inverse_alignment.stages.encoders import encoder

    pairs = read_split(inputs["preferences"], "gate")
    if isinstance(gate, GateOff) or gate.aligned_share == 1.0:
        return pairs
    similarity = pair_similarity(
        [pair.chosen for pair in pairs],
        [pair.rejected for pair in pairs],
        [pair.prompt.key for pair in pairs],
        [rollout.response for rollout in rollouts],
        [rollout.prompt.key for rollout in rollouts],
        encoder(gate.encoder, inputs, context),
        same_prompt=False,
    )
    scores = SCORES["mean"](similarity.chosen, similarity.rejected)
    count = max(2, round(len(pairs) * gate.aligned_share))
    return [pairs[i] for i in np.sort(np.argsort(-scores, kind="stable")[:count])]
