"""Tokens and masks for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTS, IGNORED, SPECIAL = ("green", "blue"), ("bright_black", "white"), "bold"


def coloured_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], mask: Sequence[bool]) -> str:
    """Rich markup that shows where tokens begin and which of them count.

    Tokens that count are green and blue in turn, the others grey and white in turn, special tokens bold. Line ends are
    shown as ⏎ and broken.

    Args:
        ids: (t,) token ids.
        mask: (t,), True where a position counts.

    Raises:
        ValueError: ids and mask differ in length.
    """
    from rich.markup import escape

    special = set(tokenizer.all_special_ids)
    parts = []
    for place, (token, counts) in enumerate(zip(ids, mask, strict=True)):
        text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        colour = (COUNTS if counts else IGNORED)[place % 2]
        style = f"{SPECIAL} {colour}" if token in special else colour
        parts.append(f"[{style}]{escape(text.replace(chr(10), '⏎' + chr(10)))}[/]")
    return "".join(parts)
