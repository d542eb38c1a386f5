"""Runs the whole comparison on toy stages in a process of its own: `python -m tests.flows.toy_run STORE DATA`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import flows.cli
from flows.compare import compare
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.store import Store
from tasks import run_stage
from tests.flows.toy_stages import TOYS


def config_for(store: Path, data: Path, **changes: object) -> PipelineConfig:
    """A small comparison: three arms, two rounds, one seed."""
    values = {
        "rounds": 2,
        "store": str(store),
        "data": {"sources": [{"format": "jsonl", "name": "toy", "path": str(data)}]},
    }
    return PipelineConfig.model_validate({**values, **changes})


def main(store: Path, data: Path) -> None:
    """Plan, run, and say as JSON what was built and whether torch was needed."""
    assert flows.cli.app is not None
    config = config_for(store, data)
    planned = run_stage.plan(lambda: compare(config), Store(store), TOYS)
    remember = run_stage.Remember()
    execute = run_stage.Execute(Store(store), RuntimeConfig(), (remember,), TOYS)
    with run_stage.driving(execute):
        comparison = compare(config)
    built = [name for name, (_, entry) in remember.entries.items() if not entry.reused]
    heavy = [name for name in ("torch", "prefect", "mlflow", "transformers") if name in sys.modules]
    digests = {name: entry.artifact.digest for name, (_, entry) in remember.entries.items()}
    assert digests["compare"] == comparison.digest
    print(json.dumps({"counts": planned.counts(), "built": built, "heavy": heavy, "digests": digests}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
