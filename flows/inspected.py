"""What was found in files of data, for a person: tables, the first problems, a few rows, the source to write down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from inverse_alignment.data.inspection import Inspection, Problem, as_yaml
from inverse_alignment.data.licences import non_commercial

WIDTH = 108  # wider tables are hard to read
NAMED = 8  # most names in a list, and policies in a table
SHOWN_LINES = 6
CONTAINERS = {"jsonl": "JSON Lines", "json": "JSON array", "parquet": "Parquet", "dataset": "saved by datasets"}
COLOURS = {"chosen": "green", "rejected": "red", "label": "yellow"}
UNNAMED = "unnamed"
STRENGTHS = {"margins": "margin", "soft_labels": "soft label"}
BROKEN, STRANGE, FINE = "red", "yellow", "green"


def show(
    found: Sequence[Inspection], together: Sequence[Mapping[str, Any]], others: Sequence[str], console: Console
) -> None:
    """Print everything; of several files an overview at the end.

    Args:
        together: sources that read several of the files at once.
        others: files that were not looked at.
    """
    for each in found:
        if len(found) > 1:
            console.print(Rule(style="dim"))
        for part in _file(each):
            console.print(part, soft_wrap=isinstance(part, Text), highlight=False)
    if len(found) > 1:
        console.print(_overview(found), highlight=False)
    for source in together:
        console.print(
            Text(f"\nthe files in {_clean(source['path'])} are alike, so one source reads them all:"), soft_wrap=True
        )
        console.print(_snippet(as_yaml(source)), soft_wrap=True)
    if others:
        console.print(Text(f"not looked at: {_some(others)}", style="dim"), soft_wrap=True)


def _file(found: Inspection) -> Iterator[RenderableType]:
    yield Text(_clean(found.path), style="bold")
    yield Text(_extent(found), style="dim")
    if found.layout:
        yield Text(found.layout, style="cyan")
    if found.fault:
        began = f"only the first {found.rows:,} rows can be read" if found.statistics else "cannot be read"
        yield _trouble(began, found.fault, BROKEN)
    if found.obstacle:
        yield _trouble("nothing reads these rows", found.obstacle, STRANGE)
    if found.statistics:
        yield Padding(_facts(found), (1, 0, 0, 2))
        yield Padding(Columns(list(_tables(found.statistics)), padding=(0, 3)), (1, 0, 0, 2))
    if found.problems:
        yield Padding(_problems(found), (1, 0, 0, 2))
    if found.examples:
        yield Padding(_examples(found), (1, 0, 0, 2))
    if found.notes:
        yield Padding(_notes(found.notes), (1, 0, 0, 2))
    if found.snippet:
        whole = ", once the file is whole" if found.fault else ""
        yield Text.assemble("\n  ", (f"under data.sources{whole}:", "dim"))
        yield _snippet(found.snippet)


def _extent(found: Inspection) -> str:
    parts = []
    if found.container:
        packed = ", gzip" if found.path.endswith(".gz") else ""
        parts.append(CONTAINERS[found.container] + packed)
    parts.append(_bytes(found.bytes))
    if found.rows:
        known = "an unknown number of" if found.total is None else f"about {_round(found.total):,}"
        parts.append(
            f"all {found.rows:,} rows read" if found.complete else f"a sample: the first {found.rows:,} of {known} rows"
        )
    return " · ".join(parts)


def _round(number: int) -> int:
    """Two digits and noughts: an estimate claims no more."""
    size = max(len(str(number)) - 2, 0)
    return round(number, -size)


def _bytes(number: int) -> str:
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def _trouble(began: str, problem: Problem, colour: str) -> Text:
    row = "" if problem.row is None else f" (row {problem.row:,})"
    mark = "✗" if colour == BROKEN else "!"
    return Text.assemble(
        (f"{mark} ", colour), f"{began}: {_clean(problem.what)}{row}\n", (f"  fix: {_clean(problem.fix)}", "dim")
    )


# ---------------------------------------------------------------------------------------------- numbers


def _facts(found: Inspection) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _lines(found):
        grid.add_row(name, value)
    return grid


def _lines(found: Inspection) -> Iterator[tuple[str, Text]]:
    """What is said in a line each; what a file does not have is left out, and what it does not say is unknown."""
    facts = found.statistics
    yield "rows", Text(_rows(found))
    yield "prompts", Text(_prompts(facts))
    if facts["kind"] == "preference":
        yield "longer wins", Text(f"{_share(facts['longer_wins'])} of {facts['pairs']:,} pairs")
        stated = [f"{facts[key]:,} rows have a {word}" for key, word in STRENGTHS.items() if facts[key]]
        yield "strength", Text(", ".join(stated) or "unknown")
        if facts["contradictions"]:
            yield "contradictions", Text(f"{facts['contradictions']:,} pairs of answers are labelled both ways")
    if facts["kind"] == "judgement":
        yield "judged good", Text(f"{_share(facts['good'])} of {facts['used']:,} answers")
    if facts["weights"]:
        yield "weights", Text(f"{facts['weights']:,} rows have one")
    for name in ("annotators", "splits"):
        if facts[name]:
            yield name, Text("unknown" if set(facts[name]) == {UNNAMED} else _names(facts[name]))
    yield "licences", _licences(facts["licences"])


def _rows(found: Inspection) -> str:
    facts, refused = found.statistics, sum(found.refused.values())
    counts = {
        "cannot be used": refused,
        "ties": facts.get("ties", 0),
        "not judged": facts.get("not_judged", 0),
        "of these duplicates": facts["duplicates"],
    }
    return ", ".join(
        [f"{facts['used']:,} can be used", *(f"{count:,} {what}" for what, count in counts.items() if count)]
    )


def _prompts(facts: Mapping[str, Any]) -> str:
    turns = facts["turns"]
    said = f"{turns['mean']:.1f} user turns on average, at most {turns['most']}" if turns["most"] > 1 else "of one turn"
    system = f", {_share(facts['system'])} with a system message" if facts["system"] else ""
    return f"{facts['prompts']:,}, {said}{system}"


def _tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    if "words" in facts:
        yield _words(facts["words"])
    if len(facts.get("policies", ())) > 1:
        yield _policies(facts["policies"])
    elif len(facts.get("sources", ())) > 1:
        yield _sources(facts["sources"])


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, show_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=bool(place), overflow="fold")
    return table


def _words(words: Mapping[str, Mapping[str, float]]) -> Table:
    table = _table("words per answer", "mean", "median", "95 % up to")
    for name, values in words.items():
        table.add_row(
            Text(name, style=COLOURS.get(name, "")), *(f"{values[key]:,.0f}" for key in ("mean", "median", "p95"))
        )
    return table


def _policies(policies: Mapping[str, Mapping[str, int]]) -> Table:
    table = _table(f"{len(policies)} source policies", "answers", "preferred")
    ranked = sorted(policies.items(), key=lambda item: (-item[1]["wins"] - item[1]["losses"], item[0]))
    for name, counts in ranked[:NAMED]:
        answers = counts["wins"] + counts["losses"]
        table.add_row(Text(_clean(name)), f"{answers:,}", _share(counts["wins"] / answers if answers else None))
    if ranked[NAMED:]:
        table.add_row(Text(f"and {len(ranked) - NAMED} more", style="dim"))
    return table


def _sources(sources: Mapping[str, int]) -> Table:
    table = _table(f"{len(sources)} sources", "answers")
    for name, count in list(sources.items())[:NAMED]:
        table.add_row(Text(_clean(name)), f"{count:,}")
    if len(sources) > NAMED:
        table.add_row(Text(f"and {len(sources) - NAMED} more", style="dim"))
    return table


def _names(counts: Mapping[str, int]) -> str:
    listed = [f"{_clean(name)} {count:,}" for name, count in list(counts.items())[:NAMED]]
    return ", ".join(listed) + (f" and {len(counts) - NAMED} more" if len(counts) > NAMED else "")


def _licences(counts: Mapping[str, int]) -> Text:
    text = Text()
    for place, (name, count) in enumerate(list(counts.items())[:NAMED]):
        text.append(f"{', ' if place else ''}{_clean(name)} {count:,}")
        if non_commercial(name):
            text.append(" (no commercial use)", style=STRANGE)
    return text


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


# ---------------------------------------------------------------------------------------------- rows


def _problems(found: Inspection) -> Table:
    counts = ", ".join(f"{reason} {count:,}" for reason, count in found.refused.items())
    table = _table("row", "field", "first problems", "how to mend it")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "left", False
    for problem in found.problems:
        table.add_row(
            "–" if problem.row is None else f"{problem.row:,}",
            Text(_clean(problem.field or "–")),
            Text(_clean(problem.what)),
            Text(_clean(problem.fix), style="dim"),
        )
    table.title, table.title_justify, table.title_style = Text(f"cannot be used: {counts}", style=STRANGE), "left", ""
    return table


def _examples(found: Inspection) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True, max_width=14, overflow="ellipsis")
    grid.add_column(overflow="fold")
    for place, shown in enumerate(found.examples):
        if place:
            grid.add_row()
        for at, (name, text) in enumerate(list(shown.texts.items())[:NAMED]):
            label = Text(_clean(name), style=COLOURS.get(name, "dim"))
            grid.add_row("" if at else f"row {shown.row:,}", label, Text(_short(text)))
    return grid


def _short(text: str) -> str:
    """The first lines, without empty ones between."""
    lines = [line.rstrip() for line in _clean(text).split("\n") if line.strip()]
    return "\n".join([*lines[:SHOWN_LINES], *(["…"] if lines[SHOWN_LINES:] else [])])


def _notes(notes: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style=STRANGE, no_wrap=True)
    grid.add_column(overflow="fold")
    for note in notes:
        grid.add_row("note", Text(_clean(note)))
    return grid


def _snippet(snippet: str) -> Text:
    text = Text()
    for line in snippet.splitlines():
        key, colon, value = line.partition(":")
        text.append(f"  {key}{colon}", style="cyan").append(f"{value}\n")
    return text[:-1]


# ---------------------------------------------------------------------------------------------- all of them


def _overview(found: Sequence[Inspection]) -> Padding:
    table = _table("file", "rows", "used", "longer wins", "what it holds")
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    prefix = _shared_folder([each.path for each in found])
    for each in found:
        facts = each.statistics
        trouble = each.fault or each.obstacle
        mark, colour = ("✗", BROKEN) if each.fault else ("!", STRANGE) if trouble else ("✓", FINE)
        total = (
            "–"
            if each.total is None
            else f"{'' if each.complete else '~'}{each.total if each.complete else _round(each.total):,}"
        )
        used = _share(facts["used"] / each.rows) if facts else "–"
        what = Text.assemble(
            (f"{mark} ", colour), _clean(trouble.what if trouble and (each.fault or not each.layout) else each.layout)
        )
        table.add_row(
            Text(_clean(each.path.removeprefix(prefix))),
            total,
            used,
            _share(facts["longer_wins"]) if "longer_wins" in facts else "–",
            what,
        )
    table.title, table.title_justify, table.title_style = Text(prefix or "all files"), "left", "bold"
    return Padding(table, (2, 0, 0, 0))


def _shared_folder(paths: Sequence[str]) -> str:
    first, last = min(paths), max(paths)
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: first.rfind("/", 0, shared) + 1]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(_clean, names[:NAMED])) + more


def _clean(text: str) -> str:
    """Text of a file, which may try to steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)
