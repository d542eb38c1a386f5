"""Sources of preferences: one reader per native format, all giving `Comparison` records with their provenance.

A file that is broken or does not have the expected shape is refused with file, row and field. A row that has the right
shape but says nothing (equal answers, an empty one) is *dropped and counted*: real preference files hold such rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.records import SPLITS, Comparison, Message, Prompt, Provenance, Role, Split
from inverse_alignment.data.rows import Row, jsonl_rows, parquet_rows
from inverse_alignment.data.sources import ColumnMap, HhSource, JsonlSource, ParquetSource, SourceConfig, TableSource
from inverse_alignment.text.render import Degenerate

RowReason = Literal[
    "empty prompt",
    "empty chosen",
    "empty rejected",
    "chosen equals rejected",
    "no user turn before the answer",
    "transcripts differ before the last turn",
]
Reason = RowReason | Degenerate | Literal["duplicate"]
OTHER_SPLIT_NAMES: dict[str, Split] = {"valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Dropped:
    """A row that is not used, and why.

    Attributes:
        provenance: where it came from, so that drops can be counted by policy and annotator too.
        reason: why it is not used.
        where: file, row and field.
    """

    provenance: Provenance
    reason: Reason
    where: str


@dataclass(frozen=True)
class _Pair:
    """A row as conversations, before it is judged."""

    chosen_turns: tuple[Message, ...]
    rejected_turns: tuple[Message, ...]
    chosen: str
    rejected: str


def read(source: SourceConfig, path: Path | None = None) -> Iterator[Comparison | Dropped]:
    """Read a source in one pass, row by row.

    Args:
        path: where the file lies, if not at `source.path`.

    Raises:
        UserError: the file or a row does not have the expected shape; or a row holds no preference and
            `on_degenerate` is `refuse`; or no row of the whole source holds one.
    """
    file = path or Path(source.path)
    first: Dropped | None = None
    kept = taken = 0
    for row, pair, provenance in _pairs(source, file):
        taken += 1
        result = _judged(row, pair, provenance, _margin(row, source))
        if isinstance(result, Dropped):
            if source.on_bad_row == "error":
                raise UserError(result.reason, where=result.where, fix="mend the row, or set on_bad_row: drop")
            first = first or result
        else:
            kept += 1
        yield result
        if taken == source.limit:
            break
    if first is not None and not kept:
        raise UserError(
            f"none of the {taken} rows holds a preference; the first: {first.reason}",
            where=first.where,
            fix="check that the columns are mapped to the right fields",
        )
    if not taken:
        raise UserError(
            "no row is left",
            where=f"{file}, splits",
            fix="the file's own split column names none of the splits asked for; set splits: null",
        )


def _pairs(source: SourceConfig, file: Path) -> Iterator[tuple[Row, _Pair, Provenance]]:
    match source:
        case JsonlSource():
            yield from _table(source, jsonl_rows(file))
        case ParquetSource():
            named = [name for name in source.columns.model_dump().values() if name is not None]
            yield from _table(source, parquet_rows(file, named))
        case HhSource():
            for row in jsonl_rows(file):
                chosen, rejected = _transcript(row, "chosen"), _transcript(row, "rejected")
                yield (
                    row,
                    _Pair(chosen[:-1], rejected[:-1], chosen[-1].content, rejected[-1].content),
                    Provenance(
                        dataset=source.name,
                        source_chosen=source.source_chosen,
                        source_rejected=source.source_rejected,
                        annotator=source.annotator,
                        licence=source.licence,
                        original_id=str(row.number),
                    ),
                )


def _table(source: JsonlSource | ParquetSource, rows: Iterator[Row]) -> Iterator[tuple[Row, _Pair, Provenance]]:
    for row in rows:
        split = _split(row, source)
        if source.splits is None or split in source.splits:
            yield row, _columns_pair(row, source.columns), _provenance(row, source, split)


def _judged(row: Row, pair: _Pair, provenance: Provenance, margin: float | None) -> Comparison | Dropped:
    """The comparison in a row, or why there is none."""
    turns = pair.chosen_turns
    checks: tuple[tuple[bool, RowReason, str], ...] = (
        (turns != pair.rejected_turns, "transcripts differ before the last turn", "rejected"),
        (not turns or not turns[-1].content.strip(), "empty prompt", "prompt"),
        (bool(turns) and turns[-1].role != "user", "no user turn before the answer", "prompt"),
        (not pair.chosen.strip(), "empty chosen", "chosen"),
        (not pair.rejected.strip(), "empty rejected", "rejected"),
        (pair.chosen == pair.rejected, "chosen equals rejected", "rejected"),
    )
    for failed, reason, field in checks:
        if failed:
            return Dropped(provenance, reason, row.at(field))
    return Comparison(
        prompt=Prompt(messages=turns),
        chosen=pair.chosen,
        rejected=pair.rejected,
        margin=margin,
        provenance=provenance,
    )


# ---------------------------------------------------------------------------------------------- columns

_MISSING = object()


def _value(row: Row, column: str) -> Any:
    """The value of a column; a literal name wins over a dotted path. `_MISSING` where there is none."""
    if column in row.values:
        return row.values[column]
    value: Any = row.values
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _required(row: Row, column: str, field: str) -> Any:
    value = _value(row, column)
    if value is _MISSING:
        key = f"columns.{field}" + (f"={column}" if column != field else "")
        raise UserError("no such column", where=f"{row.at(column)} ({key})", fix=_suggestion(row, column))
    if value is None:
        raise UserError("is null", where=row.at(column), fix="fill it in, or leave the row out")
    return value


def _optional(row: Row, columns: ColumnMap, field: str) -> Any:
    """The value of an optional field, or None. A column that was renamed on purpose must exist."""
    column: str | None = getattr(columns, field)
    if column is None:
        return None
    value = _value(row, column)
    if value is _MISSING and column != ColumnMap.model_fields[field].default:
        raise UserError(
            "no such column", where=f"{row.at(column)} (columns.{field}={column})", fix=_suggestion(row, column)
        )
    return None if value is _MISSING else value


def _suggestion(row: Row, column: str) -> str:
    nested = [f"{name}.{inner}" for name, value in row.values.items() if isinstance(value, Mapping) for inner in value]
    return nearest(column, [*row.columns, *nested])


def _text(row: Row, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"is {_kind(value)}, not a text", where=row.at(column), fix="write it as a JSON string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may spell out half of a surrogate pair, which no file can hold
        raise UserError(
            f"holds half of a surrogate pair at character {error.start + 1}, which is no character",
            where=row.at(column),
            fix="delete the \\ud800-\\udfff escape from the row",
        ) from error
    return value


_KINDS = {
    "NoneType": "null",
    "str": "a text",
    "list": "a list",
    "dict": "an object",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value).__name__, f"a {type(value).__name__}")  # Parquet knows more: dates, bytes, decimals


def _columns_pair(row: Row, columns: ColumnMap) -> _Pair:
    messages = _optional(row, columns, "messages")
    chosen_head, chosen = _answer(row, columns.chosen, _required(row, columns.chosen, "chosen"))
    rejected_head, rejected = _answer(row, columns.rejected, _required(row, columns.rejected, "rejected"))
    if messages is not None:
        prompt = _messages(row, columns.messages or "messages", messages)
    elif chosen_head and _value(row, columns.prompt) in (_MISSING, None):
        prompt = chosen_head  # whole conversations as answers: the prompt is what comes before the last turn
    else:
        given = _required(row, columns.prompt, "prompt")
        prompt = (
            (Message(role="user", content=_text(row, columns.prompt, given)),)
            if isinstance(given, str)
            else _messages(row, columns.prompt, given)
        )
    heads = [head for head in (chosen_head, rejected_head) if head and head != prompt]
    return _Pair(prompt, heads[0] if heads else prompt, chosen, rejected)


def _answer(row: Row, column: str, value: Any) -> tuple[tuple[Message, ...], str]:
    """What comes before an answer (nothing, where the answer is plain text), and the answer."""
    if not isinstance(value, list):
        return (), _text(row, column, value)
    turns = _messages(row, column, value)
    if not turns or turns[-1].role != "assistant":
        raise UserError("does not end in an assistant turn", where=row.at(column), fix="end it with the answer")
    return turns[:-1], turns[-1].content


def _messages(row: Row, column: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        expected = "a list of messages" if isinstance(value, str) else "a text or a list of messages"
        raise UserError(
            f"is {_kind(value)}, not {expected}",
            where=row.at(column),
            fix='write [{"role": "user", "content": "…"}]',
        )
    return tuple(_message(row, f"{column}.{place}", item) for place, item in enumerate(value))


def _message(row: Row, field: str, item: Any) -> Message:
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        fix = 'write {"role": "user", "content": "…"}'
        raise UserError("is not a {role, content} object", where=row.at(field), fix=fix)
    role, roles = item["role"], list(get_args(Role))
    if role not in roles:
        raise UserError(f"unknown role {role!r}", where=row.at(f"{field}.role"), fix=nearest(str(role), roles))
    return Message(role=role, content=_text(row, f"{field}.content", item["content"]))


def _provenance(row: Row, source: TableSource, split: Split | None) -> Provenance:
    columns = source.columns

    def text(field: str, default: str) -> str:
        value = _optional(row, columns, field)
        return default if value is None or value == "" else _text(row, getattr(columns, field), value)

    identifier = _optional(row, columns, "id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    return Provenance(
        dataset=source.name,
        source_chosen=text("source_chosen", source.source_chosen),
        source_rejected=text("source_rejected", source.source_rejected),
        annotator=text("annotator", source.annotator),
        licence=text("licence", source.licence),
        split=split,
        original_id=str(row.number) if identifier is None else _text(row, columns.id or "id", identifier),
    )


def _split(row: Row, source: TableSource) -> Split | None:
    column = source.columns.split
    value = _optional(row, source.columns, "split")
    if value is None:
        if source.splits is not None:
            raise UserError(
                "the row has no split, but the source asks for some",
                where=row.at(column or "split"),
                fix="set splits: null, or name the file's split column in columns.split",
            )
        return None
    name = OTHER_SPLIT_NAMES.get(value, value) if isinstance(value, str) else value
    for split in SPLITS:
        if name == split:
            return split
    raise UserError(
        f"unknown split {value!r}",
        where=row.at(column or "split"),
        fix=f"use one of {', '.join(SPLITS)}, or set columns.split: null to ignore the column",
    )


def _margin(row: Row, source: SourceConfig) -> float | None:
    if isinstance(source, HhSource) or source.columns.margin is None:
        return source.margin
    value = _optional(row, source.columns, "margin")
    if value is None:
        return source.margin
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"is {_kind(value)}, not a number", where=row.at(source.columns.margin), fix=_MARGIN_FIX)
    if not math.isfinite(value) or not 0 < value <= 1:
        raise UserError(f"{value} is outside (0, 1]", where=row.at(source.columns.margin), fix=_MARGIN_FIX)
    return float(value)


_MARGIN_FIX = "rescale margins into (0, 1], or set columns.margin: null to ignore the column"

# ---------------------------------------------------------------------------------------------- transcripts

_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def _transcript(row: Row, field: str) -> tuple[Message, ...]:
    """Turns of an HH transcript, then the assistant's answer, empty where it has none.

    Neighbouring turns of one speaker are one turn, because chat templates refuse two in a row.
    """
    parts = _TURN.split(_text(row, field, _required(row, field, field)))
    if parts[0].strip() or len(parts) < 3:
        raise UserError(
            "not an HH transcript",
            where=row.at(field),
            fix=r'it must begin with "\n\nHuman:" or "\n\nAssistant:"; for plain columns use format: jsonl',
        )
    if parts[-2] != "Assistant":
        parts += ["Assistant", ""]
    turns: list[Message] = []
    for name, body in zip(parts[1:-2:2], parts[2:-2:2], strict=True):
        role, content = _HH_ROLES[name], body.strip()
        if turns and turns[-1].role == role:
            content = "\n\n".join(filter(None, (turns.pop().content, content)))
        turns.append(Message(role=role, content=content))
    return (*turns, Message(role="assistant", content=parts[-1].strip()))
