"""Rows of a file as mappings, with the row's number, and one clear error for everything a file can have wrong.

This knows about files and bytes; what a row means is read in `read`. A fault of one row is handed out in its place, as
a `BadRow`, so that a reader may drop it and go on; a fault of the file is raised.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.data.sources import DatasetRef

GZIP_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"PAR1"
EXCERPT = 60
Container = Literal["jsonl", "json", "parquet"]
SUFFIXES: dict[Container, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson"),
    "json": (".json", ".json.gz"),
    "parquet": (".parquet",),
}
BadReason = Literal["unreadable", "missing field", "wrong type", "wrong value"]
Reading = Iterator["Row | BadRow"]


class BadRow(UserError):
    """What is wrong with one row.

    Attributes:
        reason: a few words to count by.
    """

    def __init__(self, reason: str, what: str, *, where: str, fix: str) -> None:
        self.reason = reason
        super().__init__(what, where=where, fix=fix)


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


def rows(path: Path, container: Container | None = None, columns: Sequence[str] | None = None) -> Reading:
    """Rows of a file, or of the files of a folder in the order of their names.

    Args:
        path: what to read; `.gz` is unpacked.
        container: how the file holds its rows; None: told from its first bytes.
        columns: which columns of a Parquet file to read; None: all.

    Raises:
        UserError: no such file, nothing in it, or it is damaged or of another kind.
    """
    for file in _files(path, container):
        _require_content(file)
        match container or _sniffed(file):
            case "jsonl":
                yield from jsonl_rows(file)
            case "json":
                yield from json_rows(file)
            case "parquet":
                yield from parquet_rows(file, columns)


def dataset_rows(path: Path, reference: DatasetRef) -> Reading:
    """Rows of a local dataset folder through `datasets`, one at a time, without filling its cache.

    Raises:
        UserError: the library cannot read the folder, or has no such subset or split there.
    """
    import datasets

    if not path.is_dir():
        fix = "give the folder of a dataset, or read the file with format jsonl, json or parquet"
        raise UserError("is no dataset folder", where=str(path), fix=fix)
    number = 0
    try:
        for values in _dataset(datasets, path, reference):
            number += 1
            yield Row(number, values, list(values), path)
    except UserError:
        raise
    except Exception as error:  # builders raise types of their own, and those of what they wrap
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"datasets cannot read it: {why}",
            where=f"{path}, after row {number}",
            fix="check the dataset's subset, data_dir and split",
        ) from error
    if not number:
        raise _empty(path)


def _dataset(datasets: Any, path: Path, reference: DatasetRef) -> Any:
    """An iterable over rows: a folder of `save_to_disk`, or one of data files."""
    if not any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        folder = str(path) if reference.data_dir is None else str(path / reference.data_dir)
        return datasets.load_dataset(folder, reference.subset, split=reference.split, streaming=True)
    saved = datasets.load_from_disk(str(path))
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if reference.split not in saved:
        raise UserError(
            f"the dataset has no split '{reference.split}'",
            where=f"{path}, dataset.split",
            fix=nearest(reference.split, list(saved)),
        )
    return saved[reference.split]


def jsonl_rows(path: Path) -> Reading:
    """Rows of a `.jsonl` or `.jsonl.gz` file, one at a time; blank lines are skipped but counted.

    Raises:
        UserError: nothing in it, or damaged gzip.
    """
    found = False
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            found = True
            yield _parsed(line, path, number)
    if not found:
        raise _empty(path)


def json_rows(path: Path) -> Reading:
    """Items of a JSON array, one at a time, so that a large file takes no more memory than a small one.

    Raises:
        UserError: it is no array, has no item, or is damaged.
    """
    import ijson

    number = 0
    try:
        with _opened(path) as file:
            if not _first_byte(file) == b"[":
                raise UserError(
                    "does not hold a JSON array", where=str(path), fix="for one JSON object a line use format: jsonl"
                )
            for values in ijson.items(file, "item", use_float=True):
                number += 1
                yield _object(values, path, number)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(
            f"not valid JSON: {str(error).splitlines()[0]}",
            where=f"{path}, after row {number}",
            fix="fetch the file again, or correct it",
        ) from error
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(error, path, number) from error
    if not number:
        raise _empty(path)


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Reading:
    """Rows of a Parquet file, reading only the named columns that exist; None: all.

    Raises:
        UserError: no row in it, or it is damaged or not Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            wanted = present
            if columns is not None:
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


def sniff(path: Path) -> Container:
    """How a file holds its rows, told from its first bytes.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    _require_content(path)
    return _sniffed(path)


def _sniffed(path: Path) -> Container:
    with path.open("rb") as raw:
        if raw.read(4) == PARQUET_MAGIC:
            return "parquet"
    try:
        with _opened(path) as file:
            return "json" if _first_byte(file) == b"[" else "jsonl"
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(error, path, 0) from error


def _first_byte(file: BufferedReader | gzip.GzipFile) -> bytes:
    """The first byte that is no space and no mark of UTF-8; the file is at its beginning again afterwards."""
    head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return head[:1]


def _files(path: Path, container: Container | None) -> list[Path]:
    """The file, or the files of a folder that hold rows in such a container."""
    if not path.is_dir():
        return [path]
    suffixes = SUFFIXES[container] if container else tuple(suffix for each in SUFFIXES.values() for suffix in each)
    found = sorted(child for child in path.iterdir() if child.is_file() and child.name.endswith(suffixes))
    if not found:
        inside = sorted(child.name for child in path.iterdir())
        raise UserError(
            f"the folder holds no file named *{' or *'.join(suffixes)}",
            where=str(path),
            fix=f"name one of its files or folders: {', '.join(inside[:5])}" if inside else "the folder is empty",
        )
    return found


def _require_content(path: Path) -> None:
    if not path.exists():
        beside = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else None
        fix = f"the folder {path.parent} does not exist either" if beside is None else nearest(path.name, beside)
        raise UserError("no such file", where=str(path), fix=fix)
    if path.stat().st_size == 0:
        raise _empty(path)


def _empty(path: Path) -> UserError:
    return UserError("the file holds no row", where=str(path), fix="fetch the file again, or leave the source out")


def _unreadable(error: Exception, path: Path, number: int) -> UserError:
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        why = error.strerror or str(error)
        return UserError(f"cannot be read: {why}", where=str(path), fix="check its permissions")
    return UserError(
        f"the gzip data end early or are damaged: {error}",
        where=f"{path}, after row {number}",
        fix="fetch the file again; `gzip -t` checks it",
    )


def _lines(path: Path) -> Iterator[bytes]:
    number = 0
    try:
        with _opened(path) as file:
            for line in file:
                number += 1
                yield line
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(error, path, number) from error


def _opened(path: Path) -> BufferedReader | gzip.GzipFile:
    with path.open("rb") as file:
        magic = file.read(4)
    compressed = magic[:2] == GZIP_MAGIC
    if magic == PARQUET_MAGIC:
        raise UserError("is a Parquet file", where=str(path), fix="set the source's format to parquet")
    if path.suffix == ".gz" and not compressed:
        raise UserError("is named .gz but is not gzip", where=str(path), fix="rename it without .gz, or fetch it again")
    if path.suffix != ".gz" and compressed:
        raise UserError("is gzip but not named .gz", where=str(path), fix=f"rename it to {path.name}.gz")
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _parsed(line: bytes, path: Path, number: int) -> Row | BadRow:
    where = f"{path}, row {number}"
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        return _object(json.loads(text.rstrip()), path, number)
    except UnicodeDecodeError as error:
        return BadRow(
            "unreadable",
            f"not UTF-8: byte {error.start + 1} of the row is 0x{line[error.start]:02x}",
            where=where,
            fix="convert the file, for example with `iconv -t utf-8`",
        )
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        array = number == 1 and line.lstrip()[:1] == b"["
        return BadRow(
            "unreadable",
            f"not valid JSON: {reason}, in {_excerpt(text)}",
            where=where,
            fix="for a file that is one JSON array use format: json" if array else "write one JSON object a line",
        )


def _object(values: Any, path: Path, number: int) -> Row | BadRow:
    if isinstance(values, dict):
        return Row(number, values, list(values), path)
    return BadRow(
        "unreadable",
        f"holds a {type(values).__name__}, not an object: {_excerpt(json.dumps(values))}",
        where=f"{path}, row {number}",
        fix="write one JSON object a row",
    )


def _excerpt(text: str) -> str:
    short = text.strip()
    return repr(short if len(short) <= EXCERPT else short[:EXCERPT] + "…")
