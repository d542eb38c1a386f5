"""Rows of all sources while they are pooled: texts in a file, in memory some 100 bytes of numbers each.

That is what lets a million pairs be pooled in bounded memory: whatever compares rows with each other looks at numbers,
and texts pass by one batch at a time.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from inverse_alignment.core.records import (
    SPLITS,
    Authorship,
    Comparison,
    Demonstration,
    Example,
    Judgement,
    Prompt,
    PromptOnly,
    Provenance,
)
from inverse_alignment.data.read import Dropped
from inverse_alignment.data.sources import Kind

KINDS: tuple[type[Example], ...] = (Comparison, PromptOnly, Demonstration, Judgement)
KIND_NAMES: tuple[Kind, ...] = ("preference", "prompt", "demonstration", "judgement")
PAIR = 0
KEPT = -1
NOBODY = -1
_AT_ONCE = 4096
_TYPES = {
    "offset": "q",
    "kind": "b",
    "dataset": "i",
    "prompt": "Q",
    "content": "Q",
    "question": "Q",
    "forward": "b",
    "vote": "Q",
    "id": "Q",
    "record": "Q",
    "first_words": "i",
    "second_words": "i",
    "first_writer": "i",
    "second_writer": "i",
    "annotator": "i",
    "licence": "i",
    "stated": "b",
}


class Names:
    """Small numbers for names that come again and again."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        for name in names:
            self.number(name)

    def number(self, name: str) -> int:
        """The number of a name, a new one for a new name."""
        found = self._numbers.setdefault(name, len(self.names))
        if found == len(self.names):
            self.names.append(name)
        return found


@dataclass
class Ledger:
    """What is known of every row.

    Attributes:
        file: the rows as JSON, one a line.
        columns: one array per fact, each with one number a row:
            `offset` in the file; `kind`, an index of KINDS; `dataset`, `first_writer`, `second_writer` (who wrote
            chosen and rejected, or the one answer and nobody), `annotator` and `licence`, numbers of names; `prompt`,
            the prompt's id; `content`, a hash of conversation and answers in their order; `question`, the same with the
            answers in no order; `forward`, whether chosen sorts before rejected; `vote`, a hash of annotator and name;
            `id`, of dataset and name; `record`, of the whole row; words of both answers; `stated`, the row's own split.
        reason: (n,) why a row is not used, a number of `reasons`, or KEPT.
        soft_label: (n,) a soft label that replaces the row's own; NaN for none.
        truncated: (n,) whether the row loses tokens to the length limit.
        lost: rows that were read and not kept, by kind, dataset, writers, annotator, licence and reason.
    """

    path: Path
    datasets: Names = field(default_factory=Names)
    writers: Names = field(default_factory=Names)
    annotators: Names = field(default_factory=Names)
    licences: Names = field(default_factory=Names)
    reasons: Names = field(default_factory=Names)
    lost: Counter[tuple[int, int, int, int, int, int]] = field(default_factory=Counter)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    reason: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int8))
    soft_label: np.ndarray = field(default_factory=lambda: np.empty(0))
    truncated: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))

    def __post_init__(self) -> None:
        self._growing = {name: array(code) for name, code in _TYPES.items()}
        self._file: IO[bytes] | None = self.path.open("wb")
        self._end = 0

    def __len__(self) -> int:
        return len(self.reason) if self.columns else len(self._growing["offset"])

    def add(self, row: Example | Dropped) -> None:
        """Take a row in: a good one with its text, a bad one as a count."""
        if isinstance(row, Dropped):
            self._count(row)
            return
        assert self._file is not None  # closed only by `close`
        text = row.model_dump_json()
        line = text.encode() + b"\n"
        facts = {"offset": self._end, "record": hashed(text), **self._facts(row)}
        for name, column in self._growing.items():
            column.append(facts[name])
        self._file.write(line)
        self._end += len(line)

    def close(self) -> None:
        """All rows are in: from now on they can be read, and compared."""
        assert self._file is not None
        self._file.close()
        self._file = None
        self.columns = {name: np.frombuffer(column, dtype=column.typecode) for name, column in self._growing.items()}
        count = len(self.columns["offset"])
        self.reason = np.full(count, KEPT, dtype=np.int8)
        self.soft_label = np.full(count, np.nan)
        self.truncated = np.zeros(count, dtype=bool)

    def drop(self, rows: np.ndarray, reason: str) -> None:
        """Say why rows are not used; the first reason stays."""
        still = rows[self.reason[rows] == KEPT]
        self.reason[still] = self.reasons.number(reason)

    @property
    def kept(self) -> np.ndarray:
        """Rows that are still used, in the order of the file."""
        return np.flatnonzero(self.reason == KEPT)

    def ranked(self, rows: np.ndarray) -> np.ndarray:
        """The rows in the order of precedence: datasets as configured, then names; no matter how they were read."""
        order = np.lexsort([self.columns[name][rows] for name in ("id", "dataset")])
        return rows[order]

    def lines(self, rows: np.ndarray) -> Iterator[bytes]:
        """Rows as lines of JSON, in the order asked for."""
        with self.path.open("rb") as file:
            end = -1
            for begin in in_numbers(self.columns["offset"], rows):
                if begin != end:
                    file.seek(begin)
                line = file.readline()
                end = begin + len(line)
                yield line

    def read(self, rows: np.ndarray) -> Iterator[Example]:
        """Rows as records, in the order asked for."""
        for kind, line in zip(in_numbers(self.columns["kind"], rows), self.lines(rows), strict=True):
            yield KINDS[kind].model_validate_json(line)

    def _facts(self, row: Example) -> dict[str, int]:
        origin = row.provenance
        kind = KINDS.index(type(row))
        answers, writers, annotator = _answers(row)
        key, in_order = row.prompt.key, sorted(answers)
        question = hashed(f"{kind}", key, *in_order)
        forward = answers == in_order
        return {
            "kind": kind,
            "dataset": self.datasets.number(origin.dataset),
            "prompt": prompt_number(row.prompt),
            "content": question if forward else hashed(f"{kind}", key, *answers),
            "question": question,
            "forward": int(forward),
            "vote": hashed(annotator or "", origin.original_id),
            "id": hashed(origin.dataset, origin.original_id),
            "first_words": len(answers[0].split()) if answers else 0,
            "second_words": len(answers[1].split()) if kind == PAIR else 0,
            "first_writer": self.writers.number(writers[0]) if writers else NOBODY,
            "second_writer": self.writers.number(writers[1]) if kind == PAIR else NOBODY,
            "annotator": NOBODY if annotator is None else self.annotators.number(annotator),
            "licence": self.licences.number(origin.licence),
            "stated": NOBODY if origin.split is None else SPLITS.index(origin.split),
        }

    def _count(self, row: Dropped) -> None:
        origin = row.provenance
        if isinstance(origin, Provenance):
            kind, names = PAIR, [origin.source_chosen, origin.source_rejected]
        else:  # a judgement counts as a demonstration here: the two are told apart by their dataset
            kind, names = KINDS.index(Demonstration), [origin.source] if isinstance(origin, Authorship) else []
        writers = [self.writers.number(name) for name in names] + [NOBODY, NOBODY]
        annotator = getattr(origin, "annotator", None)
        key = (
            kind,
            self.datasets.number(origin.dataset),
            writers[0],
            writers[1],
            NOBODY if annotator is None else self.annotators.number(annotator),
            self.reasons.number(row.reason),
        )
        self.lost[key] += 1


def in_numbers(column: np.ndarray, rows: np.ndarray) -> Iterator[Any]:
    """What rows have in a column as Python's numbers, a few at a time: a list of them all takes 36 bytes each."""
    for begin in range(0, len(rows), _AT_ONCE):
        yield from column[rows[begin : begin + _AT_ONCE]].tolist()


def prompt_number(prompt: Prompt) -> int:
    """A prompt's id as a number of 64 bits."""
    return int(prompt.id, 16)


def _answers(row: Example) -> tuple[list[str], list[str], str | None]:
    """The answers in a row, who wrote them, and who judged them."""
    if isinstance(row, Comparison):
        origin = row.provenance
        return [row.chosen, row.rejected], [origin.source_chosen, origin.source_rejected], origin.annotator
    if isinstance(row, (Demonstration, Judgement)):
        label = [str(row.label)] if isinstance(row, Judgement) else []
        return [row.response, *label], [row.provenance.source], row.provenance.annotator
    return [], [], None


def hashed(*parts: str) -> int:
    """64 bits of the parts; their lengths are told, so that no text can pass for the end of one and the next."""
    told = "".join([f"{len(part)}:{part}" for part in parts])
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "big")
