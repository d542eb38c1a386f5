"""Rows of a file as mappings, with the row's number, and one clear error for everything a file can have wrong.

This knows about files and bytes; what a row means is read in `sources`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from inverse_alignment.core.errors import UserError, nearest

GZIP_MAGIC = b"\x1f\x8b"
EXCERPT = 60


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        number: line of the file for JSONL, else place among the rows; from 1.
        values: the fields, nested where the file nests them.
        columns: names a person may have meant, for suggestions.
        file: where it was read from.
    """

    number: int
    values: Mapping[str, Any]
    columns: Sequence[str]
    file: Path

    def at(self, field: str) -> str:
        """Where an error about a field lies."""
        return f"{self.file}, row {self.number}, field '{field}'"


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Rows of a `.jsonl` or `.jsonl.gz` file, one at a time; blank lines are skipped but counted.

    Raises:
        UserError: no such file, nothing in it, damaged gzip, bad UTF-8, or a line that is not a JSON object.
    """
    _require_file(path)
    found = False
    for number, line in enumerate(_lines(path), start=1):
        text = _decoded(line, path, number)
        if text.strip():
            found = True
            values = _parsed(text, path, number)
            yield Row(number, values, list(values), path)
    if not found:
        raise _empty(path)


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a Parquet file, reading only the named columns that exist.

    Raises:
        UserError: no such file, no row in it, or it is damaged or not Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    _require_file(path)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            wanted = sorted({name for c in columns for name in (c, c.partition(".")[0])} & set(present))
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values, present, path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"not a readable Parquet file: {str(error).splitlines()[0]}",
            where=f"{path}, after row {number}",
            fix="fetch the file again, or set the source's format to what it is",
        ) from error
    if not number:
        raise _empty(path)


def _require_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(child.name for child in path.iterdir())
        fix = f"name one file: {', '.join(inside[:5]) or 'it is empty'}"
        raise UserError("is a folder, not a file", where=str(path), fix=fix)
    if not path.exists():
        beside = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else None
        fix = f"the folder {path.parent} does not exist either" if beside is None else nearest(path.name, beside)
        raise UserError("no such file", where=str(path), fix=fix)
    if path.stat().st_size == 0:
        raise _empty(path)


def _empty(path: Path) -> UserError:
    return UserError("the file holds no row", where=str(path), fix="fetch the file again, or leave the source out")


def _lines(path: Path) -> Iterator[bytes]:
    number = 0
    try:
        with _opened(path) as file:
            for line in file:
                number += 1
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"the gzip data end early or are damaged: {error}",
            where=f"{path}, after row {number}",
            fix="fetch the file again; `gzip -t` checks it",
        ) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"cannot be read: {why}", where=str(path), fix="check its permissions") from error


def _opened(path: Path) -> BufferedReader | gzip.GzipFile:
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    if path.suffix == ".gz" and not compressed:
        raise UserError("is named .gz but is not gzip", where=str(path), fix="rename it without .gz, or fetch it again")
    if path.suffix != ".gz" and compressed:
        raise UserError("is gzip but not named .gz", where=str(path), fix=f"rename it to {path.name}.gz")
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8: byte {error.start + 1} of the row is 0x{line[error.start]:02x}",
            where=f"{path}, row {number}",
            fix="convert the file, for example with `iconv -t utf-8`",
        ) from error


def _parsed(text: str, path: Path, number: int) -> dict[str, Any]:
    try:
        values = json.loads(text.rstrip())
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(
            f"not valid JSON: {reason}, in {_excerpt(text)}",
            where=f"{path}, row {number}",
            fix="write one JSON object a line",
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"holds a {type(values).__name__}, not an object: {_excerpt(text)}",
            where=f"{path}, row {number}",
            fix="write one JSON object a line",
        )
    return values


def _excerpt(text: str) -> str:
    short = text.strip()
    return repr(short if len(short) <= EXCERPT else short[:EXCERPT] + "…")
