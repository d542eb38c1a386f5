"""`python -m benchmarks.real_input --data DIR --model none --report-dir DIR`: the closed loop on real preferences.

Arms `none` and `similarity`, one refresh, on every source in `DIR`: Anthropic's HH transcripts, AlpacaEval's own
annotations, ShareGPT pairs, pairs in columns, demonstrations and prompts. Nobody knows a gold reward here: the report
shows the reward model's test accuracy beside "the longer answer wins", per source policy, and what the policy is worth
to a second reward model that was fitted on a disjoint half of the prompts.
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
CAP = 1500
"""Most pairs of one source: two cores have to get through them in a quarter of an hour."""
CAP_OF_NATIVE = 100
"""The same for each of AlpacaEval's annotation files."""
OTHER_ROWS = 400
"""The same for demonstrations and for prompts."""
LICENCES = {
    "alpaca_eval": "CC BY-NC 4.0",
    "gsm8k_solutions": "MIT",
    "hh_harmless_base": "MIT",
    "llmfao_crowd": "CC BY 4.0",
    "llmfao_gpt4": "CC BY 4.0",
    "oasst1_en_validation": "Apache-2.0",
    "qa_feedback_dev": "Apache-2.0",
    "qlora_vicuna": "MIT",
}


def main() -> int:
    """Parse the command line, run, and say what was wrong in three lines."""
    parser = argparse.ArgumentParser(prog="benchmarks.real_input", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with raw/, pairs/, sft/ and prompts/")
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
    defaults = read_yaml(HERE.parents[1] / "params.yaml")
    defaults.pop("arms")  # the benchmark compares arms of its own
    values = merge(merge(defaults, read_yaml(HERE / "params.yaml")), {"data": {"sources": sources(data)}})
    if model != "none":
        values = merge(values, read_yaml(HERE / "checkpoint.yaml"))
        for role in ("policy", "reward"):
            values["models"][role]["path"] = model
    config: PipelineConfig = validate(PipelineConfig, values, "", "benchmarks/real_input/params.yaml")
    return config


def sources(data: Path) -> list[dict[str, Any]]:
    """Every source in the folder, those in a native format first: of duplicates the first is kept.

    Raises:
        UserError: there are no transcripts.
    """
    transcripts = sorted((data / "raw" / "hh-rlhf").rglob("*.jsonl.gz"))
    if not transcripts:
        raise UserError(
            "no HH transcripts", where=str(data / "raw" / "hh-rlhf"), fix="give a folder with raw/hh-rlhf/**/*.jsonl.gz"
        )
    rows = [
        *(_native("hh", f"hh-{file.parent.name}-{_stem(file)}", file, CAP) for file in transcripts),
        *(
            _native("alpaca_eval", f"alpaca-eval-{file.parts[-3]}-{file.parts[-2]}", file, CAP_OF_NATIVE)
            for file in sorted((data / "raw" / "alpaca_eval").rglob("annotations.json"))
        ),
        *(
            _native("sharegpt", f"sharegpt-{_stem(file)}", file, CAP)
            for file in sorted((data / "raw" / "sharegpt").glob("*.json"))
        ),
        *(_pairs(file) for file in sorted((data / "pairs").glob("*.jsonl.gz"))),
        *(_demonstrations(file) for file in sorted((data / "sft").glob("*.jsonl.gz"))),
        *(_prompts(file) for file in sorted((data / "prompts").glob("*.jsonl.gz"))),
    ]
    return [{**row, "on_bad_row": "drop"} for row in rows]


def _native(format: str, name: str, file: Path, cap: int) -> dict[str, Any]:
    return {"format": format, "name": name, "path": str(file), "cap": cap}


def _pairs(file: Path) -> dict[str, Any]:
    name = _stem(file)
    return {**_native("jsonl", name, file, CAP), "licence": LICENCES.get(name, "unknown")}


def _demonstrations(file: Path) -> dict[str, Any]:
    columns = {"response": "response", "source": "author"}
    return {**_native("jsonl", f"sft-{_stem(file)}", file, OTHER_ROWS), "kind": "demonstration", "columns": columns}


def _prompts(file: Path) -> dict[str, Any]:
    return {**_native("jsonl", f"prompts-{_stem(file)}", file, OTHER_ROWS), "kind": "prompt"}


def _stem(file: Path) -> str:
    return file.name.partition(".")[0]


if __name__ == "__main__":
    sys.exit(main())
