"""What the fields of one row mean: column maps, HH transcripts, ShareGPT, AlpacaEval. No files here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, get_args

from inverse_alignment.core.errors import nearest
from inverse_alignment.core.records import (
    MOST_WEIGHT,
    SPLITS,
    Authorship,
    Message,
    Origin,
    Provenance,
    Role,
    Split,
)
from inverse_alignment.data.rows import BadRow, Row, kind_of, shown, suggest
from inverse_alignment.data.sources import ColumnMap, TableSource

OTHER_SPLIT_NAMES: dict[str, Split] = {"valid": "validation", "val": "validation", "dev": "validation"}
MOST_VOTES = 2**53
"""Whole numbers up to here are exact as floats."""
_DEFAULTS = {name: info.default for name, info in ColumnMap.model_fields.items()}
Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Strength:
    """How strong a preference is: a margin in (0, 1], the probability that the label is right, or neither."""

    margin: float | None = None
    soft_label: float | None = None


@dataclass(frozen=True)
class Pair:
    """A row as two conversations, before it is judged.

    Attributes:
        chosen_turns: what comes before the chosen answer.
        rejected_turns: what comes before the other.
        chosen: the answer in the field of the better one.
        rejected: the answer in the field of the worse one.
        strength: how strong the preference is, or why there is none.
        swapped: whether votes or a soft label say that the answers must change places.
        known: what the row says of its provenance.
        fields: where prompt, chosen and rejected stand in the file.
        judged_in: where it stands how strong the preference is.
    """

    chosen_turns: Turns
    rejected_turns: Turns
    chosen: str
    rejected: str
    strength: Strength | Literal["tie", "not judged"] = Strength()
    swapped: bool = False
    known: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, str, str] = ("prompt", "chosen", "rejected")
    judged_in: str = "preference"


# ---------------------------------------------------------------------------------------------- values of a row

_MISSING = object()


def _value(row: Row, column: str) -> Any:
    """The value of a column; a literal name wins over a dotted path. `_MISSING` where there is none."""
    if column in row.values:
        return row.values[column]
    if "." not in column:
        return _MISSING
    value: Any = row.values
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _present(row: Row, column: str | None) -> bool:
    return column is not None and _value(row, column) not in (_MISSING, None)


def _required(row: Row, column: str, key: str | None = None, hint: str = "") -> Any:
    """The value of a column that must be there.

    Args:
        key: the field of the column map that names the column, if one does.
        hint: another way out, where the column is missing.
    """
    value = _value(row, column)
    if value is _MISSING:
        named = f" (columns.{key}{f'={column}' if column != key else ''})" if key else ""
        fix = _suggestion(row, column) + (f" (set columns.{key})" if key else "") + hint
        raise BadRow("missing field", "no such column", where=row.at(column) + named, fix=fix)
    if value is None:
        raise BadRow("missing field", "is null", where=row.at(column), fix="fill it in, or leave the row out")
    return value


def _optional(row: Row, columns: ColumnMap, name: str) -> Any:
    """The value of an optional field, or None. A column that was renamed on purpose must exist."""
    column: str | None = getattr(columns, name)
    if column is None:
        return None
    value = _value(row, column)
    if value is _MISSING and column != _DEFAULTS[name]:
        where = f"{row.at(column)} (columns.{name}={column})"
        fix = f"{_suggestion(row, column)} (set columns.{name})"
        raise BadRow("missing field", "no such column", where=where, fix=fix)
    return None if value is _MISSING else value


def _suggestion(row: Row, column: str) -> str:
    nested = [f"{name}.{inner}" for name, value in row.values.items() if isinstance(value, Mapping) for inner in value]
    return suggest(column, [*row.columns, *nested])


def _text(row: Row, column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type", f"is {kind_of(value)}, not a text", where=row.at(column), fix="write it as a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may spell out half of a surrogate pair, which no file can hold
        raise BadRow(
            "unreadable",
            f"holds half of a surrogate pair at character {error.start + 1}, which is no character",
            where=row.at(column),
            fix="delete the \\ud800-\\udfff escape from the row",
        ) from error
    return value


def _number(row: Row, column: str, value: Any, low: float, high: float, words: str, fix: str) -> float:
    """A finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise BadRow("wrong type", f"is {kind_of(value)}, not a number", where=row.at(column), fix=fix)
    if isinstance(value, Decimal):
        value = float(value)
    if not low <= value <= high:  # not as a float: a whole number may be too large for one
        raise BadRow("wrong value", f"{_digits(value)} is outside {words}", where=row.at(column), fix=fix)
    return float(value)


def _digits(value: Any) -> str:
    """A number in a message, cut short if it has hundreds of digits."""
    return shown(value) if isinstance(value, int) else str(value)


# ---------------------------------------------------------------------------------------------- conversations


def _answer(row: Row, column: str, value: Any) -> tuple[Turns, str]:
    """What comes before an answer (nothing, where the answer is plain text), and the answer."""
    if not isinstance(value, list):
        return (), _text(row, column, value)
    turns = _messages(row, column, value)
    if not turns or turns[-1].role != "assistant":
        raise BadRow(
            "wrong type", "does not end in an assistant turn", where=row.at(column), fix="end it with the answer"
        )
    return turns[:-1], turns[-1].content


def _messages(row: Row, column: str, value: Any) -> Turns:
    if not isinstance(value, list):
        expected = "a list of messages" if isinstance(value, str) else "a text or a list of messages"
        raise BadRow(
            "wrong type",
            f"is {kind_of(value)}, not {expected}",
            where=row.at(column),
            fix='write [{"role": "user", "content": "…"}]',
        )
    return tuple(_message(row, f"{column}.{place}", item) for place, item in enumerate(value))


def _message(row: Row, where: str, item: Any) -> Message:
    if not isinstance(item, Mapping) or "role" not in item or "content" not in item:
        fix = 'write {"role": "user", "content": "…"}'
        raise BadRow("wrong type", "is not a {role, content} object", where=row.at(where), fix=fix)
    role, roles = item["role"], list(get_args(Role))
    if role not in roles:
        raise BadRow(
            "wrong value", f"unknown role {shown(role)}", where=row.at(f"{where}.role"), fix=_like(role, roles)
        )
    return Message(role=role, content=_text(row, f"{where}.content", item["content"]))


def _like(value: Any, valid: list[str]) -> str:
    return nearest(value if isinstance(value, str) else "", valid)


# ---------------------------------------------------------------------------------------------- tables


def table_prompt(row: Row, source: TableSource) -> Turns:
    """The prompt in `messages` or `prompt`."""
    columns = source.columns
    messages = _optional(row, columns, "messages")
    if messages is not None:
        return _messages(row, columns.messages or "messages", messages)
    if columns.prompt is None:
        raise BadRow(
            "missing field",
            "the row has no prompt",
            where=row.at("prompt"),
            fix="name the column in columns.prompt, or give messages",
        )
    hint = ""
    if source.kind == "preference" and columns.prompt == _DEFAULTS["prompt"]:
        hint = "; where chosen and rejected begin with the prompt, set columns.prompt: null"
    given = _required(row, columns.prompt, "prompt", hint)
    if isinstance(given, str):
        return (Message(role="user", content=_text(row, columns.prompt, given)),)
    return _messages(row, columns.prompt, given)


def table_pair(row: Row, source: TableSource) -> Pair:
    """The pair in the columns `chosen` and `rejected`, which may be whole conversations."""
    columns = source.columns
    chosen_head, chosen = _answer(row, columns.chosen, _required(row, columns.chosen, "chosen"))
    rejected_head, rejected = _answer(row, columns.rejected, _required(row, columns.rejected, "rejected"))
    stated = _stated(row, source, chosen, optional=bool(chosen_head) or columns.prompt is None)
    if stated is not None:
        chosen_turns = _before(row, source, columns.chosen, stated, chosen_head)
        rejected_turns = _before(row, source, columns.rejected, stated, rejected_head)
    elif chosen_head:
        chosen_turns, rejected_turns = chosen_head, rejected_head or chosen_head
    else:
        chosen_turns, chosen, rejected = _shared_beginning(row, columns, chosen, rejected)
        rejected_turns = rejected_head or chosen_turns
    strength, swapped = _strength(row, source)
    fields = (prompt_field(row, source), columns.chosen, columns.rejected)
    soft = columns.soft_label if _present(row, columns.soft_label) else None
    judged_in = columns.votes_chosen or soft or columns.margin or "margin"
    return Pair(chosen_turns, rejected_turns, chosen, rejected, strength, swapped, fields=fields, judged_in=judged_in)


def table_answer(row: Row, source: TableSource) -> tuple[Turns, str]:
    """The prompt and the answer of a demonstration or judgement."""
    columns = source.columns
    messages = _optional(row, columns, "messages")
    if messages is not None and not _present(row, columns.response):
        return _answer(row, columns.messages or "messages", messages)
    head, response = _answer(row, columns.response, _required(row, columns.response, "response"))
    stated = _stated(row, source, response, optional=bool(head))
    return head if stated is None else _before(row, source, columns.response, stated, head), response


def prompt_field(row: Row, source: TableSource) -> str:
    """Where the prompt of a row stands."""
    columns = source.columns
    if columns.messages is not None and _present(row, columns.messages):
        return columns.messages
    return columns.prompt or (columns.chosen if source.kind == "preference" else "prompt")


def _stated(row: Row, source: TableSource, answer: str, *, optional: bool) -> Turns | None:
    """The prompt that a row gives apart from its answers, where `messages` may end in the answer itself.

    None where it gives none, if that is allowed and no column was named for it.
    """
    columns = source.columns
    messages = _optional(row, columns, "messages")
    named = columns.prompt not in (None, _DEFAULTS["prompt"])
    if optional and messages is None and not named and not _present(row, columns.prompt):
        return None
    turns = table_prompt(row, source)
    if messages is not None and turns and turns[-1] == Message(role="assistant", content=answer):
        return turns[:-1]
    return turns


def _before(row: Row, source: TableSource, column: str, stated: Turns, head: Turns) -> Turns:
    """What comes before an answer: the stated prompt, and what the answer's own conversation has before its end.

    A conversation that begins with the assistant goes on from the prompt. Any other is whole: it must be that of a
    prompt in turns, and wins over a prompt that is a text, as with TRL.
    """
    if not head or head == stated:
        return stated
    if head[0].role == "assistant":
        return (*stated, *head)
    if isinstance(_value(row, prompt_field(row, source)), str):
        return head
    raise BadRow(
        "transcripts differ before the last turn",
        "the conversation before the answer is not that of the prompt",
        where=row.at(column),
        fix="give the conversation once: in the prompt, or in the answers",
    )


def _shared_beginning(row: Row, columns: ColumnMap, chosen: str, rejected: str) -> tuple[Turns, str, str]:
    """TRL's implicit prompt: what both texts begin with, without the space before they part (`trl.extract_prompt`)."""
    end = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if end is None and chosen != rejected:
        end = min(len(chosen), len(rejected))
    if end is None:
        raise BadRow(
            "chosen equals rejected", "chosen equals rejected", where=row.at(columns.rejected), fix="remove the row"
        )
    if end and chosen[end - 1] == " ":
        end -= 1
    if not chosen[:end].strip():
        raise BadRow(
            "empty prompt",
            "there is no prompt: chosen and rejected share no beginning",
            where=row.at(columns.chosen),
            fix="name the prompt's column in columns.prompt",
        )
    return (Message(role="user", content=chosen[:end]),), chosen[end:], rejected[end:]


def table_label(row: Row, source: TableSource) -> bool:
    """Whether a judged answer is good."""
    value = _required(row, source.columns.label, "label")
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise BadRow(
        "wrong value",
        f"{shown(value)} is neither true nor false",
        where=row.at(source.columns.label),
        fix="write true or false, or 1 or 0",
    )


def table_origin(row: Row, source: TableSource, split: Split | None) -> Origin:
    """The provenance of a row; an empty `original_id` where it has no name."""
    columns = source.columns

    def text(name: str, default: str) -> str:
        value = _optional(row, columns, name)
        return default if value is None or value == "" else _text(row, getattr(columns, name), value)

    identifier = _optional(row, columns, "id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    shared = {
        "dataset": source.name,
        "licence": text("licence", source.licence),
        "split": split,
        "original_id": "" if identifier is None else _text(row, columns.id or "id", identifier),
    }
    if source.kind == "prompt":
        return Origin(**shared)
    annotator = text("annotator", source.annotator)
    if source.kind == "preference":
        return Provenance(
            **shared,
            source_chosen=text("source_chosen", source.source_chosen),
            source_rejected=text("source_rejected", source.source_rejected),
            annotator=annotator,
        )
    return Authorship(**shared, source=text("source", source.source), annotator=annotator)


def table_split(row: Row, source: TableSource) -> Split | None:
    """The split that a row states for itself."""
    column = source.columns.split
    value = _optional(row, source.columns, "split")
    if value is None:
        if source.splits is not None:
            raise BadRow(
                "missing field",
                "the row has no split, but the source asks for some",
                where=row.at(column or "split"),
                fix="set splits: null, or name the file's split column in columns.split",
            )
        return None
    name = OTHER_SPLIT_NAMES.get(value, value) if isinstance(value, str) else value
    for split in SPLITS:
        if name == split:
            return split
    raise BadRow(
        "wrong value",
        f"unknown split {shown(value)}",
        where=row.at(column or "split"),
        fix=f"use one of {', '.join(SPLITS)}, or set columns.split: null to ignore the column",
    )


def table_weight(row: Row, source: TableSource) -> float:
    """The row's weight in a loss: its own, 1 where it states none, times that of the source."""
    value = None if source.kind == "prompt" else _optional(row, source.columns, "weight")
    if value is None:
        return source.weight
    column = source.columns.weight or "weight"
    fix = "write a number above 0, or set columns.weight: null to ignore the column"
    weight = _number(row, column, value, 0.0, MOST_WEIGHT, f"(0, {MOST_WEIGHT:g}]", fix) * source.weight
    if not 0 < weight <= MOST_WEIGHT:
        raise BadRow(
            "wrong value",
            f"{value} times the source's weight {source.weight:g} is outside (0, {MOST_WEIGHT:g}]",
            where=row.at(column),
            fix=fix,
        )
    return weight


def _strength(row: Row, source: TableSource) -> tuple[Strength | Literal["tie", "not judged"], bool]:
    """How strong the preference of a row is, and whether its answers must change places."""
    columns = source.columns
    margin = _margin(row, columns)
    if columns.votes_chosen is not None and columns.votes_rejected is not None:
        votes = _votes(row, "votes_chosen", columns.votes_chosen), _votes(row, "votes_rejected", columns.votes_rejected)
        return _from_votes(*votes, source.strength)
    value = _optional(row, columns, "soft_label")
    if value is None:
        return Strength(margin), False
    column = columns.soft_label or "soft_label"
    fix = "write a probability, or set columns.soft_label: null to ignore the column"
    probability = _number(row, column, value, 0.0, 1.0, "[0, 1]", fix)
    if probability == 0.5:
        return "tie", False
    return Strength(margin, max(probability, 1 - probability)), probability < 0.5


def _margin(row: Row, columns: ColumnMap) -> float | None:
    value = _optional(row, columns, "margin")
    if value is None:
        return None
    column = columns.margin or "margin"
    fix = "rescale margins into (0, 1], or set columns.margin: null to ignore the column"
    margin = _number(row, column, value, 0.0, 1.0, "(0, 1]", fix)
    if margin == 0:
        raise BadRow("wrong value", f"{value} is outside (0, 1]", where=row.at(column), fix=fix)
    return margin


def _votes(row: Row, key: str, column: str) -> int:
    value = _required(row, column, key)
    votes = _number(row, column, value, 0, MOST_VOTES, "the whole numbers from 0 to 2^53", "write a number of votes")
    if not votes.is_integer():
        raise BadRow("wrong value", f"{value} is no number of votes", where=row.at(column), fix="write a whole number")
    return int(votes)


def _from_votes(
    chosen: int, rejected: int, becomes: Literal["margin", "soft_label"]
) -> tuple[Strength | Literal["tie", "not judged"], bool]:
    if chosen == rejected:
        return ("tie" if chosen else "not judged"), False
    return _graded(abs(chosen - rejected) / (chosen + rejected), becomes), rejected > chosen


def _graded(margin: float, becomes: Literal["margin", "soft_label"]) -> Strength:
    """The margin m > 0 of a label as it is, or as the probability (1 + m) / 2 that the label is right."""
    return Strength(soft_label=(1 + margin) / 2) if becomes == "soft_label" else Strength(margin=margin)


# ---------------------------------------------------------------------------------------------- transcripts

_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def hh_pair(row: Row) -> Pair:
    """Two transcripts of Anthropic's HH data."""
    chosen, rejected = _transcript(row, "chosen"), _transcript(row, "rejected")
    fields = ("chosen", "chosen", "rejected")
    return Pair(chosen[:-1], rejected[:-1], chosen[-1].content, rejected[-1].content, fields=fields)


def _transcript(row: Row, name: str) -> Turns:
    """Turns of an HH transcript, then the assistant's answer, empty where it has none.

    Neighbouring turns of one speaker are one turn, because chat templates refuse two in a row.
    """
    parts = _TURN.split(_text(row, name, _required(row, name)))
    if parts[0].strip() or len(parts) < 3:
        raise BadRow(
            "wrong type",
            "not an HH transcript",
            where=row.at(name),
            fix=r'it must begin with "\n\nHuman:" or "\n\nAssistant:"; for plain columns use format: jsonl',
        )
    if parts[-2] != "Assistant":
        parts += ["Assistant", ""]
    turns: list[Message] = []
    for speaker, body in zip(parts[1:-2:2], parts[2:-2:2], strict=True):
        _joined(turns, _HH_ROLES[speaker], body.strip())
    return (*turns, Message(role="assistant", content=parts[-1].strip()))


def _joined(turns: list[Message], role: Role, content: str) -> None:
    """Append a turn, or lengthen the last one if it is of the same speaker."""
    if turns and turns[-1].role == role:
        content = "\n\n".join(filter(None, (turns.pop().content, content)))
    turns.append(Message(role=role, content=content))


# ---------------------------------------------------------------------------------------------- ShareGPT

_SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def share_gpt_pair(row: Row) -> Pair:
    """`conversations`, and the two answers that could follow; a `system` text comes first."""
    given = _required(row, "conversations")
    if not isinstance(given, list):
        raise BadRow(
            "wrong type",
            f"is {kind_of(given)}, not a list of turns",
            where=row.at("conversations"),
            fix='write [{"from": "human", "value": "…"}]',
        )
    turns: list[Message] = []
    system = row.values.get("system")
    if system is not None and _text(row, "system", system).strip():
        turns.append(Message(role="system", content=system))
    for place, item in enumerate(given):
        turn = _share_gpt_turn(row, f"conversations.{place}", item)
        _joined(turns, turn.role, turn.content)
    chosen, rejected = (_share_gpt_answer(row, name) for name in ("chosen", "rejected"))
    prompt = tuple(turns)
    return Pair(prompt, prompt, chosen, rejected, fields=("conversations", "chosen", "rejected"))


def _share_gpt_turn(row: Row, where: str, item: Any) -> Message:
    if not isinstance(item, Mapping) or "from" not in item or "value" not in item:
        fix = 'write {"from": "human", "value": "…"}'
        raise BadRow("wrong type", "is not a {from, value} object", where=row.at(where), fix=fix)
    speaker, speakers = item["from"], list(_SPEAKERS)
    if speaker not in speakers:
        raise BadRow(
            "wrong value",
            f"unknown speaker {shown(speaker)}",
            where=row.at(f"{where}.from"),
            fix=_like(speaker, speakers),
        )
    return Message(role=_SPEAKERS[speaker], content=_text(row, f"{where}.value", item["value"]))


def _share_gpt_answer(row: Row, name: str) -> str:
    turn = _share_gpt_turn(row, name, _required(row, name))
    if turn.role != "assistant":
        raise BadRow(
            "wrong value", f"is a turn of the {turn.role}", where=row.at(f"{name}.from"), fix='answers are from "gpt"'
        )
    return turn.content


# ---------------------------------------------------------------------------------------------- AlpacaEval


def alpaca_eval_pair(row: Row, becomes: Literal["margin", "soft_label"]) -> Pair:
    """Two outputs and a preference in [1, 2]: the probability of output 2, plus 1.

    1.5 is a tie, and 0 in older files; null says that the judge failed.
    """
    instruction = _text(row, "instruction", _required(row, "instruction"))
    first, second = (_text(row, name, _required(row, name)) for name in ("output_1", "output_2"))
    writers = [
        _text(row, name, value) if (value := row.values.get(name)) is not None else None
        for name in ("generator_1", "generator_2")
    ]
    preference = row.values.get("preference")
    strength: Strength | Literal["tie", "not judged"] = "not judged"
    swapped = False
    if preference is not None:
        fix = "AlpacaEval writes 1 for output_1, 2 for output_2, or a number between them"
        value = _number(row, "preference", preference, 0.0, 2.0, "[1, 2]", fix)
        if 0 < value < 1:
            raise BadRow("wrong value", f"{preference} is outside [1, 2]", where=row.at("preference"), fix=fix)
        swapped = value > 1.5
        strength = "tie" if value in (0.0, 1.5) else _graded(2 * abs(value - 1.5), becomes)
    known = {name: writer for name, writer in zip(("source_chosen", "source_rejected"), writers, strict=True) if writer}
    if (judge := row.values.get("annotator")) is not None:
        known["annotator"] = _text(row, "annotator", judge)
    turns = (Message(role="user", content=instruction),)
    fields = ("instruction", "output_1", "output_2")
    return Pair(turns, turns, first, second, strength, swapped, known, fields)
