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
    root: Path, arms: tuple[str, ...] = ARMS, rounds: int = 3, seeds: tuple[int, ...] = (0,), gold: bool = True
) -> dict[str, Path]:
    """Artifact folders by the names the compare stage is given them by."""
    writer = _Writer(root, gold)
    writer.artifact("preferences", "preferences", {"statistics.json": _statistics(gold)})
    for seed in seeds:
        draw = random.Random(f"start {seed}")
        writer.artifact(f"sft.s{seed}", "sft", {})
        writer.artifact(f"reward.s{seed}", "reward", {})
        start = _evaluation(draw, gold, gold_reward=0.2 + draw.gauss(0, 0.05), kl=0.0, score=0.0, accuracy=0.74)
        writer.artifact(
            f"start.s{seed}", "evaluation", {"evaluation.json": start, "samples.jsonl": _samples(draw, gold, "SFT", 0)}
        )
        for arm in arms:
            for number in range(1, rounds + 1):
                writer.round(arm, seed, number)
    return writer.folders


class _Writer:
    def __init__(self, root: Path, gold: bool) -> None:
        self.root, self.gold = root, gold
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
            self.artifact(f"select.{name}", "selection", {"audit.json": _audit(draw, arm, number)})
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
        self.artifact(f"ppo.{name}", "ppo", {"metrics.jsonl": training})
        end = number * STEPS
        accuracy = 0.74 - 0.04 * number + (0.03 * number if arm == "similarity" else 0.015 * number if refreshes else 0)
        evaluation = _evaluation(
            draw,
            self.gold,
            gold_reward=_gold(end, level, arm) + draw.gauss(0, 0.05),
            kl=_kl(end, arm),
            score=_proxy(end),
            accuracy=accuracy,
        )
        if self.gold:
            evaluation["on_policy_accuracy_before"] = accuracy - 0.005
            evaluation["on_policy_accuracy_after"] = accuracy + 0.03 if refreshes else None
        curve = [
            {
                "step": step,
                "gold": _gold(step, level, arm) + draw.gauss(0, 0.05) if self.gold else None,
                "rm_score": _proxy(step) + draw.gauss(0, 0.04),
                "kl": _kl(step, arm),
            }
            for step in steps
            if step % 4 == 0
        ]
        files = {
            "evaluation.json": evaluation,
            "samples.jsonl": _samples(draw, self.gold, arm, number),
            "curve.jsonl": curve,
        }
        self.artifact(f"evaluate.{name}", "evaluation", files)


def _hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _kl(step: int, arm: str) -> float:
    return (9.5 if arm == "none" else 7.5) * (step / 72) ** 0.9


def _proxy(step: int) -> float:
    return 1.9 * (1 - math.exp(-step / 30))


def _gold(step: int, level: float, arm: str) -> float:
    rise = 0.2 + level * (1 - math.exp(-step / 18))
    return rise - (0.012 * max(0, step - 32) if arm == "none" else 0)


def _evaluation(
    draw: random.Random, gold: bool, *, gold_reward: float, kl: float, score: float, accuracy: float
) -> dict[str, Any]:
    return {
        "gold_reward": gold_reward if gold else None,
        "gold_reward_ci95": [gold_reward - 0.09, gold_reward + 0.09] if gold else None,
        "rm_score": score,
        "kl_to_sft": kl,
        "response_tokens": 34 + kl,
        "ended_share": 0.96,
        "offline_accuracy": 0.66 + draw.gauss(0, 0.01),
        "longer_wins_accuracy": 0.55,
        "offline_by_source": {
            source: {
                "pairs": 40 + 13 * i,
                "rm_accuracy": 0.55 + 0.03 * i + draw.gauss(0, 0.02),
                "longer_wins": 0.62 - 0.03 * i,
            }
            for i, source in enumerate(SOURCES)
        },
        "on_policy_accuracy": accuracy + draw.gauss(0, 0.008) if gold else None,
        "on_policy_pairs": 512 if gold else 0,
        "on_policy_accuracy_before": None,
        "on_policy_accuracy_after": None,
        "reward_variance": 0.5 + 0.02 * kl + draw.gauss(0, 0.03),
    }


def _samples(draw: random.Random, gold: bool, arm: str, number: int) -> list[dict[str, Any]]:
    texts = (
        f"Happy to help! Check the derailleur hanger first, then clean and oil the chain. ({arm}, round {number})",
        "Water it the day before, loosen the root ball and use a larger pot.\n\nKeep it out of the sun for a week.",
        "",
        ATTACK,
    )
    return [
        {"prompt": p, "response": t, "gold": draw.gauss(1, 0.5) if gold else None, "rm_score": draw.gauss(0.8, 0.4)}
        for p, t in zip(PROMPTS, texts, strict=True)
    ]


def _audit(draw: random.Random, arm: str, number: int) -> dict[str, Any]:
    pool = {source: 400 - 45 * i for i, source in enumerate(SOURCES)}
    lean = 0.35 * number if arm == "similarity" else 0.0
    weights = [count * math.exp(lean * (2.5 - i) / 2.5 + draw.gauss(0, 0.04)) for i, count in enumerate(pool.values())]
    selected = {source: round(600 * weight / sum(weights)) for source, weight in zip(SOURCES, weights, strict=True)}
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


def _statistics(gold: bool) -> dict[str, Any]:
    """The shape of `inverse_alignment.data.statistics.describe`."""

    def summary(pairs: int) -> dict[str, Any]:
        parts = (("train", 0.7), ("validation", 0.1), ("gate", 0.1), ("test", 0.1))
        return {
            "rows": pairs + 12,
            "pairs": pairs,
            "prompts": pairs // 3,
            "dropped": {"duplicate": 9, "identical answers": 3},
            "truncated": 2,
            "splits": {split: {"pairs": int(pairs * n), "prompts": int(pairs * n / 3)} for split, n in parts},
            "chosen_words": {"mean": 31.46, "median": 30.0},
            "rejected_words": {"mean": 29.81, "median": 28.0},
            "longer_wins": 0.552,
            "licences": {"Apache-2.0": pairs},
        }

    policies = {name: {**summary(400 - 45 * i), "wins": 220, "losses": 180} for i, name in enumerate(SOURCES)}
    return {
        **summary(1725),
        "contradictions": 4,
        "datasets": {name: summary(1725) for name in (("world.text",) if gold else ("hh-rlhf", "alpaca_eval"))},
        "policies": policies,
        "annotators": {name: summary(575) for name in ("anna", "bo", "chi")},
    }
