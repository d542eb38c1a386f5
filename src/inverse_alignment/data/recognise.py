"""Which format a file is in, told from its first rows: a draft of the source that reads it, or what is in the way.

A draft is a guess that was tried: made of the columns' names and values, it has read the rows it was made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from inverse_alignment.data.columns import NUMBERS, OPTIONAL, TEXTS, WRITERS, Columns, is_turn, most
from inverse_alignment.data.read import understood
from inverse_alignment.data.rows import BadRow, Container, Row
from inverse_alignment.data.sources import COLUMNS_OF, ColumnMap, Kind, SourceConfig, TableSource

SOURCE: TypeAdapter[SourceConfig] = TypeAdapter(SourceConfig)
_MOST_LISTED = 12
REFUSED_SHARE = 0.2  # an optional column is left out where it makes more of the rows unreadable
_HH_START = re.compile(r"\n\n(Human|Assistant):")
_PLACE = re.compile(r", row (\d+)(?:, field '(.*?)')?")
_NAMES_THE_BETTER = ("winner", "better", "preferred", "choice", "chosen", "best")
_READ_BY = {
    "hh": {"chosen", "rejected"},
    "sharegpt": {"conversations", "chosen", "rejected", "system"},
    "alpaca_eval": {"instruction", "output_1", "output_2", "generator_1", "generator_2", "preference", "annotator"},
}
"""Columns that a format with its own layout reads."""


@dataclass(frozen=True)
class Recognised:
    """What the first rows of a file are.

    Attributes:
        layout: the format in words.
        draft: the keys of a source, without its name and path, that reads the rows; None if none does.
        notes: what is in the file and is not used, and what was taken for granted.
        obstacle: why nothing reads the rows.
        fix: what to do about it.
    """

    layout: str
    draft: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    obstacle: str = ""
    fix: str = ""


def recognise(rows: Sequence[Row], container: Container | Literal["dataset"]) -> Recognised:
    """Tell the format of rows by their columns and values.

    Args:
        rows: the first ones of a file.
        container: how it holds them.
    """
    columns = Columns(rows)
    found = _native(columns) or _table(columns)
    if found.draft is None:
        return found
    named = "format" in found.draft
    draft = {**({} if named else {"format": container}), **found.draft}
    if named and container == "dataset":
        draft["dataset"] = {}
    return _tried(replace(found, draft=draft), rows, columns)


def load(draft: Mapping[str, Any], name: str, path: str) -> SourceConfig:
    """The source that a draft describes."""
    return SOURCE.validate_python({**draft, "name": name, "path": path})


def place(where: str) -> tuple[int | None, str | None]:
    """Row and field in the place of an error."""
    found = _PLACE.search(where)
    return (int(found[1]), found[2]) if found else (None, None)


def _native(columns: Columns) -> Recognised | None:
    """A format with its own layout."""
    if {"instruction", "output_1", "output_2", "preference"} <= set(columns.top):
        return Recognised("AlpacaEval annotations", {"format": "alpaca_eval"}, (_licence("alpaca_eval", "AlpacaEval"),))
    sides = [columns.values.get(name, []) for name in ("chosen", "rejected")]
    if columns.shapes.get("conversations") == "turns" and all(most(side, is_turn) for side in sides):
        return Recognised("ShareGPT preferences", {"format": "sharegpt"})
    if all(most(side, lambda text: isinstance(text, str) and _HH_START.match(text)) for side in sides):
        return Recognised("HH transcripts", {"format": "hh"}, (_licence("hh", "Anthropic"),))
    return None


def _licence(form: str, owner: str) -> str:
    licence = load({"format": form}, "tried", "rows").licence
    return f"the licence is taken to be that of {owner}'s own file, {licence}: set licence where the file is another"


def _table(columns: Columns) -> Recognised:
    """One of TRL's formats, under whatever names."""
    chosen, rejected = (columns.find(field, *TEXTS, loose=True) for field in ("chosen", "rejected"))
    if chosen and rejected:
        return _pairs(columns, chosen, rejected)
    two = columns.two_answers()
    if two is not None:
        return _undecided(columns, *two)
    prompt = columns.find("prompt", *TEXTS, loose=True)
    messages = columns.find("messages", "chat")
    response = columns.find("response", *TEXTS)
    if response and response != prompt and (prompt or messages or columns.shapes[response] == "chat"):
        return _single_answer(columns, {"prompt": prompt, "messages": messages, "response": response})
    if messages and most(columns.values[messages], _ends_in_answer):
        draft = _draft("demonstration", columns, {"messages": messages})
        return Recognised("demonstrations, conversational, the answer is the last message", draft)
    if prompt or messages:
        draft = _draft("prompt", columns, {"prompt": prompt, "messages": messages})
        return Recognised(f"prompts, {_style(columns, prompt, messages)}", draft)
    return _unknown(columns)


def _ends_in_answer(turns: Any) -> bool:
    match turns:
        case [*_, {"role": "assistant"}]:
            return True
        case _:
            return False


def _pairs(columns: Columns, chosen: str, rejected: str) -> Recognised:
    prompt = columns.find("prompt", *TEXTS, loose=True)
    messages = columns.find("messages", "chat")
    style = _style(columns, chosen, prompt, messages)
    notes = (*_second_input(columns, prompt), *_scores(columns))
    draft = _draft(
        "preference", columns, {"chosen": chosen, "rejected": rejected, "prompt": prompt, "messages": messages}
    )
    if prompt or messages:
        return Recognised(f"preferences, {style}, explicit prompt", draft, notes)
    layout = f"preferences, {style}, implicit prompt"
    if columns.shapes[chosen] == "chat":
        return Recognised(layout, draft, notes)
    texts = _both_texts(columns.values[chosen], columns.values[rejected])
    if _begin_alike(texts):
        notes += tuple(_inside_words(texts))
        return Recognised(layout, {**draft, "columns": {"prompt": None, **draft.get("columns", {})}}, notes)
    return Recognised(
        "pairs of answers without a prompt",
        obstacle="no column holds the prompt, and the two answers share no beginning that could be one",
        fix=f"name the prompt's column in columns.prompt; there are {_listed(columns)}",
    )


def _both_texts(chosen: Sequence[Any], rejected: Sequence[Any]) -> list[tuple[str, str]]:
    """The pairs of which neither answer is a list of messages."""
    pairs = zip(chosen, rejected, strict=False)
    return [(one, other) for one, other in pairs if isinstance(one, str) and isinstance(other, str)]


def _begin_alike(pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether most pairs of texts begin with the same words."""
    return most(
        [(one.split(maxsplit=3)[:3], other.split(maxsplit=3)[:3]) for one, other in pairs],
        lambda pair: pair[0] and pair[0] == pair[1],
    )


def _inside_words(pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Answers whose first word began in what both share, which is taken for the prompt."""
    pairs = [(one, other) for one, other in pairs if one != other]
    cut = sum(_parts_inside_a_word(one, other) for one, other in pairs)
    if cut:
        yield (
            f"in {cut} of the first {len(pairs)} pairs the two answers begin alike inside a word, and the prompt takes "
            "that beginning: give the prompt a column of its own if you can"
        )


def _parts_inside_a_word(one: str, other: str) -> bool:
    end = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:end][-1:].isalnum() and (one[end:][:1].isalnum() or other[end:][:1].isalnum())


def _second_input(columns: Columns, prompt: str | None) -> Iterator[str]:
    """Alpaca's column for what an instruction is about."""
    values = [value for value in columns.values.get("input", ()) if isinstance(value, str) and value.strip()]
    if values and prompt and prompt != "input":
        yield (
            f"column input is not read, but {len(values)} of the first {columns.rows} rows hold a text there: "
            f"write it behind {prompt} into one column if the answers need it"
        )


def _scores(columns: Columns) -> Iterator[str]:
    """Scores of both answers, which no key reads."""
    both = [
        next((path for path in columns.with_words(("score", "rating"), *NUMBERS) if side in path), None)
        for side in ("chosen", "rejected")
    ]
    if all(both):
        yield (
            f"{both[0]} and {both[1]} are not read: write their difference, scaled into (0, 1], into a column margin "
            "to use them"
        )


def _undecided(columns: Columns, answers: tuple[str, str], sides: tuple[str, str]) -> Recognised:
    """Two answers that something else must tell apart: votes, or an index."""
    layout = f"two answers a row, {answers[0]} and {answers[1]}"
    prompt = columns.find("prompt", *TEXTS, loose=True)
    writers = [columns.on_side(side, WRITERS, "text") for side in sides]
    votes = [columns.on_side(side, ("vote", "votes"), *NUMBERS) for side in sides]
    better = columns.with_words(_NAMES_THE_BETTER, "flag")
    found: dict[str, str | None]
    if all(votes):
        found = {"votes_chosen": votes[0], "votes_rejected": votes[1]}
        note = f"{votes[0]} and {votes[1]} say which answer is the better one"
    elif better and sides == ("0", "1"):
        answers, writers, found = answers[::-1], writers[::-1], {"soft_label": better[0]}
        note = f"{better[0]} is taken to be the number of the better answer, 1 for {answers[0]}: look at the examples"
    else:
        return Recognised(
            layout,
            obstacle="no column says in votes, or by number, which of the two answers is the better one",
            fix="write the better one as chosen and the other as rejected",
        )
    found |= {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    found |= {"source_chosen": writers[0], "source_rejected": writers[1]}
    return Recognised(f"preferences: {layout}", _draft("preference", columns, found), (note,))


def _single_answer(columns: Columns, found: dict[str, str | None]) -> Recognised:
    label = columns.find("label", "flag")
    style = _style(columns, *found.values())
    notes = tuple(_second_input(columns, found["prompt"]))
    if label:
        draft = _draft("judgement", columns, {**found, "label": label})
        return Recognised(f"judgements (unpaired preferences), {style}", draft, notes)
    graded = columns.with_words(("score", "rating", "label"), "number")
    if graded:
        notes += (f"{graded[0]} is not read: write a column label of true and false to read judgements instead",)
    return Recognised(
        f"demonstrations (prompt and completion), {style}", _draft("demonstration", columns, found), notes
    )


def _style(columns: Columns, *paths: str | None) -> str:
    return "conversational" if any(columns.shapes[path] == "chat" for path in paths if path) else "standard"


def _draft(kind: Kind, columns: Columns, found: Mapping[str, str | None]) -> dict[str, Any]:
    """Keys of a source of this kind: every column whose name is not the one that is expected."""
    paths = dict(found)
    for field, shapes in OPTIONAL.items():
        if field in COLUMNS_OF[kind] and field not in paths:
            paths[field] = columns.find(field, *shapes)
    defaults = {name: info.default for name, info in ColumnMap.model_fields.items()}
    mapped = {
        field: path for field in COLUMNS_OF[kind] if (path := paths.get(field)) is not None and path != defaults[field]
    }
    return {**({} if kind == "preference" else {"kind": kind}), **({"columns": mapped} if mapped else {})}


def _unknown(columns: Columns) -> Recognised:
    if columns.find("messages", "turns"):
        return Recognised(
            "ShareGPT conversations without a preference",
            obstacle="the turns are {from, value} objects, and there is no chosen and rejected",
            fix="write them as messages of {role, content} to read demonstrations",
        )
    if {"text"} == set(columns.of_shape("text")) and len(columns.top) <= 3:
        return Recognised(
            "plain texts",
            obstacle="a text is neither a prompt nor an answer",
            fix="if they are prompts, say so: kind: prompt, columns: {prompt: text}",
        )
    inside = next((path for path in columns.of_shape("list") if columns.rows == 1), None)
    return Recognised(
        "no known layout",
        obstacle=f"no column is named like a prompt or an answer; there are {_listed(columns)}",
        fix=f"write the items of {inside} as rows of their own"
        if inside
        else "name the columns of prompt, chosen and rejected (or of prompt and response) in columns",
    )


def _listed(columns: Columns) -> str:
    more = f" and {len(columns.top) - _MOST_LISTED} more" if len(columns.top) > _MOST_LISTED else ""
    return ", ".join(columns.top[:_MOST_LISTED]) + more


# ---------------------------------------------------------------------------------------------- trying


def _tried(found: Recognised, rows: Sequence[Row], columns: Columns) -> Recognised:
    """The draft without the optional columns that make rows unreadable."""
    assert found.draft is not None
    draft, notes = dict(found.draft), list(found.notes)
    for _ in OPTIONAL:
        source = load(draft, "tried", "rows")
        bad = [result for row in rows if isinstance(result := understood(source, row), BadRow)]
        blamed = _blamed(source, bad, len(rows))
        if blamed is None:
            break
        field, path, first = blamed
        mapped = dict(draft.get("columns", {}))
        mapped.pop(field, None)
        if path == ColumnMap.model_fields[field].default:
            mapped[field] = None
        draft = {
            **{key: value for key, value in draft.items() if key != "columns"},
            **({"columns": mapped} if mapped else {}),
        }
        notes.append(f"column {path} is not read: {first.what} ({first.fix})")
    notes += _unread(load(draft, "tried", "rows"), columns, " ".join(notes))
    return replace(found, draft={key: value for key, value in draft.items() if value != {}}, notes=tuple(notes))


def _unread(source: SourceConfig, columns: Columns, noted: str) -> Iterator[str]:
    """Columns that the draft does not read, and that no note has named."""
    if isinstance(source, TableSource):
        paths = [getattr(source.columns, field) for field in COLUMNS_OF[source.kind]]
        read = {name for path in paths if path is not None for name in (path, path.partition(".")[0])}
    else:
        read = _READ_BY[source.format]
    named = set(re.findall(r"[\w-]+", noted))
    full = [name for name in columns.top if any(value not in (None, "", [], {}) for value in columns.values[name])]
    left = [name for name in full if name not in read and name not in named]
    if left:
        more = f" and {len(left) - _MOST_LISTED} more" if len(left) > _MOST_LISTED else ""
        yield f"not read: {', '.join(left[:_MOST_LISTED])}{more}"


def _blamed(source: SourceConfig, bad: Sequence[BadRow], rows: int) -> tuple[str, str, BadRow] | None:
    """An optional field with its column that too many rows are refused for, and the first of them."""
    if not isinstance(source, TableSource):
        return None
    for field in OPTIONAL:
        path = getattr(source.columns, field)
        mine = [each for each in bad if path is not None and place(each.where)[1] == path]
        if len(mine) > REFUSED_SHARE * rows:
            return field, path, mine[0]
    return None
