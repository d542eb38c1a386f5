"""What a preference set is made of: counts and shortcuts per source dataset, per source policy and per annotator."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inverse_alignment.core.records import SPLITS, Comparison, Provenance
from inverse_alignment.data.read import Dropped

Statistics = dict[str, Any]


@dataclass(frozen=True)
class _Facts:
    """What the counts need of a pair, worked out once: a pair is in five groups."""

    provenance: Provenance
    prompt_id: str
    chosen_words: int
    rejected_words: int
    truncated: bool


def describe(kept: Sequence[Comparison], dropped: Sequence[Dropped], truncated: Iterable[str] = ()) -> Statistics:
    """Statistics of a set, as JSON-able values that depend on the set alone.

    Keys: those of `_summary` for the whole set; `contradictions`, the answer pairs that were labelled both ways; and
    `datasets`, `policies`, `annotators`, each a mapping of name to the same summary. A pair counts for both policies
    that wrote its answers; `wins` and `losses` are a policy's answers that were preferred and that were not.

    Args:
        kept: the pairs of the set, with their splits.
        dropped: the rows that were read and not kept.
        truncated: ids of kept pairs that lose tokens to the length limit.
    """
    cut = frozenset(truncated)
    facts = [
        _Facts(c.provenance, c.prompt.id, len(c.chosen.split()), len(c.rejected.split()), c.id in cut) for c in kept
    ]
    wins = Counter(f.provenance.source_chosen for f in facts)
    losses = Counter(f.provenance.source_rejected for f in facts)
    policies = _grouped(facts, dropped, lambda p: (p.source_chosen, p.source_rejected))
    return {
        **_summary(facts, dropped),
        "contradictions": _contradictions(kept),
        "datasets": _grouped(facts, dropped, lambda p: (p.dataset,)),
        "policies": {
            name: {**summary, "wins": wins[name], "losses": losses[name]} for name, summary in policies.items()
        },
        "annotators": _grouped(facts, dropped, lambda p: (p.annotator,)),
    }


def _grouped(
    facts: Sequence[_Facts], dropped: Sequence[Dropped], groups_of: Callable[[Provenance], tuple[str, ...]]
) -> dict[str, Statistics]:
    pairs: dict[str, list[_Facts]] = defaultdict(list)
    lost: dict[str, list[Dropped]] = defaultdict(list)
    for fact in facts:
        for group in set(groups_of(fact.provenance)):
            pairs[group].append(fact)
    for row in dropped:
        for group in set(groups_of(row.provenance)):
            lost[group].append(row)
    return {name: _summary(pairs[name], lost[name]) for name in sorted({*pairs, *lost})}


def _summary(facts: Sequence[_Facts], dropped: Sequence[Dropped]) -> Statistics:
    """Counts of one group.

    Keys: `rows` read, `pairs` kept, `prompts` among them (by id), `dropped` rows by reason, `truncated` pairs, pairs
    and prompts per split, words per answer, `longer_wins`, pairs per licence.
    """
    by_split = {split: [f for f in facts if f.provenance.split == split] for split in SPLITS}
    return {
        "rows": len(facts) + len(dropped),
        "pairs": len(facts),
        "prompts": len({f.prompt_id for f in facts}),
        "dropped": _counts(row.reason for row in dropped),
        "truncated": sum(f.truncated for f in facts),
        "splits": {
            split: {"pairs": len(part), "prompts": len({f.prompt_id for f in part})} for split, part in by_split.items()
        },
        "chosen_words": _lengths([f.chosen_words for f in facts]),
        "rejected_words": _lengths([f.rejected_words for f in facts]),
        "longer_wins": _longer_wins(facts),
        "licences": _counts(f.provenance.licence for f in facts),
    }


def _longer_wins(facts: Sequence[_Facts]) -> float | None:
    """Accuracy of "the longer answer wins", in words, equal lengths half: the shortcut a reward model has to beat."""
    if not facts:
        return None
    doubled = sum((f.chosen_words > f.rejected_words) + (f.chosen_words >= f.rejected_words) for f in facts)
    return doubled / (2 * len(facts))


def _contradictions(kept: Sequence[Comparison]) -> int:
    labelled = {(c.prompt.key, c.chosen, c.rejected) for c in kept}
    both_ways = sum((key, rejected, chosen) in labelled for key, chosen, rejected in labelled)
    return both_ways // 2


def _lengths(words: Sequence[int]) -> dict[str, float | None]:
    if not words:
        return {"mean": None, "median": None}
    return {"mean": sum(words) / len(words), "median": float(statistics.median(words))}


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
