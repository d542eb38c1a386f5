"""The coloured view shows every token, in the order given, and says which count."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from inverse_alignment.text.tokenizers import train_tokenizer
from inverse_alignment.text.view import coloured_tokens

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
