"""policy + reward models + gold -> what the policy is worth, and whether the reward model still sees it.

An audit model, where there is one, scores the same answers: a reward model that nothing was optimised against.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import NOT_IDENTITY, Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.evaluation.judge_settings import EndpointJudgeConfig, JudgeConfig, NoJudge
from inverse_alignment.generation.settings import GenerationConfig, HfGeneration
from inverse_alignment.models.caution_settings import CautionConfig, MeanScore

ANSWERS = "answers.jsonl"


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
    judge: JudgeConfig = Field(NoJudge(), description="who compares answers with the SFT policy's, beside gold")
    over_refusal: str | None = Field(
        None,
        description="a file of harmless prompts in the form of XSTest, whose refusals are counted; null: none",
        json_schema_extra=NOT_IDENTITY,
    )
    probe: str | None = Field(
        None,
        description="a file of questions with answers, or of texts, that policies are to predict; null: none",
        json_schema_extra=NOT_IDENTITY,
    )
    probe_rows: int = Field(256, ge=1, description="most rows of the probe")
    caution: CautionConfig = Field(
        MeanScore(), description="by what the best of n answers is picked, if the reward model says how sure it is"
    )
    shown_prompts: int = Field(4, ge=0, description="prompts whose answers the report shows")


class EvaluateStage(Section):
    """Identity of the stage."""

    evaluation: EvaluationConfig
    context: int = Field(description="most tokens of prompt and answer together, in policy tokens")
    reward_context: int = Field(description="the same in the reward model's tokens")


def build(inputs: Mapping[str, Path], config: EvaluateStage, context: StageContext) -> dict[str, Any]:
    """Write `evaluation.json`, `answers.jsonl` with scores, `samples.jsonl` (shown prompts), and of the PPO steps
    `curve.jsonl` and `looks.jsonl`."""
    import json

    from inverse_alignment.data.aggregate import read_split
    from inverse_alignment.models.loading import pick_device
    from inverse_alignment.models.reward_scores import conservative, load_calibrated

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
    estimate = reward.estimate([r.prompt for r in fresh], [r.response for r in fresh])
    scores, picks = estimate.mean, conservative(estimate, config.evaluation.caution)
    answers = _scored(fresh, scores, audit, gold)
    unit = reward.calibration.std
    measured = {**_of_policy(fresh, scores, unit, gold, context.seed), **_offline(test, reward.scorer)}
    measured |= _of_audit(fresh, answers, test, audit, context.seed)
    measured["reward_disagreement"] = None if estimate.std is None else float(estimate.std.mean())
    measured |= _outliers(inputs["reward"], reward, fresh)
    measured |= _mismatch(answers, picks, _start_answers(inputs, answers), context.seed)
    measured |= _by_judge(fresh, _start_answers(inputs, answers), config.evaluation.judge, context.seed)
    measured |= _off_objective(inputs, config, context)
    if "rollouts" in inputs:
        measured |= _of_refresh(inputs["rollouts"], reward, models.get("reward_before"), gold)
    else:
        measured |= {"on_policy_accuracy_before": None, "on_policy_accuracy_after": None}
    (context.out / "evaluation.json").write_text(json.dumps(measured, indent=1, sort_keys=True))
    write_rows(context.out / ANSWERS, answers.rows())
    _write_shown(context.out / "samples.jsonl", fresh, reward, audit, gold, config.evaluation.shown_prompts)
    if "ppo" in inputs:
        _write_curve(inputs["ppo"] / "samples.jsonl", context.out / "curve.jsonl", audit, gold)
        _write_looks(inputs["ppo"] / "looks.jsonl", context.out / "looks.jsonl", gold)
    return {name: value for name, value in measured.items() if isinstance(value, (int, float)) and value is not None}


def write_rows(path: Path, rows: Any) -> None:
    """JSON objects, one a line."""
    import json

    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(row, sort_keys=True)}\n" for row in rows)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _scored(rollouts: Any, scores: Any, audit: Any, gold: Any) -> Any:
    import numpy as np

    from inverse_alignment.evaluation.mismatch import ScoredAnswers
    from inverse_alignment.evaluation.reward_accuracy import gold_rewards

    return ScoredAnswers(
        [r.prompt.key for r in rollouts],
        [r.response for r in rollouts],
        np.array([r.tokens for r in rollouts], dtype=float),
        scores,
        _scores(audit, rollouts) if audit else None,
        gold_rewards(gold, rollouts) if gold else None,
    )


def _start_answers(inputs: Mapping[str, Path], mine: Any) -> Any:
    """The SFT policy's answers to the same prompts, as its own evaluation scored them; else these are its own."""
    from inverse_alignment.evaluation.mismatch import ScoredAnswers

    return ScoredAnswers.of_rows(_read_rows(inputs["start"] / ANSWERS)) if "start" in inputs else mine


def _mismatch(answers: Any, picks: Any, start: Any, seed: int) -> dict[str, Any]:
    """Where the proxy and what it is held against part; null without gold and audit model.

    Args:
        picks: (m,) scores by which the best of n is picked.
    """
    from inverse_alignment.evaluation import mismatch

    wins, like = None, None
    if answers.truth is not None:
        wins = mismatch.win_shares(answers.truth, answers.keys, start.truth, start.keys)
        like = mismatch.like_length_win_shares(answers, start)
    return {
        **mismatch.surface(answers),
        "best_of_n": mismatch.best_of_n_probe(answers, picks),
        "proxy_truth_mmd": None if answers.truth is None else mismatch.proxy_truth_mmd(answers, start),
        **_share("win_rate", wins, seed),
        **_share("like_length_win_rate", like, seed),
        "like_length_groups": 0 if like is None else len(like),
    }


def _by_judge(rollouts: Any, start: Any, config: NoJudge | EndpointJudgeConfig, seed: int) -> dict[str, Any]:
    """How often a judge prefers the first answer to a prompt to the SFT policy's first; null without a judge."""
    from inverse_alignment.evaluation.judges import EndpointJudge, judged

    if isinstance(config, NoJudge):
        return {"judge_win_rate": None, "judge_win_rate_ci95": None, "judge_prompts": 0, "judge_consistent_share": None}
    other = dict(zip(reversed(start.keys), reversed(start.texts), strict=True))  # the first answer stays
    mine = [r for r in rollouts if r.sample == 0 and r.prompt.key in other][: config.prompts]
    judge = EndpointJudge(config.url, config.model, config.key_variable)
    prompts = [r.prompt for r in mine]
    found = judged(judge, prompts, [r.response for r in mine], [other[prompt.key] for prompt in prompts])
    return {
        **_share("judge_win_rate", found.first_wins, seed),
        "judge_prompts": len(mine),
        "judge_consistent_share": float(found.consistent.mean()),
    }


def _share(name: str, shares: Any, seed: int) -> dict[str, Any]:
    """Mean over prompts with its interval; null without prompts."""
    import torch

    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.maths.bootstrap import mean_interval

    if shares is None or not len(shares):
        return {name: None, f"{name}_ci95": None}
    interval = mean_interval(torch.from_numpy(shares), derive_seed(f"{name} interval", seed))
    return {name: interval.mean, f"{name}_ci95": [interval.low, interval.high]}


def _off_objective(inputs: Mapping[str, Path], config: EvaluateStage, context: StageContext) -> dict[str, Any]:
    """Refusals of harmless prompts, and nats per token of given answers; null without a file."""
    from inverse_alignment.evaluation.off_objective import harmless_prompts, probe_texts
    from inverse_alignment.text.phrases import refuses

    measured: dict[str, Any] = dict.fromkeys(
        ("over_refusal_share", "over_refusal_prompts", "probe_nll", "probe_nll_sft")
    )
    if "over_refusal" in inputs:
        harmless = harmless_prompts(inputs["over_refusal"])
        once = config.model_copy(
            update={"evaluation": config.evaluation.model_copy(update={"prompts": 0, "samples": 1})}
        )
        answers = _fresh_rollouts(harmless, inputs, once, context)
        refused = [refuses(rollout.response) for rollout in answers]
        measured |= {"over_refusal_share": sum(refused) / len(refused), "over_refusal_prompts": len(refused)}
    if "probe" in inputs:
        asked = probe_texts(inputs["probe"], config.evaluation.probe_rows)
        for name, policy in (("probe_nll", "policy"), ("probe_nll_sft", "reference")):
            measured[name] = _nats_per_token(inputs[policy], asked, config.context, context)
    return measured


def _nats_per_token(policy: Path, asked: Any, most: int, context: StageContext) -> float:
    """Cross entropy of given answers under a policy; all tokens weigh alike."""
    from inverse_alignment.models.answer_log_probs import answer_log_probs
    from inverse_alignment.models.loading import load_policy, pick_device, place
    from inverse_alignment.text.tokenizers import load_tokenizer

    model = place(load_policy(policy), pick_device(context.runtime.device)).eval()
    prompts, answers = asked
    tokenizer, tokens = load_tokenizer(policy).tokenizer, context.runtime.training_tokens
    found = answer_log_probs(model, tokenizer, prompts, answers, most, tokens)
    return float(-found.sums.sum() / found.counts.sum())


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


def _outliers(folder: Path, reward: Any, rollouts: Any) -> dict[str, float]:
    """How many answers are unlike the SFT policy's to a reward model with a bottleneck; nothing without one."""
    from inverse_alignment.models.bottleneck import Bottleneck

    latent = Bottleneck.load(folder)
    if latent is None:
        return {}
    prompts, answers = [r.prompt for r in rollouts], [r.response for r in rollouts]
    return {"outlier_share": latent.outlier_share(reward.classifier, prompts, answers)}


def _scores(reward: Any, rollouts: Any) -> Any:
    return reward([r.prompt for r in rollouts], [r.response for r in rollouts])


def _of_policy(rollouts: Any, scores: Any, unit: float, gold: Any, seed: int) -> dict[str, Any]:
    """What the policy is worth on fresh answers to held-out prompts. Prompts are the independent units.

    `unit` is one standardised score in the model's own, which is nats of preference.
    """
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
        **_calibration("on_policy", np.zeros(0)),
    }
    if gold is not None:
        truth = gold_rewards(gold, rollouts)
        pairs = on_policy_pairs(rollouts, truth)
        measured |= {
            **_mean_over_prompts("gold_reward", truth, keys, seed, "gold interval"),
            "on_policy_accuracy": pairs.accuracy(scores),
            "on_policy_pairs": len(pairs.better),
            **_calibration("on_policy", unit * (scores[pairs.better] - scores[pairs.worse])),
        }
    return measured


def _calibration(name: str, gaps: Any) -> dict[str, float | None]:
    """How far a reward model is from being as often right as it says; null without pairs, or where it knows nothing."""
    from inverse_alignment.evaluation.calibration import calibration_of

    found = calibration_of(gaps) if len(gaps) else None
    return {
        f"{name}_ece": found.ece if found else None,
        f"{name}_temperature": found.temperature if found else None,
    }


def _mean_over_prompts(name: str, values: Any, keys: list[str], seed: int, noise: str) -> dict[str, Any]:
    """Mean over prompts of the mean over a prompt's answers, with its 95 % interval by bootstrap over prompts."""
    import torch

    from inverse_alignment.core.seeding import derive_seed
    from inverse_alignment.maths.bootstrap import mean_interval
    from inverse_alignment.maths.grouping import group_means

    interval = mean_interval(torch.from_numpy(group_means(values, keys)), derive_seed(noise, seed))
    return {name: interval.mean, f"{name}_ci95": [interval.low, interval.high]}


def _of_audit(rollouts: Any, answers: Any, test: Any, audit: Any, seed: int) -> dict[str, Any]:
    """What a reward model that nothing was optimised against says of the same answers; null without one."""
    from inverse_alignment.evaluation.audit import agreement, correlation
    from inverse_alignment.evaluation.reward_accuracy import answer_pairs, score_pairs

    if audit is None:
        names = ("score", "score_ci95", "accuracy", "agreement", "agreement_pairs", "correlation")
        return {f"audit_{name}": None for name in names}
    scores, second, pairs = answers.rm_score, answers.audit_score, answer_pairs(rollouts)
    return {
        **_mean_over_prompts("audit_score", second, answers.keys, seed, "audit interval"),
        "audit_accuracy": float(score_pairs(audit.scorer, test).correct().mean()),
        "audit_agreement": agreement(pairs, scores, second),
        "audit_agreement_pairs": len(pairs.left),
        "audit_correlation": correlation(scores, second),
    }


def _offline(pairs: Any, score: Any) -> dict[str, Any]:
    from inverse_alignment.evaluation.reward_accuracy import by_source, longer_wins, score_pairs

    scores = score_pairs(score, pairs)
    correct = scores.correct()
    return {
        **_calibration("offline", scores.chosen - scores.rejected),
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


def _write_looks(looks: Path, path: Path, gold: Any) -> None:
    """The answers of PPO's looks by step: mean scores, and with gold the reward model's accuracy on their pairs."""
    import numpy as np

    from inverse_alignment.core.records import Prompt
    from inverse_alignment.evaluation.reward_accuracy import accuracy_on

    of_step: dict[int, list[dict[str, Any]]] = {}
    for row in _read_rows(looks):
        of_step.setdefault(row["step"], []).append(row)

    def mean(rows: list[dict[str, Any]], name: str) -> float | None:
        return None if rows[0][name] is None else float(np.mean([row[name] for row in rows]))

    def point(step: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        found = {"step": step, "rm_score": mean(rows, "rm_score"), "audit_score": mean(rows, "audit_score")}
        if gold is None:
            return {**found, "gold": None, "on_policy_accuracy": None}
        prompts = [Prompt.model_validate(row["prompt"]) for row in rows]
        truth = np.array([gold(prompt, row["response"]) for prompt, row in zip(prompts, rows, strict=True)])
        scores = np.array([row["rm_score"] for row in rows])
        keys, texts = [prompt.key for prompt in prompts], [row["response"] for row in rows]
        return {**found, "gold": float(truth.mean()), "on_policy_accuracy": accuracy_on(keys, texts, truth, scores)}

    write_rows(path, [point(step, rows) for step, rows in sorted(of_step.items())])
