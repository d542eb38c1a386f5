"""What a preference set is made of: counts and shortcuts per source dataset, per source policy and per annotator."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from inverse_alignment.core.records import SPLITS, Comparison, Provenance
from inverse_alignment.data.sources import Dropped

Statistics = dict[str, Any]


def describe(kept: Sequence[Comparison], dropped: Sequence[Dropped], truncated: Iterable[str] = ()) -> Statistics:
    """Statistics of a set, as JSON-able values that depend on the set alone.

    Keys: those of `_summary` for the whole set; `contradictions`, prompts' answer pairs that were labelled both ways;
    and `datasets`, `policies`, `annotators`, each a mapping of name to the same summary. A pair counts for both
    policies that wrote its answers.

    Args:
        kept: the pairs of the set, with their splits.
        dropped: the rows that were read and not kept.
        truncated: ids of kept pairs that lose tokens to the length limit.
    """
    cut = frozenset(truncated)
    return {
        **_summary(kept, dropped, cut),
        "contradictions": _contradictions(kept),
        "datasets": _grouped(kept, dropped, cut, lambda p: (p.dataset,)),
        "policies": {
            name: {**summary, **_record_of(name, kept)}
            for name, summary in _grouped(kept, dropped, cut, lambda p: (p.source_chosen, p.source_rejected)).items()
        },
        "annotators": _grouped(kept, dropped, cut, lambda p: (p.annotator,)),
    }


def longer_wins(pairs: Sequence[Comparison]) -> float | None:
    """Accuracy of "the longer answer wins", in words; equal lengths count one half. None without pairs.

    The shortcut that a reward model has to beat.
    """
    if not pairs:
        return None
    lengths = [(_words(p.chosen), _words(p.rejected)) for p in pairs]
    return sum(0.5 if chosen == rejected else float(chosen > rejected) for chosen, rejected in lengths) / len(pairs)


def _grouped(
    kept: Sequence[Comparison],
    dropped: Sequence[Dropped],
    truncated: frozenset[str],
    groups_of: Callable[[Provenance], tuple[str, ...]],
) -> dict[str, Statistics]:
    pairs: dict[str, list[Comparison]] = defaultdict(list)
    losses: dict[str, list[Dropped]] = defaultdict(list)
    for comparison in kept:
        for group in sorted(set(groups_of(comparison.provenance))):
            pairs[group].append(comparison)
    for row in dropped:
        for group in sorted(set(groups_of(row.provenance))):
            losses[group].append(row)
    return {name: _summary(pairs[name], losses[name], truncated) for name in sorted({*pairs, *losses})}


def _summary(kept: Sequence[Comparison], dropped: Sequence[Dropped], truncated: frozenset[str]) -> Statistics:
    """Counts of one group.

    Keys: `rows` read, `pairs` kept, `prompts` among them (by id), `dropped` rows by reason, `truncated` pairs, pairs
    and prompts per split, words per answer, `longer_wins`, pairs per `licences`.
    """
    return {
        "rows": len(kept) + len(dropped),
        "pairs": len(kept),
        "prompts": len({p.prompt.id for p in kept}),
        "dropped": _counts(row.reason for row in dropped),
        "truncated": sum(p.id in truncated for p in kept),
        "splits": {
            split: {"pairs": len(part), "prompts": len({p.prompt.id for p in part})}
            for split in SPLITS
            for part in [[p for p in kept if p.provenance.split == split]]
        },
        "chosen_words": _lengths([p.chosen for p in kept]),
        "rejected_words": _lengths([p.rejected for p in kept]),
        "longer_wins": longer_wins(kept),
        "licences": _counts(p.provenance.licence for p in kept),
    }


def _record_of(policy: str, kept: Sequence[Comparison]) -> Statistics:
    """Answers of a policy that were preferred and that were not; a pair of its own answers counts once in each."""
    return {
        "wins": sum(p.provenance.source_chosen == policy for p in kept),
        "losses": sum(p.provenance.source_rejected == policy for p in kept),
    }


def _contradictions(kept: Sequence[Comparison]) -> int:
    labelled = {(p.prompt.key, p.chosen, p.rejected) for p in kept}
    both_ways = sum((key, rejected, chosen) in labelled for key, chosen, rejected in labelled)
    return both_ways // 2


def _lengths(texts: Sequence[str]) -> dict[str, float | None]:
    words = [_words(text) for text in texts]
    if not words:
        return {"mean": None, "median": None}
    return {"mean": sum(words) / len(words), "median": float(statistics.median(words))}


def _words(text: str) -> int:
    return len(text.split())


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
