"""Shard by shard: our whole selection, and the bare product of the same matrices; one process, the same threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from benchmarks.selection_scale.pool import POLICY, RowEncoder, VectorPool, policy_vectors, texts
from inverse_alignment.selection.keep import keep_top
from inverse_alignment.selection.selection import Selection
from inverse_alignment.selection.similarity import PairSimilarity, pair_similarity, similarity_scores

T = TypeVar("T")
BARE_ROWS = (512, 1024, 2048, 4096)
"""Rows of a product that the bare one may choose from: it takes its fastest."""
KEPT = 2000


@dataclass(frozen=True)
class Texts(Sequence[str]):
    """The texts of one side of some pairs, made as they are asked for."""

    rows: range
    side: int

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return texts(self.rows, self.side)

    def __getitem__(self, at: Any) -> Any:
        raise AssertionError("a selection reads in order")


def ours(pool: VectorPool, rows: range, others: np.ndarray) -> PairSimilarity:
    """What the stage calls: texts to vectors, blocks, largest products, likeness of both answers."""
    embed = RowEncoder(pool, others)
    names = [f"{POLICY}:{i}" for i in range(len(others))]
    return pair_similarity(Texts(rows, 0), Texts(rows, 1), Texts(rows, 0), names, names, embed, same_prompt=False)


def bare(pool: VectorPool, number: int, others: np.ndarray, rows: int) -> None:
    """Both answers of every pair times all policy answers, in chunks; nothing is kept of it."""
    out = np.empty((rows, len(others)), dtype=np.float32)
    for vectors in pool.shard(number):
        for start in range(0, len(vectors), rows):
            chunk = vectors[start : start + rows]
            np.matmul(chunk, others.T, out=out[: len(chunk)])


def compare(pool: VectorPool, samples: int) -> dict[str, Any]:
    """Alternate between both, shard after shard; then select from all of it."""
    others = policy_vectors(samples)
    chunk = fastest(pool, others)
    parts: list[PairSimilarity] = []
    products, selections = [], []
    for number, rows in enumerate(pool.shards):
        turns: dict[str, Callable[[], Any]] = {
            "bare": partial(bare, pool, number, others, chunk),
            "ours": partial(ours, pool, rows, others),
        }
        for name in sorted(turns, reverse=number % 2 == 0):
            spent, found = timed(turns[name])
            if name == "ours":
                parts.append(found)
                selections.append(spent)
            else:
                products.append(spent)

    def pick() -> Selection:
        whole = PairSimilarity(*(np.concatenate(column) for column in zip(*map(_columns, parts), strict=True)))
        return keep_top(similarity_scores(whole, "pair_min", 0.95), KEPT, "selection.keep")

    end, kept = timed(pick)
    mine, plain = np.array(selections), np.array(products)
    mine += np.array(end) * mine / mine.sum(0)  # the last step, shared out over the shards
    ratios = mine / plain
    return {
        "time_ratio": float(np.median(ratios[:, 0])),
        "cpu_ratio": float(np.median(ratios[:, 1])),
        "seconds_selection": float(mine[:, 0].sum()),
        "seconds_product": float(plain[:, 0].sum()),
        "cpu_seconds_selection": float(mine[:, 1].sum()),
        "cpu_seconds_product": float(plain[:, 1].sum()),
        "pairs_per_second": pool.pairs / float(mine[:, 0].sum()),
        "gflops_product": 4 * pool.pairs * samples * others.shape[1] / float(plain[:, 0].sum()) / 1e9,
        "bare_chunk_rows": chunk,
        "kept": len(kept),
        "ratios": ratios[:, 0].tolist(),
    }


def timed(work: Callable[[], T]) -> tuple[tuple[float, float], T]:
    """Seconds on the clock and of the processor, and what was made."""
    began, used = time.perf_counter(), time.process_time()
    made = work()
    return (time.perf_counter() - began, time.process_time() - used), made


def fastest(pool: VectorPool, others: np.ndarray) -> int:
    """The chunk with which the bare product is fastest on the first shard."""
    seconds: dict[int, list[float]] = {rows: [] for rows in BARE_ROWS}
    vectors = pool.shard(0)[0, :8192]
    for _ in range(3):
        for rows in BARE_ROWS:
            began = time.perf_counter()
            for start in range(0, len(vectors), rows):
                vectors[start : start + rows] @ others.T
            seconds[rows].append(time.perf_counter() - began)
    return min(BARE_ROWS, key=lambda rows: min(seconds[rows]))


def _columns(found: PairSimilarity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.chosen, found.rejected, found.between
