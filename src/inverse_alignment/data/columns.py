"""The columns of a file nobody has described yet: what their values look like, and which spellings mean which field."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from inverse_alignment.data.rows import Row

Shape = Literal["text", "chat", "turns", "object", "list", "flag", "number", "other"]
"""`chat` is a list of {role, content}, `turns` one of {from, value}, a `flag` true, false, 1 or 0."""
TEXTS: tuple[Shape, ...] = ("text", "chat")
NUMBERS: tuple[Shape, ...] = ("number", "flag")
WRITERS = ("source", "model", "policy", "generator", "author")
SIDES = (("0", "1"), ("1", "2"), ("a", "b"), ("left", "right"), ("x", "y"), ("first", "second"), ("one", "two"))
ANSWER = ("response", "answer", "output", "completion", "result", "reply", "text", "content", "value", "summary")
_FILLING = frozenset({*ANSWER, "responses", "answers", "outputs", "completions", "meta", "metadata", "info"})

SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "input", "problem", "request", "post", "user prompt"),
    "messages": ("messages", "conversation", "conversations", "chat", "dialogue", "dialog", "turns"),
    "chosen": ("chosen", "better", "preferred", "winner", "accepted", "positive", "good", "best", "win"),
    "rejected": ("rejected", "worse", "dispreferred", "loser", "negative", "bad", "worst", "unpreferred", "lose"),
    "response": ("completion", "response", "answer", "output", "reply", "target", "solution", "generation", "result"),
    "label": (
        "label",
        "good",
        "is good",
        "liked",
        "thumbs up",
        "desirable",
        "acceptable",
        "correct",
        "is correct",
        "score",
    ),
    "id": ("id", "uid", "uuid", "row id", "example id", "pair id"),
    "source": ("source", "author", "model", "generator", "policy", "writer", "model name"),
    "source_chosen": tuple(f"{a} {b}" for word in WRITERS for a, b in ((word, "chosen"), ("chosen", word))),
    "source_rejected": tuple(f"{a} {b}" for word in WRITERS for a, b in ((word, "rejected"), ("rejected", word))),
    "annotator": ("annotator", "judge", "labeler", "labeller", "rater", "annotator id", "worker", "worker id"),
    "margin": ("margin", "strength", "preference strength"),
    "soft_label": ("soft label", "probability", "chosen probability"),
    "votes_chosen": ("votes chosen", "chosen votes"),
    "votes_rejected": ("votes rejected", "rejected votes"),
    "weight": ("weight", "sample weight"),
    "licence": ("licence", "license"),
    "split": ("split",),
}
"""How files spell each field, as words; the first that a file has is taken."""
OPTIONAL: Mapping[str, tuple[Shape, ...]] = {
    "id": ("text", "number", "flag"),
    "source": ("text",),
    "source_chosen": ("text",),
    "source_rejected": ("text",),
    "annotator": ("text",),
    "margin": NUMBERS,
    "soft_label": NUMBERS,
    "votes_chosen": NUMBERS,
    "votes_rejected": NUMBERS,
    "weight": NUMBERS,
    "licence": ("text",),
    "split": ("text",),
}
"""Fields that a row may lack, and what their values look like."""


class Columns:
    """The columns of some rows, those inside objects too, with the values that are not null.

    Attributes:
        rows: how many there are.
        top: names of the columns, without those inside objects.
        values: by path, the values in the order of the rows.
        shapes: by path, what most of the values are.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = len(rows)
        self.top = list(dict.fromkeys(name for row in rows for name in row.values))
        self.values: dict[str, list[Any]] = {name: [] for name in self.top}
        for row in rows:
            for name, value in row.values.items():
                self._add(name, value)
                for inner, nested in value.items() if isinstance(value, Mapping) else ():
                    self._add(f"{name}.{inner}", nested)
        self.shapes = {path: _shape(values) for path, values in self.values.items()}
        self._words = {path: tuple(word.lower() for word in _WORD.findall(path)) for path in self.values}

    def _add(self, path: str, value: Any) -> None:
        values = self.values.setdefault(path, [])
        if value is not None:
            values.append(value)

    def of_shape(self, *shapes: Shape) -> Iterator[str]:
        """Paths of columns whose values look like one of these."""
        return (path for path, shape in self.shapes.items() if shape in shapes)

    def find(self, field: str, *shapes: Shape, loose: bool = False) -> str | None:
        """The column that a field is spelt as.

        Args:
            loose: beside the spelling there may be words that only say "a text", as in `chosen_response`.
        """
        for spelling in SPELLINGS[field]:
            for path in self.of_shape(*shapes):
                if " ".join(self._words[path]) == spelling:
                    return path
        for spelling in SPELLINGS[field]:
            for path in self.of_shape(*shapes):
                core = " ".join(word for word in self._words[path] if word not in _FILLING)
                if core == spelling and (loose or "." in path):
                    return path
        return None

    def two_answers(self) -> tuple[tuple[str, str], tuple[str, str]] | None:
        """Two columns of answers under names that favour neither, as `response_a` and `response_b`, and their sides."""
        for sides in SIDES:
            found = [self.on_side(side, ANSWER, *TEXTS) for side in sides]
            if found[0] and found[1]:
                return (found[0], found[1]), sides
        return None

    def on_side(self, side: str, words: Collection[str], *shapes: Shape) -> str | None:
        """The column whose name has one of the words and one of the two sides, as `votes_a`."""
        for path in self.of_shape(*shapes):
            if side in self._words[path] and not set(self._words[path]).isdisjoint(words):
                return path
        return None

    def with_words(self, words: Collection[str], *shapes: Shape) -> list[str]:
        """Columns whose name has one of the words."""
        return [path for path in self.of_shape(*shapes) if not set(self._words[path]).isdisjoint(words)]


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def most(values: Sequence[Any], holds: Any) -> bool:
    """Whether something holds of more than half of the values."""
    return 2 * sum(bool(holds(value)) for value in values) > len(values)


def is_turn(value: Any) -> bool:
    """Whether this is one turn of ShareGPT."""
    return isinstance(value, Mapping) and {"from", "value"} <= value.keys()


def _shape(values: Sequence[Any]) -> Shape:
    counts: Counter[Shape] = Counter(_shape_of(value) for value in values)
    if counts["number"]:
        counts["number"] += counts.pop("flag", 0)
    return counts.most_common(1)[0][0] if counts else "other"


def _shape_of(value: Any) -> Shape:
    match value:
        case str():
            return "text"
        case bool():
            return "flag"
        case int() | float():
            return "flag" if isinstance(value, int) and value in (0, 1) else "number"
        case Mapping():
            return "object"
        case [{"role": _, "content": _}, *_]:
            return "chat"
        case [{"from": _, "value": _}, *_]:
            return "turns"
        case list() | tuple():
            return "list"
        case _:
            return "other"
