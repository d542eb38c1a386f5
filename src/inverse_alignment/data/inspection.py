"""What a file of data is, in seconds: format, first problems, statistics of a sample, and the source that reads it.

The work is bounded, whatever the size of the file: a sample is read, and how many rows there are is estimated.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Demonstration, Example, Judgement
from inverse_alignment.data import files
from inverse_alignment.data.contradictions import settle
from inverse_alignment.data.duplicates import drop_exact, drop_repeats
from inverse_alignment.data.files import File
from inverse_alignment.data.ledger import Ledger
from inverse_alignment.data.read import Dropped, understood, unnamed
from inverse_alignment.data.recognise import load, place, recognise
from inverse_alignment.data.rows import BadRow, Reading, Row
from inverse_alignment.data.sources import COLUMNS_OF, Kind, SourceConfig, TableSource
from inverse_alignment.data.statistics import describe

MOST_ROWS, MOST_SECONDS = 20_000, 3.0
HEAD = 200  # rows that a format is told from
MOST_PROBLEMS, MOST_EXAMPLES, EXAMPLE_LETTERS = 5, 3, 400
REFUSED_BY_A_RUN = 0.5  # the default of data.aggregate.max_dropped_share
_SAYS_LITTLE = re.compile(
    r"(train|test|dev|val|valid|validation|eval|data|part|shard|default|model_outputs|annotations)?[-_.\d]*(of)?[-_.\d]*"
)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, or with a file: then there is no row and no field."""

    row: int | None
    field: str | None
    reason: str
    what: str
    fix: str


@dataclass(frozen=True)
class Shown:
    """A row to look at: its texts by name, shortened."""

    row: int
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Inspection:
    """What is known of a file.

    Attributes:
        path: as it was given.
        bytes: its size.
        container: how it holds its rows; None where that could not be told.
        layout: the format in words; empty where that could not be told.
        rows: how many were read.
        total: how many there are, or about how many; None if not even that is known.
        complete: whether all rows were read: then `total` and all else is exact.
        refused: how many rows cannot be used, by reason.
        problems: the first of these.
        statistics: of the rows that can; see `_Sample.statistics`.
        examples: a few rows.
        source: keys of the source that reads the file; None if nothing does.
        notes: what of the file is not read, and what was taken for granted.
        obstacle: why nothing reads the rows.
        fault: why the file cannot be read, or not to its end.
    """

    path: str
    bytes: int
    container: str | None = None
    layout: str = ""
    rows: int = 0
    total: int | None = None
    complete: bool = False
    refused: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    examples: tuple[Shown, ...] = ()
    source: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    obstacle: Problem | None = None
    fault: Problem | None = None

    @property
    def snippet(self) -> str:
        """The source as an item under `data.sources`; empty if nothing reads the file."""
        return "" if self.source is None else as_yaml(self.source)


def inspect(path: Path, name: str, most_rows: int = MOST_ROWS, seconds: float = MOST_SECONDS) -> Inspection:
    """Look at a file, or at a folder that `datasets` saved. What is wrong with it is told, not raised.

    Args:
        name: of the dataset in the source that is suggested.
        most_rows: most rows to read.
        seconds: most time to read them in.
    """
    known = Inspection(str(path), files.size_of(path))
    until = time.monotonic() + seconds
    try:
        file = files.open_file(path)
    except UserError as error:
        return replace(known, fault=_problem(error))
    rows = _Rows(file.read(), most_rows, until)
    stream = iter(rows)
    head = list(islice(stream, HEAD))
    good = [row for row in head if isinstance(row, Row)]
    if not good:
        first = next((row for row in head if isinstance(row, BadRow)), None)
        return replace(known, fault=_problem(files.what_else(file, first)) if first else rows.fault)
    known = replace(known, container=file.container, rows=len(head))
    found = recognise(good, file.container)
    known = replace(known, layout=found.layout, notes=found.notes)
    if found.draft is None:
        obstacle = Problem(None, None, "layout", found.obstacle, found.fix)
        return replace(
            _counted(known, file, rows),
            rows=rows.count,
            obstacle=obstacle,
            examples=tuple(map(_raw, good[:MOST_EXAMPLES])),
        )
    draft = _with_part(found.draft, file)
    source = load(draft, name, str(path))
    if file.container == "parquet" and isinstance(source, TableSource):  # from the beginning, only what is needed
        rows = _Rows(file.read(_wanted(source)), most_rows, until)
        head, stream = [], iter(rows)
    with tempfile.TemporaryDirectory(prefix="inspect-") as scratch:
        sample = _Sample(source, Ledger(Path(scratch) / "rows.jsonl"))
        for row in chain(head, stream):
            sample.add(row)
        known = sample.told(known, draft)
    return _counted(known, file, rows)


def names_for(paths: Sequence[Path]) -> list[str]:
    """A name of its own for each file: the file's, behind those of its folders where that says too little."""
    parts = [[_plain(part) for part in (*path.resolve().parts[1:-1], _stem(path))] for path in paths]
    taken = [2 if _SAYS_LITTLE.fullmatch(each[-1].lower()) else 1 for each in parts]
    for _ in range(max((len(each) for each in parts), default=0)):
        names = ["-".join(each[-count:]) for each, count in zip(parts, taken, strict=True)]
        twice = {name for name, count in Counter(names).items() if count > 1}
        if not twice:
            return names
        taken = [count + (name in twice) for count, name in zip(taken, names, strict=True)]
    return [f"{name}-{place}" for place, name in enumerate(names, start=1)]  # the same file more than once


def read_together(folder: Path, found: Sequence[Inspection]) -> list[dict[str, Any]]:
    """Sources that read several files at once: of every folder below this one whose files are all alike."""
    inside = [each for each in found if folder in Path(each.path).parents]
    sources: list[dict[str, Any]] = []
    for parent in dict.fromkeys(Path(each.path).parent for each in inside):
        here = [each.source for each in inside if Path(each.path).parent == parent]
        keys = [
            {key: value for key, value in source.items() if key not in ("name", "path", "on_bad_row")}
            for source in here
            if source is not None
        ]
        if len(here) < 2 or len(keys) < len(here) or any(each != keys[0] for each in keys):
            continue
        drop = {"on_bad_row": "drop"} if any(source and "on_bad_row" in source for source in here) else {}
        named = {"name": _plain(parent.resolve().name), "path": str(parent)}
        sources.append({"format": keys[0]["format"], **named, **keys[0], **drop})
    return sources


def as_yaml(source: Mapping[str, Any]) -> str:
    """A source as an item of a YAML list."""

    def flow(value: Any) -> str:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
        return text.removesuffix("...\n").strip()

    return "\n".join(
        f"{'  ' if place else '- '}{key}: {flow(value)}" for place, (key, value) in enumerate(source.items())
    )


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name if path.is_dir() else name.rpartition(".")[0] or name


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "data"


def _problem(error: UserError) -> Problem:
    row, column = place(error.where)
    return Problem(row, column, error.reason if isinstance(error, BadRow) else "file", error.what, error.fix)


def _with_part(draft: Mapping[str, Any], file: File) -> Mapping[str, Any]:
    """The draft, with the split of a dataset where it is not the usual one."""
    if file.part is None:
        return draft
    given = file.part.model_dump(exclude_defaults=True)
    return {**draft, "dataset": given} if given or "dataset" in draft else draft


def _wanted(source: TableSource) -> list[str]:
    named = (getattr(source.columns, column) for column in COLUMNS_OF[source.kind])
    return [column for column in named if column is not None]


def _counted(known: Inspection, file: File, rows: _Rows) -> Inspection:
    """With the number of rows there are, as far as that can be told."""
    if rows.complete:
        return replace(known, complete=True, total=rows.count)
    about = None if rows.fault else file.about()
    return replace(known, fault=rows.fault, total=None if about is None else max(about, rows.count + 1))


def _raw(row: Row) -> Shown:
    return Shown(row.number, {name: _shortened(str(value)) for name, value in row.values.items() if value is not None})


def _shortened(text: str) -> str:
    text = text.strip()
    if len(text) <= EXAMPLE_LETTERS:
        return text
    kept = text[:EXAMPLE_LETTERS].rpartition(" ")[0] or text[:EXAMPLE_LETTERS]
    return f"{kept} … ({len(text.split()) - len(kept.split())} more words)"


class _Rows:
    """Rows up to a limit of number and time; afterwards, whether that was all and what stopped it."""

    def __init__(self, reading: Reading, most_rows: int, until: float) -> None:
        self._reading, self._most, self._until = reading, most_rows, until
        self.count = 0
        self.complete = False
        self.fault: Problem | None = None

    def __iter__(self) -> Iterator[Row | BadRow]:
        try:
            for row in self._reading:
                if self.count == self._most or (self.count and time.monotonic() > self._until):
                    return
                self.count += 1
                yield row
            self.complete = True
        except UserError as error:
            self.fault = _problem(error)


_NAMED = ("sources", "annotators", "licences", "splits")


class _Sample:
    """Rows as a source reads them, counted."""

    def __init__(self, source: SourceConfig, ledger: Ledger) -> None:
        self._source, self._ledger = source, ledger
        self._rows = self._used = 0
        self._refused: Counter[str] = Counter()
        self._problems: dict[str, list[Problem]] = {}
        self._undecided: Counter[str] = Counter()
        self._facts: dict[str, Counter[str]] = {
            name: Counter() for name in ("sources", "annotators", "licences", "splits")
        }
        self._holds: Counter[str] = Counter()
        self._turns: Counter[int] = Counter()
        self._examples: dict[str, Shown] = {}

    def add(self, row: Row | BadRow) -> None:
        """Read one more row."""
        self._rows += 1
        result = row if isinstance(row, BadRow) else understood(self._source, row)
        if isinstance(result, BadRow):
            self._refused[result.reason] += 1
            alike = self._problems.setdefault(result.reason, [])
            if len(alike) < MOST_PROBLEMS:
                alike.append(_problem(result))
            result = Dropped(result.origin or unnamed(self._source), result.reason, result.where)
        elif isinstance(result, Dropped):
            self._undecided[result.reason] += 1
        if result is None:
            return
        self._ledger.add(result)
        if isinstance(result, Example) and isinstance(row, Row):
            self._count(row.number, result)

    def _count(self, number: int, example: Example) -> None:
        self._used += 1
        origin, turns = example.provenance, example.prompt.messages
        self._facts["licences"][origin.licence] += 1
        if origin.split is not None:
            self._facts["splits"][origin.split] += 1
        self._turns[sum(turn.role == "user" for turn in turns)] += 1
        self._holds["system"] += turns[0].role == "system"
        texts = {"prompt": example.prompt.text()}
        if isinstance(example, Comparison):
            self._facts["annotators"][example.provenance.annotator] += 1
            self._holds["margins"] += example.margin is not None
            self._holds["soft_labels"] += example.soft_label is not None
            self._holds["weights"] += example.weight != 1
            texts |= {"chosen": example.chosen, "rejected": example.rejected}
        elif isinstance(example, (Demonstration, Judgement)):
            self._facts["sources"][example.provenance.source] += 1
            self._holds["weights"] += example.weight != 1
            texts["response"] = example.response
            if isinstance(example, Judgement):
                self._facts["annotators"][example.provenance.annotator] += 1
                self._holds["good"] += example.label
                texts["label"] = "good" if example.label else "bad"
        if len(self._examples) < MOST_EXAMPLES and example.prompt.id not in self._examples:
            self._examples[example.prompt.id] = Shown(number, {name: _shortened(text) for name, text in texts.items()})

    def told(self, known: Inspection, draft: Mapping[str, Any]) -> Inspection:
        """What was counted, and the source that reads these rows; no more rows can be added."""
        self._ledger.close()
        known = replace(
            known, rows=self._rows, refused=dict(self._refused.most_common()), problems=self._first_problems()
        )
        if not self._used:
            return replace(known, obstacle=self._obstacle())
        notes = list(known.notes)
        draft = {**draft, "on_bad_row": "drop"} if self._refused else dict(draft)
        if isinstance(self._source, TableSource) and (clash := self._clash()):
            draft["columns"] = {**draft.get("columns", {}), "id": None}
            notes.append(f"{clash}, so rows are named by their content: columns.id is null")
        if self._facts["splits"]:
            notes.append("rows name their own splits: data.aggregate.respect_source_splits: true keeps to them")
        if self._refused.total() > REFUSED_BY_A_RUN * self._rows:
            notes.append(
                "a run refuses a source that loses more than half of its rows; see data.aggregate.max_dropped_share"
            )
        named = {"format": draft.pop("format"), "name": self._source.name, "path": self._source.path, **draft}
        load(yaml.safe_load(as_yaml(named))[0], self._source.name, self._source.path)  # what is shown can be loaded
        return replace(
            known,
            notes=tuple(notes),
            statistics=self._statistics(),
            examples=tuple(self._examples.values()),
            source=named,
        )

    def _first_problems(self) -> tuple[Problem, ...]:
        """The first row of every reason, then the next ones, in the order of the file."""
        by_turn = [
            problem
            for turn in range(MOST_PROBLEMS)
            for alike in self._problems.values()
            for problem in alike[turn : turn + 1]
        ]
        return tuple(sorted(by_turn[:MOST_PROBLEMS], key=lambda problem: problem.row or 0))

    def _obstacle(self) -> Problem:
        if self._undecided.total():
            what = f"none of the {self._rows} rows read states a preference: they are ties or were not judged"
            return Problem(None, None, "no preference", what, "leave the file out")
        first = self._first_problems()[0]
        what = f"none of the {self._rows} rows read can be used; the first: {first.what}"
        return Problem(first.row, first.field, first.reason, what, first.fix)

    def _clash(self) -> str | None:
        try:
            drop_repeats(self._ledger)
        except UserError as error:
            return error.what
        return None

    def _statistics(self) -> dict[str, Any]:
        """Facts of the rows that can be used, as JSON; `prompts` and `words` without duplicates.

        Keys: `kind`; `used` rows; `duplicates` among them; `prompts`; `words` per answer, by `chosen` and `rejected` or
        `response`; `turns`, how often the user speaks; `system`, the share of conversations with a system message;
        `annotators`, `licences` and `splits`, rows by name; how many rows have `margins`, `soft_labels` and `weights`;
        of preferences also those of `_of_pairs`; of other rows `sources`, who wrote how many; of judgements `good`, the
        share that are.
        """
        kind = self._source.kind if isinstance(self._source, TableSource) else "preference"
        turns = sorted(self._turns.elements())
        facts = {
            "kind": kind,
            "used": self._used,
            **(self._of_pairs() if kind == "preference" else self._of_others(kind)),
            "duplicates": self._used - len(self._ledger.kept),
            "turns": {"mean": sum(turns) / self._used, "median": turns[self._used // 2], "most": turns[-1]},
            "system": self._holds["system"] / self._used,
            **{name: dict(self._facts[name].most_common()) for name in ("annotators", "licences", "splits")},
            **{name: self._holds[name] for name in ("margins", "soft_labels", "weights")},
        }
        return {**facts, "good": self._holds["good"] / self._used} if kind == "judgement" else facts

    def _of_pairs(self) -> dict[str, Any]:
        """Distinct `pairs`, `longer_wins` among them; `ties`; rows `not_judged`; `contradictions`; `policies`.

        `contradictions` are pairs of answers labelled both ways; of each policy: how many of its answers won and lost.
        """
        ledger = self._ledger
        contradictions = settle(ledger, "keep")
        drop_exact(ledger, "pair")
        described = describe(ledger, np.zeros(len(ledger), dtype=np.int8), contradictions)
        return {
            "prompts": described["prompts"],
            "pairs": described["pairs"],
            "words": {side: described[f"{side}_words"] for side in ("chosen", "rejected")},
            "longer_wins": described["longer_wins"],
            "ties": self._undecided["tie"],
            "not_judged": self._undecided["not judged"],
            "contradictions": contradictions["questions"],
            "policies": {
                name: {key: group[key] for key in ("pairs", "wins", "losses")}
                for name, group in described["policies"].items()
            },
        }

    def _of_others(self, kind: Kind) -> dict[str, Any]:
        drop_exact(self._ledger, "pair")
        kept = {name: column[self._ledger.kept] for name, column in self._ledger.columns.items()}
        facts: dict[str, Any] = {"prompts": len(np.unique(kept["prompt"]))}
        if kind == "prompt":
            return facts
        words = kept["first_words"]
        p95 = float(np.quantile(words, 0.95, method="higher"))
        facts["words"] = {"response": {"mean": float(words.mean()), "median": float(np.median(words)), "p95": p95}}
        return {**facts, "sources": dict(self._facts["sources"].most_common())}
