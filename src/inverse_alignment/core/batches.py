"""Batches of tokens: frozen, and impossible to build with inconsistent shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
