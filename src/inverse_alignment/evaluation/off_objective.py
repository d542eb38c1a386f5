"""What the reward never saw: whether a policy refuses harmless requests, and how well it still predicts given text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.data.files import open_file
from inverse_alignment.data.rows import BadRow, Row

PROMPT_COLUMNS = ("prompt", "question", "instruction")
ANSWER_COLUMNS = ("answer", "response", "completion", "chosen", "output")
TYPE_COLUMN, CONTRAST = "type", "contrast"
HALF = 2


def harmless_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file in the form of XSTest (arXiv 2308.01263). Rows whose `type` begins with "contrast" are left
    out: they are to be refused.

    Raises:
        UserError: the file cannot be read, or holds no such prompt.
    """
    asked = [
        Prompt.from_text(text)
        for row in _rows(path)
        if (text := _text(row, PROMPT_COLUMNS)) and not str(row.values.get(TYPE_COLUMN, "")).startswith(CONTRAST)
    ]
    if not asked:
        raise UserError(
            "holds no prompt",
            where=str(path),
            fix=f"name a JSONL file whose rows have one of {', '.join(PROMPT_COLUMNS)}",
        )
    return asked


def probe_texts(path: Path, most: int) -> tuple[list[Prompt], list[str]]:
    """The first `most` questions of a file with their answers; of a row with `text` alone, its first half of words is
    the question.

    Raises:
        UserError: the file cannot be read, or holds none.
    """
    prompts, answers = [], []
    for row in _rows(path):
        question, answer = _text(row, PROMPT_COLUMNS), _text(row, ANSWER_COLUMNS)
        if not (question and answer) and len(words := _text(row, ("text",)).split()) >= HALF:
            question, answer = " ".join(words[: len(words) // HALF]), " ".join(words[len(words) // HALF :])
        if question and answer:
            prompts.append(Prompt.from_text(question))
            answers.append(answer)
        if len(prompts) == most:
            break
    if not prompts:
        columns = f"one of {', '.join(PROMPT_COLUMNS)} and one of {', '.join(ANSWER_COLUMNS)}, or text"
        raise UserError("holds nothing to predict", where=str(path), fix=f"name a JSONL file whose rows have {columns}")
    return prompts, answers


def _rows(path: Path) -> list[Row]:
    return [row for row in open_file(path).read() if not isinstance(row, BadRow)]


def _text(row: Row, columns: Sequence[str]) -> str:
    """The first of these columns that holds a text; a conversation of one user turn is its text."""
    for column in columns:
        value = row.values.get(column)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            return str(value[0].get("content", ""))
    return ""
