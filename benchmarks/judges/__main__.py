"""`python -m benchmarks.judges --data DIR --json out.json`: do judges agree with a crowd?

The folder has pairs/llmfao_crowd.jsonl.gz, pairs that several people have judged, with the margin of their votes, and
pairs/llmfao_gpt4.jsonl.gz, pairs as GPT-4 has judged them. Compared on the pairs that both have: GPT-4 as published,
the rules that the longer or the shorter answer wins, and with `--url` and `--model` a language model behind an
endpoint, asked in both orders. Pairs stand in an order that their texts decide, and a margin below `--tie` is a tie of
the crowd. Pairs that the crowd or GPT-4 called a plain tie are not in the files, so agreement is higher here than among
all pairs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.evaluation.judges import FIRST, SECOND, TIE, EndpointJudge, RewardJudge, agreement, judged

FILES = {name: f"pairs/llmfao_{name}.jsonl.gz" for name in ("crowd", "gpt4")}


class Pair(NamedTuple):
    """Two answers in the order of their texts."""

    prompt: str
    first: str
    second: str


def main() -> int:
    """Parse the command line, compare and print; 2 where there are no data."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.judges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the pairs")
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--tie", type=float, default=0.25, help="margin of votes below which the crowd has tied (0.25)")
    parser.add_argument("--url", help="base of an OpenAI-compatible endpoint, to ask it too")
    parser.add_argument("--model", help="its name there")
    parser.add_argument("--key-variable", default="", help="environment variable with its key")
    arguments = parser.parse_args()
    try:
        endpoint = EndpointJudge(arguments.url, arguments.model, arguments.key_variable) if arguments.url else None
        crowd, gpt4 = (read(arguments.data / path) for path in FILES.values())
        result = measure(crowd, gpt4, arguments.tie, endpoint)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.json.write_text(json.dumps(result, indent=1))
    for name, found in result["judges"].items():
        decided = f"{found['decided_share']:.3f} of the {found['decided']} that neither calls a tie"
        print(
            f"{name}: agrees on {found['share']:.3f} of {found['pairs']} pairs, kappa {found['kappa']:.3f}; {decided}"
        )
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a packed JSONL file."""
    if not path.is_file():
        raise UserError("no file of judged pairs", where=str(path), fix="name a folder that has it with --data")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def labels(rows: Sequence[dict[str, Any]], tie: float) -> dict[Pair, float]:
    """What was said of each pair: 1 where the first answer won, ½ for a margin below `tie`, 0 where the second did.

    A pair that stands there more than once has the label of the mean of its margins.
    """
    margins: dict[Pair, list[float]] = {}
    for row in rows:
        first, second = sorted((row["chosen"], row["rejected"]))
        sign = 1.0 if row["chosen"] == first else -1.0
        margins.setdefault(Pair(row["prompt"], first, second), []).append(sign * (row["margin"] or 1.0))
    means = {pair: float(np.mean(found)) for pair, found in margins.items()}
    return {pair: TIE if abs(mean) < tie else FIRST if mean > 0 else SECOND for pair, mean in means.items()}


def measure(
    crowd: Sequence[dict[str, Any]], gpt4: Sequence[dict[str, Any]], tie: float, endpoint: EndpointJudge | None = None
) -> dict[str, Any]:
    """The result, as it is written."""
    people, machine = labels(crowd, tie), labels(gpt4, 0.0)
    pairs = sorted(set(people) & set(machine))
    truth = np.array([people[pair] for pair in pairs])
    prompts = [Prompt.from_text(pair.prompt) for pair in pairs]
    first, second = [pair.first for pair in pairs], [pair.second for pair in pairs]
    said = {
        "GPT-4 as published": np.array([machine[pair] for pair in pairs]),
        "the longer answer": RewardJudge(_words)(prompts, first, second),
        "the shorter answer": RewardJudge(lambda prompts, texts: -_words(prompts, texts))(prompts, first, second),
    }
    result: dict[str, Any] = {"tie": tie, "crowd_ties": int((truth == TIE).sum())}
    if endpoint is not None:
        found = judged(endpoint, prompts, first, second)
        said["the endpoint"], result["consistent"] = found.first_wins, float(found.consistent.mean())
    return {**result, "judges": {name: agreement(verdicts, truth).json() for name, verdicts in said.items()}}


def _words(prompts: Sequence[Prompt], responses: Sequence[str]) -> np.ndarray:
    return np.array([float(len(text.split())) for text in responses])


if __name__ == "__main__":
    sys.exit(main())
