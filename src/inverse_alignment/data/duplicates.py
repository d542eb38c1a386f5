"""Rows that say the same: to the letter, or nearly."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Demonstration, Example, Judgement
from inverse_alignment.data.ledger import Ledger

_WORD = re.compile(r"\w+")


class KeepNear(Section):
    """Near duplicates are not looked for."""

    type: Literal["off"] = "off"


class DropNear(Section):
    """MinHash (Broder 1997) with banding, through datasketch.

    Of rows whose prompt and answers, each by itself, are nearly the same, the first is kept. Prompts that are nearly the
    same lie in one split, so that no test prompt has a twin in train.
    """

    type: Literal["minhash"] = "minhash"
    threshold: float = Field(0.8, gt=0, le=1, description="estimated Jaccard similarity from which rows are the same")
    permutations: int = Field(128, ge=16, le=1024, description="numbers in a signature; its error is about 1/√n")
    shingle_words: int = Field(3, ge=1, le=20, description="words in a row that are compared as one")


NearDuplicates = Annotated[KeepNear | DropNear, Field(discriminator="type")]


def drop_exact(ledger: Ledger, same: Literal["pair", "label"]) -> None:
    """Of rows with equal content (and annotator, for `label`) keep the one that ranks first."""
    ranked = ledger.ranked(ledger.kept)
    content = ledger.columns["content"][ranked]
    key = np.stack([content, ledger.columns["annotator"][ranked].astype(np.uint64) if same == "label" else content])
    _, first = np.unique(key, axis=1, return_index=True)
    ledger.drop(np.delete(ranked, first), "duplicate")


def require_names(ledger: Ledger) -> None:
    """Refuse a name that two different rows share; a row that was read twice is no such case.

    Raises:
        UserError: two rows of one dataset have one name.
    """
    order = np.lexsort([ledger.columns["record"], ledger.columns["id"]])
    ids, records = ledger.columns["id"][order], ledger.columns["record"][order]
    twice = np.flatnonzero((ids[1:] == ids[:-1]) & (records[1:] != records[:-1]))
    if not len(twice):
        return
    row = next(ledger.read(order[twice[:1]]))
    name, dataset = row.provenance.original_id, row.provenance.dataset
    raise UserError(
        f"two rows have the id '{name}'",
        where=f"source '{dataset}', id '{name}'",
        fix="make ids unique, or set columns.id: null to name rows by their content",
    )


class Signatures:
    """MinHash signatures of rows of `fields` texts, kept in a file: fields × permutations numbers of 32 bits a row."""

    def __init__(self, path: Path, settings: DropNear, fields: int) -> None:
        self._path, self._settings, self._fields = path, settings, fields
        self._file = path.open("wb")
        self._rows = array("q")

    def add(self, rows: Sequence[int], texts: Sequence[Sequence[str]]) -> None:
        """Take in rows of the ledger with their texts."""
        from datasketch import MinHash
        from xxhash import xxh32_intdigest

        words = self._settings.shingle_words
        shingles = (list(_shingles(text, words)) for fields in texts for text in fields)
        for made in MinHash.generator(shingles, num_perm=self._settings.permutations, hashfunc=xxh32_intdigest):
            self._file.write(np.asarray(made.hashvalues, dtype=np.uint32).tobytes())
        self._rows.extend(rows)

    def matches(self, rank: np.ndarray, group: np.ndarray) -> Iterator[tuple[int, int]]:
        """Pairs (row, earlier row) of one group that are nearly the same in every field; one may come more than once.

        Bands of the signatures bring candidates together (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets,
        ch. 3), and whole signatures decide. A place of the signatures of all k fields agrees with probability
        `Π s_k`, which for a match is at least `threshold^k`: the bands are cut for that. datasketch's own index holds
        every band of every row as Python objects, some two kilobytes a row; sorting numbers needs forty bytes.

        Args:
            rank: (n,) place of each row of the ledger in the order of precedence.
            group: (n,) rows of different groups are never the same.
        """
        from datasketch import MinHashLSH

        self._file.close()
        if not self._rows:
            return
        settings, fields = self._settings, self._fields
        index = MinHashLSH(threshold=settings.threshold**fields, num_perm=settings.permutations)
        rows = np.frombuffer(self._rows, dtype=np.int64)
        shape = (len(rows), fields, settings.permutations)
        signatures = np.memmap(self._path, dtype=np.uint32, mode="r", shape=shape)
        for band in range(index.b):
            part = signatures[:, :, band * index.r : (band + 1) * index.r].reshape(len(rows), -1)
            keys = _mixed(group[rows], part)
            order = np.lexsort([rank[rows], keys])
            starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order][:1]))
            for begin, end in zip(starts, [*starts[1:], len(order)], strict=True):
                if end - begin > 1:
                    yield from _in_bucket(rows, signatures, order[begin:end], settings.threshold)


def _in_bucket(
    rows: np.ndarray, signatures: np.ndarray, bucket: np.ndarray, threshold: float
) -> Iterator[tuple[int, int]]:
    """Members of a bucket with the first member they nearly equal."""
    heads = bucket[:1]
    for member in bucket[1:]:
        similar = ((signatures[heads] == signatures[member]).mean(axis=-1) >= threshold).all(axis=-1)
        if similar.any():
            yield int(rows[member]), int(rows[heads[np.argmax(similar)]])
        else:
            heads = np.append(heads, member)


def _mixed(group: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(n,) one number of 64 bits per row."""
    keys = group.astype(np.uint64)
    for column in range(columns.shape[1]):
        keys = (keys ^ columns[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _shingles(text: str, words: int) -> Iterator[bytes]:
    found = _WORD.findall(text.lower())
    for begin in range(max(1, len(found) - words + 1)):
        yield " ".join(found[begin : begin + words]).encode()


def answers_of(row: Example) -> tuple[str, str]:
    """The two texts that follow a prompt in a row; empty where it has fewer."""
    if isinstance(row, Comparison):
        return row.chosen, row.rejected
    if isinstance(row, Judgement):
        return row.response, str(row.label)
    return (row.response, "") if isinstance(row, Demonstration) else ("", "")


def twins(ledger: Ledger, openings: Signatures) -> dict[int, int]:
    """For prompts with a near twin, the smallest id among all that are linked to them, directly or not."""
    parent: dict[int, int] = {}

    def root(prompt: int) -> int:
        while parent.setdefault(prompt, prompt) != prompt:
            parent[prompt] = parent[parent[prompt]]
            prompt = parent[prompt]
        return prompt

    ids = ledger.columns["prompt"]
    rank = np.empty(len(ledger), dtype=np.int64)
    rank[np.argsort(ids, kind="stable")] = np.arange(len(ledger))
    for row, head in openings.matches(rank, np.zeros(len(ledger), dtype=np.int64)):
        one, other = sorted((root(int(ids[row])), root(int(ids[head]))))
        parent[other] = one
    return {prompt: root(prompt) for prompt in parent}


def drop_near(ledger: Ledger, answers: Signatures, near: Mapping[int, int]) -> None:
    """Drop rows whose prompt is a near twin of, and whose answers nearly equal, those of an earlier row that is kept.

    Rows are taken in the order of precedence, so the outcome does not depend on the order of reading.
    """
    rank = np.empty(len(ledger), dtype=np.int64)
    rank[ledger.ranked(np.arange(len(ledger)))] = np.arange(len(ledger))
    heads = [near.get(prompt, prompt) for prompt in ledger.columns["prompt"].tolist()]
    kinds = ledger.columns["kind"].astype(np.uint64)
    earlier: dict[int, set[int]] = {}
    for row, head in answers.matches(rank, _mixed(kinds, np.array(heads, dtype=np.uint64)[:, None])):
        earlier.setdefault(row, set()).add(head)
    gone: set[int] = set()
    for row in sorted(earlier, key=lambda each: rank[each]):
        if earlier[row] - gone:
            gone.add(row)
    ledger.drop(np.array(sorted(gone), dtype=np.int64), "near duplicate")
