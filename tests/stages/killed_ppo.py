"""Run by a test in a process of its own: a round of PPO that kills its process, without warning, after some step."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from inverse_alignment.core.metrics import FileReport
from tests.stages import chain


class Deadly(FileReport):
    """Kills the process once `step` iterations are done."""

    step = 0

    def progress(self, done: int, total: int, unit: str) -> None:
        if done == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    order = json.loads(sys.argv[1])
    Deadly.step = order["step"]
    inputs = {name: Path(path) for name, path in order["inputs"].items()}
    runtime = chain.RUNTIME.model_copy(update={"checkpoint_seconds": order["checkpoint_seconds"]})
    chain.Chain(Path(order["root"])).run(order["name"], "ppo", inputs, chain.ppo_stage(), runtime, Deadly)
