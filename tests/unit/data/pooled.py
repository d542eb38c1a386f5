"""Pooling into a folder that is gone afterwards, and short ways to write rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inverse_alignment.core.records import (
    SPLITS,
    Authorship,
    Comparison,
    Demonstration,
    Example,
    Judgement,
    Origin,
    Prompt,
    PromptOnly,
    Provenance,
    Split,
    read_jsonl,
)
from inverse_alignment.data.aggregate import FILES, STATISTICS, AggregateSettings, pool, read_preferences
from inverse_alignment.data.splits import SplitShares
from inverse_alignment.text.render import Degenerate, EncodedPair, EncodedText

TRAIN_ONLY = AggregateSettings(shares=SplitShares(train=1, validation=0, gate=0, test=0))
ROW_FILES = (*(f"{split}.jsonl" for split in SPLITS), *FILES.values())


@dataclass(frozen=True)
class Pooled:
    """What a folder of pooled rows held."""

    comparisons: tuple[Comparison, ...]
    others: dict[type[Example], list[Example]]
    statistics: dict[str, Any]
    files: dict[str, bytes]

    @property
    def rows(self) -> list[Example]:
        """Rows of every kind."""
        return [*self.comparisons, *(row for rows in self.others.values() for row in rows)]

    @property
    def ids(self) -> list[str]:
        """Names of all rows, sorted."""
        return sorted(row.id for row in self.rows)

    @property
    def placed(self) -> dict[str, Split | None]:
        """Split of every prompt id."""
        return {row.prompt.id: row.provenance.split for row in self.rows}

    @property
    def contents(self) -> list[tuple[str, str, str, str | None]]:
        """What the pairs say and where they lie, whatever they are called."""
        return sorted((c.prompt.key, c.chosen, c.rejected, c.provenance.split) for c in self.comparisons)

    def split(self, name: Split) -> tuple[Comparison, ...]:
        """Pairs of one split."""
        return tuple(c for c in self.comparisons if c.provenance.split == name)


def pooled(rows: Iterable[Any], settings: AggregateSettings = TRAIN_ONLY, *args: Any, **kwargs: Any) -> Pooled:
    """Pool rows, and read everything back."""
    with tempfile.TemporaryDirectory() as folder:
        pool(Path(folder), rows, settings, *args, **kwargs)
        return opened(Path(folder))


def opened(folder: Path) -> Pooled:
    """Everything in a folder that `pool` wrote, which must hold nothing else."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {*ROW_FILES, STATISTICS}
    read = read_preferences(folder)
    others = {kind: read_jsonl(folder / name, kind) for kind, name in FILES.items()}
    return Pooled(read.comparisons, others, json.loads(files[STATISTICS]), files)


class Words:
    """A tokenizer with one token a word, cut at `limit`, or too long for it."""

    def __init__(self, limit: int = 1000, drop: bool = False) -> None:
        self.limit, self.drop = limit, drop

    def encode_pairs(self, comparisons: Sequence[Comparison]) -> list[EncodedPair | Degenerate]:
        return [self._pair(each.chosen.split(), each.rejected.split()) for each in comparisons]

    def encode_texts(self, texts: Sequence[tuple[Prompt, str]]) -> list[EncodedText | Degenerate]:
        return [self._text(answer.split()) for _, answer in texts]

    def _pair(self, chosen: list[str], rejected: list[str]) -> EncodedPair | Degenerate:
        longest = max(len(chosen), len(rejected))
        if self.drop and longest > self.limit:
            return "longer than the context"
        if chosen[: self.limit] == rejected[: self.limit]:
            return "identical after tokenisation"
        numbers = [tuple(len(w) for w in answer[: self.limit]) for answer in (chosen, rejected)]
        return EncodedPair(*numbers, truncated=longest > self.limit)

    def _text(self, answer: list[str]) -> EncodedText | Degenerate:
        if self.drop and len(answer) > self.limit:
            return "longer than the context"
        return EncodedText(tuple(len(w) for w in answer[: self.limit]), truncated=len(answer) > self.limit)


def asked(prompt: str | Prompt) -> Prompt:
    """A prompt, of one user turn if it is a text."""
    return Prompt.from_text(prompt) if isinstance(prompt, str) else prompt


def pair(
    prompt: str | Prompt,
    chosen: str = "yes",
    rejected: str = "no",
    dataset: str = "a",
    number: int | str = 1,
    split: Split | None = None,
    weight: float = 1.0,
    soft_label: float | None = None,
    **provenance: str,
) -> Comparison:
    """A comparison named `dataset/number`."""
    origin = Provenance(dataset=dataset, original_id=str(number), split=split, **provenance)
    return Comparison(
        prompt=asked(prompt), chosen=chosen, rejected=rejected, weight=weight, soft_label=soft_label, provenance=origin
    )


def prompt_only(
    prompt: str | Prompt, dataset: str = "prompts", number: int | str = 1, split: Split | None = None
) -> PromptOnly:
    """A prompt without an answer."""
    origin = Origin(dataset=dataset, original_id=str(number), split=split)
    return PromptOnly(prompt=asked(prompt), provenance=origin)


def demonstration(
    prompt: str | Prompt, response: str = "thus", dataset: str = "shown", number: int | str = 1, source: str = "coach"
) -> Demonstration:
    """An answer worth imitating."""
    origin = Authorship(dataset=dataset, original_id=str(number), source=source)
    return Demonstration(prompt=asked(prompt), response=response, provenance=origin)


def judgement(
    prompt: str | Prompt, response: str = "so", label: bool = True, dataset: str = "judged", number: int | str = 1
) -> Judgement:
    """An answer that somebody called good or bad."""
    origin = Authorship(dataset=dataset, original_id=str(number))
    return Judgement(prompt=asked(prompt), response=response, label=label, provenance=origin)


FILLER = [pair(f"filler number {i}", dataset="filler", number=i) for i in range(80)]
"""Enough prompts that no split of the default shares is empty."""
