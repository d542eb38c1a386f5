"""What a preference set is made of: counts and shortcuts per source dataset, per source policy and per annotator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from inverse_alignment.core.records import SPLITS
from inverse_alignment.data.ledger import KEPT, KIND_NAMES, NOBODY, PAIR, Ledger
from inverse_alignment.data.read import DEGENERATE

Statistics = dict[str, Any]


def describe(ledger: Ledger, split: np.ndarray, contradictions: Mapping[str, Any]) -> Statistics:
    """Statistics of a set, as JSON-able values that depend on the rows alone, not on their order.

    Keys: those of `_summary` for all pairs; `contradictions` as `settle` returns them; `datasets`, `policies` and
    `annotators`, each a mapping of name to the same summary; `others`, what prompts, demonstrations and judgements
    there are, by dataset. A pair counts for both policies that wrote its answers; `wins` and `losses` are a policy's
    answers that were preferred and that were not.

    Args:
        ledger: all rows that were read, kept or not.
        split: (n,) place in SPLITS of each kept row.
    """
    pairs = _Pairs(ledger, split)
    return {
        **pairs.summary(pairs.rows, pairs.lost()),
        "contradictions": dict(contradictions),
        "datasets": pairs.grouped(("dataset",), (1,), ledger.datasets.names),
        "policies": pairs.policies(),
        "annotators": pairs.grouped(("annotator",), (4,), ledger.annotators.names),
        "others": _others(ledger, split),
    }


class _Pairs:
    """Comparisons of a ledger, read and lost."""

    def __init__(self, ledger: Ledger, split: np.ndarray) -> None:
        self.ledger, self.split = ledger, split
        self.rows = np.flatnonzero(ledger.columns["kind"] == PAIR)
        self._lost = [(key, count) for key, count in ledger.lost.items() if key[0] == PAIR]

    def lost(self, places: tuple[int, ...] = (), name: int = NOBODY) -> Counter[str]:
        """Rows that could not be used, by reason; those of one group, if places of the key are given."""
        found: Counter[str] = Counter()
        for key, count in self._lost:
            if not places or name in {key[place] for place in places}:
                found[self.ledger.reasons.names[key[5]]] += count
        return found

    def grouped(self, columns: tuple[str, ...], places: tuple[int, ...], names: list[str]) -> dict[str, Statistics]:
        """A summary for every name that stands in one of the columns."""
        groups = dict(_groups([self.ledger.columns[name][self.rows] for name in columns], self.rows))
        known = {key[place] for key, _ in self._lost for place in places} | set(groups)
        nothing = np.empty(0, dtype=np.int64)
        return {
            name: self.summary(groups.get(number, nothing), self.lost(places, number))
            for name, number in sorted((names[number], number) for number in known if number != NOBODY)
        }

    def policies(self) -> dict[str, Statistics]:
        """`grouped` by who wrote either answer, with how often each was preferred."""
        kept = self.rows[self.ledger.reason[self.rows] == KEPT]
        names = self.ledger.writers.names
        wins, losses = (
            dict(zip(names, np.bincount(self.ledger.columns[column][kept], minlength=len(names)).tolist(), strict=True))
            for column in ("first_writer", "second_writer")
        )
        groups = self.grouped(("first_writer", "second_writer"), (2, 3), names)
        return {name: {**group, "wins": wins[name], "losses": losses[name]} for name, group in groups.items()}

    def summary(self, rows: np.ndarray, lost: Counter[str]) -> Statistics:
        """Counts of one group.

        Keys: `rows` read, `pairs` kept, `prompts` among them (by id), `dropped` rows by reason, `ties` among these,
        `kept_after_tokenisation`, the share of the pairs that were tokenised; `truncated` pairs, pairs and prompts per
        split, words per answer, `longer_wins`, pairs per licence.
        """
        ledger = self.ledger
        reason = ledger.reason[rows]
        dropped = lost + Counter(
            {
                ledger.reasons.names[number]: int((reason == number).sum())
                for number in np.unique(reason[reason != KEPT])
            }
        )
        kept = rows[reason == KEPT]
        facts = {name: column[kept] for name, column in ledger.columns.items()}
        tokenised = len(kept) + sum(dropped[name] for name in DEGENERATE)
        return {
            "rows": len(rows) + sum(lost.values()),
            "pairs": len(kept),
            "prompts": len(np.unique(facts["prompt"])),
            "dropped": dict(sorted(dropped.items())),
            "ties": dropped["tie"],
            "kept_after_tokenisation": len(kept) / tokenised if tokenised else None,
            "truncated": int(ledger.truncated[kept].sum()),
            "splits": _splits(self.split[kept], facts["prompt"], "pairs"),
            "chosen_words": _lengths(facts["first_words"]),
            "rejected_words": _lengths(facts["second_words"]),
            "longer_wins": _longer_wins(facts["first_words"], facts["second_words"]),
            "licences": _counts(facts["licence"], ledger.licences.names),
        }


def _groups(columns: list[np.ndarray], rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each number in any of the columns, with the rows that have it, each row once."""
    names = np.concatenate(columns)
    members = np.concatenate([rows] * len(columns))
    order = np.lexsort([members, names])
    names, members = names[order], members[order]
    starts = np.flatnonzero(np.diff(names, prepend=-2))
    for begin, end in zip(starts, [*starts[1:], len(names)], strict=True):
        yield int(names[begin]), np.unique(members[begin:end])


def _others(ledger: Ledger, split: np.ndarray) -> dict[str, Statistics]:
    """Rows without a preference, by dataset: their kind, how many were read, kept and dropped, and where they lie."""
    columns = ledger.columns
    found: dict[str, Statistics] = {}
    for number, rows in _groups([columns["dataset"]], np.arange(len(ledger))):
        rows = rows[columns["kind"][rows] != PAIR]
        if not len(rows):
            continue
        lost = [(key[5], count) for key, count in ledger.lost.items() if key[0] != PAIR and key[1] == number]
        reason = ledger.reason[rows]
        dropped = Counter(
            {ledger.reasons.names[int(each)]: int((reason == each).sum()) for each in set(reason) - {KEPT}}
        )
        for each, count in lost:
            dropped[ledger.reasons.names[each]] += count
        kept = rows[reason == KEPT]
        found[ledger.datasets.names[number]] = {
            "kind": KIND_NAMES[int(columns["kind"][rows[0]])],
            "rows": len(rows) + sum(count for _, count in lost),
            "kept": len(kept),
            "prompts": len(np.unique(columns["prompt"][kept])),
            "dropped": dict(sorted(dropped.items())),
            "splits": _splits(split[kept], columns["prompt"][kept], "rows"),
            "response_words": _lengths(columns["first_words"][kept]),
            "licences": _counts(columns["licence"][kept], ledger.licences.names),
        }
    return dict(sorted(found.items()))


def _splits(split: np.ndarray, prompts: np.ndarray, rows: str) -> dict[str, dict[str, int]]:
    places = [split == place for place in range(len(SPLITS))]
    return {
        name: {rows: int(here.sum()), "prompts": len(np.unique(prompts[here]))}
        for name, here in zip(SPLITS, places, strict=True)
    }


def _longer_wins(chosen: np.ndarray, rejected: np.ndarray) -> float | None:
    """Accuracy of "the longer answer wins", in words, equal lengths half: the shortcut a reward model has to beat."""
    if not len(chosen):
        return None
    return int((chosen > rejected).sum() + (chosen >= rejected).sum()) / (2 * len(chosen))


def _lengths(words: np.ndarray) -> dict[str, float | None]:
    if not len(words):
        return {"mean": None, "median": None, "p95": None}
    return {
        "mean": int(words.sum()) / len(words),
        "median": float(np.median(words)),
        "p95": float(np.quantile(words, 0.95, method="higher")),
    }


def _counts(numbers: np.ndarray, names: list[str]) -> dict[str, int]:
    found, counts = np.unique(numbers, return_counts=True)
    return dict(sorted((names[number], int(count)) for number, count in zip(found, counts, strict=True)))
