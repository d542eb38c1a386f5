"""Stages that stand in for the real ones: milliseconds each, their bytes a function of inputs, configuration and seed.

`TOY_LOG` names a file that gets a line at the start and at the end of every build; `TOY_HANG=PpoStage:2` makes the
second build of that configuration hang, so that a test can kill it there.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inverse_alignment.core.artifact import RECORD, RUNTIME, list_files, sha256_file, sha256_text
from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import STAMP
from inverse_alignment.stages.registry import STAGES

TOYS = {name: replace(spec, module="tests.flows.toy_stages", packages=()) for name, spec in STAGES.items()}
PARTS = ("policy", "reward", "model", "state")
UNHASHED = (RECORD, RUNTIME, STAMP)


def build(inputs: Mapping[str, Path], config: Section, context: StageContext) -> dict[str, Any]:
    """Write a text per part that depends on everything the stage is given.

    Raises:
        UserError: an input is a file that holds the word "broken".
    """
    name = type(config).__name__
    for key, path in inputs.items():
        if path.is_file() and path.read_text() == "broken":
            raise UserError("the data are broken", where=key, fix="write other data")
    resumed = (context.partial / "state.txt").exists()
    (context.partial / "state.txt").write_text("begun")
    starts = _log(f"start {name}{' resumed' if resumed else ''}")
    if os.environ.get("TOY_HANG") == f"{name}:{starts}":
        time.sleep(120)
    content = sha256_text(f"{sorted((key, _digest(path)) for key, path in inputs.items())} {config!r} {context.seed}")
    for part in PARTS:
        (context.out / part).mkdir()
        (context.out / part / "content.txt").write_text(f"{part} {content}")
    for step in range(3):
        context.report.log(step, {"value": float(step)})
        context.report.progress(step + 1, 3, "step")
    _log(f"end {name}")
    return {"rate": math.nan, "content": content[:8]}


def _digest(path: Path) -> str:
    if path.is_file():
        return sha256_file(path)
    files = [name for name in list_files(path) if not Path(name).name.startswith(UNHASHED)]
    return sha256_text("".join(f"{name} {sha256_file(path / name)}\n" for name in files))


def _log(line: str) -> int:
    """Append a line to `TOY_LOG`; how many lines have begun with it."""
    path = os.environ.get("TOY_LOG")
    if path is None:
        return 0
    with open(path, "a") as file:
        file.write(f"{line}\n")
    return sum(old.startswith(line) for old in Path(path).read_text().splitlines())
