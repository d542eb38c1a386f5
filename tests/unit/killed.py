"""A training that is killed at a step, as far as it can tell."""

from __future__ import annotations

from inverse_alignment.core.metrics import FileReport


class Killed(BaseException):
    """Stands in for a kill: nothing of ours catches it."""


class MortalReport(FileReport):
    """A report that dies at a step; -1: never."""

    die_at = -1

    def progress(self, done: int, total: int, unit: str) -> None:
        if done == self.die_at:
            raise Killed
