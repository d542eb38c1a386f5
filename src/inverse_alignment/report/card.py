"""What a preference set is made of, as one self-contained page: the data card of a run.

Made of `statistics.json` alone. What that does not say is said to be unknown.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inverse_alignment.core.artifact import canonical_json
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import SPLITS
from inverse_alignment.data.licences import non_commercial
from inverse_alignment.report import card_figures
from inverse_alignment.report.analysis import NOT_YET, percent
from inverse_alignment.report.card_statistics import Agreement, Group, OtherRows, Policy, Statistics

PAGE = "data-card.html"
TEMPLATES = Path(__file__).parent / "templates"
UNKNOWN = "unknown"
UNNAMED = "unnamed"
FEW_AGREEMENTS = 20  # answers of two annotators to the same questions: fewer say little


def render(statistics: Mapping[str, Any]) -> str:
    """The page as HTML, the same bytes for the same statistics.

    Raises:
        UserError: these are no statistics of a preference set.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    try:
        card = Statistics.model_validate(statistics)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            "not the statistics of a preference set",
            where=f"statistics.json, {field}",
            fix="delete the artifact's folder so that it is built again",
        ) from error
    style = (TEMPLATES / "style.css.jinja").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template("data-card.html.jinja").render(
        style=Markup(style),  # noqa: S704 - package data
        headline=_headline(card),
        warnings=list(_warnings(card)),
        findings=list(_findings(card)),
        tiles=_tiles(card),
        figures=card_figures.pictures(card),
        colours=_colours(card),
        splits=_splits(card),
        datasets=_datasets(card),
        reasons=_reasons(card),
        policies=_policies(card),
        annotators=_annotators(card),
        agreements=_agreements(card),
        contradictions=_contradictions(card),
        cleaning=_cleaning(card),
        licences=_licences(card),
        others=_others(card),
        digest=hashlib.sha256(canonical_json(dict(statistics)).encode()).hexdigest(),
    )


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        caption: what it holds.
        columns: their names, that of the row headers first.
        rows: a header and values each.
        note: how to read it.
        prose: whether the last column is a text that may be broken into lines.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    prose: bool = False


# ---------------------------------------------------------------------------------------------- at the top


def _headline(card: Statistics) -> str:
    datasets = _plural(len(card.datasets), "dataset") if card.datasets else "datasets that are not named"
    return f"{_plural(card.pairs, 'preference pair')} on {_plural(card.prompts, 'prompt')}, from {datasets}"


def _warnings(card: Statistics) -> Iterator[str]:
    """Licences that limit what the data may be used for."""
    counted = _licence_counts(card)
    for licence in sorted(counted):
        if non_commercial(licence):
            sets = [name for name, count in counted[licence].items() if count]
            yield (
                f"Not for commercial use: {_listed(sets, 4)} ({_plural(sum(counted[licence].values()), 'row')}) "
                f"{'is' if len(sets) == 1 else 'are'} under {licence}. What is trained on them may be bound by it too."
            )


def _findings(card: Statistics) -> Iterator[str]:
    dropped = sum((card.dropped or {}).values())
    if dropped and card.dropped and card.rows:
        reasons = ", ".join(f"{name} {count:,}" for name, count in _by_count(card.dropped))
        share = percent(dropped / card.rows, 1)
        yield f"Of {card.rows:,} pairs that were read, {dropped:,} ({share}) were dropped: {reasons}."
    elif card.dropped is not None and card.rows:
        yield f"All {card.rows:,} pairs that were read were kept."
    if card.longer_wins is not None:
        yield (
            f"The longer answer is the chosen one in {percent(card.longer_wins, 1)} of the pairs: what a reward model "
            "scores that only counts words."
        )
    asked = [(each.agree, each.agree + each.disagree) for each in _agreement(card)]
    if asked:
        agree, total = (sum(counts) for counts in zip(*asked, strict=True))
        yield f"Annotators who judged the same two answers agree in {percent(agree / total, 1)} of {total:,} cases."
    unknown = (card.licences or {}).get(UNKNOWN, 0)
    if unknown:
        yield f"The licence of {_plural(unknown, 'pair')} is not stated."


def _tiles(card: Statistics) -> list[tuple[str, str, str]]:
    """Name, value and a word on it."""
    kept = card.pairs / card.rows if card.pairs is not None and card.rows else None
    questions = card.contradictions.questions if card.contradictions else None
    other = sum(rows.kept or 0 for rows in card.others.values())
    return [
        ("Pairs kept", _count(card.pairs), f"{_percent(kept)} of {_count(card.rows)} read"),
        ("Prompts", _count(card.prompts), "by their first user turn"),
        ("Words, chosen", _words(card.chosen_words.median), f"median; rejected {_words(card.rejected_words.median)}"),
        ("Longer wins", _percent(card.longer_wins), "of the pairs"),
        ("Contradictions", _count(questions), "questions labelled both ways"),
        ("Other rows", f"{other:,}", "prompts, demonstrations, judgements"),
    ]


# ---------------------------------------------------------------------------------------------- tables


def _colours(card: Statistics) -> list[tuple[str, str]]:
    """Classes of the stylesheet that stand for the reasons in the picture of dropped rows."""
    reasons = card_figures.reasons_of(card)
    return [*((f"a{index}", reason) for index, reason in enumerate(reasons)), ("kept", "kept")]


def _splits(card: Statistics) -> Table:
    splits = card.splits or {}
    names = [*(name for name in SPLITS if name in splits), *(name for name in splits if name not in SPLITS)]
    total = sum(splits[name].get("pairs", 0) for name in names)
    rows = tuple(
        (
            name,
            _count(splits[name].get("pairs")),
            _percent(splits[name].get("pairs", 0) / total if total else None),
            _count(splits[name].get("prompts")),
        )
        for name in names
    )
    return Table("Splits", ("split", "pairs", "share", "prompts"), rows)


def _datasets(card: Statistics) -> Table:
    rows = tuple(
        (
            name,
            _count(group.rows),
            _count(group.pairs),
            _percent(group.pairs / group.rows if group.pairs is not None and group.rows else None),
            _count(group.prompts),
            _count(group.ties),
            *_of_pairs(group),
        )
        for name, group in card.datasets.items()
    )
    columns = (
        *("dataset", "rows", "pairs kept", "share kept", "prompts", "ties", "kept by tokens", "truncated"),
        *("words, chosen", "words, rejected", "longer wins", "licence"),
    )
    note = (
        "Share kept: of the rows read. Kept by tokens: of the pairs that were tokenised, those that still hold a "
        "preference. Truncated: pairs that lose tokens to the models' contexts. Words: means."
    )
    return Table("Every dataset", columns, rows, note)


def _of_pairs(group: Group) -> tuple[str, ...]:
    """What can be said of a dataset that kept some pair."""
    if group.pairs == 0:
        return (NOT_YET,) * 6
    return (
        _percent(group.kept_after_tokenisation),
        _count(group.truncated),
        _words(group.chosen_words.mean),
        _words(group.rejected_words.mean),
        _percent(group.longer_wins),
        _named(group.licences),
    )


def _reasons(card: Statistics) -> Table:
    """Dropped rows of every dataset that has some."""
    reasons = [name for name, _ in _by_count(_total(group.dropped for group in card.datasets.values()))]
    rows = tuple(
        (name, *(_nonzero((group.dropped or {}).get(reason, 0)) for reason in reasons))
        for name, group in card.datasets.items()
        if sum((group.dropped or {}).values())
    )
    return Table("Dropped rows, by reason", ("dataset", *reasons), rows)


def _policies(card: Statistics) -> Table:
    def answers(item: tuple[str, Policy]) -> tuple[int, str]:
        return -(item[1].pairs or 0), item[0]

    rows = tuple(
        (
            name,
            _count(policy.pairs),
            _count(policy.wins),
            _count(policy.losses),
            _percent(policy.win_share),
            _words(policy.chosen_words.mean),
            _words(policy.rejected_words.mean),
            _percent(policy.longer_wins),
        )
        for name, policy in sorted(card.policies.items(), key=answers)
    )
    columns = (
        *("source policy", "pairs", "preferred", "not preferred", "share preferred"),
        *("words, chosen", "words, rejected", "longer wins"),
    )
    note = (
        "A pair counts for both policies that wrote its answers; where one wrote both, it is preferred and not. Words "
        "and longer wins are of its pairs, not of its answers alone."
    )
    return Table(f"{_plural(len(rows), 'source policy', 'source policies')}, most pairs first", columns, rows, note)


def _annotators(card: Statistics) -> Table:
    rows = tuple(
        (name, _count(group.pairs), _count(group.prompts), _count(group.ties), _percent(group.longer_wins))
        for name, group in sorted(card.annotators.items(), key=lambda item: (-(item[1].pairs or 0), item[0]))
    )
    return Table("Annotators", ("annotator", "pairs", "prompts", "ties", "longer wins"), rows)


def _agreement(card: Statistics) -> Sequence[Agreement]:
    return (card.contradictions.agreement or ()) if card.contradictions else ()


def _agreements(card: Statistics) -> Table:
    ranked = sorted(_agreement(card), key=lambda each: (-each.agree - each.disagree, each.one, each.other))
    rows = tuple(
        (
            f"{each.one} and {each.other}",
            f"{each.agree:,}",
            f"{each.disagree:,}",
            _percent(each.share) + (" *" if each.agree + each.disagree < FEW_AGREEMENTS else ""),
        )
        for each in ranked
    )
    few = any(row[-1].endswith("*") for row in rows)
    note = f"* fewer than {FEW_AGREEMENTS} common questions." if few else ""
    return Table("Two annotators, the same two answers", ("annotators", "agree", "disagree", "share"), rows, note)


def _contradictions(card: Statistics) -> list[tuple[str, str]]:
    found = card.contradictions
    if found is None:
        return [("questions labelled both ways", UNKNOWN)]
    return [
        ("questions labelled both ways", _count(found.questions)),
        ("of these by one annotator alone", _count(found.within_annotator)),
        ("of these between datasets only", _count(found.across_datasets)),
        ("rows dropped for it", _dropped(card, "contradicted")),
    ]


def _cleaning(card: Statistics) -> list[tuple[str, str]]:
    """What says nothing new; of what a run may not have looked for, nought does not mean that there is none."""
    near, held_out = _dropped(card, "near duplicate"), _dropped(card, "contaminated")
    return [
        ("duplicates", _dropped(card, "duplicate")),
        ("near duplicates", "none found, or not looked for" if near == "0" else near),
        ("in an evaluation set", "none found, or no set given" if held_out == "0" else held_out),
        ("truncated to the context", _count(card.truncated)),
    ]


def _dropped(card: Statistics, reason: str) -> str:
    if card.dropped is None:
        return UNKNOWN
    return f"{card.dropped.get(reason, 0):,}"


def _licence_counts(card: Statistics) -> dict[str, dict[str, int]]:
    """Kept rows of every licence, by dataset; pairs and other rows together."""
    found: dict[str, dict[str, int]] = {}
    groups: Iterable[tuple[str, Mapping[str, int] | None]] = (
        *((name, group.licences) for name, group in card.datasets.items()),
        *((name, rows.licences) for name, rows in card.others.items()),
    )
    for name, licences in groups:
        for licence, count in (licences or {}).items():
            found.setdefault(licence, {})[name] = found.get(licence, {}).get(name, 0) + count
    return found


def _licences(card: Statistics) -> Table:
    counted = _licence_counts(card)
    rows = tuple(
        (
            licence,
            f"{sum(sets.values()):,}",
            "no" if non_commercial(licence) else UNKNOWN if licence == UNKNOWN else "not excluded by its name",
            _listed(list(sets)),
        )
        for licence, sets in sorted(counted.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    )
    return Table("Licences", ("licence", "rows kept", "commercial use", "datasets"), rows, prose=True)


def _others(card: Statistics) -> Table:
    rows = tuple(
        (
            name,
            rows.kind or UNKNOWN,
            _count(rows.rows),
            _count(rows.kept),
            _count(rows.prompts),
            _words(rows.response_words.mean) if rows.kind != "prompt" else "none",
            ", ".join(f"{reason} {count:,}" for reason, count in _by_count(rows.dropped or {})) or "none",
            ", ".join(f"{name} {count:,}" for name, count in _rows_by_split(rows).items()) or UNKNOWN,
            _named(rows.licences),
        )
        for name, rows in card.others.items()
    )
    columns = ("dataset", "kind", "rows", "kept", "prompts", "words per answer", "dropped", "splits", "licence")
    return Table("Rows without a preference", columns, rows)


def _rows_by_split(rows: OtherRows) -> dict[str, int]:
    return {name: count for name, counts in (rows.splits or {}).items() if (count := counts.get("rows"))}


# ---------------------------------------------------------------------------------------------- words


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else percent(value, 1)


def _words(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _nonzero(value: int) -> str:
    return f"{value:,}" if value else ""


def _plural(count: int | None, one: str, several: str = "") -> str:
    return f"{_count(count)} {one if count == 1 else several or f'{one}s'}"


def _named(licences: Mapping[str, int] | None) -> str:
    return UNKNOWN if not licences else ", ".join(name for name, _ in _by_count(licences))


def _listed(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))


def _total(counts: Iterable[Mapping[str, int] | None]) -> Counter[str]:
    return sum((Counter(each) for each in counts if each), Counter())
