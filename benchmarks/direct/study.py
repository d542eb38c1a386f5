"""Every method of a seed from one SFT policy, on one store: what its policies are worth after each round."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows.direct import arm as one_arm
from flows.inverse_alignment import shared_data, shared_start
from inverse_alignment.config import PipelineConfig, merge, read_yaml, validate
from inverse_alignment.core.artifact import METRICS
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.store import open_store
from inverse_alignment.data.aggregate import read_split
from inverse_alignment.generation.answers import Sampling, choose_prompts
from inverse_alignment.generation.rollouts import ask, roll_out
from inverse_alignment.world.gold import gold_reward
from inverse_alignment.world.text import WorldConfig, write_dataset
from tasks.run_stage import Execute, driving

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
Row = dict[str, Any]
TUNING_SEED, RATES = 100, (1.5e-3, 5e-4, 1.7e-4, 5e-5)


def plan() -> dict[str, Any]:
    """The study's file."""
    return read_yaml(HERE / "direct.yaml")


def config_of(seed: int, methods: Sequence[str], folder: Path) -> PipelineConfig:
    """The configuration of a seed: an arm for every method."""
    given = plan()
    values = merge(read_yaml(ROOT / "params.yaml"), given["config"])
    values["data"]["sources"] = [{"format": "jsonl", "name": "advice", "path": str(folder / "data" / "pairs.jsonl")}]
    values["arms"] = {
        name.replace("_", "-"): {
            "selection": given["methods"][name].get("selection", {"type": "none"}),
            "optimise": given["methods"][name]["optimise"],
        }
        for name in methods
    }
    values |= {"seeds": [seed], "store": str(folder / "artifacts"), "tracking": {"mlflow_uri": ""}}
    config: PipelineConfig = validate(PipelineConfig, values, "", str(HERE / "direct.yaml"))
    return config


def first_kl(methods: Sequence[str], rate: float, folder: Path) -> dict[str, float]:
    """KL to the SFT policy after one round of each direct method at a learning rate, nats; gold is not looked at.

    On a seed that no result comes from.
    """
    torch.set_num_threads(1)
    given = {name: plan()["methods"][name] for name in methods}
    tried = [name for name, method in given.items() if method["optimise"]["type"] != "ppo"]
    config = config_of(TUNING_SEED, tried, folder).model_copy(update={"rounds": 1})
    arms = {
        name: {**sets, "optimise": {**sets["optimise"], "learning_rate": rate}} for name, sets in config.arms.items()
    }
    config = config.model_copy(update={"arms": arms})
    if not (folder / "data").exists():
        write_dataset(folder / "data", WorldConfig(seed=TUNING_SEED, **plan()["world"]))
    found = {}
    with driving(Execute(open_store(config.store), config.runtime)):
        start = shared_start(config, TUNING_SEED, shared_data(config))
        for name in tried:
            (end,) = one_arm(config, name.replace("_", "-"), TUNING_SEED, start)
            found[name] = json.loads((Path(end.evaluation.uri) / "evaluation.json").read_text())["kl_to_sft"]
    return found


def run(seed: int, methods: Sequence[str], folder: Path) -> dict[str, Row]:
    """Gold and KL after every round of each method, and gold of each answer of its last policy; by method and `sft`."""
    torch.set_num_threads(1)
    config = config_of(seed, methods, folder)
    if not (folder / "data").exists():
        write_dataset(folder / "data", WorldConfig(seed=seed, **plan()["world"]))
    found: dict[str, Row] = {}
    with driving(Execute(open_store(config.store), config.runtime)):
        start = shared_start(config, seed, shared_data(config))
        sft, preferences = Path(start.sft.part("policy").uri), Path(start.preferences.uri)
        first = json.loads((Path(start.evaluation.uri) / "evaluation.json").read_text())
        own = answers(sft, sft, preferences, config, seed)
        found["sft"] = {"gold": [first["gold_reward"]], "kl": [0.0], "answers": own}
        for name in methods:
            rounds = one_arm(config, name.replace("_", "-"), seed, start)
            ends = [json.loads((Path(one.evaluation.uri) / "evaluation.json").read_text()) for one in rounds]
            last = Path(rounds[-1].optimised.part("policy").uri)
            found[name] = {
                "gold": [first["gold_reward"], *(end["gold_reward"] for end in ends)],
                "kl": [0.0, *(end["kl_to_sft"] for end in ends)],
                "tokens": ends[-1]["response_tokens"],
                "answers": answers(last, sft, preferences, config, seed),
            }
    return found


def answers(policy: Path, sft: Path, preferences: Path, config: PipelineConfig, seed: int) -> list[float]:
    """Gold of each answer to test prompts: the same prompts with the same noise for every policy of a seed."""
    evaluation, folder = config.evaluation, Path(config.store) / ".answers"
    folder.mkdir(parents=True, exist_ok=True)
    prompts = choose_prompts([pair.prompt for pair in read_split(preferences, "test")], evaluation.prompts, seed)
    context = StageContext(folder, folder, FileReport(folder / METRICS), config.runtime, seed=seed)
    limits = (evaluation.max_new_tokens, evaluation.temperature, config.models.policy.context)
    rollouts = roll_out(
        policy,
        sft,
        ask(prompts, evaluation.samples, seed),
        evaluation.generation,
        Sampling(*limits, config.runtime.generation_rows),
        context,
    )
    return [round(gold_reward(one.prompt, one.response), 4) for one in rollouts]


def win_rate(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Share of answers with more gold than the other's to the same prompt and noise; a tie counts one half."""
    one, other = np.array(mine), np.array(theirs)
    return float(((one > other) + 0.5 * (one == other)).mean())


def gold_at_kl(row: Mapping[str, Any], kl: float) -> float | None:
    """Gold where the KL to the SFT policy is first reached, linear between rounds; None where it never is."""
    from inverse_alignment.maths.trajectories import at_first_reach

    return at_first_reach(row["kl"], row["gold"], kl)
