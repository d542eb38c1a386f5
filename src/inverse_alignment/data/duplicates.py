"""Rows that say the same: to the letter, or nearly."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Demonstration, Example, Judgement, Message, Prompt
from inverse_alignment.data.ledger import Ledger, hashed

_WORD = re.compile(r"\w+")
_FIELDS = 3
_CHUNK = 8192
_AT_ONCE = 64


class KeepNear(Section):
    """Near duplicates are not looked for."""

    type: Literal["off"] = "off"


class DropNear(Section):
    """MinHash (Broder 1997) with banding, through datasketch.

    Of rows whose first user turn and answers, each by itself, are nearly the same, and whose other turns are the same
    but for case and punctuation, the first in the order of precedence is kept. Prompts that open nearly the same lie in
    one split, so that no test prompt has a twin in train; a new source may bring a twin and so move a prompt.
    """

    type: Literal["minhash"] = "minhash"
    threshold: float = Field(
        0.8, ge=0.5, le=1, description="estimated Jaccard similarity of words in a row from which texts are the same"
    )
    permutations: int = Field(128, ge=16, le=1024, description="numbers in a signature; its error is about 1/√n")
    shingle_words: int = Field(3, ge=1, le=20, description="words in a row that are compared as one")


NearDuplicates = Annotated[KeepNear | DropNear, Field(discriminator="type")]


def drop_repeats(ledger: Ledger) -> None:
    """Of a row that was read several times keep one, before anything is counted: reading it again changes nothing.

    Raises:
        UserError: two different rows of one dataset have one name.
    """
    order = np.lexsort([ledger.columns["record"], ledger.columns["id"]])
    ids, records = ledger.columns["id"][order], ledger.columns["record"][order]
    again = ids[1:] == ids[:-1]
    clash = np.flatnonzero(again & (records[1:] != records[:-1]))
    if len(clash):
        row = next(ledger.read(order[clash[:1]]))
        name, dataset = row.provenance.original_id, row.provenance.dataset
        raise UserError(
            f"two rows have the id '{name}'",
            where=f"source '{dataset}', id '{name}'",
            fix="make ids unique, or set columns.id: null to name rows by their content",
        )
    ledger.drop(order[1:][again], "duplicate")


def drop_exact(ledger: Ledger, same: Literal["pair", "label"]) -> None:
    """Of rows with equal content (and annotator, for `label`) keep the one that ranks first."""
    rows = ledger.kept
    what = [ledger.columns["content"][rows]]
    if same == "label":
        what.append(ledger.columns["annotator"][rows])
    order = np.lexsort([ledger.columns["id"][rows], ledger.columns["dataset"][rows], *what])
    again = np.all([key[order[1:]] == key[order[:-1]] for key in what], axis=0)
    ledger.drop(rows[order[1:][again]], "duplicate")


class Signatures:
    """MinHash signatures of rows, in files: of the opening of the prompt, and of both answers.

    A row takes fields × permutations numbers of 32 bits, and 64 bits for each band; none of it stays in memory.
    """

    def __init__(self, folder: Path, settings: DropNear) -> None:
        from datasketch import MinHashLSH

        self._settings = settings
        error = (settings.threshold * (1 - settings.threshold) / settings.permutations) ** 0.5
        self._twins_from = settings.threshold - 2 * error
        # one place of all three signatures agrees with probability s1 s2 s3, which for a match is threshold³ or more
        bounds = (settings.threshold**_FIELDS, self._twins_from)
        # whole signatures decide, so a band may bring together too many, but should miss few
        self._lsh = [MinHashLSH(bound, settings.permutations, weights=(0.1, 0.9)) for bound in bounds]
        paths = [folder / name for name in ("signatures", "bands", "opening-bands")]
        self._signatures, self._bands, self._opening_bands = (path.open("w+b", buffering=1 << 16) for path in paths)
        self._rows = array("q")

    def add(self, rows: Sequence[int], examples: Sequence[Example]) -> None:
        """Take in rows of the ledger with their texts."""
        texts = [(_opening(each.prompt).content, *_answers(each)) for each in examples]
        places: dict[str, int] = {}
        which = np.array([[places.setdefault(text, len(places)) for text in fields] for fields in texts], dtype=np.intp)
        if not len(which):
            return
        found = signatures_of(list(places), self._settings)[which]
        groups = np.array([_group(each) for each in examples], dtype=np.uint64)
        self._signatures.write(found.tobytes())
        self._bands.write(_band_keys(groups, found, self._lsh[0].b, self._lsh[0].r).tobytes())
        prompts = np.zeros(len(rows), dtype=np.uint64)
        self._opening_bands.write(_band_keys(prompts, found[:, :1], self._lsh[1].b, self._lsh[1].r).tobytes())
        self._rows.extend(rows)

    def drop_near(self, ledger: Ledger) -> None:
        """Drop rows that are nearly the same as a row that is kept and comes before them in the order of precedence."""
        members, buckets = self._shared_buckets(self._bands, self._lsh[0].b, np.arange(len(self._rows)))
        rows = np.frombuffer(self._rows, dtype=np.int64)
        rank = np.empty(len(ledger), dtype=np.int64)
        rank[ledger.ranked(np.arange(len(ledger)))] = np.arange(len(ledger))
        order = np.lexsort([buckets, rank[rows[members]]])
        members, buckets = members[order], buckets[order]
        kept: dict[int, list[int]] = {}
        gone: list[int] = []
        for member, begin, end in _runs(members):
            mine = buckets[begin:end].tolist()
            earlier = {each for bucket in mine for each in kept.get(bucket, ())}
            if earlier and self._nearly_same(member, sorted(earlier)):
                gone.append(member)
                continue
            for bucket in mine:
                kept.setdefault(bucket, []).append(member)
        ledger.drop(rows[np.array(gone, dtype=np.intp)], "near duplicate")

    def twins(self, ledger: Ledger) -> dict[int, int]:
        """For prompts whose openings are nearly the same, the smallest id of all that are linked, directly or not.

        From two standard errors of the estimate below the threshold: a missed twin leaks, one too many does no harm.
        """
        prompts = ledger.columns["prompt"][np.frombuffer(self._rows, dtype=np.int64)]
        _, first = np.unique(prompts, return_index=True)  # prompts of one id open alike, so any row of them will do
        members, buckets = self._shared_buckets(self._opening_bands, self._lsh[1].b, first)
        order = np.argsort(buckets, kind="stable")
        members, buckets = members[order], buckets[order]
        linked = _Linked()
        for _, begin, end in _runs(buckets):
            self._link(members[begin:end], linked)
        named = {member: int(prompts[member]) for member in linked.members}
        smallest: dict[int, int] = {}
        for member, name in named.items():
            root = linked.root(member)
            smallest[root] = min(name, smallest.get(root, name))
        return {name: smallest[linked.root(member)] for member, name in named.items()}

    def _link(self, members: np.ndarray, linked: _Linked) -> None:
        """Link every two members of a bucket whose openings are nearly the same."""
        openings = np.stack([self._read(member)[0] for member in members.tolist()])
        group = np.array([linked.root(member) for member in members.tolist()])
        for place in range(1, len(members)):
            others = np.flatnonzero(group[:place] != group[place])
            while len(others):  # a few at a time: in a large bucket most are linked after the first few
                some, others = others[:_AT_ONCE], others[_AT_ONCE:]
                similar = (openings[some] == openings[place]).mean(axis=-1) >= self._twins_from
                for other in np.unique(group[some[similar]]):
                    both = np.isin(group, (other, group[place]))
                    group[both] = linked.link(int(other), int(group[place]))
                others = others[group[others] != group[place]]

    def _shared_buckets(self, file: IO[bytes], bands: int, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which members lie together in some band: (members, numbers of buckets), one entry per member and bucket.

        Bands of the signatures bring candidates together (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets,
        ch. 3). datasketch's own index holds every band of every row as Python objects, some two kilobytes a row;
        sorting numbers needs forty bytes.

        Args:
            of: places in the order of `add` that are looked at.
        """
        members, buckets, count = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.int64)], 0
        for band in range(bands):
            keys = _column(file, len(self._rows), bands, band)[of]
            order = np.argsort(keys, kind="stable")
            new = np.diff(keys[order], prepend=~keys[order][:1]) != 0
            shared = ~new
            shared[:-1] |= ~new[1:]
            members.append(of[order[shared]])
            buckets.append(count + np.cumsum(new)[shared])
            count += len(keys)
        return np.concatenate(members), np.concatenate(buckets)

    def _nearly_same(self, one: int, others: Sequence[int]) -> bool:
        mine, threshold = self._read(one), self._settings.threshold
        return any(((self._read(each) == mine).mean(axis=-1) >= threshold).all() for each in others)

    def _read(self, place: int) -> np.ndarray:
        """(fields, permutations) signatures of a row."""
        shape = (_FIELDS, self._settings.permutations)
        size = shape[0] * shape[1] * np.dtype(np.uint32).itemsize
        self._signatures.seek(place * size)
        return np.frombuffer(self._signatures.read(size), dtype=np.uint32).reshape(shape)

    def __enter__(self) -> Signatures:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._signatures, self._bands, self._opening_bands):
            file.close()


class _Linked:
    """Which members hang together (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    @property
    def members(self) -> list[int]:
        """Everything that was ever linked."""
        return list(self._parent)

    def root(self, member: int) -> int:
        """The member that stands for all that are linked to this one."""
        while (parent := self._parent.get(member, member)) != member:
            self._parent[member] = self._parent.get(parent, parent)
            member = parent
        return member

    def link(self, one: int, other: int) -> int:
        """Link two members; the root of both."""
        root, below = sorted((self.root(one), self.root(other)))
        self._parent[below] = self._parent[root] = root
        return root


def signatures_of(texts: Sequence[str], settings: DropNear) -> np.ndarray:
    """(texts, permutations) MinHash signatures; the share of equal places estimates the Jaccard similarity."""
    from datasketch import MinHash
    from xxhash import xxh32_intdigest

    shingles = (list(_shingles(text, settings.shingle_words)) for text in texts)
    made = MinHash.generator(shingles, num_perm=settings.permutations, hashfunc=xxh32_intdigest)
    return np.array([each.hashvalues for each in made], dtype=np.uint32).reshape(len(texts), settings.permutations)


def _shingles(text: str, words: int) -> Iterator[bytes]:
    found = _WORD.findall(text.lower())
    if not found:  # signs alone: they are not the same because they hold no word
        yield text.strip().encode()
    for begin in range(max(1, len(found) - words + 1) if found else 0):
        yield " ".join(found[begin : begin + words]).encode()


def _group(row: Example) -> int:
    """Rows of different groups are never nearly the same: other kinds, or other turns around the opening."""
    opening = _opening(row.prompt)
    others = [m for m in row.prompt.messages if m is not opening]
    turns = [f"{m.role} {' '.join(_WORD.findall(m.content.lower()))}" for m in others]
    return hashed(type(row).__name__, *turns)


def _opening(prompt: Prompt) -> Message:
    """The first user turn, which is also what a prompt's id is made of."""
    return next((m for m in prompt.messages if m.role == "user"), prompt.messages[0])


def _answers(row: Example) -> tuple[str, str]:
    """The two texts that follow a prompt in a row; empty where it has fewer."""
    if isinstance(row, Comparison):
        return row.chosen, row.rejected
    if isinstance(row, Judgement):
        return row.response, str(row.label)
    return (row.response, "") if isinstance(row, Demonstration) else ("", "")


def _band_keys(groups: np.ndarray, signatures: np.ndarray, bands: int, width: int) -> np.ndarray:
    """(rows, bands) one number of 64 bits for what a row's signatures hold in a band."""
    parts = signatures[:, :, : bands * width].reshape(len(signatures), -1, bands, width)
    keys = np.repeat(groups[:, None], bands, axis=1)
    for field in range(parts.shape[1]):
        for place in range(width):
            keys = (keys ^ parts[:, field, :, place]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
    return keys


def _column(file: IO[bytes], rows: int, width: int, column: int) -> np.ndarray:
    """One column of a table of 64-bit numbers in a file, without holding the table."""
    file.seek(0)
    found = np.empty(rows, dtype=np.uint64)
    for begin in range(0, rows, _CHUNK):
        count = min(_CHUNK, rows - begin)
        found[begin : begin + count] = np.frombuffer(file.read(count * width * 8), dtype=np.uint64)[column::width]
    return found


def _runs(values: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(value, begin, end) of every run of equal values."""
    ends = np.flatnonzero(np.diff(values, append=values[-1:] + 1)) + 1
    starts = np.concatenate([[0], ends])[:-1]
    for begin, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield int(values[begin]), begin, end
