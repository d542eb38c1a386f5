"""A stage whose configuration says what its gate decides; otherwise it writes a few bytes per part."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.stages.registry import STAGES

GATED = {name: replace(spec, module="tests.ops.gated_stages", packages=()) for name, spec in STAGES.items()}


class Gated(Section):
    """What a toy stage is to do."""

    text: str = ""
    accepted: bool | None = None
    rows: int = 3


def build(inputs: Mapping[str, Path], config: Section, context: StageContext) -> dict[str, Any]:
    """Write the parts; a refused candidate is not kept: the incumbent takes its place, as in the real stage."""
    assert isinstance(config, Gated)
    for part in ("policy", "reward", "model", "state", "seen"):
        (context.out / part).mkdir()
        (context.out / part / "weights.txt").write_text(f"{part} {config.text}")
    if config.accepted is False:
        shutil.rmtree(context.out / "model")
        shutil.copytree(inputs["reward"], context.out / "model")
    (context.out / "samples.jsonl").write_text('{"answer": "yes"}\n')
    (context.out / "large.jsonl").write_text("x" * 1_000_000)
    for step in range(config.rows):
        context.report.log(step, {"loss": 1.0 / (step + 1)})
        context.report.progress(step + 1, config.rows, "steps")
    decision = {} if config.accepted is None else {"accepted": config.accepted, "gain": 0.25, "low": -0.5}
    return {"gold_reward": 0.5, **decision}
