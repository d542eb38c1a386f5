"""Where proxy and truth part on a policy's answers: best of n, win rates at like length, distributions, length.

All of it on scores that are there already; a prompt's answers are dependent, so prompts are what is averaged over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inverse_alignment.evaluation.audit import correlation
from inverse_alignment.maths.best_of_n import best_of_n
from inverse_alignment.maths.drift import mmd_squared
from inverse_alignment.maths.overoptimisation import best_of_n_divergence
from inverse_alignment.text.phrases import common_opening_share, distinct_share, refuses

LENGTH_BINS = 5
UNIT_BANDWIDTH = 1.0  # scores are standardised: a kernel as wide as one standard deviation


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers to prompts with what is said of them.

    Attributes:
        keys: (m,) of the prompt of each.
        texts: (m,).
        tokens: (m,) their lengths.
        rm_score: (m,) the proxy, standardised on the SFT policy's answers.
        audit_score: (m,) of a model nothing is optimised against; None without one.
        gold: (m,) in its own units; None without.
    """

    keys: Sequence[str]
    texts: Sequence[str]
    tokens: np.ndarray
    rm_score: np.ndarray
    audit_score: np.ndarray | None
    gold: np.ndarray | None

    @property
    def truth(self) -> np.ndarray | None:
        """What the proxy is held against: gold, else the audit score."""
        return self.audit_score if self.gold is None else self.gold

    def rows(self) -> list[dict[str, Any]]:
        """As JSON, an answer a row."""
        nothing = [None] * len(self.texts)
        columns = {
            "prompt_key": list(self.keys),
            "response": list(self.texts),
            "tokens": self.tokens.tolist(),
            "rm_score": self.rm_score.tolist(),
            "audit_score": nothing if self.audit_score is None else self.audit_score.tolist(),
            "gold": nothing if self.gold is None else self.gold.tolist(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @staticmethod
    def of_rows(rows: Sequence[Mapping[str, Any]]) -> ScoredAnswers:
        """What `rows` wrote."""

        def numbers(name: str) -> np.ndarray:
            return np.array([row[name] for row in rows], dtype=float)

        def optional(name: str) -> np.ndarray | None:
            return None if any(row[name] is None for row in rows) else numbers(name)

        texts, keys = [row["response"] for row in rows], [row["prompt_key"] for row in rows]
        found = numbers("tokens"), numbers("rm_score"), optional("audit_score"), optional("gold")
        return ScoredAnswers(keys, texts, *found)


def surface(answers: ScoredAnswers) -> dict[str, float | None]:
    """What answers look like, and whether the proxy likes the longer ones."""
    return {
        "length_correlation": correlation(answers.rm_score, answers.tokens),
        "refusal_share": float(np.mean([refuses(text) for text in answers.texts])),
        "common_opening_share": common_opening_share(answers.texts),
        "distinct_2": distinct_share(answers.texts),
    }


def best_of_n_probe(answers: ScoredAnswers, picks: np.ndarray) -> list[dict[str, float | None]]:
    """What picking the best among n of a prompt's answers would give, for n = 1, 2, 4, ...

    A cheap preview of over-optimisation: no policy is trained (arXiv 2210.10760). Only prompts with as many answers as
    most have count.

    Args:
        picks: (m,) by what the best is picked: the RM score, or what caution makes of it.
    """
    table = _by_prompt(answers.keys)
    sizes = [2**power for power in range(table.shape[1].bit_length()) if 2**power <= table.shape[1]]
    values = {"rm_score": answers.rm_score, "audit_score": answers.audit_score, "gold": answers.gold}

    def at(n: int) -> dict[str, float | None]:
        found = {
            name: None if column is None else best_of_n(picks[table], column[table], n)
            for name, column in values.items()
        }
        return {"n": n, "kl": float(best_of_n_divergence(np.array([n]))[0]), **found}

    return [at(n) for n in sizes]


def _by_prompt(keys: Sequence[str]) -> np.ndarray:
    """(p, N) rows of the answers to each prompt that has the largest number of them."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    most = max(len(places) for places in rows.values())
    return np.array([places for places in rows.values() if len(places) == most], dtype=np.int64)


def win_shares(values: np.ndarray, keys: Sequence[str], others: np.ndarray, other_keys: Sequence[str]) -> np.ndarray:
    """Per prompt that both answered, the share of pairs of answers in which the first is worth more, a tie one half.

    Args:
        values: (m,) what the first policy's answers are worth.
        keys: (m,) their prompts.
        others: (l,) what the second policy's answers are worth.
        other_keys: (l,) their prompts.

    Returns:
        (p,), prompts in the order of the first.
    """
    mine, theirs = np.array(keys), np.array(other_keys)
    shares = []
    for key in dict.fromkeys(keys):
        gaps = values[mine == key][:, None] - others[theirs == key][None]
        if gaps.size:
            shares.append(float((np.sign(gaps) / 2 + 0.5).mean()))
    return np.array(shares)


def like_length_win_shares(mine: ScoredAnswers, start: ScoredAnswers) -> np.ndarray:
    """`win_shares` by `truth` over pairs of like length alone, both in the same fifth of all lengths; a share for each
    prompt and fifth that has any (cf. Singhal et al., arXiv 2310.03716, who compare rewards inside bins of length)."""
    assert mine.truth is not None and start.truth is not None
    edges = np.quantile(np.concatenate([mine.tokens, start.tokens]), np.arange(1, LENGTH_BINS) / LENGTH_BINS)
    bins = [np.searchsorted(edges, one.tokens, side="right") for one in (mine, start)]
    both = zip((mine, start), bins, strict=True)
    keys = [[f"{key}/{place}" for key, place in zip(one.keys, places, strict=True)] for one, places in both]
    return win_shares(mine.truth, keys[0], start.truth, keys[1])


def proxy_truth_mmd(answers: ScoredAnswers, start: ScoredAnswers) -> float | None:
    """Squared MMD between the distributions of proxy and truth over the same answers, both in sd of the start's.

    Means may agree where distributions do not, and the other way round. None where truth is constant at the start.
    """
    truth, first = answers.truth, start.truth
    assert truth is not None and first is not None
    if first.std() < 1e-9 or start.rm_score.std() < 1e-9 or len(truth) < 2:
        return None
    scores = answers.rm_score, start.rm_score
    standard = [((values - base.mean()) / base.std())[:, None] for values, base in ((truth, first), scores)]
    return mmd_squared(standard[0], standard[1], UNIT_BANDWIDTH)
