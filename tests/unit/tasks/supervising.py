"""Run by a test in a process of its own: a supervisor that launches the toy stage and prints its news."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.metrics import FileReport
from tasks import launch
from tasks.signals import deferred_sigterm
from tests.unit.tasks.toy_launched import Counting


def main(folder: Path, launcher: dict[str, object], steps: int) -> None:
    """Build the toy stage in `folder`."""
    runtime = RuntimeConfig.model_validate({"device": "cpu", "launcher": launcher})
    for name in ("out", "partial"):
        (folder / name).mkdir(exist_ok=True)
    context = StageContext(folder / "out", folder / "partial", FileReport(folder / "metrics.jsonl"), runtime)
    with deferred_sigterm(launch.STOP_SECONDS + 2.0) as asked:
        launch.build(
            "tests.unit.tasks.toy_launched",
            {},
            Counting(steps=steps, seconds=0.05),
            context,
            lambda done, total, unit, values: print(done, flush=True),
            asked,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
