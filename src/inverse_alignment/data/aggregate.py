"""Pooling sources into one preference set: merge, remove duplicates, split by prompt, drop what says nothing, count.

Three passes, each a batch at a time: rows are read into a scratch file and a ledger of numbers; what is left after
duplicates and contradictions is tokenised; what is left after that is written in an order that no input order changes.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar, get_args

import numpy as np
from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import (
    SPLITS,
    Comparison,
    Demonstration,
    Example,
    Judgement,
    Prompt,
    PromptOnly,
    Split,
    iter_jsonl,
)
from inverse_alignment.data.contradictions import settle
from inverse_alignment.data.decontamination import EvaluationPrompts
from inverse_alignment.data.duplicates import (
    DropNear,
    KeepNear,
    NearDuplicates,
    Signatures,
    drop_exact,
    drop_repeats,
)
from inverse_alignment.data.ledger import KEPT, KINDS, NOBODY, PAIR, Ledger, Names, in_numbers
from inverse_alignment.data.read import DEGENERATE, Dropped, RowReason, read
from inverse_alignment.data.rows import BadReason
from inverse_alignment.data.sources import SourceConfig
from inverse_alignment.data.splits import HELD_OUT_FIRST, SplitShares, hashed_split, stated_split
from inverse_alignment.data.statistics import Statistics, describe
from inverse_alignment.text.render import Degenerate, EncodedPair, EncodedText, RefusedConversation

STATISTICS = "statistics.json"
BATCH = 512
Progress = Callable[[int, int, str], None]
FILES: Mapping[type[Example], str] = {
    PromptOnly: "prompts.jsonl",
    Demonstration: "demonstrations.jsonl",
    Judgement: "judgements.jsonl",
}
"""Where rows without a preference lie, all splits in one file; pairs have a file for each split."""


class AggregateSettings(Section):
    """How sources are pooled."""

    shares: SplitShares = Field(SplitShares(), description="expected share of prompts in each split")
    seed: int = Field(0, ge=0, description="of the hash that splits prompts")
    respect_source_splits: bool = Field(
        False,
        description="use the files' own split columns and carve gate and audit out of train; where there is none, "
        "split by hash",
    )
    duplicates: Literal["pair", "label"] = Field(
        "pair",
        description="what is a duplicate: the same conversation and answers in the same order (pair), or that from the "
        "same annotator (label), so that two annotators who agree count twice",
    )
    near_duplicates: NearDuplicates = Field(KeepNear(), description="rows that say nearly the same")
    contradictions: Literal["keep", "drop", "majority", "soft_label"] = Field(
        "keep",
        description="answers that were labelled both ways: keep both rows, drop all, keep the majority's, "
        "or one row with the share of votes as soft label",
    )
    contamination_words: int = Field(
        13, ge=0, description="words in a row that a prompt may not share with an evaluation set; 0: equal prompts only"
    )
    too_long: Literal["truncate", "drop"] = Field(
        "truncate", description="pairs that do not fit into the models' contexts: cut them, or drop and count them"
    )
    max_dropped_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="most rows a source may lose to bad rows or truncation; ties, duplicates, contradictions, "
        "contamination and caps apart",
    )


class Tokenise(Protocol):
    """A tokenizer with its length limit, as far as aggregation cares (`text.render.PairEncoder`)."""

    def encode_pairs(self, comparisons: Sequence[Comparison]) -> Sequence[EncodedPair | Degenerate]:
        """Token ids of both answers of each pair, or why they make no pair."""

    def encode_texts(self, texts: Sequence[tuple[Prompt, str]]) -> Sequence[EncodedText | Degenerate]:
        """Token ids of prompts and answers, or why they make no example."""


@dataclass(frozen=True)
class PreferenceSet:
    """Pairs from all sources, each with its provenance and split, and statistics of what was read and kept."""

    comparisons: tuple[Comparison, ...]
    statistics: Statistics = field(default_factory=dict)

    def split(self, name: Split) -> tuple[Comparison, ...]:
        """The pairs of one split, in the order of the set."""
        return tuple(c for c in self.comparisons if c.provenance.split == name)


def aggregate(
    folder: Path,
    sources: Sequence[SourceConfig],
    settings: AggregateSettings,
    tokenise: Sequence[Tokenise] = (),
    evaluation: Sequence[SourceConfig] = (),
    paths: Mapping[str, Path] | None = None,
    progress: Progress = lambda done, total, unit: None,
) -> Statistics:
    """Read all sources and pool them into a folder; see `pool`.

    Args:
        sources: in order of precedence: of duplicates the first is kept.
        evaluation: sets whose prompts must not be among the pooled rows.
        paths: by source name, where a file lies if not at the source's own path.

    Raises:
        UserError: two sources share a name, a file is broken, or `pool` refuses.
    """
    names = [source.name for source in (*sources, *evaluation)]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"two sources are named '{repeated[0]}'", where="data.sources", fix="give each source a name of its own"
        )
    at = paths or {}
    held_out = None
    if evaluation:
        found = (row for source in evaluation for row in read(source, at.get(source.name)))
        held_out = EvaluationPrompts((row for row in found if isinstance(row, Example)), settings.contamination_words)
    return pool(
        folder,
        (row for source in sources for row in read(source, at.get(source.name))),
        settings,
        tokenise,
        held_out,
        caps={source.name: source.cap for source in sources if source.cap is not None},
        datasets=[source.name for source in sources],
        dropping={source.name for source in sources if source.on_bad_row == "drop"},
        progress=progress,
    )


def pool(
    folder: Path,
    rows: Iterable[Example | Dropped],
    settings: AggregateSettings,
    tokenise: Sequence[Tokenise] = (),
    held_out: EvaluationPrompts | None = None,
    caps: Mapping[str, int] | None = None,
    datasets: Sequence[str] = (),
    dropping: Collection[str] = (),
    progress: Progress = lambda done, total, unit: None,
) -> Statistics:
    """Pool rows of all sources into a folder: a file of pairs for each split, the other rows, and `statistics.json`.

    Equal rows, in whatever order, however often and from however many files they come, give equal pairs. Memory is that
    of some 150 bytes a row; texts pass through a file in the folder that is gone at the end.

    Args:
        tokenise: the tokenizers that will read the rows; a pair must hold a preference for each of them.
        held_out: prompts of evaluation sets.
        caps: most rows of a dataset.
        datasets: names of datasets in order of precedence; others follow as they come.
        dropping: datasets whose rows are dropped where a chat template does not accept their roles.

    Returns:
        What `statistics.json` holds.

    Raises:
        UserError: two different rows of a dataset have one id, a chat template does not accept a row, a dataset loses
            more than `max_dropped_share`, or a split with a positive share is empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pool-", dir=folder) as scratch:
        ledger = _gathered(Path(scratch) / "rows.jsonl", rows, datasets, progress)
        drop_repeats(ledger)
        contradictions = settle(ledger, settings.contradictions)
        drop_exact(ledger, settings.duplicates)
        if held_out is not None:
            ledger.drop(np.flatnonzero(held_out.same(ledger.columns["prompt"])), "contaminated")
        verdicts = partial(_verdicts, tokenise=tokenise, dropping=dropping)
        near = _examined(ledger, Path(scratch), settings, verdicts, held_out, progress)
        _refuse_large_losses(ledger, settings.max_dropped_share)
        for dataset, most in (caps or {}).items():
            _cap(ledger, dataset, most)
        split = _placed(ledger, settings, near)
        statistics = describe(ledger, split, contradictions)
        _require_splits(statistics, settings.shares)
        _write(folder, ledger, split, progress)
    text = json.dumps(statistics, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / STATISTICS).write_text(text + "\n", encoding="utf-8")
    return statistics


def read_preferences(folder: Path) -> PreferenceSet:
    """Read what `pool` wrote; pairs come split by split.

    Raises:
        UserError: a file is missing or damaged.
    """
    comparisons = tuple(c for split in SPLITS for c in read_split(folder, split))
    path = folder / STATISTICS
    try:
        return PreferenceSet(comparisons, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix=_REBUILD) from error


def read_split(folder: Path, split: Split) -> list[Comparison]:
    """The pairs of one split.

    Raises:
        UserError: the file is missing or damaged.
    """
    return list(iter_jsonl(split_file(folder, split), Comparison))


def split_file(folder: Path, split: Split) -> Path:
    """The file with the pairs of one split.

    Raises:
        UserError: it is missing.
    """
    return _existing(folder / f"{split}.jsonl")


O = TypeVar("O", PromptOnly, Demonstration, Judgement)  # noqa: E741 (a type)


def read_others(folder: Path, kind: type[O], split: Split) -> list[O]:
    """The prompts, demonstrations or judgements of one split.

    Raises:
        UserError: the file is missing or damaged.
    """
    return [row for row in iter_jsonl(_existing(folder / FILES[kind]), kind) if row.provenance.split == split]


def read_prompts(folder: Path, split: Split) -> list[Prompt]:
    """What a policy can be asked in a split: the prompts of pairs, then those that came alone.

    Raises:
        UserError: a file is missing or damaged.
    """
    return [row.prompt for row in (*read_split(folder, split), *read_others(folder, PromptOnly, split))]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError("the preference set lacks a file", where=str(path), fix=_REBUILD)
    return path


_REBUILD = "delete the artifact's folder so that it is built again"


def _gathered(path: Path, rows: Iterable[Example | Dropped], datasets: Sequence[str], progress: Progress) -> Ledger:
    ledger, count = Ledger(path, datasets=Names(datasets)), 0
    for row in rows:
        ledger.add(row)
        count += 1
        if count % 10_000 == 0:
            progress(count, count, "rows read")
    progress(count, count, "rows read")
    ledger.close()
    return ledger


def _batches(ledger: Ledger, rows: np.ndarray) -> Iterator[tuple[np.ndarray, list[Example]]]:
    for begin in range(0, len(rows), BATCH):
        batch = rows[begin : begin + BATCH]
        yield batch, list(ledger.read(batch))


def _examined(
    ledger: Ledger,
    scratch: Path,
    settings: AggregateSettings,
    judge: Callable[[Sequence[Example]], Verdicts],
    held_out: EvaluationPrompts | None,
    progress: Progress,
) -> Mapping[int, int]:
    """Look at the texts of what is left: contamination, tokens, near duplicates.

    While one batch is tokenised, in Rust, the next is read and the one before is taken in.

    Returns:
        For prompts with a near twin, the one that stands for them all.
    """
    how = settings.near_duplicates
    kept, done = ledger.kept, 0
    waiting: Callable[[], None] | None = None
    with (
        Signatures(scratch, how) if isinstance(how, DropNear) else nullcontext() as near,
        ThreadPoolExecutor(1) as worker,
    ):
        for numbers, batch in _batches(ledger, kept):
            done += len(batch)
            if held_out is not None:
                ledger.drop(numbers[[held_out.overlaps(row) for row in batch]], "contaminated")
                batch = [row for number, row in zip(numbers, batch, strict=True) if ledger.reason[number] == KEPT]
                numbers = numbers[ledger.reason[numbers] == KEPT]
            verdicts = worker.submit(judge, batch)
            if waiting is not None:
                waiting()
            waiting = partial(_take_in, ledger, near, numbers, batch, verdicts)
            progress(done, len(kept), "rows examined")
        if waiting is not None:
            waiting()
        if near is None:
            return {}
        near.drop_near(ledger)
        return near.twins(ledger)


Encoded = EncodedPair | EncodedText | Degenerate
Verdicts = tuple[Mapping[int, Degenerate], Sequence[int]]


def _verdicts(batch: Sequence[Example], tokenise: Sequence[Tokenise], dropping: Collection[str]) -> Verdicts:
    """Of the places of a batch: those that hold nothing to learn and why, and those that lose tokens."""
    nothing: dict[int, Degenerate] = {}
    truncated: list[int] = []
    for tokeniser in tokenise:
        for place, found in enumerate(_judged(tokeniser, batch, dropping)):
            if isinstance(found, str):
                nothing.setdefault(place, found)
            elif found.truncated:
                truncated.append(place)
    return nothing, truncated


def _judged(tokeniser: Tokenise, batch: Sequence[Example], dropping: Collection[str]) -> Sequence[Encoded]:
    """Every row as tokens, or why there is nothing to learn from it.

    Raises:
        UserError: the chat template does not accept a row, which is not to be dropped for it.
    """
    try:
        return _encoded(tokeniser, batch)
    except UserError:
        return [_judged_alone(tokeniser, row, row.provenance.dataset in dropping) for row in batch]


def _judged_alone(tokeniser: Tokenise, row: Example, drop: bool) -> Encoded:
    try:
        return _encoded(tokeniser, [row])[0]
    except RefusedConversation as error:
        if drop:
            return "refused by the chat template"
        fix = f"{error.fix}, or set on_bad_row: drop"
        raise UserError(error.what, where=f"row {row.id}, {error.where}", fix=fix) from error
    except UserError as error:
        raise UserError(error.what, where=f"row {row.id}, {error.where}", fix=error.fix) from error


def _encoded(tokeniser: Tokenise, batch: Sequence[Example]) -> list[Encoded]:
    """Every row as tokens; a prompt alone may be of any length, and is followed by an answer of one letter here."""
    pairs = {place: row for place, row in enumerate(batch) if isinstance(row, Comparison)}
    others = {place: row for place, row in enumerate(batch) if not isinstance(row, Comparison)}
    texts = [
        (row.prompt, row.response if isinstance(row, (Demonstration, Judgement)) else "a") for row in others.values()
    ]
    found: dict[int, Encoded] = dict(zip(pairs, tokeniser.encode_pairs(list(pairs.values())), strict=True))
    for (place, row), made in zip(others.items(), tokeniser.encode_texts(texts), strict=True):
        found[place] = EncodedText((), truncated=False) if isinstance(row, PromptOnly) else made
    return [found[place] for place in range(len(batch))]


def _take_in(
    ledger: Ledger, near: Signatures | None, numbers: np.ndarray, batch: Sequence[Example], verdicts: Future[Verdicts]
) -> None:
    nothing, truncated = verdicts.result()
    for place, reason in nothing.items():
        ledger.drop(numbers[[place]], reason)
    ledger.truncated[numbers[list(truncated)]] = True
    if near is not None:
        left = [place for place in range(len(batch)) if place not in nothing]
        near.add(numbers[left].tolist(), [batch[place] for place in left])


_BLAMED = frozenset({*DEGENERATE, *get_args(BadReason), *get_args(RowReason)})
"""Reasons for which a source, or the length limit, is to blame."""


def _refuse_large_losses(ledger: Ledger, limit: float) -> None:
    lost: dict[int, Counter[str]] = defaultdict(Counter)
    for key, count in ledger.lost.items():
        lost[key[1]][ledger.reasons.names[key[5]]] += count
    kept: Counter[int] = Counter()
    reasons = len(ledger.reasons.names) + 1  # and that there is none
    found = np.unique(ledger.columns["dataset"] * reasons + (ledger.reason - KEPT), return_counts=True)
    for code, count in zip(*map(np.ndarray.tolist, found), strict=True):
        dataset, reason = code // reasons, code % reasons + KEPT
        if reason == KEPT:
            kept[dataset] += count
        else:
            lost[dataset][ledger.reasons.names[reason]] += count
    for name, number in sorted((ledger.datasets.names[number], number) for number in lost):
        blamed = {reason: count for reason, count in sorted(lost[number].items()) if reason in _BLAMED}
        bad, rows = sum(blamed.values()), kept[number] + lost[number].total()
        if bad > limit * rows:
            raise UserError(
                f"{bad} of {rows} rows ({bad / rows:.0%}) hold no preference "
                f"({', '.join(f'{reason}: {count}' for reason, count in blamed.items())})",
                where=f"source '{name}', data.aggregate.max_dropped_share={limit:g}",
                fix="if truncation is the cause raise the models' context, else mend the source, or raise the limit",
            )


def _cap(ledger: Ledger, dataset: str, most: int) -> None:
    """Keep the rows with the smallest hashes of their names: a sample that order and shards do not change."""
    kept = ledger.kept
    rows = kept[ledger.columns["dataset"][kept] == ledger.datasets.number(dataset)]
    order = np.argsort(ledger.columns["id"][rows], kind="stable")
    ledger.drop(rows[order[most:]], "over the cap")


def _placed(ledger: Ledger, settings: AggregateSettings, near: Mapping[int, int]) -> np.ndarray:
    """(n,) place in SPLITS of every row: that of its prompt, or of the prompt that stands for its near twins.

    Splits that sources state count even on duplicates: a copy of a train pair in another source's test split must pull
    the prompt out of train.
    """
    prompts, of_row = np.unique(ledger.columns["prompt"], return_inverse=True)
    heads = prompts.copy()
    if near:
        twins, standing = (np.fromiter(each, dtype=np.uint64) for each in (near.keys(), near.values()))
        heads[np.searchsorted(prompts, twins)] = standing
        heads, of_prompt = np.unique(heads, return_inverse=True)
        of_row = of_prompt[of_row]
    held = np.full(len(heads), _NOT_STATED, dtype=np.int8)
    if settings.respect_source_splits:
        stated = np.flatnonzero(ledger.columns["stated"] != NOBODY)
        np.minimum.at(held, of_row[stated], _HELD_OUT_RANK[ledger.columns["stated"][stated]])
    places = np.empty(len(heads), dtype=np.int8)
    shares, seed = settings.shares, settings.seed
    for index in range(len(heads)):
        name = f"{heads[index]:016x}"
        if held[index] == _NOT_STATED:
            split = hashed_split(name, shares, seed)
        else:
            split = stated_split(name, (HELD_OUT_FIRST[held[index]],), shares, seed)
        places[index] = SPLITS.index(split)
    return places[of_row]


_HELD_OUT_RANK = np.array([HELD_OUT_FIRST.index(split) for split in SPLITS], dtype=np.int8)
_NOT_STATED = len(SPLITS)


def _require_splits(statistics: Statistics, shares: SplitShares) -> None:
    """Every split that is asked for holds a pair."""
    prompts = {name: statistics["splits"][name]["prompts"] for name in SPLITS}
    for name in SPLITS:
        if getattr(shares, name) > 0 and not prompts[name]:
            raise UserError(
                f"no prompt falls into '{name}' (prompts: {', '.join(f'{n} {count}' for n, count in prompts.items())})",
                where=f"data.aggregate.shares.{name}={getattr(shares, name):g}",
                fix="add data, raise that share, or change data.aggregate.seed"
                + (_CONTAMINATED if statistics["dropped"].get("contaminated") else ""),
            )


_CONTAMINATED = "; or check data.evaluation_sets, which took rows away"


def _write(folder: Path, ledger: Ledger, split: np.ndarray, progress: Progress) -> None:
    """Write the kept rows in the order of the hashes of their names, which mixes sources and knows no input order."""
    kept = ledger.kept
    order = kept[np.argsort(ledger.columns["id"][kept], kind="stable")]
    names = [*(f"{name}.jsonl" for name in SPLITS), *(FILES[kind] for kind in KINDS if kind in FILES)]
    facts = (in_numbers(column, order) for column in (ledger.columns["kind"], split, ledger.soft_label))
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in names]
        for done, (kind, place, soft_label, line) in enumerate(zip(*facts, ledger.lines(order), strict=True), start=1):
            file = files[place if kind == PAIR else len(SPLITS) + kind - 1]
            file.write(_finished(line, SPLITS[place], soft_label))
            if done % BATCH == 0 or done == len(order):
                progress(done, len(order), "rows written")


_SPLIT = re.compile(rb'"split":(?:null|"[a-z]+")')
_SOFT_LABEL = re.compile(rb'"soft_label":(?:null|[0-9.e+-]+)')


def _finished(line: bytes, split: Split, soft_label: float) -> bytes:
    """A row with its split, and its soft label if it was given one.

    A quotation mark inside a text is escaped, so `"split":` can only be the key. Reading every row once more into a
    record takes five times as long.
    """
    line = _SPLIT.sub(b'"split":"%s"' % split.encode(), line, count=1)
    return line if math.isnan(soft_label) else _SOFT_LABEL.sub(b'"soft_label":%r' % soft_label, line, count=1)
