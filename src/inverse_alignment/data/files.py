"""Files nobody has described yet: how they hold rows, about how many, and what they are if they hold none."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal

from inverse_alignment.core.errors import UserError
from inverse_alignment.data.rows import GZIP_MAGIC, SUFFIXES, Container, Reading, dataset_rows, rows, sniff
from inverse_alignment.data.sources import DatasetRef

SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what marks a folder that `datasets` saved
LONGEST_LINE = 64 * 2**20
COUNTED, COUNTED_SECONDS = 8 * 2**20, 0.5  # how much of a file its number of rows is estimated from
_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class File:
    """A file, or a folder that `datasets` saved, ready to be read.

    Attributes:
        path: where it lies.
        container: how it holds its rows.
        part: the split of a dataset; None for a file.
    """

    path: Path
    container: Container | Literal["dataset"]
    part: DatasetRef | None = None

    def read(self, columns: Sequence[str] | None = None) -> Reading:
        """Its rows; of a Parquet file these columns alone."""
        if self.container == "dataset":
            return dataset_rows(self.path, self.part or DatasetRef())
        return rows(self.path, self.container, columns)

    def about(self) -> int | None:
        """About how many rows there are; None where it cannot be read far enough to tell."""
        match self.container:
            case "dataset":
                return _rows_of_dataset(self.path, self.part or DatasetRef())
            case "parquet":
                import pyarrow.parquet

                return pyarrow.parquet.read_metadata(self.path).num_rows
            case "json":
                return _items(self.path)
            case _:
                return _lines(self.path)


def open_file(path: Path) -> File:
    """Tell how a file holds its rows.

    Raises:
        UserError: there is no such file, nothing in it, it cannot be read, or it holds no rows that are known here.
    """
    if path.is_dir():
        return _saved(path)
    container = sniff(path)
    if container == "jsonl":
        _refuse_endless_line(path)
    return File(path, container)


def find(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder, at any depth, that hold rows by their names, and its other files; a file is itself."""
    if not path.is_dir():
        return [path], []
    found, others = _inside(path)
    return found or [path], others


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    if _is_saved(folder):
        return [folder], []
    suffixes = tuple(suffix for each in SUFFIXES.values() for suffix in each)
    found: list[Path] = []
    others: list[Path] = []
    for child in sorted(folder.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_file():
            (found if child.name.endswith(suffixes) else others).append(child)
        elif child.is_dir() and not child.is_symlink():  # a link may lead back here
            below, besides = _inside(child)
            found += below
            others += besides
    return found, others


def what_else(file: File, first: UserError) -> UserError:
    """What a file is whose rows are all unreadable; the first row's error if that cannot be told."""
    path = file.path
    name = path.name.removesuffix(".gz")
    if name.endswith(_TABLES):
        made = f"{name.rpartition('.')[0]}.jsonl"
        return UserError(
            "is a table of separated values, not JSON",
            where=str(path),
            fix=f"convert it: python -c \"import datasets; datasets.Dataset.from_csv('{path}').to_json('{made}')\"",
        )
    if file.container != "jsonl" or not _begins_with_an_object(path):
        return first
    try:
        next(rows(path, "json"))
    except UserError as error:  # it is no array either, but the list of rows may lie inside
        if "list under" in error.fix:
            return UserError("is one JSON object, not one a line", where=str(path), fix=error.fix)
    return first


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; 0 if there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _is_saved(folder: Path) -> bool:
    return (folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file()


def _saved(folder: Path) -> File:
    """A folder that `datasets` saved, at its train split, or the first if there is none of that name."""
    if not _is_saved(folder):
        raise UserError(
            "the folder holds no file of rows",
            where=str(folder),
            fix=f"name files ending in {', '.join(suffix for each in SUFFIXES.values() for suffix in each)}",
        )
    try:
        if (folder / SAVED).is_file():
            split = json.loads((folder / SAVED).read_text(encoding="utf-8"))["_split"] or "train"
        else:
            splits = json.loads((folder / SAVED_SPLITS).read_text(encoding="utf-8"))["splits"]
            split = "train" if "train" in splits else splits[0]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            "does not say what splits the dataset has", where=str(folder), fix="save the dataset again"
        ) from error
    return File(folder, "dataset", DatasetRef() if split == "train" else DatasetRef(split=split))


def _refuse_endless_line(path: Path) -> None:
    """A line is read whole: one that fills the memory is noticed before."""
    with _unpacked(path) as file:
        try:
            first = file.readline(LONGEST_LINE + 1)
        except (EOFError, zlib.error, OSError):
            return  # reading says where the data end
    if len(first) > LONGEST_LINE:
        raise UserError(
            f"the first line is longer than {LONGEST_LINE // 2**20} MiB: the file is not one JSON object a line",
            where=f"{path}, row 1",
            fix="write one JSON object a line, or one JSON array of objects",
        )


def _unpacked(path: Path) -> BufferedReader | gzip.GzipFile:
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _begins_with_an_object(path: Path) -> bool:
    with _unpacked(path) as file:
        return file.read(4096).lstrip()[:1] == b"{"


# ---------------------------------------------------------------------------------------------- how many


def _lines(path: Path) -> int | None:
    """From the density of line ends at the beginning; without compression also in the middle and at the end."""
    size = path.stat().st_size
    with path.open("rb") as raw:
        if raw.read(2) == GZIP_MAGIC:
            raw.seek(0)
            try:
                with gzip.GzipFile(fileobj=raw) as file:
                    lines = file.read(4 * COUNTED).count(b"\n")
            except (EOFError, zlib.error, OSError):
                return None
            return round(lines * size / raw.tell())
        part = COUNTED // 3
        starts = [0] if size <= COUNTED else [0, (size - part) // 2, size - part]
        lines = read = 0
        for start in starts:
            raw.seek(start)
            piece = raw.read(COUNTED if len(starts) == 1 else part)
            lines, read = lines + piece.count(b"\n"), read + len(piece)
    return round(lines * size / read)


def _items(path: Path) -> int | None:
    """From the length of the first items, read in small pieces: the place in the file is then that of the last."""
    import ijson

    until = time.monotonic() + COUNTED_SECONDS
    count = 0
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        items = ijson.items(gzip.GzipFile(fileobj=raw) if packed else raw, "item", buf_size=4096)
        try:
            for count, _ in enumerate(items, start=1):
                if count % 16 == 0 and (raw.tell() > COUNTED or time.monotonic() > until):
                    break
        except (ijson.JSONError, EOFError, zlib.error, OSError, UnicodeDecodeError):
            return None
        return round(count * path.stat().st_size / raw.tell())


def _rows_of_dataset(folder: Path, part: DatasetRef) -> int:
    import datasets

    saved = datasets.load_from_disk(str(folder))
    return (saved[part.split] if isinstance(saved, datasets.DatasetDict) else saved).num_rows
