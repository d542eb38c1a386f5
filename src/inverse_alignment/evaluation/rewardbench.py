"""Judged answers as benchmarks: RewardBench 1 and 2 in their own formats, and any file of pairs as one more section.

A file tells by its rows which of the three it is. RewardBench 1 (arXiv 2403.13787) has pairs with a subset, its prior
test sets too; RewardBench 2 (arXiv 2506.01937) has lists of right and of wrong answers. Nothing is fetched.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Prompt
from inverse_alignment.data.files import SAVED_SPLITS, File, find, open_file
from inverse_alignment.data.read import understood
from inverse_alignment.data.recognise import load, recognise
from inverse_alignment.data.rows import BadRow, Row, suggest
from inverse_alignment.data.sources import DatasetRef

Layout = Literal["RewardBench", "RewardBench 2", "pairs"]
Kind = Literal["best", "reference", "tied"]
HUMANEVAL = tuple(f"hep-{language}" for language in ("cpp", "go", "java", "js", "python", "rust"))
LLMBAR = ("natural", "adver-neighbor", "adver-GPTInst", "adver-GPTOut", "adver-manual")
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": ("mt-bench-hard", *(f"llmbar-{name}" for name in LLMBAR)),
    "Safety": (
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond"),
        "donotanswer",
    ),
    "Reasoning": ("math-prm", *HUMANEVAL),
}
"""The sections of RewardBench 1 and their subsets."""
PRIOR, PRIOR_SUBSETS = "Prior Sets", ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")
TIES = "Ties"
DOMAINS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", TIES)
MATHS, MATHS_WEIGHT = "math-prm", 984 / 447
"""Its 447 pairs count as the 984 pairs of code do."""
SECTION_OF = {subset: name for name, subsets in {**SECTIONS, PRIOR: PRIOR_SUBSETS}.items() for subset in subsets}
FIRST = 50  # rows that tell a file's layout
_SPLIT = re.compile(r"(-\d{5}-of-\d{5})?\.[a-z.]+$")
_TIE = re.compile(r"(ref|tied):(\d+)")
EXPECTED = "rows of RewardBench 2 have id, prompt, subset, and lists of texts chosen and rejected"


@dataclass(frozen=True)
class Item:
    """One prompt with right and wrong answers.

    Attributes:
        answers: the right ones first.
        right: how many of them are right.
        subset: where the benchmark has it; empty for a file of pairs.
        unit: what it is drawn together with in a bootstrap: its prompt, or its question in Ties.
        weight: what it counts in its section.
        kind: `best` by the highest score; in Ties `reference` for one right answer, `tied` for several.
    """

    prompt: Prompt
    answers: tuple[str, ...]
    right: int
    subset: str
    unit: str
    weight: float = 1.0
    kind: Kind = "best"


@dataclass
class Benchmark:
    """Sections of items.

    Attributes:
        name: of the benchmark, or of the file of pairs.
        files: what was read.
        sections: by name, none of them empty.
        dropped: rows that were not used, by reason.
    """

    layout: Layout
    name: str
    files: list[str] = field(default_factory=list)
    sections: dict[str, list[Item]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def lacking(self) -> list[str]:
        """Sections that the benchmark's overall score needs and that are not here."""
        needed = {"RewardBench": tuple(SECTIONS), "RewardBench 2": DOMAINS, "pairs": ()}[self.layout]
        return [name for name in needed if name not in self.sections]


def read_benchmarks(paths: Sequence[Path]) -> list[Benchmark]:
    """Read files and folders; all files of RewardBench 1 are one benchmark, and all of RewardBench 2.

    Raises:
        UserError: there is no such file, it holds no judged answers, a subset is unknown, or a row of RewardBench is
            not what the format says.
    """
    found: dict[tuple[Layout, str], Benchmark] = {}
    for part, subset in (each for path in paths for each in _parts(path)):
        first = [row for row in islice(part.read(), FIRST) if isinstance(row, Row)]
        layout = _layout(first, subset)
        name = _name(part.path, found) if layout == "pairs" else layout
        benchmark = found.setdefault((layout, name), Benchmark(layout, name))
        benchmark.files.append(str(part.path))
        items = _lists(part) if layout == "RewardBench 2" else _pairs(part, first, subset, benchmark)
        for item in items:
            section = {"RewardBench": SECTION_OF.get(item.subset, ""), "RewardBench 2": item.subset, "pairs": name}
            benchmark.sections.setdefault(section[layout], []).append(item)
    for benchmark in found.values():
        _in_order(benchmark)
    return list(found.values())


def _name(path: Path, taken: Iterable[tuple[Layout, str]]) -> str:
    """A name for a file of pairs: its own, with its folder or a number where there is one of that name."""
    stem = path.name.partition(".")[0]
    names = {name for _, name in taken}
    tries = [stem, f"{path.parent.name}/{stem}", *(f"{stem} {number}" for number in range(2, len(names) + 3))]
    return next(name for name in tries if name not in names)


def _in_order(benchmark: Benchmark) -> None:
    """Sections in the benchmark's own order, prior test sets with equal weights, questions of Ties in whole pairs."""
    if benchmark.layout == "pairs":
        return
    order = [*SECTIONS, PRIOR] if benchmark.layout == "RewardBench" else list(DOMAINS)
    benchmark.sections = {name: benchmark.sections[name] for name in order if name in benchmark.sections}
    if PRIOR in benchmark.sections:
        items = benchmark.sections[PRIOR]
        sizes = Counter(item.subset for item in items)
        benchmark.sections[PRIOR] = [replace(item, weight=1 / sizes[item.subset]) for item in items]
    _require_both_ties(benchmark)


def _require_both_ties(benchmark: Benchmark) -> None:
    asked: dict[str, set[str]] = {}
    for item in benchmark.sections.get(TIES, ()):
        if item.kind in asked.setdefault(item.unit, set()):
            raise UserError(
                f"the question {item.unit} is there twice as {_side(item.kind)}",
                where=f"{', '.join(benchmark.files)}, subset {TIES}",
                fix="give each file once",
            )
        asked[item.unit].add(item.kind)
    for unit, kinds in asked.items():
        if len(kinds) < 2:
            raise UserError(
                f"the question {unit} is there only as {_side(*kinds)}, but scoring needs ref and tied",
                where=f"{', '.join(benchmark.files)}, subset {TIES}",
                fix="give both rows of the question, or leave both out",
            )


def _side(kind: str) -> str:
    return "ref" if kind == "reference" else "tied"


# ---------------------------------------------------------------------------------------------- which files


def _parts(path: Path) -> Iterator[tuple[File, str | None]]:
    """The files of a path that are part of a benchmark, each with the subset that its name stands for.

    Of a dataset the split `filtered` is read where there is one (RewardBench 1), else the prior test sets, else `test`.
    """
    if (path / SAVED_SPLITS).is_file():
        open_file(path)  # refuses what is damaged
        splits = json.loads((path / SAVED_SPLITS).read_text(encoding="utf-8"))["splits"]
        for split in splits:
            if split in _wanted(splits):
                yield File(path, "dataset", DatasetRef(split=split)), split if split in PRIOR_SUBSETS else None
        return
    files = find(path)[0] if path.is_dir() else [path]
    names = {file: _SPLIT.sub("", file.name) for file in files}
    wanted = _wanted(list(names.values())) if path.is_dir() else set(names.values())
    for file, name in names.items():
        if name in wanted:
            yield open_file(file), name if name in PRIOR_SUBSETS else None


def _wanted(splits: Sequence[str]) -> set[str]:
    prior = {split for split in splits if split in PRIOR_SUBSETS}
    for some in ({"filtered"} & set(splits), prior, {"test"} & set(splits)):
        if some:
            return some
    return set(splits)


def _layout(first: Sequence[Row], subset: str | None) -> Layout:
    if any(isinstance(row.values.get("rejected"), list) and _texts(row.values["rejected"]) for row in first):
        return "RewardBench 2"
    known = subset is not None or any(str(row.values.get("subset")) in SECTION_OF for row in first)
    return "RewardBench" if known else "pairs"


# ---------------------------------------------------------------------------------------------- what is in a row


def _pairs(part: File, first: Sequence[Row], subset: str | None, benchmark: Benchmark) -> Iterator[Item]:
    """Items of pairs of any format that can be told from its first rows; unusable ones are counted."""
    found = recognise(first, part.container)
    if found.draft is None:
        raise UserError(f"{found.layout}: {found.obstacle}", where=str(part.path), fix=found.fix)
    source = load(found.draft, "benchmark", str(part.path))
    kept, worst = 0, None
    for row in part.read():
        result = understood(source, row)
        if isinstance(result, Comparison):
            kept += 1
            yield _pair(result, row, subset, benchmark.layout)
        elif result is not None:
            worst = worst or (result if isinstance(result, BadRow) else None)
            benchmark.dropped[getattr(result, "reason", "not a pair")] += 1
    if not kept:
        raise UserError(
            worst.what if worst else f"no row is a pair of answers, but it holds {found.layout}",
            where=worst.where if worst else str(part.path),
            fix=worst.fix if worst else "give a file of prompt, chosen and rejected",
        )


def _pair(pair: Comparison, row: Row | BadRow, subset: str | None, layout: Layout) -> Item:
    assert isinstance(row, Row)  # a bad row is no comparison
    answers = (pair.chosen, pair.rejected)
    if layout == "pairs":
        return Item(pair.prompt, answers, 1, "", pair.prompt.key)
    name = str(row.values.get("subset") or subset)
    if name not in SECTION_OF:
        raise UserError(
            f"RewardBench has no subset '{name}'", where=row.at("subset"), fix=suggest(name, list(SECTION_OF))
        )
    return Item(pair.prompt, answers, 1, name, pair.prompt.key, MATHS_WEIGHT if name == MATHS else 1.0)


def _lists(part: File) -> Iterator[Item]:
    """Items of RewardBench 2, whose files are made by machine: any row that is not as it should be is refused."""
    for row in part.read():
        if isinstance(row, BadRow):
            raise row
        yield _list(row)


def _list(row: Row) -> Item:
    values = row.values
    subset, prompt = values.get("subset"), values.get("prompt")
    if subset not in DOMAINS:
        raise UserError(
            f"RewardBench 2 has no subset '{subset}'", where=row.at("subset"), fix=suggest(str(subset), DOMAINS)
        )
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError("is no text", where=row.at("prompt"), fix=EXPECTED)
    chosen, rejected = (_answers(row, name) for name in ("chosen", "rejected"))
    for name, count in (("num_correct", len(chosen)), ("total_completions", len(chosen) + len(rejected))):
        if values.get(name, count) != count:
            raise UserError(
                f"says {values[name]}, but there are {count}", where=row.at(name), fix="fetch the file again"
            )
    asked = Prompt.from_text(prompt)
    answers = (*chosen, *rejected)
    if subset != TIES:
        return Item(asked, answers, len(chosen), subset, asked.key)
    match = _TIE.fullmatch(str(values.get("id")))
    if match is None:
        raise UserError(
            f"'{values.get('id')}' is neither ref:N nor tied:N", where=row.at("id"), fix="keep the ids of the benchmark"
        )
    return Item(asked, answers, len(chosen), subset, match[2], kind="reference" if match[1] == "ref" else "tied")


def _answers(row: Row, name: str) -> list[str]:
    given = row.values.get(name)
    if not isinstance(given, list) or not given or not _texts(given):
        raise UserError("is no list of texts", where=row.at(name), fix=EXPECTED)
    return given


def _texts(given: list[Any]) -> bool:
    return all(isinstance(text, str) for text in given)
