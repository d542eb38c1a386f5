"""Builds one artifact in a process of its own: `store_worker.py ROOT MODE`; run by the tests of the store."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from inverse_alignment.core.store import Store

IDENTITY = {"stage": "toy", "config": {"k": 1}}


def main(root: Path, mode: str) -> None:
    """Count the build in `root/builds`; in mode `die` be killed in the midst of it."""

    def build(out: Path, partial: Path) -> dict[str, float]:
        with (root / "builds").open("a") as file:
            file.write("x")
        (out / "half.txt").write_text("half")
        (partial / "checkpoint.txt").write_text("so far")
        if mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        (out / "half.txt").write_text("whole")
        return {"value": 1.0}

    entry = Store(root / "store").materialise("toy", "toy", (), IDENTITY, build)
    print(entry.artifact.digest, entry.reused)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
