"""The same two answers, labelled both ways: who disagrees with whom, and what becomes of the rows."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import numpy as np

from inverse_alignment.data.ledger import PAIR, Ledger

Policy = Literal["keep", "drop", "majority", "soft_label"]


def settle(ledger: Ledger, policy: Policy) -> dict[str, Any]:
    """Count the questions that were labelled both ways, and apply the policy to their rows.

    A question is a conversation with two answers in no order. Every annotator has one vote a row; a row that was read
    twice votes once. `drop` drops all rows of such a question; `majority` those of the minority, and all of a tie;
    `soft_label` keeps one row, of the majority, with the share of its votes as soft label (a tie: one half).

    Returns:
        `questions` labelled both ways; of these `within_annotator`, where one annotator said both, and
        `across_datasets`, where the sides come from different datasets only; `agreement`, for each two annotators who
        answered the same questions, how often they `agree` and `disagree`.
    """
    pairs = _asked_again(ledger)
    _, question = np.unique(ledger.columns["question"][pairs], return_inverse=True)
    forward = ledger.columns["forward"][pairs].astype(bool)
    votes = _votes(question, forward, ledger.columns["vote"][pairs])
    torn = votes.min(axis=1) > 0
    facts = {
        "questions": int(torn.sum()),
        "within_annotator": _both_by_one(ledger.columns["annotator"][pairs], question, forward, torn),
        "across_datasets": int(torn.sum()) - _both_by_one(ledger.columns["dataset"][pairs], question, forward, torn),
        "agreement": _agreement(ledger, pairs, question, forward),
    }
    if policy != "keep" and torn.any():
        _apply(ledger, policy, pairs, question, forward, votes, torn)
    return facts


def _asked_again(ledger: Ledger) -> np.ndarray:
    """Pairs whose question comes more than once: most do not, and nobody can disagree about those."""
    pairs = ledger.kept[ledger.columns["kind"][ledger.kept] == PAIR]
    question = ledger.columns["question"][pairs]
    order = np.argsort(question, kind="stable")
    again = np.diff(question[order], prepend=~question[order][:1]) == 0
    again[:-1] |= again[1:]
    return np.sort(pairs[order[again]])


def _distinct(*columns: np.ndarray) -> list[np.ndarray]:
    """Distinct rows of a table, sorted by its columns."""
    order = np.lexsort(columns[::-1])
    ordered = [column[order] for column in columns]
    new = np.ones(len(order), dtype=bool)
    new[1:] = np.any([column[1:] != column[:-1] for column in ordered], axis=0)
    return [column[new] for column in ordered]


def _votes(question: np.ndarray, forward: np.ndarray, vote: np.ndarray) -> np.ndarray:
    """(questions, 2) distinct votes for backward and forward."""
    asked, said, _ = _distinct(question, forward, vote)
    counts = np.zeros((int(question.max(initial=-1)) + 1, 2), dtype=np.int64)
    np.add.at(counts, (asked, said.astype(np.int64)), 1)
    return counts


def _both_by_one(who: np.ndarray, question: np.ndarray, forward: np.ndarray, torn: np.ndarray) -> int:
    """Torn questions that somebody, by himself, answered both ways."""
    mine = torn[question]
    asked, by, _ = _distinct(question[mine], who[mine], forward[mine])
    return len(np.unique(asked[1:][(asked[1:] == asked[:-1]) & (by[1:] == by[:-1])]))


def _agreement(ledger: Ledger, pairs: np.ndarray, question: np.ndarray, forward: np.ndarray) -> list[dict[str, Any]]:
    asked, by, said = _distinct(question, ledger.columns["annotator"][pairs].astype(np.int64), forward)
    names = ledger.annotators.names
    counts: Counter[tuple[str, str, bool]] = Counter()
    first, apart = np.arange(len(asked)), 1
    while len(first := first[first + apart < len(asked)]):  # everybody with the one after, then the second after, ...
        first = first[asked[first] == asked[first + apart]]
        others = first[by[first] != by[first + apart]]
        codes = (by[others] * len(names) + by[others + apart]) * 2 + (said[others] != said[others + apart])
        for code, count in zip(*map(np.ndarray.tolist, np.unique(codes, return_counts=True)), strict=True):
            one, other = sorted((names[code // 2 // len(names)], names[code // 2 % len(names)]))
            counts[one, other, bool(code % 2)] += count
        apart += 1
    return [
        {"one": one, "other": other, "agree": counts[one, other, False], "disagree": counts[one, other, True]}
        for one, other in sorted({key[:2] for key in counts})
    ]


def _apply(
    ledger: Ledger,
    policy: Policy,
    pairs: np.ndarray,
    question: np.ndarray,
    forward: np.ndarray,
    votes: np.ndarray,
    torn: np.ndarray,
) -> None:
    mine = torn[question]
    rows, of, side = pairs[mine], question[mine], forward[mine].astype(np.int64)
    for_me, against = votes[of, side], votes[of, 1 - side]
    match policy:
        case "drop":
            ledger.drop(rows, "contradicted")
        case "majority":
            ledger.drop(rows[for_me <= against], "contradicted")
        case _:
            wins = (for_me > against) | ((for_me == against) & (side == 1))
            ledger.drop(rows[~wins], "contradicted")
            ledger.soft_label[rows[wins]] = (for_me / (for_me + against))[wins]
            ranked = ledger.ranked(rows[wins])
            _, first = np.unique(ledger.columns["question"][ranked], return_index=True)
            ledger.drop(np.delete(ranked, first), "duplicate")
