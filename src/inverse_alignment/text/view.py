"""Tokens and masks for people: in colours on a terminal, with a line of marks below them elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inverse_alignment.text.render import encode_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTS, IGNORED, SPECIAL, SCORED = ("green", "blue"), ("bright_black", "white"), "bold", "reverse"
COUNTS_MARK, IGNORED_MARK, SCORED_MARK = "=", ".", "^"
BETWEEN = "│"  # not the ASCII bar, which special tokens are full of
LINE_END = "⏎"
_SHOWN = {"\n": LINE_END, "\t": "⇥", "\r": "␍"}


def shown_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What every token adds to the text, in letters that can be seen.

    Line ends are shown as ⏎, tabs as ⇥, other characters that cannot be printed by their code, and a token that holds a
    part of a character as �. Nothing in a text can give commands to a terminal.
    """
    anchor = encode_response(tokenizer, "a")[:-1]  # alone, a token of some tokenizers loses its leading space
    alone = _decoded(tokenizer, anchor)
    pieces: dict[int, str] = {}
    for token in dict.fromkeys(ids):
        after = _decoded(tokenizer, [*anchor, token])
        piece = after.removeprefix(alone) if after.startswith(alone) else _decoded(tokenizer, [token])
        pieces[token] = _visible(piece or str(tokenizer.convert_ids_to_tokens(token)))
    return [pieces[token] for token in ids]


def coloured_tokens(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    mask: Sequence[bool],
    scored: int | None = None,
    width: int | None = None,
) -> str:
    """Rich markup that shows where tokens begin and which of them count.

    Tokens that count are green and blue in turn, the others grey and white in turn, special tokens bold, and the
    position that scores reversed. Line ends are shown as ⏎ and broken.

    Args:
        ids: (t,) token ids.
        mask: (t,), True where a position counts.
        scored: the position that a reward model reads its number at, if one is shown.
        width: break lines between tokens so that they have at most so many columns, if the longest token allows.

    Raises:
        ValueError: ids and mask differ in length.
    """
    from rich.cells import cell_len
    from rich.markup import escape

    special = set(tokenizer.all_special_ids)
    parts, used = [], 0
    for place, (token, piece, counts) in enumerate(zip(ids, shown_pieces(tokenizer, ids), mask, strict=True)):
        styles = [SPECIAL] if token in special else []
        styles += [SCORED] if place == scored else []
        style = " ".join([*styles, (COUNTS if counts else IGNORED)[place % 2]])
        used += cell_len(piece)
        if width is not None and used > width:
            parts.append("\n")
            used = cell_len(piece)
        parts.append(f"[{style}]{escape(piece.replace(LINE_END, LINE_END + chr(10)))}[/]")
        used = 0 if piece.endswith(LINE_END) else used
    return "".join(parts)


def marked_tokens(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    mask: Sequence[bool],
    scored: int | None = None,
    width: int = 100,
) -> list[str]:
    """The same without colours: lines of tokens between bars, each with a line of marks below it.

    A token that counts is underlined by `=`, one that does not by `.`, the position that scores by `^`. A line ends
    where the text's does, or before `width`.

    Args:
        ids: (t,) token ids.
        mask: (t,), True where a position counts.
        scored: the position that a reward model reads its number at, if one is shown.
        width: most columns of a line, as far as the longest token allows.

    Raises:
        ValueError: ids and mask differ in length.
    """
    from rich.cells import cell_len

    lines: list[str] = []
    tokens = marks = BETWEEN
    for place, (piece, counts) in enumerate(zip(shown_pieces(tokenizer, ids), mask, strict=True)):
        mark = SCORED_MARK if place == scored else COUNTS_MARK if counts else IGNORED_MARK
        columns = cell_len(piece)
        if tokens != BETWEEN and cell_len(tokens) + columns + 1 > width:
            lines += [tokens, marks]
            tokens = marks = BETWEEN
        tokens, marks = f"{tokens}{piece}{BETWEEN}", f"{marks}{mark * columns}{BETWEEN}"
        if piece.endswith(LINE_END):
            lines += [tokens, marks]
            tokens = marks = BETWEEN
    return [*lines, tokens, marks] if tokens != BETWEEN else lines


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # a list of ids gives one text
    return text


def _visible(piece: str) -> str:
    from rich.cells import cell_len

    shown = "".join(_SHOWN.get(c) or (c if c.isprintable() else c.encode("unicode-escape").decode()) for c in piece)
    return shown if cell_len(shown) else f"◌{shown}"  # a mark that belongs above or below the letter before it
