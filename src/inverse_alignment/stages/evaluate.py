"""policy + reward models + gold -> what the policy is worth, and whether the reward model still sees it.

An audit model, where there is one, scores the same answers: a reward model that nothing was optimised against.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.generation.settings import GenerationConfig, HfGeneration


class TextWorldGold(Section):
    """The exact reward of the embedded text world; only for its prompts."""

    type: Literal["text_world"] = "text_world"


class NoGold(Section):
    """Nobody knows the true reward: what needs it is reported as null."""

    type: Literal["none"] = "none"


class EvaluationConfig(Section):
    """What is measured after every round."""

    gold: Annotated[TextWorldGold | NoGold, Field(discriminator="type")] = Field(
        TextWorldGold(), description="the reward that is right by construction, if there is one"
    )
    prompts: int = Field(0, ge=0, description="prompts of the test split; 0 for all")
    samples: int = Field(8, ge=1, description="answers per prompt")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    max_new_tokens: int = Field(64, ge=1, description="longest answer in policy tokens")
    generation: GenerationConfig = Field(HfGeneration(), description="who samples: this process, or a vLLM server")
    shown_prompts: int = Field(4, ge=0, description="prompts whose answers the report shows")


class EvaluateStage(Section):
    """Identity of the stage."""

    evaluation: EvaluationConfig
    context: int = Field(description="most tokens of prompt and answer together, in policy tokens")
    reward_context: int = Field(description="the same in the reward model's tokens")


def build(inputs: Mapping[str, Path], config: EvaluateStage, context: StageContext) -> dict[str, Any]:
    """Write `evaluation.json`, `samples.jsonl` (shown prompts) and `curve.jsonl` (scores over the PPO steps)."""
    import json

    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.models.loading import pick_device
    from inverse_alignment.models.reward_scores import load_calibrated

    gold = _gold(config.evaluation)
    test = read_split(inputs["preferences"], "test")
    # before any other model is loaded: a vLLM server may want the device to itself
    fresh = _fresh_rollouts([pair.prompt for pair in test], inputs, config, context)
    device, rows = pick_device(context.runtime.device), context.runtime.scoring_rows
    models = {
        name: load_calibrated(inputs[name], device, config.reward_context, rows)
        for name in ("reward", "audit", "reward_before")
        if name in inputs
    }
    reward, audit = models["reward"], models.get("audit")
    scores = _scores(reward, fresh)
    measured = {**_of_policy(fresh, scores, gold, context.seed), **_offline(test, reward.scorer)}
    measured |= _of_audit(fresh, scores, test, audit, context.seed)
    if "rollouts" in inputs:
        measured |= _of_refresh(inputs["rollouts"], reward, models.get("reward_before"), gold)
    else:
        measured |= {"on_policy_accuracy_before": None, "on_policy_accuracy_after": None}
    (context.out / "evaluation.json").write_text(json.dumps(measured, indent=1, sort_keys=True))
    _write_shown(context.out / "samples.jsonl", fresh, reward, audit, gold, config.evaluation.shown_prompts)
    if "ppo" in inputs:
        _write_curve(inputs["ppo"] / "samples.jsonl", context.out / "curve.jsonl", audit, gold)
    return {name: value for name, value in measured.items() if isinstance(value, (int, float)) and value is not None}


def _gold(config: EvaluationConfig) -> Any:
    if isinstance(config.gold, NoGold):
        return None
    from inverse_alignment.world.gold import gold_reward

    return gold_reward


def _fresh_rollouts(prompts: Any, inputs: Mapping[str, Path], config: EvaluateStage, context: StageContext) -> Any:
    from inverse_alignment.generation.answers import Sampling, choose_prompts
    from inverse_alignment.generation.rollouts import ask, roll_out

    evaluation = config.evaluation
    return roll_out(
        inputs["policy"],
        inputs["reference"],
        ask(choose_prompts(prompts, evaluation.prompts, context.seed), evaluation.samples, context.seed),
        evaluation.generation,
        Sampling(evaluation.max_new_tokens, evaluation.temperature, config.context, context.runtime.generation_rows),
        context,
    )


def _scores(reward: Any, rollouts: Any) -> Any:
    return reward([r.prompt for r in rollouts], [r.response for r in rollouts])


def _of_policy(rollouts: Any, scores: Any, gold: Any, seed: int) -> dict[str, Any]:
    """What the policy is worth on fresh answers to held-out prompts. Prompts are the independent units."""
    import numpy as np

    from inverse_alignment.evaluation.reward_accuracy import gold_rewards, on_policy_pairs
    from inverse_alignment.maths.grouping import within_group_variance

    keys = [r.prompt.key for r in rollouts]
    variance = within_group_variance(scores, keys)
    measured: dict[str, Any] = {
        "gold_reward": None,
        "gold_reward_ci95": None,
        "rm_score": float(scores.mean()),
        "kl_to_sft": float(np.mean([r.kl_estimate for r in rollouts])),
        "response_tokens": float(np.mean([r.tokens for r in rollouts])),
        "ended_share": float(np.mean([r.ended for r in rollouts])),
        "reward_variance": None if np.isnan(variance) else variance,
        "on_policy_accuracy": None,
        "on_policy_pairs": 0,
    }
    if gold is not None:
        truth = gold_rewards(gold, rollouts)
        pairs = on_policy_pairs(rollouts, truth)
        measured |= {
            **_mean_over_prompts("gold_reward", truth, keys, seed, "gold interval"),
            "on_policy_accuracy": pairs.accuracy(scores),
            "on_policy_pairs": len(pairs.better),
        }
    return measured


def _mean_over_prompts(name: str, values: Any, keys: list[str], seed: int, noise: str) -> dict[str, Any]:
    """Mean over prompts of the mean over a prompt's answers, with its 95 % interval by bootstrap over prompts."""
    import torch

    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.maths.bootstrap import mean_interval
    from inverse_alignment.maths.grouping import group_means

    interval = mean_interval(torch.from_numpy(group_means(values, keys)), derive_seed(noise, seed))
    return {name: interval.mean, f"{name}_ci95": [interval.low, interval.high]}


def _of_audit(rollouts: Any, scores: Any, test: Any, audit: Any, seed: int) -> dict[str, Any]:
    """What a reward model that nothing was optimised against says of the same answers; null without one."""
    from inverse_alignment.evaluation.audit import agreement, correlation
    from inverse_alignment.evaluation.reward_accuracy import answer_pairs, score_pairs

    if audit is None:
        names = ("score", "score_ci95", "accuracy", "agreement", "agreement_pairs", "correlation")
        return {f"audit_{name}": None for name in names}
    second, pairs = _scores(audit, rollouts), answer_pairs(rollouts)
    return {
        **_mean_over_prompts("audit_score", second, [r.prompt.key for r in rollouts], seed, "audit interval"),
        "audit_accuracy": float(score_pairs(audit.scorer, test).correct().mean()),
        "audit_agreement": agreement(pairs, scores, second),
        "audit_agreement_pairs": len(pairs.left),
        "audit_correlation": correlation(scores, second),
    }


def _offline(pairs: Any, score: Any) -> dict[str, Any]:
    from inverse_alignment.evaluation.reward_accuracy import by_source, longer_wins, score_pairs

    correct = score_pairs(score, pairs).correct()
    return {
        "offline_accuracy": float(correct.mean()),
        "offline_pairs": len(pairs),
        "longer_wins_accuracy": float(longer_wins(pairs).mean()),
        "offline_by_source": by_source(pairs, correct),
    }


def _of_refresh(folder: Path, reward: Any, before: Any, gold: Any) -> dict[str, Any]:
    """Accuracy on the answers of the policy that was frozen for the refresh, labelled by gold.

    Without a refresh there is only one reward model: its accuracy stands as "before", and "after" is null.
    """
    from inverse_alignment.core.records import Rollout, read_jsonl
    from inverse_alignment.evaluation.reward_accuracy import gold_rewards, on_policy_pairs

    if gold is None:
        return {"on_policy_accuracy_before": None, "on_policy_accuracy_after": None}
    rollouts = read_jsonl(folder / "rollouts.jsonl", Rollout)
    pairs = on_policy_pairs(rollouts, gold_rewards(gold, rollouts))
    prompts, answers = [r.prompt for r in rollouts], [r.response for r in rollouts]
    if before is None:
        return {
            "on_policy_accuracy_before": pairs.accuracy(reward(prompts, answers)),
            "on_policy_accuracy_after": None,
        }
    return {
        "on_policy_accuracy_before": pairs.accuracy(before(prompts, answers)),
        "on_policy_accuracy_after": pairs.accuracy(reward(prompts, answers)),
    }


def _write_shown(path: Path, rollouts: Any, reward: Any, audit: Any, gold: Any, count: int) -> None:
    """The first answer to each of a few prompts, the same prompts for every policy."""
    import json

    shown = [r for r in rollouts if r.sample == 0][:count]
    scores = _scores(reward, shown) if shown else []
    audited = _scores(audit, shown) if audit and shown else [None] * len(shown)
    with path.open("w", encoding="utf-8") as file:
        for rollout, score, second in zip(shown, scores, audited, strict=True):
            row = {
                "prompt": rollout.prompt.text(),
                "response": rollout.response,
                "rm_score": float(score),
                "audit_score": None if second is None else float(second),
                "gold": None if gold is None else gold(rollout.prompt, rollout.response),
            }
            file.write(json.dumps(row, sort_keys=True) + "\n")


def _write_curve(samples: Path, path: Path, audit: Any, gold: Any) -> None:
    """Gold, the scores of both reward models and KL of the answers that PPO kept, averaged per step."""
    import json

    import numpy as np

    from inverse_alignment.core.records import Prompt

    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    prompts, answers = [Prompt.model_validate(row["prompt"]) for row in rows], [row["response"] for row in rows]
    truths = [None if gold is None else gold(prompt, text) for prompt, text in zip(prompts, answers, strict=True)]
    values = {
        "gold": truths,
        "audit_score": list(audit(prompts, answers)) if audit and rows else [None] * len(rows),
        "rm_score": [row["rm_score"] for row in rows],
        "kl": [row["kl"] for row in rows],
    }
    of_step: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        of_step.setdefault(row["step"], []).append(place)
    with path.open("w", encoding="utf-8") as file:
        for step, places in sorted(of_step.items()):
            point = {
                name: None if of_row[places[0]] is None else float(np.mean([of_row[place] for place in places]))
                for name, of_row in values.items()
            }
            file.write(json.dumps({"step": step, **point}, sort_keys=True) + "\n")
