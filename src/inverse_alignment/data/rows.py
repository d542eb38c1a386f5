"""Rows of a file as mappings, with the row's number, and one clear error for everything a file can have wrong.

This knows about files and bytes; what a row means is read in `read`. A fault of one row is handed out in its place, as
a `BadRow`, so that a reader may drop it and go on; a fault of the file is raised.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Literal

from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.records import Origin
from inverse_alignment.data.sources import DatasetRef

if TYPE_CHECKING:
    from pyarrow import RecordBatch

GZIP_MAGIC, PARQUET_MAGIC = b"\x1f\x8b", b"PAR1"
EXCERPT = 60
NAMES = 8
"""Most names that a suggestion lists."""
DEEPEST = 100
"""Most levels of nesting in a JSON array, itself included; what lies deeper is not even built."""
Container = Literal["jsonl", "json", "parquet"]
SUFFIXES: dict[Container, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    "json": (".json", ".json.gz"),
    "parquet": (".parquet",),
}
BadReason = Literal["unreadable", "missing field", "wrong type", "wrong value"]
Reading = Iterator["Row | BadRow"]

_UTF_8_MARK = b"\xef\xbb\xbf"
_FOREIGN: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs": ("is a pointer of Git LFS, not the data", "fetch the data with `git lfs pull`"),
    b"\xff\xfe": ("is UTF-16, not UTF-8", "convert it with `iconv -f utf-16 -t utf-8`"),
    b"\xfe\xff": ("is UTF-16, not UTF-8", "convert it with `iconv -f utf-16 -t utf-8`"),
    b"\x28\xb5\x2f\xfd": ("is packed with zstd", "unpack it with `zstd -d`; of packed files only gzip is read"),
    b"\xfd7zXZ": ("is packed with xz", "unpack it with `xz -d`; of packed files only gzip is read"),
    b"BZh": ("is packed with bzip2", "unpack it with `bzip2 -d`; of packed files only gzip is read"),
    b"PK\x03\x04": ("is a zip archive", "unpack it; of packed files only gzip is read"),
    b"ARROW1": ("is an Arrow file", "read its folder with format: dataset, or write it as Parquet"),
}
"""What is often taken for data, by its first bytes: what it is, and what to do."""


class BadRow(UserError):
    """What is wrong with one row.

    Attributes:
        reason: a few words to count by.
        origin: the row's provenance, if that could be read.
    """

    def __init__(self, reason: str, what: str, *, where: str, fix: str) -> None:
        self.reason = reason
        self.origin: Origin | None = None
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


# ---------------------------------------------------------------------------------------------- what is read


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
        _require_data(file)
        match container or _sniffed(file):
            case "jsonl":
                yield from jsonl_rows(file)
            case "json":
                yield from json_rows(file)
            case "parquet":
                yield from parquet_rows(file, columns)


def sniff(path: Path) -> Container:
    """How a file holds its rows, told from its first bytes.

    Raises:
        UserError: there is no such file, nothing in it, or it is of another kind.
    """
    _require_data(path)
    return _sniffed(path)


def _sniffed(path: Path) -> Container:
    try:
        with path.open("rb") as raw:
            if raw.read(4) == PARQUET_MAGIC:
                return "parquet"
        with _opened(path) as file:
            return "json" if _first_byte(file) == b"[" else "jsonl"
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(error, path, 0) from error


def _files(path: Path, container: Container | None) -> list[Path]:
    """The file, or the files of a folder that hold rows in such a container."""
    if not _exists(path) or not path.is_dir():
        return [path]
    try:
        inside = sorted(child for child in path.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise _unreadable(error, path, 0) from error
    suffixes = SUFFIXES[container] if container else tuple(suffix for each in SUFFIXES.values() for suffix in each)
    found = [child for child in inside if child.is_file() and child.name.endswith(suffixes)]
    if not found:
        names = ", ".join(child.name for child in inside[:NAMES])
        raise UserError(
            f"the folder holds no file named *{' or *'.join(suffixes)}",
            where=str(path),
            fix=f"name one of its files or folders: {names}" if names else "the folder is empty",
        )
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise _unreadable(error, path, 0) from error
    except OSError:  # a name that no file can have, such as a too long one
        return False


def _require_data(path: Path) -> None:
    """Refuse what is not there, holds nothing, or is known not to hold rows."""
    if not _exists(path):
        raise UserError("no such file", where=str(path), fix=_instead_of(path))
    if path.stat().st_size == 0:
        raise _empty(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise _unreadable(error, path, 0) from error
    for magic, (what, fix) in _FOREIGN.items():
        if head.startswith(magic):
            raise UserError(what, where=str(path), fix=fix)


def _instead_of(path: Path) -> str:
    """What a person may have meant by a path that leads nowhere."""
    try:
        beside = [child.name for child in path.parent.iterdir()]
    except OSError:
        return f"the folder {path.parent} does not exist either, or may not be listed"
    if path.name in beside:
        return "it is a link to a file that is gone: fetch that file again"
    return suggest(path.name, beside)


# ---------------------------------------------------------------------------------------------- JSON


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


def _lines(path: Path) -> Iterator[bytes]:
    number = 0
    try:
        with _opened(path) as file:
            for line in file:
                number += 1
                yield line.removeprefix(_UTF_8_MARK) if number == 1 else line
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(error, path, number) from error


def _parsed(line: bytes, path: Path, number: int) -> Row | BadRow:
    where = f"{path}, row {number}"
    array = number == 1 and line.lstrip()[:1] == b"["
    fix = "for a file that is one JSON array use format: json" if array else "write one JSON object a line"
    try:
        text = line.decode("utf-8")
        return _object(json.loads(text.rstrip()), path, number, fix)
    except UnicodeDecodeError as error:
        return BadRow(
            "unreadable",
            f"not UTF-8: byte {error.start + 1} of the row is 0x{line[error.start]:02x}",
            where=where,
            fix="convert the file, for example with `iconv -t utf-8`",
        )
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} (column {error.colno})" if isinstance(error, json.JSONDecodeError) else str(error)
        return BadRow("unreadable", f"not valid JSON: {reason}, in {_excerpt(text)}", where=where, fix=fix)


def json_rows(path: Path) -> Reading:
    """Items of a JSON array, one at a time, so that a large file takes no more memory than a small one.

    Raises:
        UserError: it is no array, has no item, or is damaged.
    """
    import ijson

    number = 0
    try:
        with _opened(path) as file:
            if _first_byte(file) != b"[":
                raise _no_array(path, file)
            for values in _items(file):
                number += 1
                yield _object(values, path, number, "write one JSON object a row")
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise UserError(
            f"not valid JSON: {_told(error)}",
            where=f"{path}, after row {number}",
            fix="fetch the file again, or correct it",
        ) from error
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(error, path, number) from error
    if not number:
        raise _empty(path)


_TOO_DEEP = object()


def _items(file: BufferedReader | gzip.GzipFile) -> Iterator[Any]:
    """Items of the array in a file; `_TOO_DEEP` for one that is nested deeper than any data.

    `ijson.items` would be shorter, but its memory grows with the square of the nesting.
    """
    import ijson
    from ijson.common import ObjectBuilder

    depth, deep, item = 0, False, ObjectBuilder()
    for event, value in ijson.basic_parse(file, use_float=True):
        if event in ("start_map", "start_array"):
            depth += 1
            if depth == 1:
                continue
        ends = event in ("end_map", "end_array")
        if ends and depth == 1:
            continue  # on, because what follows the array must be nothing
        if depth <= DEEPEST:
            item.event(event, value)
        deep |= depth > DEEPEST
        depth -= ends
        if depth == 1:
            yield _TOO_DEEP if deep else item.value
            deep, item = False, ObjectBuilder()


def _no_array(path: Path, file: BufferedReader | gzip.GzipFile) -> UserError:
    """Why a file is no array; for one object, under which key the rows may lie."""
    import ijson

    if not _first_byte(file):
        return _empty(path)
    depth = objects = 0
    key = before = rows_under = None
    try:
        for event, value in islice(ijson.basic_parse(file, multiple_values=True), 10_000):
            objects += depth == 0
            depth += (event in ("start_map", "start_array")) - (event in ("end_map", "end_array"))
            if event == "map_key" and depth == 1:
                key = value
            elif (before, event, depth) == ("start_array", "start_map", 3):
                rows_under = rows_under or key
            before = event
    except (ijson.JSONError, UnicodeDecodeError):
        pass  # whatever it is, it is no array
    fix = "for one JSON object a line use format: jsonl"
    if objects == 1 and rows_under is not None:
        fix = f"write the list under {shown(rows_under)} into a file of its own; {fix}"
    return UserError("does not hold a JSON array", where=str(path), fix=fix)


def _told(error: Exception) -> str:
    """What ijson says, and at what: it adds a second line with the text around the fault."""
    first = error.args[0] if error.args else str(error)
    said = (first.decode("utf-8", "replace") if isinstance(first, bytes) else str(error)).splitlines()
    return said[0] if len(said) == 1 else f"{said[0].rstrip('.')}, near {_excerpt(said[1])}"


def _object(values: Any, path: Path, number: int, fix: str) -> Row | BadRow:
    if isinstance(values, dict):
        return Row(number, values, list(values), path)
    where = f"{path}, row {number}"
    if values is _TOO_DEEP:
        return BadRow("unreadable", f"is nested more than {DEEPEST} levels deep", where=where, fix=fix)
    return BadRow("unreadable", f"holds {kind_of(values)}, not an object: {shown(values)}", where=where, fix=fix)


# ---------------------------------------------------------------------------------------------- Parquet


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
            for name in wanted:
                if present.count(name) > 1:
                    raise UserError(
                        f"two columns are named '{name}'", where=str(path), fix="rename one of them, or leave it out"
                    )
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for place, values in enumerate(_values(batch)):
                    number += 1
                    if values is None:
                        yield _unpacked(batch, place, present, path, number)
                    else:
                        yield Row(number, values, present, path)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(  # whatever the bytes of a damaged file may say
            f"not a readable Parquet file: {_first_and_last(error)}",
            where=f"{path}, after row {number}",
            fix="fetch the file again, or set the source's format to what it is",
        ) from error
    if not number:
        raise _empty(path)


def _values(batch: RecordBatch) -> Sequence[dict[str, Any] | None]:
    """The rows of a batch; None for all if one of them cannot be had, so that the others are looked at alone."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # a text that is not UTF-8, a date beyond the year 9999
        return [None] * len(batch)


def _unpacked(batch: RecordBatch, place: int, present: list[str], path: Path, number: int) -> Row | BadRow:
    """One row of a batch, value by value, so that the one that cannot be had is named."""
    values: dict[str, Any] = {}
    for name in batch.schema.names:
        try:
            values[name] = batch.column(name)[place].as_py()
        except (ValueError, OverflowError) as error:
            return BadRow(
                "unreadable",
                f"cannot be read: {_first_and_last(error)}",
                where=f"{path}, row {number}, field '{name}'",
                fix="correct the value, or leave the row out",
            )
    return Row(number, values, present, path)


# ---------------------------------------------------------------------------------------------- datasets


def dataset_rows(path: Path, reference: DatasetRef) -> Reading:
    """Rows of a local dataset folder through `datasets`, one at a time; its cache is left alone.

    Raises:
        UserError: the library cannot read the folder, or has no such subset or split there.
    """
    import datasets

    if not path.is_dir():
        fix = "give the folder of a dataset, or read the file with format jsonl, json or parquet"
        raise UserError("is no dataset folder", where=str(path), fix=fix)
    folder = path if reference.data_dir is None else path / reference.data_dir
    if not folder.is_dir():
        inside = [child.name for child in path.iterdir() if child.is_dir()]
        raise UserError(
            f"the dataset has no folder '{reference.data_dir}'",
            where=f"{path}, dataset.data_dir",
            fix=f"{suggest(str(reference.data_dir), inside)} (set dataset.data_dir)",
        )
    number = 0
    try:
        with _silent(datasets), tempfile.TemporaryDirectory() as cache:
            for values in _dataset(datasets, folder, reference, cache):
                number += 1
                yield Row(number, values, list(values), folder)
    except UserError:
        raise
    except Exception as error:  # builders raise types of their own, and those of what they wrap
        raise UserError(
            f"datasets cannot read it: {_first_and_last(error)}",
            where=f"{folder}, after row {number}",
            fix="correct its files, or read them with format jsonl, json or parquet",
        ) from error
    if not number:
        raise _empty(folder)


def _dataset(datasets: Any, folder: Path, reference: DatasetRef, cache: str) -> Any:
    """An iterable over rows: of a folder of `save_to_disk`, or of data files."""
    if any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        return _saved(datasets, folder, reference)
    subsets = datasets.get_dataset_config_names(str(folder))
    if reference.subset is None and len(subsets) > 1 and "default" not in subsets:
        raise UserError(
            "the dataset has several subsets",
            where=f"{folder}, dataset.subset",
            fix=f"name one of them: {_some(subsets)}",
        )
    if reference.subset is not None and reference.subset not in subsets:
        raise UserError(
            f"the dataset has no subset '{reference.subset}'",
            where=f"{folder}, dataset.subset",
            fix=f"{suggest(reference.subset, subsets)} (set dataset.subset)",
        )
    splits = datasets.load_dataset(str(folder), reference.subset, streaming=True, cache_dir=cache)
    return splits[_present(folder, reference.split, list(splits))]


def _saved(datasets: Any, folder: Path, reference: DatasetRef) -> Any:
    if reference.subset is not None:
        raise UserError(
            "what save_to_disk wrote has no subsets", where=f"{folder}, dataset.subset", fix="remove dataset.subset"
        )
    try:
        saved = datasets.load_from_disk(str(folder)).with_format(None)
    except IndexError as error:  # of a table without a row the library wrote no file
        raise _empty(folder) from error
    if isinstance(saved, datasets.DatasetDict):
        return saved[_present(folder, reference.split, list(saved))]
    if saved.split is not None or "split" in reference.model_fields_set:
        _present(folder, reference.split, [] if saved.split is None else [str(saved.split)])
    return saved


def _present(folder: Path, split: str, splits: list[str]) -> str:
    if split not in splits:
        raise UserError(
            f"the dataset has no split '{split}'",
            where=f"{folder}, dataset.split",
            fix=f"{suggest(split, splits)} (set dataset.split)"
            if splits
            else "remove dataset.split: it was saved without one",
        )
    return split


@contextmanager
def _silent(datasets: Any) -> Iterator[None]:
    """Keep the library from logging what it raises anyway."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)


def _first_and_last(error: Exception) -> str:
    """What an error says, without what a long one has in between."""
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)] or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"


# ---------------------------------------------------------------------------------------------- bytes


def _first_byte(file: BufferedReader | gzip.GzipFile) -> bytes:
    """The first byte that is no space; the file is at its beginning afterwards, past the mark of UTF-8."""
    head = file.read(4096)
    marked = head.startswith(_UTF_8_MARK)
    file.seek(len(_UTF_8_MARK) if marked else 0)
    return head.removeprefix(_UTF_8_MARK).lstrip()[:1]


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
    if not compressed:
        return path.open("rb")
    with gzip.open(path, "rb") as unpacked:
        if unpacked.read(2) == GZIP_MAGIC:
            raise UserError("is gzip inside gzip", where=str(path), fix="unpack it once with `gzip -d`")
    return gzip.open(path, "rb")


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


# ---------------------------------------------------------------------------------------------- words for messages

_KINDS = {
    "NoneType": "null",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "int": "a number",
    "float": "a number",
    "Decimal": "a number",
    "bool": "true or false",
    "bytes": "bytes",
    "date": "a date",
    "datetime": "a date",
    "Timestamp": "a date",
}
_REPR = Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 2, EXCERPT, EXCERPT, EXCERPT
_REPR.maxlist = _REPR.maxdict = 3


def kind_of(value: Any) -> str:
    """What a value is, in a person's words."""
    return _KINDS.get(type(value).__name__, f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """A value as Python would write it, cut short, however long, deep or unprintable it is."""
    return _REPR.repr(value)


def suggest(name: str, names: Collection[str]) -> str:
    """The nearest of the names that are there, or the first few of them, none of which can garble a terminal."""
    plain = [name if name.isprintable() and len(name) <= EXCERPT else shown(name)[1:-1] for name in names]
    nearest_one = nearest(name, plain)
    if len(plain) <= NAMES or nearest_one.startswith("did you mean"):
        return nearest_one
    return f"valid names: {_some(plain)}"


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(sorted(names)[:NAMES]) + more


def _excerpt(text: str) -> str:
    short = text.strip()
    return repr(short if len(short) <= EXCERPT else short[:EXCERPT] + "…")
