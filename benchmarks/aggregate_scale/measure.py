"""One measured call of `aggregate`, in a process of its own: `python -m ...aggregate_scale.measure PLAN.json`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from inverse_alignment.data.aggregate import AggregateSettings, aggregate
from inverse_alignment.data.duplicates import DropNear, KeepNear
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.text.render import PairEncoder
from inverse_alignment.text.tokenizers import load_tokenizer

CONTEXT = 512
PASSES = ("rows read", "rows examined", "rows written")


def measure(folder: Path, tokenizer: Path, sources: list[JsonlSource], near: bool) -> dict[str, Any]:
    """Pool the sources; seconds and rows a second of each pass, and memory above that of the imports."""
    encoder = PairEncoder(load_tokenizer(tokenizer).tokenizer, CONTEXT)
    encoder.encode_texts([])
    ends: dict[str, tuple[float, float, int]] = {}

    def progress(done: int, total: int, unit: str) -> None:
        ends[unit] = (time.perf_counter(), time.process_time(), done)

    settings = AggregateSettings(near_duplicates=DropNear() if near else KeepNear())
    before = psutil.Process().memory_info().rss
    began, began_cpu = time.perf_counter(), time.process_time()
    statistics = aggregate(folder, sources, settings, [encoder], progress=progress)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    passes, since, used = {}, began, began_cpu
    for unit in PASSES:
        now, cpu, rows = ends[unit]
        passes[unit] = {
            "rows": rows,
            "seconds": now - since,
            "cpu_seconds": cpu - used,
            "rows_per_second": rows / (now - since),
        }
        since, used = now, cpu
    return {
        "rows": statistics["rows"],
        "pairs": statistics["pairs"],
        "dropped": statistics["dropped"],
        "torn_questions": statistics["contradictions"]["questions"],
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "rows_per_second": statistics["rows"] / seconds,
        "passes": passes,
        "rss_before": before,
        "peak_rss_above": peak_rss() - before,
    }


def peak_rss() -> int:
    """Most bytes of memory this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, this forgets the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Measure what the plan says, and write its `out`."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    sources = [JsonlSource(**each) for each in plan["sources"]]
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as folder:
        found = measure(Path(folder), Path(plan["tokenizer"]), sources, plan["near"])
    Path(plan["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
