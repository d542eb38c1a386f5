"""policy + reward models + gold -> what the policy is worth, and whether the reward model still sees it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext


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
    shown_prompts: int = Field(4, ge=0, description="prompts whose answers the report shows")


class EvaluateStage(Section):
    """Identity of the stage."""

    evaluation: EvaluationConfig
    context: int = Field(description="most tokens of prompt and answer together, in policy tokens")
    reward_context: int = Field(description="the same in the reward model's tokens")


def build(inputs: Mapping[str, Path], config: EvaluateStage, context: StageContext) -> dict[str, Any]:
    """Write `evaluation.json`, `samples.jsonl` (shown prompts) and `curve.jsonl` (gold over the PPO steps)."""
    import json

    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.models.loading import pick_device
    from inverse_alignment.models.reward_scores import load_calibrated

    device, rows = pick_device(context.runtime.device), context.runtime.scoring_rows
    gold = _gold(config.evaluation)
    reward = load_calibrated(inputs["reward"], device, config.reward_context, rows)
    test = read_split(inputs["preferences"], "test")
    fresh = _fresh_rollouts([pair.prompt for pair in test], inputs, config, context)
    measured = {**_of_policy(fresh, reward, gold, context.seed), **_offline(test, reward.scorer)}
    if "rollouts" in inputs:
        before = (
            load_calibrated(inputs["reward_before"], device, config.reward_context, rows)
            if "reward_before" in inputs
            else None
        )
        measured |= _of_refresh(inputs["rollouts"], reward, before, gold)
    else:
        measured |= {"on_policy_accuracy_before": None, "on_policy_accuracy_after": None}
    (context.out / "evaluation.json").write_text(json.dumps(measured, indent=1, sort_keys=True))
    _write_shown(context.out / "samples.jsonl", fresh, reward, gold, config.evaluation.shown_prompts)
    if "ppo" in inputs:
        _write_curve(inputs["ppo"] / "samples.jsonl", context.out / "curve.jsonl", gold)
    return {name: value for name, value in measured.items() if isinstance(value, (int, float)) and value is not None}


def _gold(config: EvaluationConfig) -> Any:
    if isinstance(config.gold, NoGold):
        return None
    from inverse_alignment.world.gold import gold_reward

    return gold_reward


def _fresh_rollouts(prompts: Any, inputs: Mapping[str, Path], config: EvaluateStage, context: StageContext) -> Any:
    from inverse_alignment.generation.answers import Sampling, choose_prompts, roll_out
    from inverse_alignment.models.loading import load_policy, pick_device, place
    from inverse_alignment.text.tokenizers import load_tokenizer

    device = pick_device(context.runtime.device)
    evaluation = config.evaluation
    return roll_out(
        place(load_policy(inputs["policy"]), device).eval(),
        place(load_policy(inputs["reference"]), device).eval(),
        load_tokenizer(inputs["policy"]).tokenizer,
        choose_prompts(prompts, evaluation.prompts, context.seed),
        evaluation.samples,
        context.seed,
        Sampling(evaluation.max_new_tokens, evaluation.temperature, config.context, context.runtime.generation_rows),
        context.report.progress,
    )


def _of_policy(rollouts: Any, reward: Any, gold: Any, seed: int) -> dict[str, Any]:
    """What the policy is worth on fresh answers to held-out prompts. Prompts are the independent units."""
    import numpy as np
    import torch

    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.evaluation.reward_accuracy import gold_rewards, on_policy_pairs
    from inverse_alignment.maths.bootstrap import mean_interval
    from inverse_alignment.maths.grouping import group_means, within_group_variance

    scores = reward([r.prompt for r in rollouts], [r.response for r in rollouts])
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
        interval = mean_interval(torch.from_numpy(group_means(truth, keys)), derive_seed("gold interval", seed))
        pairs = on_policy_pairs(rollouts, truth)
        measured |= {
            "gold_reward": interval.mean,
            "gold_reward_ci95": [interval.low, interval.high],
            "on_policy_accuracy": pairs.accuracy(scores),
            "on_policy_pairs": len(pairs.better),
        }
    return measured


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


def _write_shown(path: Path, rollouts: Any, reward: Any, gold: Any, count: int) -> None:
    """The first answer to each of a few prompts, the same prompts for every policy."""
    import json

    shown = [r for r in rollouts if r.sample == 0][:count]
    scores = reward([r.prompt for r in shown], [r.response for r in shown]) if shown else []
    with path.open("w", encoding="utf-8") as file:
        for rollout, score in zip(shown, scores, strict=True):
            row = {"prompt": rollout.prompt.text(), "response": rollout.response, "rm_score": float(score)}
            truth = None if gold is None else gold(rollout.prompt, rollout.response)
            file.write(json.dumps({**row, "gold": truth}, sort_keys=True) + "\n")


def _write_curve(samples: Path, path: Path, gold: Any) -> None:
    """Gold, reward-model score and KL of the answers that PPO kept, averaged per step."""
    import json

    import numpy as np

    from inverse_alignment.core.records import Prompt

    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in samples.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_step.setdefault(row["step"], []).append(row)
    with path.open("w", encoding="utf-8") as file:
        for step, rows in sorted(by_step.items()):
            truths = [] if gold is None else [gold(Prompt.model_validate(r["prompt"]), r["response"]) for r in rows]
            point = {
                "rm_score": float(np.mean([r["rm_score"] for r in rows])),
                "kl": float(np.mean([r["kl"] for r in rows])),
            }
            point_gold = float(np.mean(truths)) if truths else None
            file.write(json.dumps({"step": step, "gold": point_gold, **point}, sort_keys=True) + "\n")
