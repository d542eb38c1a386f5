"""`python -m benchmarks.direct.extrapolated --json out.json`: does going beyond a method's first round gain gold?

ExPO (arXiv 2404.16792): `θ_1 + α (θ_1 - θ_0)` with the SFT policy as θ_0 and what one round of DPO, IPO or KTO made of
it as θ_1. α is chosen on validation prompts by a reward model of pairs that nothing else was trained on; the chosen one
is asked again on test prompts, where its gold stands beside that of θ_1.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.bakeoff.rows import asked, by_seed, digest_of
from benchmarks.direct import study
from benchmarks.direct.__main__ import SEEDS, STUDIED, cell, interval
from flows.direct import arm as one_arm
from flows.inverse_alignment import shared_data, shared_start
from inverse_alignment.core.records import Prompt
from inverse_alignment.core.store import open_store
from inverse_alignment.data.aggregate import read_prompts
from inverse_alignment.evaluation.extrapolation import best, try_alphas
from inverse_alignment.generation.answers import Sampling, choose_prompts
from inverse_alignment.generation.rollouts import ask
from inverse_alignment.models.reward_scores import load_calibrated
from inverse_alignment.world.gold import gold_reward
from inverse_alignment.world.text import WorldConfig, write_dataset
from tasks.run_stage import Execute, driving

ROWS = study.ROOT / "docs" / "results" / "direct" / "extrapolated.jsonl"
METHODS = ("dpo", "ipo", "kto")
ALPHAS = (-0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
VALIDATION_SAMPLES = 32
"""Answers to each of the few validation prompts."""
SHARES = {"train": 0.55, "validation": 0.05, "gate": 0.0, "test": 0.2, "audit": 0.2}
"""The study's own, with the pairs of the gate, of which a direct method has none, for the reward model that chooses."""


def main() -> int:
    """Parse the command line, run what is missing, print and write."""
    given = asked("benchmarks.direct.extrapolated", __doc__, SEEDS, study.ROOT / "artifacts" / "extrapolated", ROWS)
    wanted = by_seed(given, digest_of(STUDIED, [study.plan(), ALPHAS, VALIDATION_SAMPLES, SHARES]), run)
    result = {name: described([row[name] for row in wanted]) for name in METHODS}
    given.json.write_text(json.dumps(result, indent=1))
    print(table(result))
    return 0


def run(seed: int, folder: Path) -> dict[str, Any]:
    """Of each method what every α is worth on validation prompts, and the chosen one on test prompts."""
    torch.set_num_threads(1)
    config = study.config_of(seed, METHODS, folder)
    aggregate = config.data.aggregate
    shares = aggregate.model_copy(update={"shares": aggregate.shares.model_copy(update=SHARES)})
    data = config.data.model_copy(update={"aggregate": shares})
    config = config.model_copy(update={"data": data, "rounds": 1})
    if not (folder / "data").exists():
        write_dataset(folder / "data", WorldConfig(seed=seed, **study.plan()["world"]))
    evaluation, models = config.evaluation, config.models
    sampling = Sampling(
        evaluation.max_new_tokens, evaluation.temperature, models.policy.context, config.runtime.generation_rows
    )
    found = {}
    with driving(Execute(open_store(config.store), config.runtime)):
        start = shared_start(config, seed, shared_data(config))
        assert start.audit is not None
        judge = Path(start.audit.part("model").uri)
        score = load_calibrated(judge, torch.device("cpu"), models.reward.context, config.runtime.scoring_rows)
        sft, preferences = Path(start.sft.part("policy").uri), Path(start.preferences.uri)
        prompts: dict[str, list[Prompt]] = {
            split: choose_prompts(read_prompts(preferences, split), evaluation.prompts, seed)
            for split in ("validation", "test")
        }
        given = (score, gold_reward, config.runtime.device, lambda done, total, unit: None)
        for name in METHODS:
            (end,) = one_arm(config, name, seed, start)
            first = Path(end.optimised.part("policy").uri)
            tried = partial(try_alphas, first, sft)
            searched = tried(ALPHAS, ask(prompts["validation"], VALIDATION_SAMPLES, seed), sampling, *given)
            alpha = best(searched).alpha
            ends = tried([0.0, alpha], ask(prompts["test"], evaluation.samples, seed), sampling, *given)
            found[name] = {
                "alpha": alpha,
                "gold_best": max(searched, key=lambda one: one.gold_reward or 0.0).alpha,
                "searched": {f"{one.alpha:g}": [one.rm_score, one.gold_reward, one.kl_to_sft] for one in searched},
                "gold": [one.gold_reward for one in ends],
                "kl": [one.kl_to_sft for one in ends],
            }
    return found


def described(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What there is to say of one method over seeds; gains are over its first round, α = 0."""
    searched = {}
    for alpha in rows[0]["searched"]:
        at, none = ([row["searched"][key] for row in rows] for key in (alpha, "0"))
        gains = [interval([one[which] - zero[which] for one, zero in zip(at, none, strict=True)]) for which in (0, 1)]
        searched[alpha] = {"rm": gains[0], "gold": gains[1], "kl": statistics.fmean(one[2] for one in at)}
    return {
        "alpha": [row["alpha"] for row in rows],
        "alpha_best_by_gold": [row["gold_best"] for row in rows],
        "gold_reward": [row["gold"][1] for row in rows],
        "kl_to_sft": [row["kl"][1] for row in rows],
        "kl_of_first_round": [row["kl"][0] for row in rows],
        "gain": interval([row["gold"][1] - row["gold"][0] for row in rows]),
        "searched": searched,
    }


def table(result: dict[str, Any]) -> str:
    """What the reward model chose, on test prompts, and every α on validation prompts, as Markdown."""
    lines = [
        "| method | α by the reward model | α best by gold | KL, round 1 | KL at α | gain in gold over round 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in result.items():
        alphas, by_gold = (", ".join(f"{alpha:g}" for alpha in one[key]) for key in ("alpha", "alpha_best_by_gold"))
        kls = " | ".join(f"{statistics.fmean(one[key]):.1f}" for key in ("kl_of_first_round", "kl_to_sft"))
        lines.append(f"| `{name}` | {alphas} | {by_gold} | {kls} | {cell(one['gain'], '+')} |")
    lines += ["", "| method | α | KL | gain in RM score, sd | gain in gold |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{name}` | {alpha} | {at['kl']:.1f} | {cell(at['rm'], '+')} | {cell(at['gold'], '+')} |"
        for name, one in result.items()
        for alpha, at in one["searched"].items()
        if alpha != "0"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
