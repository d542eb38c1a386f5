"""Where a process is killed: it wraps a function of its own before the run, and the wrapper kills its process group."""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

CHECKPOINT = "inverse_alignment.core.checkpoint"
REPORT = "inverse_alignment.core.metrics:FileReport"


class Point(Protocol):
    """Something that is wrong with a process."""

    def install(self) -> None:
        """Bring it about, in this process."""


def die() -> None:
    """`kill -9` of this process group."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
    signal.pause()


@dataclass(frozen=True)
class Call:
    """The `nth` call of a function, among those whose arguments match.

    Attributes:
        where: `module:name`, or `module:class.name`.
        matching: a regular expression that the text of the arguments holds.
    """

    where: str
    nth: int = 1
    matching: str = ""
    when: Literal["before", "after"] = "before"

    def install(self) -> None:
        """See `Point.install`."""

        def hit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.when == "after":
                function(*args, **kwargs)
            die()

        _at_nth(self.where, self.nth, self.matching, hit)


@dataclass(frozen=True)
class Torn:
    """The midst of writing a file: the first half of it is there."""

    where: str
    matching: str
    nth: int = 1

    def install(self) -> None:
        """See `Point.install`."""

        def hit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            function(*args, **kwargs)
            given = (str(value) for value in (*args, *kwargs.values()) if isinstance(value, (str, Path)))
            path = next(text for text in given if re.search(self.matching, text))
            os.truncate(path, os.path.getsize(path) // 2)
            die()

        _at_nth(self.where, self.nth, self.matching, hit)


@dataclass(frozen=True)
class TornRow:
    """The midst of writing the `nth` row of metrics."""

    nth: int

    def install(self) -> None:
        """See `Point.install`."""

        def hit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            function(*args, **kwargs)
            path = args[0].path
            os.truncate(path, path.stat().st_size - 9)
            die()

        _at_nth(f"{REPORT}.log", self.nth, "", hit)


@dataclass(frozen=True)
class HalfRemoved:
    """The midst of removing a folder: one of its files is gone."""

    matching: str

    def install(self) -> None:
        """See `Point.install`."""

        def hit(_: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            next(path for path in sorted(Path(args[0]).rglob("*")) if path.is_file()).unlink()
            die()

        _at_nth("shutil:rmtree", 1, self.matching, hit)


@dataclass(frozen=True)
class Skipped:
    """A defect, to see that it is noticed: a function does nothing."""

    where: str

    def install(self) -> None:
        """See `Point.install`."""
        owner, name = _find(self.where)
        setattr(owner, name, lambda *args, **kwargs: None)


def _at_nth(
    where: str,
    nth: int,
    matching: str,
    hit: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], None],
) -> None:
    """Let the `nth` matching call of a function do something else."""
    owner, name = _find(where)
    function = getattr(owner, name)
    seen = 0

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        if re.search(matching, f"{args} {kwargs}") if matching else True:
            seen += 1
            if seen == nth:
                hit(function, args, kwargs)
        return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def _find(where: str) -> tuple[Any, str]:
    """The module or class that holds a function, and its name there.

    Raises:
        AttributeError: there is no such function.
    """
    module, _, name = where.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, leaf = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    getattr(owner, leaf)
    return owner, leaf


# --- damage to what a kill left ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """What happens to a file of the newest checkpoint, or beside it, before the run goes on.

    Attributes:
        file: relative to the checkpoint; empty: the folder as a whole; it may lie beside the checkpoint (`../`).
        said: what the message about it says of the file.
    """

    how: Literal["cut", "flipped", "swapped", "gone"]
    file: str
    said: str = ""

    def apply(self, newest: Path, before: Path) -> None:
        """Spoil the checkpoint `newest`; `before` is an older one."""
        path, other = newest / self.file, before / self.file
        match self.how:
            case "cut":
                os.truncate(path, path.stat().st_size // 2)
            case "flipped":
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
            case "swapped" if path.is_dir():
                shutil.rmtree(path)
                shutil.copytree(other, path)
            case "swapped":
                shutil.copyfile(other, path)
            case "gone":
                path.unlink()
