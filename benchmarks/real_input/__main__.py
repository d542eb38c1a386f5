"""`python -m benchmarks.real_input --data DIR --model none --report-dir DIR`: the closed loop on real preferences.

Arms `none` and `similarity`, one refresh, on the native transcripts of `raw/hh-rlhf` and on AlpacaEval's pairs. Nobody
knows a gold reward here: the report shows the reward model's test accuracy beside "the longer answer wins", per source
policy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flows.cli import run_job
from inverse_alignment.config import PipelineConfig, merge, read_yaml, validate
from inverse_alignment.core.errors import UserError

HERE = Path(__file__).parent
ALPACA_ROWS = 4000


def main() -> int:
    """Parse the command line, run, and say what was wrong in three lines."""
    parser = argparse.ArgumentParser(prog="benchmarks.real_input", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with raw/hh-rlhf and pairs/")
    parser.add_argument("--model", default="none", help="none: trained from a configuration; or a checkpoint's folder")
    parser.add_argument("--report-dir", type=Path, default=Path("reports/real-input"))
    arguments = parser.parse_args()
    try:
        run_job(configure(arguments.data, arguments.model), arguments.report_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def configure(data: Path, model: str) -> PipelineConfig:
    """The project's defaults, the benchmark's differences, and where the data and the model lie.

    Raises:
        UserError: the folder holds no HH transcripts, or the configuration is wrong.
    """
    changes: dict[str, Any] = {"data": {"sources": sources(data)}}
    if model != "none":
        changes["models"] = {
            role: {"type": "checkpoint", "path": model, "context": 512} for role in ("policy", "reward")
        }
    defaults = read_yaml(HERE.parents[1] / "params.yaml")
    defaults.pop("arms")  # the benchmark compares arms of its own
    values = merge(merge(defaults, read_yaml(HERE / "params.yaml")), changes)
    config: PipelineConfig = validate(PipelineConfig, values, "", "benchmarks/real_input/params.yaml")
    return config


def sources(data: Path) -> list[dict[str, Any]]:
    """HH transcripts, one source per file, and the first rows of AlpacaEval's pairs.

    Raises:
        UserError: there are no transcripts.
    """
    transcripts = sorted((data / "raw" / "hh-rlhf").rglob("*.jsonl.gz"))
    if not transcripts:
        raise UserError(
            "no HH transcripts", where=str(data / "raw" / "hh-rlhf"), fix="give a folder with raw/hh-rlhf/**/*.jsonl.gz"
        )
    hh = [
        {"format": "hh", "name": f"hh-{path.parent.name}-{path.name.partition('.')[0]}", "path": str(path)}
        for path in transcripts
    ]
    alpaca = {
        "format": "jsonl",
        "name": "alpaca-eval",
        "path": str(data / "pairs" / "alpaca_eval.jsonl.gz"),
        "licence": "CC BY-NC 4.0",
        "limit": ALPACA_ROWS,
    }
    return [*hh, alpaca]


if __name__ == "__main__":
    sys.exit(main())
