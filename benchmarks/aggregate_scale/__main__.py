"""`python -m benchmarks.aggregate_scale --rows 1000000 --json out.json [--near] [--shards N] [--quick]`.

Pools that many synthetic preference pairs with `aggregate()`, and a tenth of them, each in a process of its own, and
says how many rows a second each pass takes and what a row costs in memory: the slope of the peak between the two sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.aggregate_scale.synthetic import write_sources
from inverse_alignment.text.tokenizers import train_tokenizer

QUICK = 100_000
VOCABULARY = 8192
TEXTS_TO_LEARN_FROM = 60_000


def main() -> int:
    """Make the data, measure both sizes, print a table and write the numbers."""
    parser = argparse.ArgumentParser(prog="benchmarks.aggregate_scale", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="pairs of all sources together, copies included")
    parser.add_argument("--shards", type=int, default=4, help="files of each source")
    parser.add_argument("--near", action="store_true", help="look for near duplicates too")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--folder", type=Path, help="where to make the data, some 4 kB a row; default: a temporary one")
    arguments = parser.parse_args()
    rows = QUICK if arguments.quick else arguments.rows
    with tempfile.TemporaryDirectory(prefix="aggregate-scale-", dir=arguments.folder) as folder:
        found = compare(Path(folder), rows, arguments.shards, arguments.near)
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def compare(folder: Path, rows: int, shards: int, near: bool) -> dict[str, Any]:
    """Measure a tenth of the rows, then all of them."""
    few, many = (measured(folder / str(count), count, shards, near) for count in (rows // 10, rows))
    more = many["peak_rss_above"] - few["peak_rss_above"]
    return {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "near_duplicates": near,
        "load_average": os.getloadavg(),
        "few": few,
        "many": many,
        "bytes_per_row": more / (many["rows"] - few["rows"]),
    }


def measured(folder: Path, rows: int, shards: int, near: bool) -> dict[str, Any]:
    """Numbers of one call of `aggregate` over that many rows."""
    folder.mkdir()
    sources = write_sources(folder / "data", rows, shards, seed=0)
    train_tokenizer(_texts(folder / "data"), VOCABULARY).save_pretrained(folder / "tokenizer")
    plan = {
        "sources": [source.model_dump(mode="json", exclude_defaults=True) for source in sources],
        "tokenizer": str(folder / "tokenizer"),
        "near": near,
        "out": str(folder / "found.json"),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    busy = psutil.cpu_times()
    subprocess.run([sys.executable, "-m", "benchmarks.aggregate_scale.measure", str(folder / "plan.json")], check=True)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    now = psutil.cpu_times()
    everybody = sum(getattr(now, kind) - getattr(busy, kind) for kind in ("user", "system", "nice"))
    found["cpu_seconds_of_others"] = max(0.0, everybody - found["cpu_seconds"])
    return found


def _texts(folder: Path) -> list[str]:
    """Texts to train a tokenizer on."""
    with next(folder.glob("*/*.jsonl")).open(encoding="utf-8") as file:
        pairs = [json.loads(line) for line in islice(file, TEXTS_TO_LEARN_FROM // 3)]
    return [pair[name] for pair in pairs for name in ("prompt", "chosen", "rejected")]


def table(found: dict[str, Any]) -> str:
    """The numbers for a person."""
    lines = [
        f"{found['machine']}, Python {found['python']}, near duplicates {'on' if found['near_duplicates'] else 'off'}"
    ]
    for size in ("few", "many"):
        each = found[size]
        lines.append(
            f"{each['rows']:>9,} rows: {each['seconds']:.0f} s, {each['rows_per_second']:,.0f} rows/s, "
            f"{each['cpu_seconds']:.0f} s of CPU (others used {each['cpu_seconds_of_others']:.0f}), "
            f"{each['peak_rss_above'] / 2**20:,.0f} MiB above the imports"
        )
        for name, part in each["passes"].items():
            times = f"{part['seconds']:7.1f} s, {part['cpu_seconds']:7.1f} s of CPU"
            lines.append(f"    {name:<14} {times}, {part['rows_per_second']:8,.0f} rows/s")
    return "\n".join([*lines, f"memory: {found['bytes_per_row']:.0f} bytes a row more"])


if __name__ == "__main__":
    sys.exit(main())
