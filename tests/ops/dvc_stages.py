"""Stages whose numbers follow from their configuration, and the program that runs them as `inverse-alignment`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.overhead.stages import bare_comparison
from inverse_alignment.core.artifact import sha256_text
from inverse_alignment.core.configuration import Section, identity_of
from inverse_alignment.core.context import StageContext
from inverse_alignment.report.comparison import Evaluation, save
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
    for part in ("policy", "reward", "model", "state", "seen"):
        (context.out / part).mkdir()
        (context.out / part / "content.txt").write_text(f"{part} {content}")
    value = int(content[:4], 16) / 65536
    (context.out / "value.txt").write_text(str(value))
    if isinstance(config, SelectStage):
        (context.out / "selection.jsonl").write_text(json.dumps({"id": f"toy/{content[:8]}"}) + "\n")
    if isinstance(config, CompareStage):

        def measured(arm: str, seed: int, number: int) -> Evaluation:
            return _evaluation(inputs[f"evaluate.{arm}.s{seed}.r{number}"])

        save(bare_comparison(config, measured), context.out)
    return {"value": value, "size": len(seen)}


def _content(path: Path) -> str:
    if path.is_file():
        return path.read_text()
    return " ".join(sorted(file.read_text() for file in path.rglob("content.txt")))


def _evaluation(folder: Path) -> Evaluation:
    gold = float((folder / "value.txt").read_text())
    return Evaluation(gold_reward=gold, rm_score=1.0, kl_to_sft=1.5, response_tokens=9, ended_share=1)


if __name__ == "__main__":
    import flows.cli

    STAGES.update(NUMBERED)
    flows.cli.main()
