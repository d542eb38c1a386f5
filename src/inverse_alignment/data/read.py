"""Reading sources: one layout per native format, all giving records with their provenance.

A broken file is refused. A row that is broken, or has the right shape but says nothing (equal answers, an empty one),
is refused or dropped and counted, as the source's `on_bad_row` says. A row that is sound but states no preference (a
tie, a judge that failed) is always dropped and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import (
    Authorship,
    Comparison,
    Demonstration,
    Example,
    Judgement,
    Message,
    Origin,
    Prompt,
    PromptOnly,
    Provenance,
)
from inverse_alignment.data.layouts import (
    Pair,
    alpaca_eval_pair,
    hh_pair,
    prompt_field,
    share_gpt_pair,
    table_answer,
    table_label,
    table_origin,
    table_pair,
    table_prompt,
    table_split,
    table_weight,
)
from inverse_alignment.data.rows import BadRow, Reading, Row, dataset_rows, rows
from inverse_alignment.data.sources import (
    COLUMNS_OF,
    AlpacaEvalSource,
    HhSource,
    JsonlSource,
    JsonSource,
    NativeSource,
    PairSource,
    ParquetSource,
    ShareGptSource,
    SourceConfig,
    TableSource,
    reference,
)
from inverse_alignment.text.render import Degenerate

RowReason = Literal[
    "empty prompt",
    "empty chosen",
    "empty rejected",
    "empty response",
    "chosen equals rejected",
    "no user turn before the answer",
    "transcripts differ before the last turn",
]
E = TypeVar("E", bound=Example)
DEGENERATE: tuple[str, ...] = get_args(Degenerate)
"""What a tokenizer may find wrong with a row."""


@dataclass(frozen=True)
class Dropped:
    """A row that is not used, and why.

    Attributes:
        provenance: where it came from, so that drops can be counted by policy and annotator too.
        reason: why it is not used.
        where: file, row and field.
    """

    provenance: Origin
    reason: str
    where: str


def read(source: SourceConfig, path: Path | None = None) -> Iterator[Example | Dropped]:
    """Read a source in one pass, row by row.

    Args:
        path: where the file lies, if not at `source.path`.

    Raises:
        UserError: the file is broken; or a row is and `on_bad_row` is `error`; or no row of the whole source is left.
    """
    file = path or Path(source.path)
    bad: BadRow | None = None
    kept = taken = 0
    for row in _rows(source, file):
        result = understood(source, row)
        if result is None:
            continue
        taken += 1
        if isinstance(result, BadRow):
            if source.on_bad_row == "error":
                raise UserError(result.what, where=result.where, fix=f"{result.fix}; or set on_bad_row: drop")
            bad = bad or result
            result = Dropped(result.origin or unnamed(source), result.reason, result.where)
        kept += not isinstance(result, Dropped)
        yield result
        if taken == source.limit:
            break
    _require_rows(file, taken, kept, bad)


def _require_rows(file: Path, taken: int, kept: int, bad: BadRow | None) -> None:
    if bad is not None and not kept:
        raise UserError(
            f"none of the {taken} rows can be used; the first: {bad.what}",
            where=bad.where,
            fix=f"{bad.fix}; check that format and columns are those of the file",
        )
    if not taken:
        raise UserError(
            "no row is left",
            where=f"{file}, splits",
            fix="the file's own split column names none of the splits asked for; set splits: null",
        )
    if not kept:
        raise UserError(
            f"none of the {taken} rows states a preference: all are ties or were not judged",
            where=str(file),
            fix="leave the source out, or lower its least_margin",
        )


def unnamed(source: SourceConfig) -> Origin:
    """The provenance of a row of which nothing is known but its source."""
    shared = {"dataset": source.name, "licence": source.licence, "original_id": ""}
    if isinstance(source, TableSource) and source.kind == "prompt":
        return Origin(**shared)
    if isinstance(source, TableSource) and source.kind != "preference":
        return Authorship(**shared, source=source.source, annotator=source.annotator)
    return Provenance(
        **shared,
        source_chosen=source.source_chosen,
        source_rejected=source.source_rejected,
        annotator=source.annotator,
    )


def _rows(source: SourceConfig, file: Path) -> Reading:
    """The rows of a source in the container that its format names, or that it is found in."""
    part = reference(source)
    if part is not None:
        return dataset_rows(file, part)
    match source:
        case JsonlSource():
            return rows(file, "jsonl")
        case JsonSource():
            return rows(file, "json")
        case ParquetSource():
            named = (getattr(source.columns, field) for field in COLUMNS_OF[source.kind])
            return rows(file, "parquet", [column for column in named if column is not None])
        case _:
            return rows(file)


def understood(source: SourceConfig, row: Row | BadRow) -> Example | Dropped | BadRow | None:
    """What a row becomes; None where the source does not ask for its split."""
    if isinstance(row, BadRow):
        return row
    try:
        if isinstance(source, TableSource):
            return _of_table(source, row)
        return _comparison(source, row, _native_pair(source, row), unnamed(source), source.weight)
    except BadRow as bad:
        return bad


def _native_pair(source: NativeSource, row: Row) -> Pair:
    match source:
        case HhSource():
            return hh_pair(row)
        case ShareGptSource():
            return share_gpt_pair(row)
        case AlpacaEvalSource():
            return alpaca_eval_pair(row, source.strength)
        case _:
            raise AssertionError(f"no layout for {type(source).__name__}")


def _of_table(source: TableSource, row: Row) -> Example | Dropped | None:
    split = table_split(row, source)
    if source.splits is not None and split not in source.splits:
        return None
    origin = table_origin(row, source, split)
    try:
        weight = table_weight(row, source)
        if source.kind == "preference":
            return _comparison(source, row, table_pair(row, source), origin, weight)
        return _named(_single(source, row, origin, weight))
    except BadRow as bad:
        bad.origin = bad.origin or origin
        raise


def _single(source: TableSource, row: Row, origin: Origin, weight: float) -> Example:
    """What a row without a preference holds."""
    field = prompt_field(row, source)
    if source.kind == "prompt":
        return PromptOnly(prompt=_prompt(row, field, table_prompt(row, source)), provenance=origin)
    turns, response = table_answer(row, source)
    prompt = _prompt(row, field, turns)
    if not response.strip():
        raise _empty(row, "empty response", source.columns.response)
    assert isinstance(origin, Authorship)
    if source.kind == "demonstration":
        return Demonstration(prompt=prompt, response=response, weight=weight, provenance=origin)
    label = table_label(row, source)
    return Judgement(prompt=prompt, response=response, label=label, weight=weight, provenance=origin)


def _comparison(source: PairSource, row: Row, pair: Pair, origin: Origin, weight: float) -> Comparison | Dropped:
    """The comparison in a row, or why it states none."""
    assert isinstance(origin, Provenance)
    origin = origin.model_copy(update=pair.known)
    if pair.swapped:
        by = {"source_chosen": origin.source_rejected, "source_rejected": origin.source_chosen}
        origin = origin.model_copy(update=by)
    strength = pair.strength
    if isinstance(strength, str):
        return Dropped(origin, strength, row.at(pair.judged_in))
    try:
        prompt, chosen, rejected = _sound(row, pair)
    except BadRow as bad:
        bad.origin = origin
        raise
    margin = source.margin if strength.margin is None else strength.margin
    known = margin if strength.soft_label is None else 2 * strength.soft_label - 1
    if known is not None and known < getattr(source, "least_margin", 0.0):
        return Dropped(origin, "tie", row.at(pair.judged_in))
    return _named(
        Comparison(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            margin=margin,
            soft_label=strength.soft_label,
            weight=weight,
            provenance=origin,
        )
    )


def _sound(row: Row, pair: Pair) -> tuple[Prompt, str, str]:
    """Prompt, better and worse answer of a pair that says something."""
    asked_in, *answer_fields = pair.fields
    if pair.chosen_turns != pair.rejected_turns:
        raise BadRow(
            "transcripts differ before the last turn",
            "chosen and rejected answer different conversations: they differ before the last turn",
            where=row.at(answer_fields[1]),
            fix="pair answers to one conversation",
        )
    prompt = _prompt(row, asked_in, pair.chosen_turns)
    answers = [pair.chosen, pair.rejected]
    if pair.swapped:
        answers.reverse()
        answer_fields.reverse()
    for name, text, field in zip(("chosen", "rejected"), answers, answer_fields, strict=True):
        if not text.strip():
            raise _empty(row, f"empty {name}", field)
    if pair.chosen == pair.rejected:
        raise BadRow(
            "chosen equals rejected", "chosen equals rejected", where=row.at(pair.fields[2]), fix="remove the row"
        )
    return prompt, answers[0], answers[1]


def _prompt(row: Row, field: str, turns: tuple[Message, ...]) -> Prompt:
    if not turns or not turns[-1].content.strip():
        raise _empty(row, "empty prompt", field)
    if turns[-1].role != "user":
        raise BadRow(
            "no user turn before the answer",
            f"the prompt ends in a turn of the {turns[-1].role}, not of the user",
            where=row.at(field),
            fix="end the prompt with what the user says",
        )
    return Prompt(messages=turns)


def _empty(row: Row, reason: str, field: str) -> BadRow:
    return BadRow(reason, f"{reason.removeprefix('empty ')} is empty", where=row.at(field), fix="fill it in")


def _named(example: E) -> E:
    """The example with a name made of its content, where its file gives none.

    Such a name does not depend on where in which file the row stands, so shuffling or re-sharding changes nothing.
    """
    if example.provenance.original_id:
        return example
    digest = hashlib.sha256(example.model_dump_json().encode()).hexdigest()[:16]
    return example.model_copy(update={"provenance": example.provenance.model_copy(update={"original_id": digest})})
