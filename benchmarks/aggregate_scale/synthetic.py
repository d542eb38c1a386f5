"""Preference pairs that cost what real ones cost: words of a Zipf vocabulary, sources, annotators, copies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inverse_alignment.data.sources import JsonlSource

VOCABULARY = 20_000
BLOCK = 5_000
BANK = 20_000
"""Rows that copies are drawn from."""
DUPLICATES, CONTRADICTIONS, NEAR_DUPLICATES = 0.05, 0.02, 0.01
PROMPT_WORDS, ANSWER_WORDS = 30, 60
SOURCES = ("crowd", "judge", "forum", "graded")
WITH_IDS = ("crowd", "graded")
WRITERS = tuple(f"model-{letter}" for letter in "abcdefgh")
ANNOTATORS = tuple(f"annotator-{number}" for number in range(12))
Pair = dict[str, Any]


def write_sources(folder: Path, rows: int, shards: int, seed: int) -> list[JsonlSource]:
    """Write the rows of every source into `shards` files each.

    Args:
        rows: of all sources together, copies included.
        seed: equal seeds give equal files; more rows begin with those of fewer.
    """
    for name in SOURCES:
        (folder / name).mkdir(parents=True)
    files = {
        (name, shard): (folder / name / f"{shard:03d}.jsonl").open("w", encoding="utf-8")
        for name in SOURCES
        for shard in range(shards)
    }
    for number, (name, pair) in enumerate(_Generator(seed).pairs(rows)):
        files[name, number % shards].write(json.dumps(pair, ensure_ascii=False) + "\n")
    for file in files.values():
        file.close()
    return [JsonlSource(name=name, path=str(folder / name), licence="CC0-1.0") for name in SOURCES]


@dataclass
class _Generator:
    seed: int
    bank: list[tuple[str, Pair]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        letters = np.array(list("etaoinshrdlucmfwypvbgk"))
        lengths = 2 + self.random.poisson(np.log10(np.arange(1, VOCABULARY + 1)) * 1.3)  # frequent words are short
        self.words = np.array(["".join(self.random.choice(letters, size=length)) for length in lengths], dtype=object)
        self.words[::9] += "."
        self.words[::13] += ","
        shares = np.arange(3, VOCABULARY + 3) ** -1.1
        self.upper = np.cumsum(shares / shares.sum())

    def pairs(self, rows: int) -> Iterator[tuple[str, Pair]]:
        """Rows with the source they belong to."""
        made = 0
        while made < rows:
            for each in self._block(made):
                if made == rows:
                    return
                yield each
                made += 1

    def _block(self, first: int) -> Iterator[tuple[str, Pair]]:
        """Fresh rows, and copies of earlier ones."""
        draw = self.random
        prompts, chosen, rejected = self._texts(PROMPT_WORDS), self._texts(ANSWER_WORDS), self._texts(ANSWER_WORDS)
        kinds = draw.random(BLOCK)
        sources, writers = draw.integers(len(SOURCES), size=BLOCK), draw.integers(len(WRITERS), size=(BLOCK, 2))
        annotators, places = draw.integers(len(ANNOTATORS), size=BLOCK), draw.integers(BANK, size=BLOCK)
        margins = draw.random(BLOCK)
        for i in range(BLOCK):
            name = SOURCES[sources[i]]
            if self.bank and kinds[i] < DUPLICATES + CONTRADICTIONS + NEAR_DUPLICATES:
                pair = self._copy(self.bank[places[i] % len(self.bank)][1], kinds[i], str(self.words[places[i]]))
            else:
                if kinds[i] > 0.75 and self.prompts:  # several pairs about one prompt
                    prompts[i] = self.prompts[places[i] % len(self.prompts)]
                pair = {
                    "prompt": prompts[i],
                    "chosen": chosen[i],
                    "rejected": rejected[i],
                    "source_chosen": WRITERS[writers[i, 0]],
                    "source_rejected": WRITERS[writers[i, 1]],
                }
                self._remember(name, pair, int(places[i]))
            pair["annotator"] = ANNOTATORS[annotators[i]]
            if name in WITH_IDS:
                pair["id"] = f"{name}-{first + i}"
            if name == "graded":
                pair["margin"] = round(0.1 + 0.9 * float(margins[i]), 2)
            yield name, pair

    def _copy(self, pair: Pair, kind: float, word: str) -> Pair:
        copy = {key: pair[key] for key in ("prompt", "chosen", "rejected", "source_chosen", "source_rejected")}
        if kind < DUPLICATES:
            return copy
        if kind < DUPLICATES + CONTRADICTIONS:
            copy["chosen"], copy["rejected"] = pair["rejected"], pair["chosen"]
            copy["source_chosen"], copy["source_rejected"] = pair["source_rejected"], pair["source_chosen"]
            return copy
        words = pair["chosen"].split()
        words[len(words) // 2] = word
        return {**copy, "prompt": pair["prompt"] + "!", "chosen": " ".join(words)}

    def _remember(self, name: str, pair: Pair, place: int) -> None:
        if len(self.bank) < BANK:
            self.bank.append((name, pair))
            self.prompts.append(pair["prompt"])
        else:
            self.bank[place] = (name, pair)
            self.prompts[place] = pair["prompt"]

    def _texts(self, mean: int) -> list[str]:
        """A block of texts, `mean` words long on average, with the long tail that lengths of texts have."""
        lengths = np.maximum(3, self.random.gamma(2.0, mean / 2, size=BLOCK).astype(np.int64))
        words = self.words[np.searchsorted(self.upper, self.random.random(int(lengths.sum())))].tolist()
        ends = np.cumsum(lengths).tolist()
        return [" ".join(words[end - length : end]) for end, length in zip(ends, lengths.tolist(), strict=True)]
