"""What a person sees while stages run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from inverse_alignment.core.store import Entry
from tasks.run_stage import Node

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, Task, TaskID

LINE_SECONDS = 10.0  # least time between two progress lines where there is no terminal
SHOWN_METRICS = 3
FAVOURITES = ("rm_score", "score", "reward", "kl_to_sft", "kl", "accuracy", "loss")


class Display:
    """An observer that shows progress over `total` nodes. Use it as a context manager."""

    def __init__(self, total: int, console: Console) -> None:
        self.total = total
        self.console = console
        self._done: set[str] = set()
        self._live = _Live(total, console) if console.is_terminal else None
        self._spoke = 0.0
        self._first: tuple[float, int] | None = None  # when a stage first said how far it was, and how far
        self._reused = 0

    def __enter__(self) -> Display:
        if self._live:
            self._live.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.progress.stop()
        elif self._reused:
            self._say_reused()

    def started(self, node: Node, why: str) -> None:
        """See `Observer.started`."""
        self._first, self._spoke = None, time.monotonic()
        if self._live:
            self._live.started(node)
            return
        self._say_reused()
        self._print(f"[{len(self._done) + 1}/{self.total}] {node.name}: {node.stage}, {why}")

    def progress(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        """See `Observer.progress`."""
        if self._live:
            self._live.advanced(node, done, total, unit, values)
            return
        now = time.monotonic()
        began, before = self._first = self._first or (now, done)  # what an earlier attempt did took no time now
        if now - self._spoke < LINE_SECONDS:
            return
        self._spoke = now
        rate = (done - before) / (now - began) if now > began else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        self._print(f"    {node.name}: {done} of {total} {unit}, {rate:.3g} a second{left}{newest(values, ', ')}")

    def finished(self, node: Node, entry: Entry, seconds: float) -> None:
        """See `Observer.finished`."""
        first = node.name not in self._done
        self._done.add(node.name)
        if self._live:
            self._live.finished(node, entry, seconds, len(self._done))
        elif not entry.reused:
            self._print(f"    {node.name}: built in {seconds:.1f} s{newest(headline(entry), ', ')}")
        elif first:
            self._reused += 1

    def failed(self, node: Node, error: BaseException) -> None:
        """See `Observer.failed`; what went wrong is said once, at the end."""
        if self._live:
            self._live.stopped()
        else:
            self._print(f"    {node.name}: stopped")

    def _say_reused(self) -> None:
        if self._reused:
            self._print(f"    {self._reused} {'stage' if self._reused == 1 else 'stages'} reused")
        self._reused = 0

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Live:
    """Two bars: all nodes, and the stage that runs now."""

    def __init__(self, total: int, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                unit = task.fields.get("unit", "")
                return Text(f"{task.speed:.3g} {unit}/s" if task.speed and unit else "", style="dim")

        self.progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", style="cyan", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self._overall: TaskID = self.progress.add_task("all stages", total=total, unit="", values="")
        self._current: TaskID | None = None

    def started(self, node: Node) -> None:
        self.stopped()
        self._current = self.progress.add_task(node.name, total=None, unit="", values="")

    def advanced(self, node: Node, done: int, total: int, unit: str, values: Mapping[str, float]) -> None:
        if self._current is not None:
            self.progress.update(
                self._current, completed=done, total=total, unit=unit, values=newest(values), description=node.name
            )

    def finished(self, node: Node, entry: Entry, seconds: float, done: int) -> None:
        self.stopped()
        self.progress.update(self._overall, completed=done)
        if not entry.reused:
            line = f"✓ {node.name:<32} {seconds:6.1f} s{newest(headline(entry), '   ')}"
            self.progress.console.print(line, markup=False, highlight=False)

    def stopped(self) -> None:
        if self._current is not None:
            self.progress.remove_task(self._current)
            self._current = None


def headline(entry: Entry) -> dict[str, float]:
    """The numbers among a stage's headline metrics."""
    return {name: value for name, value in entry.metrics.items() if type(value) in (int, float)}


def newest(values: Mapping[str, float], prefix: str = "") -> str:
    """A few metrics in one short text, those people ask for first."""
    order = [name for favourite in FAVOURITES for name in values if name.rpartition("/")[2] == favourite]
    names = list(dict.fromkeys([*order, *values]))[:SHOWN_METRICS]
    text = "  ".join(f"{name} {values[name]:.4g}" for name in names)
    return f"{prefix}{text}" if text else ""
