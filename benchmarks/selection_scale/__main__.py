"""`python -m benchmarks.selection_scale --json out.json [--pairs N] [--samples M] [--quick]`.

A million pairs against 4,096 answers of a policy, as unit vectors of 384 numbers on disk: the seconds of our whole
selection (reading, blocks, largest products, likeness of both answers, the best 2,000) over those of the bare product
of the same matrices, by the same BLAS on one thread, with the chunk that suits it best; both take turns, shard by
shard, and the ratio is the median over the shards. Beside it the most memory the process held, and the throughput of
log-probabilities, from texts to numbers, as a share of the bare forward of the same batches.

Fails where the ratio is above 1.3, the memory above 2 GiB or the share below 0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

PAIRS, SAMPLES = 1_000_000, 4096
MOST_RATIO, MOST_GIB, LEAST_SHARE = 1.3, 2.0, 0.9


def main() -> int:
    """Measure, print one line for each claim and write the numbers; 1 if one does not hold."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.selection_scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write the result to")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of the pool ({PAIRS:,})")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"answers of the policy ({SAMPLES:,})")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the pairs, for a test")
    parser.add_argument("--folder", type=Path, help="where to write the vectors, 3 kB a pair; default: a temporary one")
    arguments = parser.parse_args()
    pairs = arguments.pairs // 20 if arguments.quick else arguments.pairs
    with threadpool_limits(1), tempfile.TemporaryDirectory(prefix="selection-", dir=arguments.folder) as folder:
        result = measure(Path(folder), pairs, arguments.samples, arguments.quick)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    share = result["log_prob_share"]
    print(
        f"selection: {result['time_ratio']:.3f} of the bare product's time, {result['pairs_per_second']:,.0f} pairs/s"
    )
    print(f"memory: {result['peak_gib']:.2f} GiB at most")
    print(f"log-probabilities: {share:.3f} of the bare forward's throughput")
    holds = result["time_ratio"] <= MOST_RATIO and result["peak_gib"] <= MOST_GIB and share >= LEAST_SHARE
    return int(not holds)


def measure(folder: Path, pairs: int, samples: int, quick: bool) -> dict[str, Any]:
    """The result, as it is written."""
    import torch

    from benchmarks.aggregate_scale.measure import peak_rss
    from benchmarks.selection_scale import scoring
    from benchmarks.selection_scale.measure import compare
    from benchmarks.selection_scale.pool import DIMENSIONS, VectorPool

    torch.set_num_threads(1)
    pool = VectorPool(folder, pairs)
    began = time.perf_counter()
    pool.write()
    written = time.perf_counter() - began
    found = compare(pool, samples)
    peak = peak_rss() / 2**30  # before the policies come: it is the selection's
    scored = scoring.measure(256 if quick else 1024, 2 if quick else 5)
    return {
        "time_ratio": found.pop("time_ratio"),
        "peak_gib": peak,
        "log_prob_share": min(each["share_of_bare_forward"] for each in scored.values()),
        "pairs": pairs,
        "samples": samples,
        "dimensions": DIMENSIONS,
        **found,
        "seconds_writing": written,
        "log_probs": scored,
        "threads": 1,
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {platform.system()}",
        "load_average": os.getloadavg(),
    }


if __name__ == "__main__":
    sys.exit(main())
