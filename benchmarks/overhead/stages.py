"""Stages that load what real ones load and compute for a moment, so that what surrounds them can be seen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import sha256_text
from inverse_alignment.core.configuration import Section, identity_of
from inverse_alignment.core.context import StageContext
from inverse_alignment.report.comparison import Comparison, Evaluation, Round, Run, Start, save
from inverse_alignment.stages.compare import CompareStage
from inverse_alignment.stages.registry import STAGES
from inverse_alignment.stages.select import SelectStage

LIGHT = {name: replace(spec, module="benchmarks.overhead.stages", packages=()) for name, spec in STAGES.items()}
ROWS = 40
"""Rows of metrics a stage reports: as many as a round of PPO by default takes steps."""
SECONDS = "OVERHEAD_STAGE_SECONDS"
"""In the environment: processor seconds that a stage computes. What is done beside it costs a run nothing."""


def build(inputs: Mapping[str, Path], config: Section, context: StageContext) -> dict[str, Any]:
    """Write a text per part that depends on the inputs, forty rows of metrics, and for the last stage a comparison."""
    if not isinstance(config, CompareStage):
        _compute(float(os.environ.get(SECONDS, "0")))
    seen = sorted((name, _content(path)) for name, path in inputs.items())
    content = sha256_text(f"{type(config).__name__} {seen} {identity_of(config)} {context.seed}")
    for part in ("policy", "reward", "model", "state", "seen"):
        (context.out / part).mkdir()
        (context.out / part / "content.txt").write_text(f"{part} {content}")
    for step in range(ROWS):
        context.report.log(step, {"loss": 1.0 / (step + 1), "kl_to_sft": step / ROWS, "rm_score": 0.5})
        context.report.progress(step + 1, ROWS, "steps")
    if isinstance(config, SelectStage):
        (context.out / "selection.jsonl").write_text('{"id": "toy/0"}\n')
    if isinstance(config, CompareStage):
        evaluation = Evaluation(rm_score=0.5, kl_to_sft=1.0, response_tokens=9, ended_share=1)
        save(bare_comparison(config, lambda arm, seed, number: evaluation), context.out)
    return {"rm_score": 0.5, "kl_to_sft": 1.0}


def _compute(seconds: float) -> None:
    import torch

    torch.set_num_threads(1)
    numbers, began = torch.ones(256, 256), time.process_time()
    while time.process_time() - began < seconds:
        numbers = torch.tanh(numbers @ numbers)


def _content(path: Path) -> str:
    if path.is_file():
        return sha256_text(path.read_text())
    return " ".join(sorted(file.read_text() for file in path.rglob("content.txt")))


def bare_comparison(config: CompareStage, evaluate: Callable[[str, int, int], Evaluation]) -> Comparison:
    """A comparison with nothing in it but what every arm, seed and round was found to be worth."""
    nothing: dict[str, Any] = dict.fromkeys(("samples", "curve", "training", "alarms"), ())
    empty = {**nothing, "selection": None, "gate": None}

    def run(arm: str, seed: int) -> Run:
        numbers = range(1, config.rounds + 1)
        rounds = (Round(round=number, evaluation=evaluate(arm, seed, number), **empty) for number in numbers)
        return Run(arm=arm, seed=seed, rounds=tuple(rounds))

    return Comparison(
        title=config.title,
        config_digest=config.config_digest,
        arms=config.arms,
        seeds=config.seeds,
        rounds=config.rounds,
        starts=tuple(
            Start(seed=seed, evaluation=evaluate(config.arms[0], seed, 1), samples=()) for seed in config.seeds
        ),
        runs=tuple(run(arm, seed) for seed in config.seeds for arm in config.arms),
        lineage={},
        statistics={},
    )


if __name__ == "__main__":  # `inverse-alignment` on these stages: what `dvc repro` calls
    import flows.cli

    STAGES.update(LIGHT)
    flows.cli.main()
