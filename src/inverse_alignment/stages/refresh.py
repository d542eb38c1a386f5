"""incumbent reward model + selected pairs -> calibrated challenger, or the incumbent where nothing better is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.embedding.settings import LexicalEncoder
from inverse_alignment.reward.settings import (
    DriftTrigger,
    ExtremesRule,
    GateOff,
    GateOn,
    MetaRule,
    PolicyNegativesRule,
    RefreshConfig,
)

if TYPE_CHECKING:
    from inverse_alignment.core.records import Comparison, Rollout
    from inverse_alignment.reward.drift import Drift
    from inverse_alignment.reward.own_answers import WithOwn
    from inverse_alignment.reward.refresh import TrainingMix

SEEN, ROLLOUTS = "seen", "rollouts.jsonl"
SELF_LABELLED = (
    "the incumbent labels its own training pairs: no new knowledge enters, and what it overrates it may overrate more "
    "(the same on summaries: 75.3 to 66.9, arXiv 2601.22664)"
)


class RefreshStage(Section):
    """Identity of the stage."""

    refresh: RefreshConfig
    context: int = Field(description="most tokens of prompt and answer together, in the reward model's tokens")
    policy_context: int = Field(0, description="the same in policy tokens, where the trigger asks the policy")
    due: bool = Field(True, description="whether a schedule asks for a refresh in this round")


@dataclass(frozen=True)
class Near:
    """The frozen policy's answers, and what the incumbent says of them.

    Attributes:
        scores: float64 (n,), standardised.
    """

    rollouts: list[Rollout]
    incumbent: Any
    scores: Any

    @property
    def keys(self) -> list[str]:
        """Of the prompts that they answer."""
        return [rollout.prompt.key for rollout in self.rollouts]


def build(inputs: Mapping[str, Path], config: RefreshStage, context: StageContext) -> dict[str, Any]:
    """Write `model/` (the challenger, or the incumbent's very bytes), `gate.json` and `seen/`.

    `seen/` holds the answers near which `model/` was last refreshed, or the reference sample. Where the trigger asks
    for no refresh, nothing is trained.
    """
    import json
    import shutil

    from inverse_alignment.core.parallel import group
    from inverse_alignment.models.loading import pick_device
    from inverse_alignment.models.reward_scores import load_calibrated
    from inverse_alignment.reward.drift import crossed

    incumbent = load_calibrated(
        inputs["reward"], pick_device(context.runtime.device), config.context, context.runtime.scoring_rows
    )
    near = _near(incumbent, inputs["rollouts"])
    drift = _drift(near, inputs, config, context)
    trained: dict[str, Any] = {}
    verdict: dict[str, Any] = {**_standing(config.refresh), **drift.metrics()}
    if config.due and crossed(config.refresh.trigger, drift):
        trained, decided = _challenge(near, inputs, config, context)
        verdict |= decided
    if group().rank:
        return {}  # the first process has the same weights, and wrote the challenger if it was accepted
    if not verdict["accepted"]:
        shutil.copytree(inputs["reward"], context.out / "model")
    (context.out / SEEN).mkdir()
    seen = inputs["rollouts"] if verdict["accepted"] else inputs.get("seen", inputs["reference_rollouts"])
    shutil.copyfile(seen / ROLLOUTS, context.out / SEEN / ROLLOUTS)
    (context.out / "gate.json").write_text(json.dumps(verdict, indent=1, sort_keys=True))
    return {**_UNTRAINED, **trained, **{name: value for name, value in verdict.items() if value is not None}}


_UNTRAINED: dict[str, Any] = {
    "steps": 0.0,
    "gradient_steps": 0.0,
    "replayed": 0,
    "identical_pairs": 0,
    "own_answers": 0,
}


def _standing(config: RefreshConfig) -> dict[str, Any]:
    """What `gate.json` says where nobody challenges the incumbent."""
    judged = ("gain", "low", "detectable", "incumbent_accuracy", "challenger_accuracy")
    unknown = dict.fromkeys((*judged, "reward_variance_before", "reward_variance_after", "warning"))
    return {
        **unknown,
        "gate": config.gate.type,
        "refreshed": False,
        "accepted": False,
        "pairs": 0,
        "pairs_seen": 0,
    }


def _rollouts(folder: Path) -> list[Rollout]:
    from inverse_alignment.core.records import Rollout, read_jsonl

    return read_jsonl(folder / ROLLOUTS, Rollout)


def _near(reward: Any, folder: Path) -> Near:
    rollouts = _rollouts(folder)
    return Near(rollouts, reward, _scored(reward, rollouts))


def _scored(reward: Any, rollouts: list[Rollout]) -> Any:
    return reward([rollout.prompt for rollout in rollouts], [rollout.response for rollout in rollouts])


def _drift(near: Near, inputs: Mapping[str, Path], config: RefreshStage, context: StageContext) -> Drift:
    """How far the policy's answers are from those near which the incumbent was last refreshed."""
    from inverse_alignment.reward.drift import Drift, distance, variance_left
    from inverse_alignment.stages.encoders import encoder

    trigger = config.refresh.trigger
    sample = _near(near.incumbent, inputs["reference_rollouts"])
    then = _rollouts(inputs["seen"]) if "seen" in inputs else sample.rollouts
    embed = encoder(
        trigger.encoder if isinstance(trigger, DriftTrigger) else LexicalEncoder(), inputs, context, "drift_encoder"
    )
    ess, answers = _still_counting(then, inputs, config, context) if "policy" in inputs else (None, None)
    return Drift(
        distance([rollout.response for rollout in near.rollouts], [rollout.response for rollout in then], embed),
        ess,
        answers,
        variance_left(near.scores, near.keys, sample.scores, sample.keys),
    )


def _still_counting(
    then: list[Rollout], inputs: Mapping[str, Path], config: RefreshStage, context: StageContext
) -> tuple[float, int]:
    """The share, and how many answers it is of: those that ended and whose tokens are found again in their text."""
    import numpy as np

    from inverse_alignment.core.errors import UserError
    from inverse_alignment.models.answer_log_probs import answer_log_probs
    from inverse_alignment.models.loading import load_policy, pick_device, place
    from inverse_alignment.reward.drift import still_counting
    from inverse_alignment.text.tokenizers import load_tokenizer

    ended = [rollout for rollout in then if rollout.ended]
    found = answer_log_probs(
        place(load_policy(inputs["policy"]), pick_device(context.runtime.device)).eval(),
        load_tokenizer(inputs["policy"]).tokenizer,
        [rollout.prompt for rollout in ended],
        [rollout.response for rollout in ended],
        config.policy_context,
        context.runtime.scoring_rows * config.policy_context,
        progress=context.report.progress,
    )
    same = found.counts == np.array([rollout.tokens for rollout in ended], dtype=np.int64)
    if not same.any():
        raise UserError(
            "no answer that the incumbent was refreshed near has ended",
            where="refresh.trigger.measure, which is ess",
            fix="give answers more room (rollout.max_new_tokens), or set refresh.trigger.measure=mmd",
        )
    written = np.array([rollout.log_prob for rollout in ended])
    return still_counting(found.sums[same], written[same]), int(same.sum())


def _challenge(
    near: Near, inputs: Mapping[str, Path], config: RefreshStage, context: StageContext
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a challenger and judge it, writing it if it is accepted: metrics of the training, and the decision."""
    import logging

    from inverse_alignment.core.parallel import group
    from inverse_alignment.models.loading import load_reward_model, pick_device, place, save_model
    from inverse_alignment.models.reward_scores import RewardScorer, save_calibration
    from inverse_alignment.reward.rules import closed, open_up
    from inverse_alignment.text.tokenizers import load_tokenizer

    settings, device = config.refresh, pick_device(context.runtime.device)
    warning = SELF_LABELLED if isinstance(settings.rule, ExtremesRule) else None
    if warning and group().rank == 0:
        logging.getLogger(__name__).warning("refresh.rule.type is extremes: %s", warning)
    tokenizer = load_tokenizer(inputs["reward"]).tokenizer
    start = inputs["reward" if settings.start == "last" else "first_reward"]
    model = load_reward_model(start)
    open_up(model, settings.rule, context.seed)
    trained = _train(place(model, device), tokenizer, near, inputs, config, context)
    if group().rank:
        return {}, {}
    model = closed(model, settings.rule, start)
    challenger = _calibrate(RewardScorer(model, tokenizer, config.context, context.runtime.scoring_rows), inputs)
    decided = _judge(near, challenger, inputs, settings, context)
    if decided["accepted"]:
        save_model(place(model, "cpu"), tokenizer, context.out / "model")
        save_calibration(challenger.calibration, context.out / "model")
    return trained, {**decided, "refreshed": True, "pairs_seen": settings.pairs_seen, "warning": warning}


def _train(
    model: Any, tokenizer: Any, near: Near, inputs: Mapping[str, Path], config: RefreshStage, context: StageContext
) -> dict[str, Any]:
    from inverse_alignment.models.trl_training import arguments
    from inverse_alignment.reward.bradley_terry import PairLoss, fit, pair_rows

    settings = config.refresh
    chosen, presented = _presented(near, inputs, settings, context)
    linear = isinstance(settings.rule, PolicyNegativesRule) and settings.rule.loss == "linear"
    ahead = _ahead(tokenizer, near, config, context)
    rows = pair_rows(
        tokenizer,
        presented.pairs,
        chosen.weights.tolist(),
        config.context,
        presented.own.tolist() if linear else (),
    )
    trained = fit(
        model,
        tokenizer,
        rows,
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
        ahead,
    )
    passes = 1 if ahead is None else 2
    return {
        **trained,
        "gradient_steps": passes * trained["steps"],
        "replayed": chosen.replayed,
        "identical_pairs": len(presented.pairs) - len(rows),
        "own_answers": int(presented.own.sum()),
    }


def _presented(
    near: Near, inputs: Mapping[str, Path], config: RefreshConfig, context: StageContext
) -> tuple[TrainingMix, WithOwn]:
    """The pairs of the training in order, with their weights, and which of them hold an answer of the policy."""
    import json

    import numpy as np

    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.reward.own_answers import WithOwn, extremes, policy_negatives
    from inverse_alignment.reward.refresh import mix

    pool = read_split(inputs["preferences"], "train")
    kept = [json.loads(line) for line in (inputs["selection"] / "selection.jsonl").read_text().splitlines()]
    rows, weights = np.array([row["row"] for row in kept]), np.array([row["weight"] for row in kept])
    picked: list[Comparison] = pool
    if isinstance(config.rule, ExtremesRule):
        picked = extremes(near.rollouts, near.scores)
        rows, weights = np.arange(len(picked)), np.ones(len(picked))
    seed = derive_seed("refresh", context.seed)
    chosen = mix(rows, weights, len(pool), config.pairs_seen, config.replay_share, seed)
    pairs = [(picked if mine else pool)[i] for i, mine in zip(chosen.indices, chosen.selected, strict=True)]
    if isinstance(config.rule, PolicyNegativesRule):
        seed = derive_seed("policy negatives", context.seed)
        return chosen, policy_negatives(pairs, chosen.selected, near.rollouts, config.rule.share, seed)
    own = chosen.selected if isinstance(config.rule, ExtremesRule) else np.zeros(len(pairs), dtype=bool)
    return chosen, WithOwn(pairs, own)


def _ahead(tokenizer: Any, near: Near, config: RefreshStage, context: StageContext) -> Any:
    """What a step looks ahead to, with the rule meta."""
    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.reward.bradley_terry import LookAhead
    from inverse_alignment.reward.own_answers import by_prompt
    from inverse_alignment.text.render import encode_answers

    rule = config.refresh.rule
    if not isinstance(rule, MetaRule):
        return None
    answers = [
        encode_answers(tokenizer, [r.prompt for r in group], [r.response for r in group], config.context)
        for group in by_prompt(near.rollouts).values()
    ]
    return LookAhead(answers, rule.rate, rule.prompts, derive_seed("meta", context.seed))


def _calibrate(scorer: Any, inputs: Mapping[str, Path]) -> Any:
    from inverse_alignment.models.reward_scores import CalibratedReward, Calibration

    return CalibratedReward(scorer, Calibration.of(_scored(scorer, _rollouts(inputs["reference_rollouts"]))))


def _judge(
    near: Near, challenger: Any, inputs: Mapping[str, Path], config: RefreshConfig, context: StageContext
) -> dict[str, Any]:
    import math

    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.evaluation.reward_accuracy import score_pairs
    from inverse_alignment.maths.grouping import within_group_variance
    from inverse_alignment.reward.refresh import judge

    variances = {
        f"reward_variance_{when}": within_group_variance(scores, near.keys)
        for when, scores in (("before", near.scores), ("after", _scored(challenger, near.rollouts)))
    }
    known = {name: None if math.isnan(value) else value for name, value in variances.items()}
    pairs = _gate_pairs(near.rollouts, inputs, config.gate, context)
    confidence, resamples = (
        (config.gate.confidence, config.gate.resamples) if isinstance(config.gate, GateOn) else (0.5, 100)
    )
    decision = judge(
        score_pairs(near.incumbent.scorer, pairs),
        score_pairs(challenger.scorer, pairs),
        confidence,
        resamples,
        derive_seed("gate", context.seed),
    )
    return {
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
