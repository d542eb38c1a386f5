"""The same two answers, labelled both ways: who disagrees with whom, and what becomes of the rows."""

from __future__ import annotations

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
    pairs = np.flatnonzero(ledger.columns["kind"] == PAIR)
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


def _votes(question: np.ndarray, forward: np.ndarray, vote: np.ndarray) -> np.ndarray:
    """(questions, 2) distinct votes for backward and forward."""
    distinct = np.unique(np.stack([question.astype(np.uint64), forward.astype(np.uint64), vote]), axis=1)
    counts = np.zeros((int(question.max(initial=-1)) + 1, 2), dtype=np.int64)
    np.add.at(counts, (distinct[0].astype(np.int64), distinct[1].astype(np.int64)), 1)
    return counts


def _both_by_one(who: np.ndarray, question: np.ndarray, forward: np.ndarray, torn: np.ndarray) -> int:
    """Torn questions that somebody, by himself, answered both ways."""
    mine = torn[question]
    sides = np.unique(np.stack([question[mine], who[mine], forward[mine]]), axis=1)
    both = np.unique(sides[:2], axis=1, return_counts=True)
    return len(np.unique(both[0][0][both[1] == 2]))


def _agreement(ledger: Ledger, pairs: np.ndarray, question: np.ndarray, forward: np.ndarray) -> list[dict[str, Any]]:
    annotator = ledger.columns["annotator"][pairs]
    said = np.unique(np.stack([question, annotator, forward]), axis=1)
    starts = np.flatnonzero(np.diff(said[0], prepend=-1))
    counts: dict[tuple[int, int], list[int]] = {}
    for begin, end in zip(starts, [*starts[1:], said.shape[1]], strict=True):
        if end - begin < 2:
            continue
        for i in range(begin, end):
            for j in range(i + 1, end):
                one, other = int(said[1, i]), int(said[1, j])
                if one != other:
                    counts.setdefault((one, other), [0, 0])[int(said[2, i] != said[2, j])] += 1
    names = ledger.annotators.names
    table = [(*sorted((names[one], names[other])), *found) for (one, other), found in counts.items()]
    keys = ("one", "other", "agree", "disagree")
    return [dict(zip(keys, row, strict=True)) for row in sorted(table)]


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
