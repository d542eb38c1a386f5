"""The view shows every token, in the order given, and says which count: in colours, or with marks below."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from inverse_alignment.text.tokenizers import load_tokenizer, train_tokenizer
from inverse_alignment.text.view import coloured_tokens, marked_tokens, shown_pieces

STORIES = Path(__file__).parents[3].parent / "shared" / "models" / "stories260K"
TOKENIZER = train_tokenizer(["the cat sat on the mat. "] * 20, 300)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab [](/)\\the\n", max_size=20))
def test_markup_holds_the_text_and_nothing_else(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    shown = Text.from_markup(coloured_tokens(TOKENIZER, ids, [True] * len(ids))).plain
    assert shown == text.replace("\n", "⏎\n")


def test_colours_tell_mask_and_special_tokens():
    markup = coloured_tokens(TOKENIZER, [2, 203, 1], [False, True, True])
    assert markup == "[bold bright_black]<|user|>[/][blue]⏎\n[/][bold green]<|end|>[/]"


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        coloured_tokens(TOKENIZER, [1, 2], [True])
    with pytest.raises(ValueError, match="longer"):
        marked_tokens(TOKENIZER, [1], [True, True])


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_the_position_that_scores_is_reversed():
    assert coloured_tokens(TOKENIZER, [2, 1], [False, True], scored=1).endswith("[bold reverse blue]<|end|>[/]")


def test_marks_by_hand():
    ids = [2, 203, *ids_of("the cat"), 1]
    assert marked_tokens(TOKENIZER, ids, [False, False, False, True, True], scored=4) == [
        "│<|user|>│⏎│",
        "│........│.│",
        "│the│ cat│<|end|>│",
        "│...│====│^^^^^^^│",
    ]
    assert marked_tokens(TOKENIZER, ids[2:4], [True, True]) == ["│the│ cat│", "│===│====│"]
    assert marked_tokens(TOKENIZER, [], []) == []


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="ab 日é\u0301🙂\x1b\t\r\u200b\n", max_size=30), width=st.integers(12, 40), data=st.data())
def test_marks_lie_below_their_tokens_and_lines_end_in_time(text, width, data):
    ids = ids_of(text)
    mask = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    lines = marked_tokens(TOKENIZER, ids, mask, width=width)
    pieces = [piece for line in lines[::2] for piece in line.split("│")[1:-1]]
    marks = [mark for line in lines[1::2] for mark in line.split("│")[1:-1]]
    assert pieces == shown_pieces(TOKENIZER, ids)
    assert marks == [("=" if counts else ".") * cell_len(piece) for piece, counts in zip(pieces, mask, strict=True)]
    assert all(marks)  # no token is without a mark
    assert all(cell_len(line) <= width for line in lines)
    assert all(cell_len(a) == cell_len(b) for a, b in zip(lines[::2], lines[1::2], strict=True))


def test_coloured_lines_break_between_tokens():
    ids = ids_of("the cat sat on\nthe mat")
    mask = [True] * len(ids)
    narrow = Text.from_markup(coloured_tokens(TOKENIZER, ids, mask, width=9)).plain
    assert narrow.replace("⏎\n", "¶").replace("\n", "|") == "the cat| sat on¶the mat"
    assert "\n" not in Text.from_markup(coloured_tokens(TOKENIZER, ids_of("the cat sat on"), mask[:4])).plain


def test_nothing_in_a_text_can_command_a_terminal():
    pieces = shown_pieces(TOKENIZER, ids_of("\x1b[31m\x07\u202e"))
    assert pieces[0] == "\\x1b" and "\\x07" in pieces
    assert all(piece.isprintable() for piece in pieces)


def test_a_part_of_a_character_is_shown_as_such():
    assert shown_pieces(TOKENIZER, ids_of("é")) == ["\ufffd", "\ufffd"]  # two bytes, no merge for them


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no pretrained tokenizer at {STORIES}")
def test_a_sentencepiece_keeps_its_leading_space():
    """Decoded alone it loses it."""
    tokenizer = load_tokenizer(STORIES).tokenizer
    upon = tokenizer.convert_tokens_to_ids("▁upon")
    assert tokenizer.decode([upon]) == "upon"
    assert shown_pieces(tokenizer, [upon, upon]) == [" upon", " upon"]
