"""`python -m benchmarks.reward_vs_trl --json out.json [--data DIR]`: our reward-model training against TRL's.

Both train the same model from the same weights on the same pairs for one epoch, with the same batch, optimiser,
schedule, dtype and threads, and pad to the longest of a batch. TRL does it twice: it groups pairs by length itself,
and it is given our batches, since its own groups are coarse where pairs are few. They take turns, and who goes first
changes from round to round; times are those from token ids to the trained model, set-up included. `ratio` is how many
times more pairs a second ours trains on than the faster of TRL's two: the median over rounds.

It counts only where all did the same work: given the same batches, models end with the same loss on held-out pairs;
each in its own order, the mean losses agree within the tolerance. `of_bare_loop` is our share of the speed of a loop
that does the same passes and steps and nothing else: the floor of this way to read a batch.

With `--data DIR` the pairs are AlpacaEval's, of real lengths; without it the embedded world's, which are short.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

from inverse_alignment.core.errors import UserError

LEAST_RATIO = 1.3
SAME_BATCHES = 1e-4
"""Largest difference of the held-out losses, in nats, where both saw the same batches: rounding, over a whole epoch."""
OWN_ORDER = 0.03
"""Largest difference of the mean held-out losses, in nats, where each had its own order: seeds differ by as much."""
PAIRS, HELD_OUT, ROUNDS = 320, 128, 5
PACKAGES = ("torch", "transformers", "accelerate", "trl", "numpy")


def main() -> int:
    """Parse the command line, race, and print the ratio; 1 if it is too small or does not count."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.reward_vs_trl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--data", type=Path, help="folder with pairs/alpaca_eval.jsonl.gz")
    parser.add_argument("--quick", action="store_true", help="a fifth of the pairs and two rounds, for a look")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads for both (1)")
    arguments = parser.parse_args()
    rounds, pairs = (2, PAIRS // 5) if arguments.quick else (ROUNDS, PAIRS)
    try:
        result = race(arguments.data, pairs, rounds, arguments.threads)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['ratio']:.2f} times TRL's pairs per second ({result['cpu_ratio']:.2f} of processor time)")
    print(f"{result['of_bare_loop']:.2f} of a bare loop's speed; valid: {result['valid']}")
    for reason in result["reasons"]:
        print(f"  {reason}")
    return int(not result["valid"] or result["ratio"] < LEAST_RATIO)


def race(data: Path | None, pairs: int, rounds: int, threads: int) -> dict[str, Any]:
    """The result, as it is written."""
    import torch

    from benchmarks.reward_vs_trl.contestants import BATCH, CONTESTANTS, ours, timed
    from benchmarks.reward_vs_trl.pairs import field

    torch.set_num_threads(threads)
    racing = field(data, pairs, HELD_OUT)
    ours(replace(racing, train=racing.train[:BATCH]), 0)  # what is made at the first use
    raw: list[dict[str, Any]] = []
    names = list(CONTESTANTS)
    for seed in range(rounds):
        for name in names[seed % 4 :] + names[: seed % 4]:
            raw.append({"contestant": name, "round": seed, **timed(name, racing, seed)})
        print(f"round {seed + 1} of {rounds}", file=sys.stderr)
    return {
        **verdict(raw, len(racing.train)),
        "settings": {
            "data": "world" if data is None else "alpaca_eval",
            "pairs": len(racing.train),
            "held_out": len(racing.held_out),
            "batch_size": BATCH,
            "rounds": rounds,
            "threads": threads,
            "dtype": "float32",
            "model": racing.spec.model_dump(mode="json"),
        },
        "tokens": tokens(racing.train),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {"architecture": platform.machine(), "cpus": os.cpu_count(), "load_at_the_end": os.getloadavg()},
        "raw": raw,
    }


def verdict(raw: list[dict[str, Any]], pairs: int) -> dict[str, Any]:
    """Ratios of the rounds, and whether they count.

    Args:
        raw: what `timed` says of each contestant in each round.
        pairs: that each trained on.
    """
    names = list(dict.fromkeys(row["contestant"] for row in raw))

    def of(name: str, key: str) -> list[float]:
        return [row[key] for row in sorted(raw, key=lambda row: row["round"]) if row["contestant"] == name]

    def ratio(other: str, key: str) -> float:
        return median(a / b for a, b in zip(of(other, key), of("ours", key), strict=True))

    losses = {name: of(name, "held_out_loss") for name in names}
    same = max(abs(a - b) for a, b in zip(losses["ours"], losses["theirs_grouped"], strict=True))
    own = abs(mean(losses["ours"]) - mean(losses["theirs"]))
    reasons = []
    if not same <= SAME_BATCHES:
        reasons.append(f"of the same batches, the losses differ by {same:.2g}, more than {SAME_BATCHES}")
    if not own <= OWN_ORDER:
        reasons.append(f"each in its own order, the mean losses differ by {own:.3f}, more than {OWN_ORDER}")
    faster = min(("theirs", "theirs_grouped"), key=lambda name: median(of(name, "cpu_seconds")))
    return {
        "ratio": ratio(faster, "wall_seconds"),
        "cpu_ratio": ratio(faster, "cpu_seconds"),
        "faster_of_theirs": faster,
        "ratios": {name: ratio(name, "wall_seconds") for name in names},
        "of_bare_loop": ratio("bare", "cpu_seconds"),
        "valid": not reasons,
        "reasons": reasons,
        "loss_difference": {"same_batches": same, "own_order": own},
        "pairs_per_second": {name: pairs / median(of(name, "wall_seconds")) for name in names},
        "held_out_loss": {name: mean(losses[name]) for name in names},
    }


def tokens(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How long the pairs are, in tokens; `padding_saved`: of what is padded to a pair's longer side."""
    both = [(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    return {
        "mean": mean(sum(pair) / 2 for pair in both),
        "mean_of_longer": mean(max(pair) for pair in both),
        "longest": max(max(pair) for pair in both),
        "padding_saved": 1 - sum(sum(pair) for pair in both) / sum(2 * max(pair) for pair in both),
    }


if __name__ == "__main__":
    sys.exit(main())
