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
AFTER_TOKENISATION = ("near duplicate", "over the cap")
"""Why a row that tokenizers found sound may still be dropped."""


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
        found = {
            names[number]: self.summary(rows, self.lost(places, number))
            for number, rows in _groups([self.ledger.columns[name] for name in columns], self.rows)
            if number != NOBODY
        }
        nothing = np.empty(0, dtype=np.int64)
        for number in {key[place] for key, _ in self._lost for place in places} - {NOBODY}:
            if names[number] not in found:  # every row of it was lost
                found[names[number]] = self.summary(nothing, self.lost(places, number))
        return dict(sorted(found.items()))

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
        `kept_after_tokenisation`, of the pairs that were tokenised the share that held a preference then, whatever
        became of it later; `truncated` pairs, pairs and prompts per split, words per answer, `longer_wins`, pairs per
        licence.
        """
        ledger = self.ledger
        dropped = lost + _dropped(ledger, rows)
        kept = rows[ledger.reason[rows] == KEPT]
        chosen, rejected = (ledger.columns[name][kept] for name in ("first_words", "second_words"))
        sound = len(kept) + sum(dropped[name] for name in AFTER_TOKENISATION)
        tokenised = sound + sum(dropped[name] for name in DEGENERATE)
        return {
            "rows": len(rows) + lost.total(),
            "pairs": len(kept),
            "prompts": _distinct(ledger.columns["prompt"][kept]),
            "dropped": dict(sorted(dropped.items())),
            "ties": dropped["tie"],
            "kept_after_tokenisation": sound / tokenised if tokenised else None,
            "truncated": int(ledger.truncated[kept].sum()),
            "splits": _splits(ledger, self.split, kept, "pairs"),
            "chosen_words": _lengths(chosen),
            "rejected_words": _lengths(rejected),
            "longer_wins": _longer_wins(chosen, rejected),
            "licences": _counts(ledger.columns["licence"][kept], ledger.licences.names),
        }


def _groups(columns: list[np.ndarray], rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each number that some of the rows have in any of the columns, with these rows, each once."""
    names = [column[rows] for column in columns]
    orders = [np.argsort(each, kind="stable").astype(np.int32) for each in names]
    names = [each[order] for each, order in zip(names, orders, strict=True)]
    for number in np.unique(np.concatenate([np.unique(each) for each in names])).tolist():
        ends = (np.searchsorted(each, [number, number + 1]) for each in names)
        members = [order[begin:end] for order, (begin, end) in zip(orders, ends, strict=True)]
        yield number, rows[members[0] if len(members) == 1 else np.unique(np.concatenate(members))]


def _dropped(ledger: Ledger, rows: np.ndarray) -> Counter[str]:
    """How many of the rows are not used, by reason."""
    numbers, counts = np.unique(ledger.reason[rows], return_counts=True)
    found = zip(numbers.tolist(), counts.tolist(), strict=True)
    return Counter({ledger.reasons.names[number]: count for number, count in found if number != KEPT})


def _others(ledger: Ledger, split: np.ndarray) -> dict[str, Statistics]:
    """Rows without a preference, by dataset: their kind, how many were read, kept and dropped, and where they lie."""
    columns = ledger.columns
    found: dict[str, Statistics] = {}
    for number, rows in _groups([columns["dataset"]], np.flatnonzero(columns["kind"] != PAIR)):
        lost: Counter[str] = Counter()
        for key, count in ledger.lost.items():
            if key[0] != PAIR and key[1] == number:
                lost[ledger.reasons.names[key[5]]] += count
        kept = rows[ledger.reason[rows] == KEPT]
        kind = KIND_NAMES[int(columns["kind"][rows[0]])]
        found[ledger.datasets.names[number]] = {
            "kind": kind,
            "rows": len(rows) + lost.total(),
            "kept": len(kept),
            "prompts": _distinct(columns["prompt"][kept]),
            "dropped": dict(sorted((lost + _dropped(ledger, rows)).items())),
            "splits": _splits(ledger, split, kept, "rows"),
            "response_words": _lengths(columns["first_words"][kept if kind != "prompt" else kept[:0]]),
            "licences": _counts(columns["licence"][kept], ledger.licences.names),
        }
    return dict(sorted(found.items()))


def _splits(ledger: Ledger, split: np.ndarray, rows: np.ndarray, unit: str) -> dict[str, dict[str, int]]:
    """How many of the rows, and how many of their prompts, each split has."""
    found: dict[str, dict[str, int]] = {}
    for place, name in enumerate(SPLITS):
        here = rows[split[rows] == place]
        found[name] = {unit: len(here), "prompts": _distinct(ledger.columns["prompt"][here])}
    return found


def _distinct(values: np.ndarray) -> int:
    """How many values there are; sorts them in place, which takes half of what `np.unique` does."""
    values.sort()
    return int((values[1:] != values[:-1]).sum()) + min(1, len(values))


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
