"""Whether a process that was noted down by its number and start time still runs."""

from __future__ import annotations

import psutil

SAME_START_SECONDS = 2.0
"""How far two readings of one process's start time may differ."""


def runs(pid: int, start: float) -> bool:
    """Whether this very process is alive, and not a later one with its number."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - start) < SAME_START_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
