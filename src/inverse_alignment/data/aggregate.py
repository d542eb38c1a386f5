"""Pooling sources into one preference set: merge, remove duplicates, split by prompt, drop what says nothing, count."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import SPLITS, Comparison, Split, iter_jsonl, write_jsonl
from inverse_alignment.data.read import Dropped, read
from inverse_alignment.data.sources import SourceConfig
from inverse_alignment.data.splits import SplitShares, hashed_split, stated_split
from inverse_alignment.data.statistics import Statistics, describe
from inverse_alignment.text.render import Degenerate, EncodedPair

STATISTICS = "statistics.json"


class AggregateSettings(Section):
    """How sources are pooled."""

    shares: SplitShares = Field(SplitShares(), description="expected share of prompts in each split")
    seed: int = Field(0, ge=0, description="of the hash that splits prompts")
    respect_source_splits: bool = Field(
        False,
        description="use the files' own split columns and carve gate out of train; where there is none, split by hash",
    )
    duplicates: Literal["pair", "label"] = Field(
        "pair",
        description="what is a duplicate: the same conversation and answers in the same order (pair), or that from the "
        "same annotator (label), so that two annotators who agree count twice",
    )
    max_dropped_share: float = Field(
        0.5, ge=0, le=1, description="most rows a source may lose to degenerate content or truncation, duplicates apart"
    )


class Tokenise(Protocol):
    """A tokenizer with its length limit, as far as aggregation cares (`text.render.PairEncoder`)."""

    def encode_pair(self, comparison: Comparison) -> EncodedPair | Degenerate:
        """Token ids of both answers, or why they make no pair."""


@dataclass(frozen=True)
class PreferenceSet:
    """Pairs from all sources, each with its provenance and split, and statistics of what was read and kept."""

    comparisons: tuple[Comparison, ...]
    statistics: Statistics = field(default_factory=dict)

    def split(self, name: Split) -> tuple[Comparison, ...]:
        """The pairs of one split, in the order of the set."""
        return tuple(c for c in self.comparisons if c.provenance.split == name)


def aggregate(
    sources: Sequence[SourceConfig],
    settings: AggregateSettings,
    tokenise: Sequence[Tokenise] = (),
    paths: Mapping[str, Path] | None = None,
) -> PreferenceSet:
    """Read all sources and pool them; see `pool`.

    Args:
        sources: in order of precedence: of duplicates the first is kept.
        settings: how they are pooled.
        tokenise: the tokenizers that will read the pairs; a pair must hold a preference for each of them.
        paths: by source name, where a file lies if not at the source's own path.

    Raises:
        UserError: two sources share a name, a file is broken, or `pool` refuses.
    """
    repeated = [name for name, count in Counter(s.name for s in sources).items() if count > 1]
    if repeated:
        raise UserError(
            f"two sources are named '{repeated[0]}'", where="data.sources", fix="give each source a name of its own"
        )
    at = paths or {}
    return pool((row for source in sources for row in read(source, at.get(source.name))), settings, tokenise)


def pool(
    rows: Iterable[Comparison | Dropped], settings: AggregateSettings, tokenise: Sequence[Tokenise] = ()
) -> PreferenceSet:
    """Pool rows of all sources into a preference set.

    Of duplicates (see `AggregateSettings.duplicates`) the first is kept. No prompt id lies in two splits.

    Raises:
        UserError: an id occurs twice in a dataset, a source loses more than `max_dropped_share`, or a split with a
            positive share is empty.
    """
    merged = _merged(rows, settings.duplicates)
    dropped = list(merged.dropped)
    kept: list[Comparison] = []
    truncated: list[str] = []
    for comparison in merged.unique:
        encoded = [tokeniser.encode_pair(comparison) for tokeniser in tokenise]
        reasons = [item for item in encoded if not isinstance(item, EncodedPair)]
        if reasons:
            dropped.append(Dropped(comparison.provenance, reasons[0], comparison.id))
            continue
        kept.append(comparison)
        if any(isinstance(item, EncodedPair) and item.truncated for item in encoded):
            truncated.append(comparison.id)
    _refuse_large_losses(kept, dropped, settings.max_dropped_share)
    placed = _placed(kept, merged.stated if settings.respect_source_splits else {}, settings)
    _require_splits(placed, settings.shares)
    return PreferenceSet(tuple(placed), describe(placed, dropped, truncated))


def write_preferences(folder: Path, preferences: PreferenceSet) -> None:
    """Write `train.jsonl`, `validation.jsonl`, `gate.jsonl`, `test.jsonl` and `statistics.json`.

    Equal sets give equal bytes. The folder is made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        write_jsonl(folder / f"{split}.jsonl", preferences.split(split))
    text = json.dumps(preferences.statistics, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / STATISTICS).write_text(text + "\n", encoding="utf-8")


def read_preferences(folder: Path) -> PreferenceSet:
    """Read what `write_preferences` wrote; pairs come split by split.

    Raises:
        UserError: a file is missing or damaged.
    """
    comparisons = tuple(c for split in SPLITS for c in read_split(folder, split))
    path = folder / STATISTICS
    try:
        return PreferenceSet(comparisons, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix=_REBUILD) from error


def read_split(folder: Path, split: Split) -> list[Comparison]:
    """The pairs of one split.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise UserError("the preference set lacks a split", where=str(path), fix=_REBUILD)
    return list(iter_jsonl(path, Comparison))


_REBUILD = "delete the artifact's folder so that it is built again"


@dataclass(frozen=True)
class _Merged:
    """Rows of all sources after the first pass.

    Attributes:
        unique: pairs without duplicates.
        dropped: rows without a preference, and duplicates.
        stated: by prompt id, the splits that the sources state, duplicates included: a copy of a train pair in another
            source's test split must pull the prompt out of train.
    """

    unique: list[Comparison]
    dropped: list[Dropped]
    stated: Mapping[str, set[Split]]


def _merged(rows: Iterable[Comparison | Dropped], same: Literal["pair", "label"]) -> _Merged:
    unique: list[Comparison] = []
    dropped: list[Dropped] = []
    stated: dict[str, set[Split]] = {}
    ids: set[tuple[str, str]] = set()
    contents: set[tuple[str, ...]] = set()
    for row in rows:
        origin = row.provenance
        name = (origin.dataset, origin.original_id)
        if name in ids:
            raise UserError(
                f"two rows have the id '{origin.original_id}'",
                where=f"source '{origin.dataset}', id '{origin.original_id}'",
                fix="make ids unique, or set columns.id: null to use row numbers",
            )
        ids.add(name)
        if isinstance(row, Dropped):
            dropped.append(row)
            continue
        if origin.split is not None:
            stated.setdefault(row.prompt.id, set()).add(origin.split)
        content: tuple[str, ...] = (row.prompt.key, row.chosen, row.rejected)
        if same == "label":
            content += (origin.annotator,)
        if content in contents:
            dropped.append(Dropped(origin, "duplicate", row.id))
            continue
        contents.add(content)
        unique.append(row)
    return _Merged(unique, dropped, stated)


def _refuse_large_losses(kept: Sequence[Comparison], dropped: Sequence[Dropped], limit: float) -> None:
    """A duplicate loses nothing, so it does not count here."""
    good = Counter(c.provenance.dataset for c in kept)
    lost: dict[str, Counter[str]] = defaultdict(Counter)
    for row in dropped:
        if row.reason != "duplicate":
            lost[row.provenance.dataset][row.reason] += 1
    for name in sorted(lost):
        bad = lost[name].total()
        share = bad / (bad + good[name])
        if share > limit:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(lost[name].items()))
            raise UserError(
                f"{bad} of {bad + good[name]} rows ({share:.0%}) hold no preference ({reasons})",
                where=f"source '{name}', data.aggregate.max_dropped_share={limit:g}",
                fix="if truncation is the cause raise the models' context, else mend the source, or raise the limit",
            )


def _placed(
    comparisons: Sequence[Comparison], stated: Mapping[str, set[Split]], settings: AggregateSettings
) -> list[Comparison]:
    """The pairs with their split set."""
    shares, seed = settings.shares, settings.seed
    placed: list[Comparison] = []
    for comparison in comparisons:
        prompt_id = comparison.prompt.id
        own = stated.get(prompt_id)
        split = stated_split(prompt_id, own, shares, seed) if own else hashed_split(prompt_id, shares, seed)
        provenance = comparison.provenance.model_copy(update={"split": split})
        placed.append(comparison.model_copy(update={"provenance": provenance}))
    return placed


def _require_splits(comparisons: Sequence[Comparison], shares: SplitShares) -> None:
    prompts = {split: {c.prompt.id for c in comparisons if c.provenance.split == split} for split in SPLITS}
    for split in SPLITS:
        if getattr(shares, split) > 0 and not prompts[split]:
            counts = ", ".join(f"{name} {len(prompts[name])}" for name in SPLITS)
            raise UserError(
                f"no prompt falls into '{split}' (prompts: {counts})",
                where=f"data.aggregate.shares.{split}={getattr(shares, split):g}",
                fix="add data, raise that share, or change data.aggregate.seed",
            )
