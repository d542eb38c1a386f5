"""policy + preferences -> a policy optimised on them directly, without RL, and where its reference has come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.optimise.direct_settings import Anchored, AvaD, AvaP, Direct, FixedAnchor, Irft, Kto, Selm

if TYPE_CHECKING:
    from inverse_alignment.core.records import Comparison, Prompt, Rollout
    from inverse_alignment.optimise.direct import Learning, Row
    from inverse_alignment.optimise.direct_ava import Believer


class DirectStage(Section):
    """Identity of the stage."""

    method: Direct = Field(discriminator="type")
    context: int = Field(description="most tokens of prompt and answer together")
    reward_context: int = Field(0, description="the same in the reward model's tokens, where it ranks answers")


def build(inputs: Mapping[str, Path], config: DirectStage, context: StageContext) -> dict[str, Any]:
    """Write `policy/`, and `state/` with what the next round goes on from besides.

    That is a reference which is a model of its own and has moved, or what is believed of rewards.
    """
    from inverse_alignment.core.metrics import read_metrics
    from inverse_alignment.models.loading import load_policy, pick_device, place, save_model
    from inverse_alignment.models.trl_training import scheduled
    from inverse_alignment.optimise import direct, direct_ava
    from inverse_alignment.optimise.reference import save_parameters
    from inverse_alignment.text.tokenizers import load_tokenizer

    method, device = config.method, pick_device(context.runtime.device)
    tokenizer = load_tokenizer(inputs["policy"]).tokenizer
    rows = direct.encoded(tokenizer, rows_of(method, inputs, config, context), config.context)
    policy, sft = place(load_policy(inputs["policy"]), device), place(load_policy(inputs["reference"]), device)
    (context.out / "state").mkdir()
    arguments = scheduled(method, device, context)
    kept = context.partial, context.report, context.runtime.checkpoint_seconds
    if isinstance(method, AvaD):
        believer = _believer(policy, sft, method, inputs, context)
        trained, measured = direct_ava.fit(believer, tokenizer, rows, arguments, method, *kept), direct_ava.MEASURED
        direct_ava.save_heads(believer.model.cpu(), context.out / "state" / direct_ava.HEADS_FILE)
    else:
        given = _learning(policy, sft, method, inputs, context)
        trained, measured = direct.fit(given, tokenizer, rows, arguments, method, *kept), direct.MEASURED
        if given.moves_alone:
            save_parameters(given.reference.model, context.out / "state" / direct.REFERENCE_FILE)
    policy = direct.plain(policy, method, lambda: load_policy(inputs["policy"]))
    save_model(place(policy, "cpu"), tokenizer, context.out / "policy")
    last = read_metrics(context.partial / "metrics.jsonl")[-1]
    sizes = {"rows": len(rows), "tokens": shown_tokens(rows, method.epochs)}
    return {**trained, **sizes, **{name: last[name] for name in measured if name in last}}


def _learning(policy: Any, sft: Any, method: Anchored, inputs: Mapping[str, Path], context: StageContext) -> Learning:
    """Policy against reference, which goes on from where an earlier round left it if it is a model of its own."""
    from inverse_alignment.models.loading import load_policy, place
    from inverse_alignment.optimise.direct import REFERENCE_FILE, learning
    from inverse_alignment.optimise.reference import load_parameters

    fixed = isinstance(method.reference, FixedAnchor)
    begins = sft if fixed else place(load_policy(inputs["policy"]), policy.device)
    given = learning(policy, sft, begins, method, context.seed)
    if given.moves_alone and "state" in inputs:
        load_parameters(given.reference.model, inputs["state"] / REFERENCE_FILE)
    return given


def _believer(policy: Any, sft: Any, method: AvaD, inputs: Mapping[str, Path], context: StageContext) -> Believer:
    """A policy and the reward that explains it, which goes on from what an earlier round believed."""
    from inverse_alignment.optimise.direct_ava import HEADS_FILE, believing, load_heads

    given = believing(policy, sft, method, context.seed)
    given.model.to(policy.device)
    if "state" in inputs:
        load_heads(given.model, inputs["state"] / HEADS_FILE)
    return given


def shown_tokens(rows: Sequence[Mapping[str, Any]], epochs: float) -> int:
    """Tokens of answers in all passes, a part of a pass in proportion; rows are from `optimise.direct.encoded`."""
    return round(epochs * sum(len(answer) for row in rows for answer in row["answers"]))


def rows_of(method: Direct, inputs: Mapping[str, Path], config: DirectStage, context: StageContext) -> list[Row]:
    """What a method learns from: the selected pairs or all of the train split, or demonstrations, as it takes them.

    Raises:
        UserError: there is nothing of the kind.
    """
    from inverse_alignment.core.errors import UserError
    from inverse_alignment.core.records import Rollout, read_jsonl
    from inverse_alignment.optimise.direct import Row

    rollouts = read_jsonl(inputs["rollouts"] / "rollouts.jsonl", Rollout) if "rollouts" in inputs else []
    if isinstance(method, Irft):
        rows = _against_demonstrations(inputs, rollouts)
    elif isinstance(method, AvaD) and not isinstance(method, AvaP) and "selection" not in inputs:
        rows = [Row(prompt, (answer,)) for prompt, answer in _shown(inputs)]
    else:
        pairs, weights = _pairs(inputs)
        match method:
            case Kto():
                rows = _one_by_one(pairs, weights, inputs)
            case Selm():
                rows = _ranked(pairs, weights, rollouts, inputs, config, context)
            case AvaD(type="ava_d"):
                rows = [Row(pair.prompt, (pair.chosen,), weight) for pair, weight in zip(pairs, weights, strict=True)]
            case _:
                rows = _plain(pairs, weights)
    if not rows:
        raise UserError(
            f"there is nothing that {method.type} could learn from: no answer of the policy is to a prompt of the data",
            where="rollout.prompts",
            fix="set rollout.prompts to 0, for all prompts",
        )
    return rows


def _pairs(inputs: Mapping[str, Path]) -> tuple[list[Comparison], list[float]]:
    """The selected pairs with their weights, or all of the train split."""
    import json

    from inverse_alignment.data.aggregate import read_split

    pool = read_split(inputs["preferences"], "train")
    if "selection" not in inputs:
        return pool, [pair.weight for pair in pool]
    kept = [json.loads(line) for line in (inputs["selection"] / "selection.jsonl").read_text().splitlines()]
    picked = [pool[row["row"]] for row in kept]
    return picked, [row["weight"] * pair.weight for row, pair in zip(kept, picked, strict=True)]


def _plain(pairs: Sequence[Comparison], weights: Sequence[float]) -> list[Row]:
    from inverse_alignment.optimise.direct import Row

    return [
        Row(pair.prompt, (pair.chosen, pair.rejected), weight, 1.0 if pair.soft_label is None else pair.soft_label)
        for pair, weight in zip(pairs, weights, strict=True)
    ]


def _one_by_one(pairs: Sequence[Comparison], weights: Sequence[float], inputs: Mapping[str, Path]) -> list[Row]:
    """Both answers of every pair, and judgements where no selection was asked for."""
    from inverse_alignment.core.records import Judgement
    from inverse_alignment.data.aggregate import read_others
    from inverse_alignment.optimise.direct import Row

    rows = [
        Row(pair.prompt, (answer,), weight, good=good)
        for pair, weight in zip(pairs, weights, strict=True)
        for answer, good in ((pair.chosen, True), (pair.rejected, False))
    ]
    judged = [] if "selection" in inputs else read_others(inputs["preferences"], Judgement, "train")
    return rows + [Row(one.prompt, (one.response,), one.weight, good=one.label) for one in judged]


def _ranked(
    pairs: Sequence[Comparison],
    weights: Sequence[float],
    rollouts: Sequence[Rollout],
    inputs: Mapping[str, Path],
    config: DirectStage,
    context: StageContext,
) -> list[Row]:
    """Of chosen, rejected and the policy's own first answer the best and the worst, as the reward model has it."""
    import numpy as np

    from inverse_alignment.models.loading import pick_device
    from inverse_alignment.models.reward_scores import load_calibrated
    from inverse_alignment.optimise.direct import Row

    own: dict[str, str] = {}
    for rollout in rollouts:
        own.setdefault(rollout.prompt.key, rollout.response)
    asked = [(pair, weight) for pair, weight in zip(pairs, weights, strict=True) if pair.prompt.key in own]
    if not asked:
        return []
    device, rows = pick_device(context.runtime.device), context.runtime.scoring_rows
    score = load_calibrated(inputs["reward"], device, config.reward_context, rows)
    three = [(pair.chosen, pair.rejected, own[pair.prompt.key]) for pair, _ in asked]
    prompts = [pair.prompt for pair, _ in asked for _ in range(3)]
    scores = score(prompts, [answer for answers in three for answer in answers]).reshape(-1, 3)
    found = []
    for (pair, weight), answers, values in zip(asked, three, scores, strict=True):
        best, worst = int(np.argmax(values)), int(np.argmin(values))
        if answers[best] != answers[worst]:
            found.append(Row(pair.prompt, (answers[best], answers[worst], answers[2]), weight))
    return found


def _against_demonstrations(inputs: Mapping[str, Path], rollouts: Sequence[Rollout]) -> list[Row]:
    """Demonstrations, each with an own answer of the policy."""
    from inverse_alignment.optimise.direct import Row

    given = _shown(inputs)
    own: dict[str, list[str]] = {}
    for rollout in rollouts:
        own.setdefault(rollout.prompt.key, []).append(rollout.response)
    rows, asked = [], dict.fromkeys(own, 0)
    for prompt, answer in given:
        if prompt.key in own:
            mine = own[prompt.key][asked[prompt.key] % len(own[prompt.key])]
            asked[prompt.key] += 1
            if mine != answer:
                rows.append(Row(prompt, (answer, mine)))
    return rows


def _shown(inputs: Mapping[str, Path]) -> list[tuple[Prompt, str]]:
    """Demonstrations, or chosen answers where the data have none."""
    from inverse_alignment.core.records import Demonstration
    from inverse_alignment.data.aggregate import read_others, read_split

    shown = [(one.prompt, one.response) for one in read_others(inputs["preferences"], Demonstration, "train")]
    return shown or [(pair.prompt, pair.chosen) for pair in read_split(inputs["preferences"], "train")]
