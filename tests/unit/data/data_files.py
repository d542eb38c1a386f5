"""Files with rows, sources that read them, and what reading gives; used by the tests of reading."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Example, Prompt
from inverse_alignment.data.read import Dropped, read
from inverse_alignment.data.sources import SourceConfig

GOOD = {"prompt": "why?", "chosen": "because", "rejected": "no idea"}
SOURCES: TypeAdapter[Any] = TypeAdapter(SourceConfig)
DROP_HINT = "; or set on_bad_row: drop"


def lines(*rows: Any) -> bytes:
    """Rows one a line; bytes stand as they are."""
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def write(path: Path, *rows: Any) -> Path:
    """A file of lines, packed if its name says so."""
    return write_bytes(path, lines(*rows))


def write_bytes(path: Path, data: bytes) -> Path:
    """A file of these bytes, packed if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_json(path: Path, value: Any) -> Path:
    """A file of one JSON value."""
    return write_bytes(path, json.dumps(value).encode())


def write_parquet(path: Path, rows: Any) -> Path:
    """A Parquet file of rows, or of a table."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path)
    return path


def source(path: Path | str, format: str = "jsonl", **settings: Any) -> SourceConfig:
    """A source as YAML would give it."""
    named = {"name": "d", **settings} if format != "hh" else settings
    return SOURCES.validate_python({"format": format, "path": str(path), **named})


def rows_of(path: Path | str, format: str = "jsonl", **settings: Any) -> list[Example | Dropped]:
    """Everything a source gives."""
    return list(read(source(path, format, **settings)))


def pairs_of(path: Path | str, format: str = "jsonl", **settings: Any) -> list[Comparison]:
    """The rows of a source that are all comparisons."""
    found = rows_of(path, format, **settings)
    assert all(isinstance(row, Comparison) for row in found), found
    return [row for row in found if isinstance(row, Comparison)]


def refused(path: Path | str, format: str = "jsonl", **settings: Any) -> UserError:
    """The error that a source ends in: three short printable lines."""
    with pytest.raises(UserError) as caught:
        rows_of(path, format, **settings)
    text = str(caught.value)
    assert len(text.split("\n")) == 3 and len(text) < 1000
    text.encode()  # can be printed
    return caught.value


def reasons(found: list[Example | Dropped]) -> list[str | None]:
    """Why each row was dropped; None for the others."""
    return [row.reason if isinstance(row, Dropped) else None for row in found]


def turns(prompt: Prompt) -> list[tuple[str, str]]:
    """A conversation as pairs of role and content."""
    return [(message.role, message.content) for message in prompt.messages]


def user(content: str) -> dict[str, str]:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    """A system message."""
    return {"role": "system", "content": content}
