"""Stages that stand in for the real ones: milliseconds each, their bytes a function of inputs, configuration and seed.

`TOY_LOG` names a file that gets a line at the start and at the end of every build; `TOY_HANG=PpoStage:2` makes the
second build of that configuration hang, so that a test can kill it there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import METRICS, sha256_text
from inverse_alignment.core.configuration import Section, identity_of
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import truncate_metrics
from inverse_alignment.stages.registry import STAGES

TOYS = {name: replace(spec, module="tests.flows.toy_stages", packages=()) for name, spec in STAGES.items()}


def build(inputs: Mapping[str, Path], config: Section, context: StageContext) -> dict[str, Any]:
    """Write a text per part that depends on everything the stage is given.

    Raises:
        UserError: an input is a file that holds the word "broken".
    """
    kind = type(config).__name__
    seen = {name: _content(path) for name, path in sorted(inputs.items())}
    if "broken" in seen.values():
        raise UserError("the data are broken", where="pairs.jsonl", fix="write other data")
    checkpoint = context.partial / "checkpoint-0"
    resumed = checkpoint.exists()
    if resumed:
        truncate_metrics(context.partial / METRICS, 0)
    else:
        context.report.log(0, {"value": 0.0})
        checkpoint.write_text("step 0")
    for step in (1, 2):
        context.report.log(step, {"value": float(step)})
        context.report.progress(step, 2, "steps")
    _log(f"start {kind}{' resumed' if resumed else ''}")
    _hang(kind)
    content = sha256_text(json.dumps([kind, seen, identity_of(config), context.seed]))
    for part in ("policy", "reward", "model", "state", "seen"):
        (context.out / part).mkdir()
        (context.out / part / "content.txt").write_text(f"{part} {content}")
    _log(f"end {kind}")
    return {"size": len(seen), "rate": float("nan")}


def _content(path: Path) -> str:
    if path.is_file():
        return path.read_text()
    return " ".join(sorted(file.read_text() for file in path.rglob("content.txt")))


def _log(line: str) -> None:
    if path := os.environ.get("TOY_LOG"):
        with open(path, "a") as file:
            file.write(f"{line}\n")


def _hang(kind: str) -> None:
    which, _, count = os.environ.get("TOY_HANG", "").partition(":")
    if which == kind and Path(os.environ["TOY_LOG"]).read_text().count(f"start {kind}") == int(count):
        time.sleep(120)
