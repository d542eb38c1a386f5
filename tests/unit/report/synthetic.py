"""Artifacts as the stages write them, with made-up but plausible numbers, for the report's tests."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCES = ("expert", "coach", "manual", "lawyer", "salesman", "novice")
PROMPTS = (
    "My bicycle chain keeps slipping off on hills. What can I do?",
    "How do I repot a plant without hurting its roots?",
    "The bread I bake comes out dense. What should I change?",
    "How can I fall asleep earlier on work days?",
)
ATTACK = "<script>alert('policy')</script> & $x^2$ <img src=http://evil.example/x.png>"
STEPS = 24
ARMS = ("none", "random", "similarity")
GAIN = {"none": 0.55, "random": 0.85, "similarity": 1.15}


def make(
    root: Path,
    arms: tuple[str, ...] = ARMS,
    rounds: int = 3,
    seeds: tuple[int, ...] = (0,),
    gold: bool = True,
    audit: bool = False,
    sources: tuple[str, ...] = SOURCES,
) -> dict[str, Path]:
    """Artifact folders by the names the compare stage is given them by."""
    writer = _Writer(root, gold, audit, sources)
    writer.artifact("preferences", "preferences", {"statistics.json": _statistics(gold, sources)})
    for seed in seeds:
        draw = random.Random(f"start {seed}")
        writer.artifact(f"sft.s{seed}", "sft", {})
        writer.artifact(f"reward.s{seed}", "reward", {})
        if audit:
            writer.artifact(f"audit.s{seed}", "reward", {})
        start = writer.evaluation(draw, gold_reward=0.2 + draw.gauss(0, 0.05), kl=0.0, score=0.0, accuracy=0.74)
        writer.artifact(
            f"start.s{seed}",
            "evaluation",
            {
                "evaluation.json": start,
                "samples.jsonl": writer.samples(draw, "SFT", 0),
                "answers.jsonl": _answers(draw, start),
            },
        )
        for arm in arms:
            for number in range(1, rounds + 1):
                writer.round(arm, seed, number)
    return writer.folders


class _Writer:
    def __init__(self, root: Path, gold: bool, audit: bool, sources: tuple[str, ...]) -> None:
        self.root, self.gold, self.audit, self.sources = root, gold, audit, sources
        self.folders: dict[str, Path] = {}

    def artifact(self, name: str, kind: str, files: Mapping[str, Any]) -> None:
        folder = self.root / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            text = json.dumps(content) if file.endswith(".json") else "".join(f"{json.dumps(row)}\n" for row in content)
            (folder / file).write_text(text)
        record = {
            "schema": 1,
            "kind": kind,
            "fingerprint": _hex(f"fingerprint {name}")[:32],
            "digest": _hex(f"digest {name}"),
            "parts": {},
            "files": {},
            "identity": {"stage": kind, "config": {}, "seed": 0, "inputs": {"preferences": _hex("digest preferences")}},
            "metrics": {},
        }
        (folder / "artifact.json").write_text(json.dumps(record))
        self.folders[name] = folder

    def round(self, arm: str, seed: int, number: int) -> None:
        draw = random.Random(f"{arm} {seed} {number}")
        name, refreshes = f"{arm}.s{seed}.r{number}", arm != "none"
        level = GAIN.get(arm, 1.0)
        steps = range((number - 1) * STEPS + 1, number * STEPS + 1)
        if refreshes:
            self.artifact(f"select.{name}", "selection", {"audit.json": _audit(draw, arm, number, self.sources)})
            self.artifact(f"refresh.{name}", "reward", {"gate.json": _gate(draw, arm, number)})
        training = [
            {
                "step": step,
                "rm_score": _proxy(step) + draw.gauss(0, 0.1),
                "kl": _kl(step, arm) + draw.gauss(0, 0.15),
                "kl_coefficient": 0.05,
                "entropy": 2.2 - 0.012 * step + draw.gauss(0, 0.03),
                "policy_loss": draw.gauss(0, 0.01),
                "value_loss": None if step == 2 else 0.4,
                "tokens": 34 + 0.15 * step + draw.gauss(0, 1),
                "ended_share": 0.97,
            }
            for step in steps
        ]
        alarms = [{"name": "length", "step": steps[-1], "text": "Answers grew by half."}] if arm == "none" else []
        self.artifact(f"ppo.{name}", "ppo", {"metrics.jsonl": training, "alarms.json": {"alarms": alarms}})
        end = number * STEPS
        accuracy = 0.74 - 0.04 * number + (0.03 * number if arm == "similarity" else 0.015 * number if refreshes else 0)
        evaluation = self.evaluation(
            draw,
            gold_reward=_gold(end, level, arm) + draw.gauss(0, 0.05),
            kl=_kl(end, arm),
            score=_proxy(end),
            accuracy=accuracy,
            audited=_audited(end, arm),
        )
        if self.gold:
            evaluation["on_policy_accuracy_before"] = accuracy - 0.005
            evaluation["on_policy_accuracy_after"] = accuracy + 0.03 if refreshes else None
        curve = [
            {
                "step": step,
                "gold": _gold(step, level, arm) + draw.gauss(0, 0.05) if self.gold else None,
                "rm_score": _proxy(step) + draw.gauss(0, 0.04),
                "audit_score": _audited(step, arm) if self.audit else None,
                "kl": _kl(step, arm),
            }
            for step in steps
            if step % 4 == 0
        ]
        files = {
            "evaluation.json": evaluation,
            "samples.jsonl": self.samples(draw, arm, number),
            "answers.jsonl": _answers(draw, evaluation),
            "curve.jsonl": curve,
        }
        self.artifact(f"evaluate.{name}", "evaluation", files)

    def evaluation(
        self, draw: random.Random, *, gold_reward: float, kl: float, score: float, accuracy: float, audited: float = 0.0
    ) -> dict[str, Any]:
        gold, audit = self.gold, audited if self.audit else None
        return {
            "gold_reward": gold_reward if gold else None,
            "gold_reward_ci95": [gold_reward - 0.09, gold_reward + 0.09] if gold else None,
            "rm_score": score,
            "audit_score": audit,
            "audit_score_ci95": None if audit is None else [audit - 0.1, audit + 0.1],
            "audit_accuracy": 0.64 if self.audit else None,
            "audit_agreement": 0.78 - 0.012 * kl if self.audit else None,
            "audit_agreement_pairs": 900 if self.audit else None,
            "audit_correlation": 0.71 - 0.02 * kl if self.audit else None,
            "kl_to_sft": kl,
            "response_tokens": 34 + kl,
            "ended_share": 0.96,
            "offline_accuracy": 0.66 + draw.gauss(0, 0.01),
            "offline_pairs": 1234,
            "longer_wins_accuracy": 0.55,
            "offline_by_source": {
                source: {
                    "pairs": 20 + 13 * (i % 25),
                    "rm_accuracy": 0.55 + 0.03 * (i % 7) + draw.gauss(0, 0.02),
                    "longer_wins": 0.62 - 0.03 * (i % 5),
                }
                for i, source in enumerate(self.sources)
            },
            "on_policy_accuracy": accuracy + draw.gauss(0, 0.008) if gold else None,
            "on_policy_pairs": 512 if gold else 0,
            "on_policy_accuracy_before": None,
            "on_policy_accuracy_after": None,
            "reward_variance": 0.5 + 0.02 * kl + draw.gauss(0, 0.03),
            "win_rate": 0.5 + 0.03 * kl if gold or self.audit else None,
            "like_length_win_rate": 0.5 + 0.02 * kl if gold or self.audit else None,
            "proxy_truth_mmd": 0.01 * kl if gold or self.audit else None,
            "offline_ece": 0.05,
            "on_policy_ece": 0.06 + 0.01 * kl if gold else None,
            "length_correlation": 0.2 + 0.01 * kl,
            "refusal_share": 0.0,
            "over_refusal_share": 0.01 * kl if gold else None,
            "probe_nll": 3.2 + 0.01 * kl if gold else None,
            "probe_nll_sft": 3.2 if gold else None,
        }

    def samples(self, draw: random.Random, arm: str, number: int) -> list[dict[str, Any]]:
        texts = (
            f"Happy to help! Check the derailleur hanger first, then clean and oil the chain. ({arm}, round {number})",
            "Water it the day before, loosen the root ball and use a larger pot.\n\nKeep it out of the sun for a week.",
            "",
            ATTACK,
        )
        return [
            {
                "prompt": prompt,
                "response": text,
                "gold": draw.gauss(1, 0.5) if self.gold else None,
                "rm_score": draw.gauss(0.8, 0.4),
                "audit_score": draw.gauss(0.5, 0.4) if self.audit else None,
            }
            for prompt, text in zip(PROMPTS, texts, strict=True)
        ]


def _answers(draw: random.Random, evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Two answers to each of 24 prompts, scattered around what the policy is worth."""
    means = {name: evaluation[field] for name, field in (("gold", "gold_reward"), ("audit_score", "audit_score"))}
    return [
        {
            "prompt_key": _hex(f"prompt {prompt}"),
            "response": "Oil the chain.",
            "tokens": 12,
            "rm_score": 0.3,
            **{name: None if mean is None else mean + draw.gauss(0, 0.4) for name, mean in means.items()},
        }
        for prompt in range(24)
        for _ in range(2)
    ]


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _kl(step: int, arm: str) -> float:
    return (9.5 if arm == "none" else 7.5) * (step / 72) ** 0.9


def _proxy(step: int) -> float:
    return 1.9 * (1 - math.exp(-step / 30))


def _audited(step: int, arm: str) -> float:
    """Rises with the proxy, and later falls where nothing is refreshed."""
    return 0.6 * _proxy(step) - (0.025 * max(0, step - 32) if arm == "none" else 0)


def _gold(step: int, level: float, arm: str) -> float:
    rise = 0.2 + level * (1 - math.exp(-step / 18))
    return rise - (0.012 * max(0, step - 32) if arm == "none" else 0)


def _audit(draw: random.Random, arm: str, number: int, sources: tuple[str, ...]) -> dict[str, Any]:
    pool = {source: 400 - 45 * (i % 8) for i, source in enumerate(sources)}
    lean = 0.35 * number if arm == "similarity" else 0.0
    tilts = [math.exp(lean * (2.5 - i % 6) / 2.5 + draw.gauss(0, 0.04)) for i in range(len(sources))]
    weights = [count * tilt for count, tilt in zip(pool.values(), tilts, strict=True)]
    selected = {source: round(600 * weight / sum(weights)) for source, weight in zip(sources, weights, strict=True)}
    return {
        "pool": sum(pool.values()),
        "selected": sum(selected.values()),
        "selected_by_source": selected,
        "pool_by_source": pool,
        "selected_by_annotator": {"anna": 300, "bo": 300},
        "pool_by_annotator": {"anna": 900, "bo": 825},
        "mean_score": 0.41 if arm == "similarity" else None,
        "mean_pair_similarity": 0.3,
    }


def _gate(draw: random.Random, arm: str, number: int) -> dict[str, Any]:
    gain = (0.03 if arm == "similarity" else 0.004) + draw.gauss(0, 0.008)
    low = gain - 0.012
    return {
        "accepted": low > 0,
        "gate": "paired",
        "gain": gain,
        "low": low,
        "detectable": 0.015,
        "pairs": 180,
        "incumbent_accuracy": 0.66,
        "challenger_accuracy": 0.66 + gain,
        "reward_variance_before": 0.5,
        "reward_variance_after": 0.55,
        "pairs_seen": 900,
    }


def _statistics(gold: bool, sources: tuple[str, ...]) -> dict[str, Any]:
    """The shape of `inverse_alignment.data.statistics.describe`."""

    def summary(pairs: int) -> dict[str, Any]:
        parts = (("train", 0.7), ("validation", 0.1), ("gate", 0.1), ("test", 0.1), ("audit", 0.0))
        return {
            "rows": pairs + 12,
            "pairs": pairs,
            "prompts": pairs // 3,
            "dropped": {"duplicate": 9, "identical answers": 3},
            "ties": 0,
            "kept_after_tokenisation": 0.9983,
            "truncated": 2,
            "splits": {split: {"pairs": int(pairs * n), "prompts": int(pairs * n / 3)} for split, n in parts},
            "chosen_words": {"mean": 31.46, "median": 30.0, "p95": 61.0},
            "rejected_words": {"mean": 29.81, "median": 28.0, "p95": 60.0},
            "longer_wins": 0.552,
            "licences": {"Apache-2.0": pairs},
        }

    policies = {name: {**summary(400 - 5 * i), "wins": 220, "losses": 180} for i, name in enumerate(sources)}
    return {
        **summary(1725),
        "contradictions": {
            "questions": 4,
            "within_annotator": 1,
            "across_datasets": 0,
            "agreement": [{"one": "anna", "other": "bo", "agree": 31, "disagree": 4}],
        },
        "datasets": {name: summary(1725) for name in (("world.text",) if gold else ("hh-rlhf", "alpaca_eval"))},
        "policies": policies,
        "annotators": {name: summary(575) for name in ("anna", "bo", "chi")},
        "others": {},
    }
