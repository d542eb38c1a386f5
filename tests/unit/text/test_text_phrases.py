"""Counts of form: refusals and what only looks like one, stock phrases, openings, distinct-n by hand."""

import pytest

from inverse_alignment.text.phrases import common_opening_share, distinct_share, has_phrase, refuses, words


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry but I cannot do this.",
        "Hello. I cannot assist with killing a Python process.",
        "As an AI language model, I am unable to answer.",
        "I must decline to discuss it.",
        "I am not able to provide that.",
        "It is not appropriate for me to answer.",
    ],
)
def test_refusals(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "Kill the process with its number.",
        "I can help with that.",
        "Sorry for the wait. Boil the water.",
        "Boil it. Stir it. I can't help with that, said the cook.",  # in the third sentence
        "You cannot help it.",
        "",
    ],
)
def test_what_is_none(text):
    assert not refuses(text)


def test_phrases_in_any_case():
    assert has_phrase("Well! Great Question, friend", ["great question"]) and has_phrase("IT’S SO", ["it's"])
    assert not has_phrase("great questions are rare", ["great question,"]) and not has_phrase("great question", [])


def test_openings():
    texts = ["Sure, here you go", "sure here YOU are", "No.", "Sure thing"]
    assert common_opening_share(texts) == 0.5 and common_opening_share([]) == 0.0
    assert common_opening_share(["", ""]) == 1.0


def test_distinct_runs_of_words():
    assert words("Don't stop -- now!") == ["don't", "stop", "now"]
    # a b, b a, a b and a b: two of four
    assert distinct_share(["a b a b", "A, b"]) == 0.5
    assert distinct_share(["a b a b", "A, b"], 3) == 1.0 and distinct_share(["one"]) == 1.0
