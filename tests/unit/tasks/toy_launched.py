"""A stage for launchers: it counts with the other processes for a while, and `TOY_ENDS` says who ends it and how."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import Stopped
from inverse_alignment.core.parallel import group

log = logging.getLogger("inverse_alignment.toy")


class Counting(Section):
    """How far it counts."""

    steps: int = 3
    seconds: float = 0.01


def build(inputs: Mapping[str, Path], config: Counting, context: StageContext) -> dict[str, Any]:
    """Write who was there into `out` and the step reached into `partial`."""
    us = group()
    who, _, how = os.environ.get("TOY_ENDS", "").partition(":")
    log.warning("process %d of %d has started", us.rank, us.size)
    met: list[int] = []
    for step in range(1, config.steps + 1):
        met = us.gather([us.rank])
        context.report.log(step, {"met": float(len(met)), "nothing": float("nan")})
        context.report.progress(step, config.steps, "steps")
        if us.rank == 0:
            (context.partial / "step.txt").write_text(str(step))
        if step == 2 and str(us.rank) == who:
            _end(how)
        time.sleep(config.seconds)
        if us.agree(context.report.stopping()):
            raise Stopped(f"stopped after {step} of {config.steps} steps")
    (context.out / "who.txt").write_text(f"{us.rank} of {us.size}: {met}, {sorted(inputs)}, {context.seed}")
    return {"met": len(met), "odd": float("inf")}


def _end(how: str) -> None:
    match how:
        case "raise":
            raise FloatingPointError("the loss is nan at step 2")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "refuse":
            raise UserError("no source policy 'x'", where="sft.sources", fix="did you mean 'y'?")
        case "full":
            raise OSError(28, "No space left on device", "/somewhere/model.safetensors")
        case "hang":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            time.sleep(600)
