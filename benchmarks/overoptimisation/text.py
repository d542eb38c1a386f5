"""`python -m benchmarks.overoptimisation.text --json out.json`: the same question asked of PPO on text.

In the advice desk, reward models of more and more comparisons, and PPO against each with the KL for free, from one SFT
policy a seed. Gao's law for RL is fitted to the gold of the answers that PPO sampled, seeds as units. Nothing here has
to come out: it is looked at, and docs/results/overoptimisation.md says what was seen.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bakeoff.rows import ROOT, asked, by_seed, digest_of
from benchmarks.overoptimisation.__main__ import shown
from flows.inverse_alignment import inverse_alignment, shared_data, shared_start
from inverse_alignment.config import PipelineConfig, merge, read_yaml, validate
from inverse_alignment.core.store import open_store
from inverse_alignment.data.aggregate import read_split
from inverse_alignment.maths.overoptimisation import fit_curve, obstacle, policy_peak, policy_terms
from inverse_alignment.maths.ranks import rank_correlation_interval
from inverse_alignment.world.text import WorldConfig, write_dataset
from tasks.run_stage import Execute, driving
from tasks.stages import sft as make_sft

ROWS = ROOT / "docs" / "results" / "overoptimisation" / "text.jsonl"
SEEDS, STEPS = 5, 40
STUDIED = ("sft", "reward_model", "ppo", "evaluate")
"""The stages whose code rows are of."""
SIZES = {100: 8, 400: 4, 1600: 2, 6400: 1}
"""Comparisons that a reward model learns from, and how often it sees them."""
SHARES = {"train": 0.75, "validation": 0.05, "gate": 0.05, "test": 0.15, "audit": 0.0}
MODEL = {"type": "initialise", "vocab_size": 768, "hidden_size": 64, "layers": 1, "heads": 4, "context": 96}
WORLD = {"topics": 4, "prompts": 80, "pairs": 10_000}
SETTINGS: dict[str, Any] = {
    "data": {"aggregate": {"shares": SHARES}},
    "models": {"policy": MODEL, "reward": MODEL},
    "sft": {"epochs": 1, "batch_size": 32, "learning_rate": 0.01},
    "reward": {"learning_rate": 0.002, "batch_size": 16, "start": "base"},
    "reference_sample": {"samples": 2, "max_new_tokens": 56},
    "rounds": 1,
    "rollout": {"prompts": 1, "samples": 1, "max_new_tokens": 56},
    "ppo": {
        "steps": STEPS,
        "batch_size": 48,
        "max_new_tokens": 56,
        "learning_rate": 0.0003,
        "kl": {"type": "fixed", "coefficient": 0.0},
        "samples_every": 2,
        "watch": {"every": STEPS},
    },
    "evaluation": {"samples": 8, "max_new_tokens": 56, "shown_prompts": 0},
    "tracking": {"mlflow_uri": ""},
}


def main() -> int:
    """Parse the command line, run what is missing, fit, print and write."""
    given = asked("benchmarks.overoptimisation.text", __doc__, SEEDS, ROOT / "artifacts" / "overoptimisation", ROWS)
    torch.set_num_threads(1)
    result = measure(by_seed(given, digest_of(STUDIED, [SETTINGS, list(SIZES.items()), WORLD]), run))
    given.json.write_text(json.dumps(result, indent=1))
    print(table(result))
    return 0


def config_of(seed: int, folder: Path, pairs: Path, epochs: int, sft: Path | None) -> PipelineConfig:
    """The configuration of one reward model and PPO against it; without an SFT policy that of making one."""
    values = merge(read_yaml(ROOT / "params.yaml"), SETTINGS)
    values["data"]["sources"] = [{"format": "jsonl", "name": "advice", "path": str(pairs)}]
    values["reward"]["epochs"] = epochs
    if sft is not None:
        values["models"]["policy"] = {"type": "checkpoint", "path": str(sft), "context": MODEL["context"]}
        values["sft"] = {"type": "checkpoint"}
    values |= {"arms": {"none": {"selection": {"type": "none"}}}, "seeds": [seed], "store": str(folder / "artifacts")}
    config: PipelineConfig = validate(PipelineConfig, values, "", __file__)
    return config


def run(seed: int, folder: Path) -> dict[str, Any]:
    """By size: (KL, gold, score) of the SFT policy and of the answers on the way, and how often the model is right."""
    write_dataset(folder / "data", WorldConfig(seed=seed, **WORLD))
    whole = folder / "data" / "pairs.jsonl"
    config, found = config_of(seed, folder, whole, 1, None), {}
    with driving(Execute(open_store(config.store), config.runtime)):
        data = shared_data(config)
        sft = Path(make_sft(config, seed, data.preferences, data.tokenizers).part("policy").uri)
    kept = [pair.provenance.original_id for pair in read_split(Path(data.preferences.uri), "train")]
    for size, epochs in SIZES.items():
        pairs = folder / f"{size}.jsonl"
        pairs.write_text(with_train(whole.read_text().splitlines(), kept, size))
        config = config_of(seed, folder, pairs, epochs, sft)
        with driving(Execute(open_store(config.store), config.runtime)):
            start = shared_start(config, seed, shared_data(config))
            (end,) = inverse_alignment(config, "none", seed, start)
        evaluated = Path(end.evaluation.uri)
        first = json.loads((Path(start.evaluation.uri) / "evaluation.json").read_text())
        curve = [json.loads(line) for line in (evaluated / "curve.jsonl").read_text().splitlines()]
        found[str(size)] = {
            "accuracy": first["offline_accuracy"],
            "path": [[0.0, first["gold_reward"], first["rm_score"]]]
            + [[point["kl"], point["gold"], point["rm_score"]] for point in curve],
        }
    shutil.rmtree(folder)
    return found


def with_train(lines: Sequence[str], train: Sequence[str], size: int) -> str:
    """The first `size` of the train pairs, and all pairs of the prompts that are not of that split.

    Raises:
        ValueError: there are not so many.
    """
    rows = [json.loads(line) for line in lines]
    wanted = set(train[:size])
    if len(wanted) < size:
        raise ValueError(f"{len(wanted)} train pairs, not {size}")
    learned = {row["prompt"] for row in rows if row["id"] in set(train)}
    return "".join(
        f"{line}\n"
        for line, row in zip(lines, rows, strict=True)
        if row["id"] in wanted or row["prompt"] not in learned
    )


def measure(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Coefficients at each size over all seeds, and how those of single seeds order with the size."""
    sizes, single, back = [], [], []
    for size in SIZES:
        paths = [np.array(found[str(size)]["path"]) for found in runs]
        distance = [np.sqrt(np.maximum(path[:, 0], 0.0)) for path in paths]
        gold = [path[:, 1] - path[0, 1] for path in paths]
        units = np.repeat(np.arange(len(paths)), [len(path) for path in paths])
        fit = fit_curve(policy_terms(np.concatenate(distance)), np.concatenate(gold), units, policy_peak, 0)
        for seed, (far, gained) in enumerate(zip(distance, gold, strict=True)):
            if not obstacle(policy_terms(far)):
                alone = fit_curve(policy_terms(far), gained, np.arange(len(far)), policy_peak, 0, resamples=1)
                single.append((size, seed, alone.a.mean, alone.b.mean))
        best = [float(gained.max()) for gained in gold]
        until = [back_at(path) for path in paths]
        back += [(size, seed, kl) for seed, kl in enumerate(until)]
        sizes.append(
            {
                "comparisons": size,
                "accuracy": statistics.fmean(found[str(size)]["accuracy"] for found in runs),
                "a": list(fit.a),
                "b": list(fit.b),
                "residual": fit.residual,
                "highest_gain": statistics.fmean(best),
                "kl_back": statistics.median(until),
                "last_gain": statistics.fmean(float(gained[-3:].mean()) for gained in gold),
                "last_kl": statistics.fmean(float(path[-1, 0]) for path in paths),
            }
        )
    ends = [np.array(column, dtype=float) for column in zip(*back, strict=True)]
    size_of, unit_of, a, b = (np.array(column, dtype=float) for column in zip(*single, strict=True))
    return {
        "sizes": sizes,
        "rho_a": rank_correlation_interval(size_of, a, unit_of, 0),
        "rho_b": rank_correlation_interval(size_of, b, unit_of, 0),
        "rho_kl_back": rank_correlation_interval(ends[0], ends[2], ends[1].astype(int), 0),
        "seeds": len(runs),
    }


def back_at(path: np.ndarray) -> float:
    """KL at which gold is last as high as the SFT policy's, each point the mean of three: how far the proxy can be
    followed without loss. That of the last point where it never falls below."""
    gained = np.convolve(path[:, 1] - path[0, 1], np.ones(3) / 3, "same")[1:-1]
    above = np.flatnonzero(gained >= 0)
    return float(path[1:-1][above[-1], 0]) if len(above) else 0.0


def table(result: dict[str, Any]) -> str:
    """The sizes, as Markdown."""
    lines = [
        "| comparisons | right, held-out | a | b | highest gain | KL until gold is lost | gain at the end | KL there |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["sizes"]:
        ends = f"{row['highest_gain']:+.2f} | {row['kl_back']:.1f} | {row['last_gain']:+.2f} | {row['last_kl']:.0f}"
        lines.append(
            f"| {row['comparisons']:,} | {row['accuracy']:.0%} | {shown(row['a'])} | {shown(row['b'])} | {ends} |"
        )
    orders = ", ".join(f"with {name[4:]} {shown(result[name])}" for name in ("rho_a", "rho_b", "rho_kl_back"))
    return "\n".join([*lines, "", f"ρ of comparisons {orders}"])


if __name__ == "__main__":
    sys.exit(main())
