"""What a contestant measures of itself, in the same way for both. Imports nothing of the project."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field

import psutil

SAMPLE_SECONDS = 0.005
TURN = "ppo_vs_trl: my turn?"


class PeakMemory:
    """Resident memory at the start and at its most, in bytes; looked at every 5 ms by a thread of the process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.base = self.peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, self._process.memory_info().rss)


@dataclass
class Laps:
    """Wall and processor time of iterations, the first of which warm up, and what each of them measured.

    Two contestants take turns, iteration by iteration: after each one a contestant says so on its standard output and
    waits for a line on its standard input. Whatever else the machine does then slows both alike.
    """

    warmup: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def wait(self) -> None:
        """Wait for the turn, then start the clocks."""
        print(TURN, flush=True)
        sys.stdin.readline()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """An iteration has ended here."""
        self.wall.append(time.perf_counter() - self._wall)
        self.cpu.append(time.process_time() - self._cpu)
        self.wait()

    def results(self, memory: PeakMemory) -> dict[str, object]:
        """Raw times, lengths and metrics of the iterations after the warm-up; memory of all."""
        return {
            "wall_seconds": self.wall[self.warmup :],
            "cpu_seconds": self.cpu[self.warmup :],
            "lengths": self.lengths[self.warmup :],
            "metrics": self.metrics[self.warmup :],
            "peak_memory_bytes": memory.peak - memory.base,
            "base_memory_bytes": memory.base,
        }
