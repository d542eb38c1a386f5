"""Batches of tokens: frozen, and impossible to build with inconsistent shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Prompts, left-padded, and the answers to them, right-padded.

    The prompts end in one column, so that the answers begin in one column.

    Attributes:
        prompt_ids: (b, p) int64.
        prompt_mask: (b, p) bool, True at prompt tokens.
        response_ids: (b, t) int64.
        response_mask: (b, t) bool, True at response tokens, the end token included.

    Raises:
        ValueError: shapes disagree, or a row has no prompt or no response token.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor

    def __post_init__(self) -> None:
        for ids, mask, name in (
            (self.prompt_ids, self.prompt_mask, "prompt"),
            (self.response_ids, self.response_mask, "response"),
        ):
            if ids.ndim != 2 or ids.shape != mask.shape or mask.dtype != torch.bool:
                shapes = f"{name} ids {tuple(ids.shape)} and bool mask {tuple(mask.shape)}"
                raise ValueError(f"{shapes} must be equal (b, t)")
            if not bool(mask.any(-1).all()):
                raise ValueError(f"a row has no {name} token")
        if len(self.prompt_ids) != len(self.response_ids):
            raise ValueError(f"{len(self.prompt_ids)} prompts but {len(self.response_ids)} responses")

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def input_ids(self) -> Tensor:
        """(b, p + t): prompt and response side by side."""
        return torch.cat([self.prompt_ids, self.response_ids], -1)

    @property
    def attention_mask(self) -> Tensor:
        """(b, p + t) bool."""
        return torch.cat([self.prompt_mask, self.response_mask], -1)

    @property
    def position_ids(self) -> Tensor:
        """(b, p + t): 0 at the first token that counts, so that padding does not move anything."""
        return positions(self.attention_mask)

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows of `index`, without columns that no row of them needs."""
        prompt_mask, response_mask = self.prompt_mask[index], self.response_mask[index]
        start = int(prompt_mask.any(0).to(torch.int64).argmax())
        end = int(response_mask.any(0).sum())
        return TokenBatch(
            self.prompt_ids[index][:, start:],
            prompt_mask[:, start:],
            self.response_ids[index][:, :end],
            response_mask[:, :end],
        )


@dataclass(frozen=True)
class Sequences:
    """Prompts and answers side by side without a gap, right-padded: what a causal model reads fastest.

    Padding comes after everything that counts, so a causal model needs no attention mask to ignore it. The states in
    which the n response tokens were chosen are listed row by row, as a boolean mask would list them.

    Attributes:
        input_ids: (b, p + t) int64.
        rows: (n,) row of each state.
        places: (n,) column of each state: that of the token before the response token.
        targets: (n,) the response tokens.
        mask: (b, t) bool, the response mask; `spread` puts n numbers where it is True.
    """

    input_ids: Tensor
    rows: Tensor
    places: Tensor
    targets: Tensor
    mask: Tensor

    @staticmethod
    def of(batch: TokenBatch) -> Sequences:
        """The sequences of a batch, as wide as the longest needs."""
        prompt, mask = batch.prompt_mask.sum(-1), batch.response_mask
        counts = batch.attention_mask
        columns = torch.arange(int((prompt + mask.sum(-1)).max()), device=mask.device)
        order = torch.argsort((~counts).to(torch.int8), dim=-1, stable=True)[:, : len(columns)]
        rows, steps = mask.nonzero(as_tuple=True)
        return Sequences(
            batch.input_ids.gather(-1, order), rows, prompt[rows] - 1 + steps, batch.response_ids[mask], mask
        )

    def spread(self, values: Tensor) -> Tensor:
        """(n,) numbers as (b, t), zero where nothing counts."""
        return torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device).masked_scatter(self.mask, values)


def length_groups(lengths: Sequence[int], most: int, overhead: int = 128) -> list[list[int]]:
    """Rows in groups of like length, so that few tokens are padding: the cheapest way to cut the sorted rows.

    A group of k rows costs `overhead + k · longest` tokens; dynamic programming finds the least total.

    Args:
        lengths: tokens of each row.
        most: padded tokens that a group may have; a longer row is a group of its own.
        overhead: what one more pass costs, in tokens.
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    order: list[int] = np.argsort(tokens, kind="stable").tolist()
    cost = np.zeros(len(order) + 1, dtype=np.int64)  # least cost of the first j rows
    begins = np.zeros(len(order) + 1, dtype=np.int64)  # where their last group begins
    sizes = np.arange(len(order), 0, -1)
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        first = max(0, end - max(1, most // longest))
        costs = cost[first:end] + sizes[len(order) - end + first :] * longest
        best = int(costs.argmin())
        cost[end], begins[end] = costs[best] + overhead, first + best
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = int(begins[end])
    return groups[::-1]


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token among those that count, (b, t) int64; 0 for padding."""
    return (attention_mask.to(torch.int64).cumsum(-1) - 1).clamp(min=0)


def pad_left(rows: Sequence[Sequence[int]], fill: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Token rows as (b, t) ids, padded on the left, and their bool mask."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[fill] * (width - len(row)) + list(row) for row in rows], dtype=torch.int64)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def pad_right(rows: Sequence[Sequence[int]], fill: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Token rows as (b, t) ids, padded on the right, and their bool mask."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows], dtype=torch.int64)
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids.to(device), mask.to(device)
