"""Stages whose numbers follow from their configuration, and the program that runs them as `inverse-alignment`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import sha256_text
from inverse_alignment.core.configuration import Section, identity_of
from inverse_alignment.core.context import StageContext
from inverse_alignment.report.comparison import Comparison, Evaluation, Round, Run, save
from inverse_alignment.stages.compare import CompareStage
from inverse_alignment.stages.registry import STAGES
from inverse_alignment.stages.select import SelectStage

NUMBERED = {name: replace(spec, module="tests.ops.dvc_stages", packages=()) for name, spec in STAGES.items()}


def build(inputs: Mapping[str, Path], config: Section, context: StageContext) -> dict[str, Any]:
    """Write a text per part that depends on everything the stage is given; measure a number that depends on it too."""
    seen = {name: _content(path) for name, path in sorted(inputs.items())}
    decides = {
        name: value for name, value in identity_of(config).items() if name != "least_train_pairs"
    }  # a check only
    content = sha256_text(json.dumps([type(config).__name__, seen, decides, context.seed]))
    for part in ("policy", "reward", "model", "state"):
        (context.out / part).mkdir()
        (context.out / part / "content.txt").write_text(f"{part} {content}")
    value = int(content[:4], 16) / 65536
    (context.out / "value.txt").write_text(str(value))
    if isinstance(config, SelectStage):
        (context.out / "selection.jsonl").write_text(json.dumps({"id": f"toy/{content[:8]}"}) + "\n")
    if isinstance(config, CompareStage):
        save(_comparison(config, inputs), context.out)
    return {"value": value, "size": len(seen)}


def _content(path: Path) -> str:
    if path.is_file():
        return path.read_text()
    return " ".join(sorted(file.read_text() for file in path.rglob("content.txt")))


def _comparison(config: CompareStage, inputs: Mapping[str, Path]) -> Comparison:
    empty: dict[str, Any] = {"samples": (), "curve": (), "training": (), "selection": None, "gate": None}

    def run(arm: str, seed: int) -> Run:
        rounds = []
        for number in range(1, config.rounds + 1):
            gold = float((inputs[f"evaluate.{arm}.s{seed}.r{number}"] / "value.txt").read_text())
            evaluation = Evaluation(gold_reward=gold, rm_score=1.0, kl_to_sft=1.5, response_tokens=9, ended_share=1)
            rounds.append(Round(round=number, evaluation=evaluation, **empty))
        return Run(arm=arm, seed=seed, rounds=tuple(rounds))

    return Comparison(
        title=config.title,
        config_digest=config.config_digest,
        arms=config.arms,
        seeds=config.seeds,
        rounds=config.rounds,
        starts=(),
        runs=tuple(run(arm, seed) for seed in config.seeds for arm in config.arms),
        lineage={},
        statistics={},
    )


if __name__ == "__main__":
    import flows.cli

    STAGES.update(NUMBERED)
    flows.cli.main()
