"""What a tracker is to be told, as events in a file: written first, so that no lost server loses anything.

Every tracked process has a file of its own, `<store>/.journal/<start>-<id>.jsonl`: a line that says who writes, then
one event a line. Whatever applies the events twice must end where it was after the first time.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tasks.processes import runs

FOLDER = ".journal"

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Event(BaseModel):
    """Something a tracker is told. `key` names a run across stores, `at` is the time in ms since 1970."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    at: int


class Given(BaseModel):
    """A dataset that a run reads or lists: by reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    context: str
    uri: str
    digest: str
    kind: str
    tags: dict[str, str] = {}


class Open(Event):
    """A run begins."""

    do: Literal["open"] = "open"
    name: str
    parent: str | None = None
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    inputs: tuple[Given, ...] = ()


class Note(Event):
    """Something about an open run: points of metrics (name, value, step), the rows of a file, tags, small files."""

    do: Literal["note"] = "note"
    points: tuple[tuple[str, float, int], ...] = ()
    rows_of: str | None = None
    rows_from: int = 0
    about: str | None = Field(None, description="digest of the weights that the points measure")
    tags: dict[str, str] = {}
    folder: str = ""
    files: tuple[str, ...] = ()


class Listed(Event):
    """A stage is listed on its parent, with the run that built its artifact."""

    do: Literal["listed"] = "listed"
    given: Given
    node: str
    fingerprint: str
    built_by: str | None = Field(None, description="key of the run in this journal; None: look for it")


class Made(Event):
    """A run has made a model; `weights` is the digest of its part, empty where they were not kept."""

    do: Literal["made"] = "made"
    registered: Literal["policy", "reward-model"]
    name: str
    fingerprint: str
    weights: str
    uri: str
    tags: dict[str, str] = {}


class Pointed(Event):
    """Aliases of a registered model are to point to the version with these tags."""

    do: Literal["pointed"] = "pointed"
    registered: Literal["policy", "reward-model"]
    aliases: tuple[str, ...]
    fingerprint: str = ""
    weights: str = ""


class Close(Event):
    """A run has ended."""

    do: Literal["close"] = "close"
    status: Status


class Drop(Event):
    """A run is to be forgotten: another process built what it was about to build."""

    do: Literal["drop"] = "drop"


AnyEvent = Annotated[Open | Note | Listed | Made | Pointed | Close | Drop, Field(discriminator="do")]
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


class Writer(BaseModel):
    """Who writes a journal, and for which experiment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    journal: str
    experiment: str
    host: str
    pid: int
    pid_start: float

    @classmethod
    def here(cls, experiment: str) -> Writer:
        """This process."""
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
        start = psutil.Process().create_time()
        return cls(journal=name, experiment=experiment, host=socket.gethostname(), pid=os.getpid(), pid_start=start)

    def lives(self) -> bool | None:
        """Whether the process still runs; None where another machine would have to be asked."""
        return runs(self.pid, self.pid_start) if self.host == socket.gethostname() else None


class Journal:
    """The file that this process writes. It appears with the first event."""

    def __init__(self, folder: Path, writer: Writer) -> None:
        self.path = folder / f"{writer.journal}.jsonl"
        self._head = writer.model_dump_json()

    def append(self, event: AnyEvent) -> None:
        """Write one event; it survives the process."""
        head = "" if self.path.exists() else f"{self._head}\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            line = {"do": event.do, **event.model_dump(mode="json", exclude_defaults=True)}
            file.write(f"{head}{json.dumps(line, ensure_ascii=False, allow_nan=False)}\n")


@dataclass(frozen=True)
class Journalled:
    """A journal as it was found."""

    writer: Writer
    events: tuple[AnyEvent, ...]

    def goes_on(self) -> bool:
        """Whether the process that writes it still runs, and has runs open."""
        return bool(self._left()) and self.writer.lives() is True

    def whole(self) -> tuple[AnyEvent, ...]:
        """The events of all runs that were kept, with an end for those that have none: their process was killed."""
        kept = self._kept()
        last = max((event.at for event in kept), default=0)
        return (*kept, *(Close(key=key, at=last, status="KILLED") for key in reversed(self._left())))

    def _kept(self) -> list[AnyEvent]:
        """Of a run that was dropped, that it was."""
        dropped = {event.key for event in self.events if isinstance(event, Drop)}
        return [event for event in self.events if event.key not in dropped or isinstance(event, Drop)]

    def _left(self) -> list[str]:
        """Keys of the runs that have no end."""
        ended = {event.key for event in self._kept() if isinstance(event, Close)}
        return [event.key for event in self._kept() if isinstance(event, Open) and event.key not in ended]


def read_journals(folder: Path) -> Iterator[Journalled]:
    """The journals of a folder, oldest first. A line that a kill cut short ends its journal."""
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            writer = Writer.model_validate_json(lines[0])
        except (IndexError, ValidationError):
            continue
        yield Journalled(writer, tuple(_events(lines[1:])))


def _events(lines: list[str]) -> Iterator[AnyEvent]:
    for line in lines:
        try:
            yield _EVENT.validate_python(json.loads(line))
        except ValueError:
            return
