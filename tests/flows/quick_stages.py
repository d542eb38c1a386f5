"""A stage that does nothing quickly: it stands in for every real one, so that flows run as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.overhead.stages import bare_comparison
from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.report.comparison import Evaluation, save
from inverse_alignment.stages.compare import CompareStage
from inverse_alignment.stages.registry import STAGES, StageSpec

FAIL = Path("fail.txt")  # holds the name of the configuration class whose stage refuses to run
PARTS = ("policy", "reward", "model", "state", "seen")
QUICK = {
    name: StageSpec("tests.flows.quick_stages", spec.kind, PARTS, (), gpu=spec.gpu) for name, spec in STAGES.items()
}


def build(inputs: Mapping[str, Path], config: Section, context: StageContext) -> dict[str, Any]:
    """Write a few bytes per part, and metrics of every awkward kind."""
    if FAIL.exists() and FAIL.read_text() == type(config).__name__:
        raise UserError("the toy refuses", where="fail.txt", fix="delete it")
    for part in PARTS:
        (context.out / part).mkdir()
        seen = sorted((name, (path / part).exists()) for name, path in inputs.items())
        (context.out / part / "weights.txt").write_text(f"{part} {seen} {config!r} {context.seed}")
    for step in range(3):
        context.report.log(step, {"loss": 1.0 / (step + 1), "top@1": 0.5, "broken": math.nan})
        context.report.progress(step + 1, 3, "step")
    if isinstance(config, CompareStage):
        evaluation = Evaluation(gold_reward=0.25, rm_score=1.0, kl_to_sft=1.5, response_tokens=9, ended_share=1)
        save(bare_comparison(config, lambda arm, seed, number: evaluation), context.out)
    return {"gold_reward": 0.25, "kl_to_sft": 1.5, "accepted": True, "nothing": None, "by_source": {"plain": 3}}
