"""Run by a test in a process of its own: one stage, as the flow's driver runs it, with the runtime that it is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from inverse_alignment.core.artifact import external
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.store import Store
from inverse_alignment.stages.registry import STAGES
from tasks.launch import Job
from tasks.run_stage import Execute, Node


class Speaking:
    """An observer that prints how far the stage is."""

    def started(self, node, why) -> None:
        print("started", why, flush=True)

    def progress(self, node, done, total, unit, values) -> None:
        print(done, flush=True)

    def finished(self, node, entry, seconds) -> None:
        print("finished", entry.artifact.uri, flush=True)

    def failed(self, node, error) -> None:
        print("failed", type(error).__name__, error, flush=True)


def main(order: dict) -> None:
    """Run the stage of an order: what it is, its inputs and its configuration."""
    job = Job(**order["job"])
    stage = next(name for name, spec in STAGES.items() if spec.module == job.module)
    inputs = {name: external(name, Path(path)) for name, path in job.inputs.items()}
    execute = Execute(Store(Path(order["store"])), RuntimeConfig.model_validate(job.runtime), (Speaking(),))
    execute.run(Node(stage, stage, inputs, job.section(), job.seed))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
