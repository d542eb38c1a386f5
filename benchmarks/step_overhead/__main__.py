"""`python -m benchmarks.step_overhead --json out.json`: what progress, metrics and kept answers cost a step of PPO.

One iteration of the default world, done over and over from the same state: in pairs, once in silence and once told to a
terminal's display, a metrics file and the file of answers, the order changing from pair to pair. The cost of a step is
the median over pairs of the difference in processor time, as a share of the silent one; beside it stands the time spent
inside the reporting calls themselves, which noise touches less. What is watched beside the reward is measured alone:
the description of an iteration's answers, and a look at which the reward model also stands in for an audit model,
shared out among the iterations of a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.ppo_vs_trl.start import prepare
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.records import Comparison, Prompt, Provenance
from inverse_alignment.generation.answers import Sampling
from inverse_alignment.models.loading import load_policy
from inverse_alignment.models.reward_scores import load_calibrated
from inverse_alignment.optimise.ppo import Iteration, iteration, new_learner, prompts_of_step
from inverse_alignment.optimise.watch import Seen, described, watch_of
from inverse_alignment.stages.ppo import keep_samples
from inverse_alignment.text.tokenizers import load_tokenizer
from tasks.display import Display
from tasks.run_stage import Node

PAIRS, LIMIT, WATCH_LIMIT = 40, 0.01, 0.03
LOOKS = 9
NO_LEARNING = 1e-30
"""Learning rate: every iteration is to do the same work."""


def main() -> int:
    """Parse the command line, measure and print; 1 if a step pays more than one percent, or three for looks."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.step_overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of iterations ({PAIRS})")
    parser.add_argument("--store", type=Path, default=Path("artifacts"), help="artifact store of the models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = Path(folder) / "start"
            config = prepare(arguments.store, start)
            result = measure(config, start, Path(folder), arguments.pairs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.json.write_text(json.dumps(result, indent=1))
    print(f"{result['share_inside_reports']:.3%} of a step inside the reports; paired {result['share_paired']:+.2%}")
    print(
        f"{result['share_watched']:.2%} of a step for what is watched; a look takes {result['look_in_steps']:.2f} steps"
    )
    return int(result["share_inside_reports"] > LIMIT or result["share_watched"] > WATCH_LIMIT)


def measure(config: PipelineConfig, start: Path, folder: Path, pairs: int) -> dict[str, Any]:
    """The result, as it is written."""
    once, look, batch_size = _step(config, start)
    _, first = once()  # what is made at the first use
    look()
    silent: list[float] = []
    told: list[float] = []
    inside: list[float] = []
    with _Told(folder) as tell:
        for pair in range(pairs):
            for speaks in (pair % 2 == 0, pair % 2 != 0):
                began = time.process_time()
                asked, done = once()
                if speaks:
                    spoke = time.process_time()
                    tell(pair + 1, pairs, asked, done)
                    inside.append(time.process_time() - spoke)
                (told if speaks else silent).append(time.process_time() - began)
    step = statistics.median(silent)
    watch, steps = config.ppo.watch, config.ppo.steps
    described_seconds = _median(lambda: described(first.answers, first.scores, watch.stock_phrases))
    look_seconds = _median(look)
    looks = len({1, *range(watch.every, steps + 1, watch.every)})
    differences = [loud - quiet for loud, quiet in zip(told, silent, strict=True)]
    return {
        "share_inside_reports": statistics.median(inside) / step,
        "share_paired": statistics.median(differences) / step,
        "share_watched": (described_seconds + look_seconds * looks / steps) / step,
        "share_described": described_seconds / step,
        "look_in_steps": look_seconds / step,
        "looks_in_a_round": looks,
        "seconds_per_step": step,
        "seconds_inside_reports": statistics.median(inside),
        "rollouts": batch_size,
        "pairs": pairs,
        "load_at_the_end": os.getloadavg(),
        "raw": {"silent": silent, "told": told, "inside": inside},
    }


def _median(work: Callable[[], Any]) -> float:
    """Processor seconds."""
    seconds = []
    for _ in range(LOOKS):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds)


def _step(
    config: PipelineConfig, start: Path
) -> tuple[Callable[[], tuple[list[Prompt], Iteration]], Callable[[], Seen], int]:
    """One iteration that can be done again and again, a look likewise, and how many rollouts an iteration has."""
    rates = {"learning_rate": NO_LEARNING, "value_learning_rate": NO_LEARNING}
    ppo, runtime = config.ppo.model_copy(update=rates), config.runtime
    tokenizer = load_tokenizer(start / "policy").tokenizer
    reward = load_calibrated(start / "reward", torch.device("cpu"), config.models.reward.context, runtime.scoring_rows)
    prompts = [Prompt.model_validate(row["prompt"]) for row in json.loads((start / "prompts.json").read_text())]
    sampling = Sampling(ppo.max_new_tokens, ppo.temperature, config.models.policy.context, runtime.generation_rows)
    learner = new_learner(load_policy(start / "policy"), load_policy(start / "policy"), ppo, runtime.training_tokens)
    learner.warmup = 0

    def once() -> tuple[list[Prompt], Iteration]:
        learner.step = 0
        asked = prompts_of_step(prompts, 0, ppo.batch_size, 0)
        return asked, iteration(learner, tokenizer, asked, reward, ppo, sampling, 0)

    pairs = [_pair(prompt) for prompt in prompts]
    counts, reading = (ppo.watch.prompts, ppo.watch.samples), (sampling.context, runtime.training_tokens)
    watch = watch_of(pairs, counts, reward.estimate, reward, (load_policy(start / "policy"), tokenizer), reading, 0)

    def look() -> Seen:
        return watch.look(0, learner.policy, tokenizer, sampling, runtime.training_tokens)

    return once, look, ppo.batch_size


def _pair(prompt: Prompt) -> Comparison:
    """A pair to this prompt; the answer is as long as most."""
    answer = "Sure, happy to help. Weigh the flour first. Knead the dough ten minutes. Let the dough rise twice."
    return Comparison(prompt=prompt, chosen=answer, rejected="", provenance=Provenance(dataset="none", original_id="0"))


class _Told:
    """Everything that a stage says of a step, on a terminal that nobody looks at."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, (folder / "terminal").open("w")
        self._node = Node("none-s0-r1-ppo", "ppo", {}, Section(), 0)
        self._display = Display(1, Console(file=self._file, force_terminal=True, width=120))
        self._report = FileReport(folder / "metrics.jsonl", self._listen)

    def __enter__(self) -> _Told:
        self._display.__enter__()
        self._display.started(self._node, "never built")
        return self

    def __exit__(self, *error: Any) -> None:
        self._display.__exit__(*error)
        self._file.close()

    def __call__(self, done: int, total: int, prompts: list[Prompt], found: Iteration) -> None:
        self._report.log(done, found.metrics)
        if done % 4 == 0:
            keep_samples(self._folder / "samples.jsonl", done, prompts, found)
        self._report.progress(done, total, "steps")
        self._report.stopping()

    def _listen(self, done: int, total: int, unit: str, values: Any) -> None:
        self._display.progress(self._node, done, total, unit, values)


if __name__ == "__main__":
    sys.exit(main())
