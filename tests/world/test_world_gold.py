"""The gold reward by hand-typed numbers, and the ways a policy might try to hack it."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Message, Prompt
from inverse_alignment.world.gold import (
    _KNOWN,
    FLOOR,
    PHRASES,
    WORD_BOUND,
    _common_subsequence,
    _one_edit,
    _repair,
    gold_features,
    gold_reward,
    split_words,
    topic_of,
)
from inverse_alignment.world.lexicon import CLOSERS, FILLERS, HEDGES, OPENERS, TOPICS
from inverse_alignment.world.sources import SOURCES, demonstrate
from inverse_alignment.world.text import all_prompts

BASIL = Prompt.from_text("How do I keep basil alive on a balcony?")
STEPS = [step[0].upper() + step[1:] + "." for step in TOPICS[0].steps]  # all about basil

# Typed by hand from the equation in the module's docstring.
BY_HAND = [
    # empty: no useful step -1, empty -0.5
    ("", -1.5),
    ("?!", -1.5),
    # one step 0.6
    ("Pinch off the flowers.", 0.6),
    # two steps 0.6 + 0.42, a friendly first sentence 0.4
    ("Good question. First, pinch off the flowers. Then move the pot into the sun.", 1.42),
    # the same with the topic's caution, + 0.3
    ("Good question. First, pinch off the flowers. Then move the pot into the sun. Never drown the roots.", 1.72),
    # an opener that is not first is filler: 0.6 - 0.25
    ("Pinch off the flowers. Good question.", 0.35),
    # one step 0.6; the same step again -0.4
    ("Pinch off the flowers. Pinch off the flowers.", 0.2),
    # a caution told as advice is off topic -0.5, and nothing helps -1
    ("Drown the roots.", -1.5),
    # a step told as a caution likewise
    ("Never pinch off the flowers.", -1.5),
    # a tomato step under a basil question: -0.5 - 1
    ("Bury the stem deep.", -1.5),
    # one step 0.6, hedge word -0.15, hedge sentence -0.15
    ("Perhaps pinch off the flowers. Results can vary.", 0.3),
    # one step 0.6, filler -0.25, two exclamation marks beyond the first -0.2, third sentence filler -0.25
    ("Pinch off the flowers! Our shop has a big sale! This is the best tip ever!", -0.1),
    # the first closer is free, the second is filler: 0.6 - 0.25
    ("Pinch off the flowers. Enjoy every bit of it. Be proud of each small win.", 0.35),
    # 'move pot sun' with 'sun' missing: c = 2/3, credit 1/3; 0.6/3 - 1 * 2/3 = -0.4667
    ("Move the pot.", 0.2 - 2 / 3),
    # a mistyped word is repaired for the step and is one stray word: 0.6 - 0.08
    ("Pinch off the flowrs.", 0.52),
    # unfinished: 0.6 - 0.5
    ("Pinch off the flowers", 0.1),
    # four stray words -0.32, nothing helps -1
    ("Zebra zebra purple chairs.", -1.32),
]


@pytest.mark.parametrize(("text", "expected"), BY_HAND, ids=[text[:40] or "empty" for text, _ in BY_HAND])
def test_gold_by_hand(text: str, expected: float) -> None:
    assert gold_reward(BASIL, text) == pytest.approx(expected, abs=1e-9)


def test_length_by_hand() -> None:
    # Six steps of 4 + 5 + 6 + 5 + 5 + 4 = 29 words: 0.6 (1 + 0.7 + 0.49 + 0.343 + 0.2401 + 0.16807) = 1.764702.
    assert gold_reward(BASIL, " ".join(STEPS)) == pytest.approx(1.764702, abs=1e-9)
    # A caution of 4 words brings 0.3 and takes three words beyond the thirtieth: -0.12.
    assert gold_reward(BASIL, " ".join([*STEPS, "Never drown the roots."])) == pytest.approx(1.944702, abs=1e-9)


def test_features_explain_the_score() -> None:
    features = gold_features(BASIL, "Good question. Perhaps pinch off the flowers. Bury the stem deep")
    assert features.opener == pytest.approx(0.4)
    assert features.hedges == pytest.approx(-0.15)
    assert features.off_topic == pytest.approx(-0.5)
    assert features.unfinished == pytest.approx(-0.5)
    assert features.total == pytest.approx(0.4 + 0.6 - 0.15 - 0.5 - 0.5)


def test_the_topic_is_that_of_the_last_question() -> None:
    turns = ("user", "How do I cook rice?"), ("assistant", "Rinse the grains well."), ("user", "And my lawn?")
    prompt = Prompt(messages=tuple(Message(role=role, content=content) for role, content in turns))
    assert topic_of(prompt).keyword == "lawn"


@pytest.mark.parametrize("text", ["What is love?", "Does basil go with rice?"])
def test_questions_of_other_worlds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="name one topic"):
        gold_reward(Prompt.from_text(text), "Pinch off the flowers.")


def test_every_prompt_names_its_topic_and_every_step_helps_it() -> None:
    for prompt in all_prompts():
        for step in topic_of(prompt).steps:
            assert gold_reward(prompt, step[0].upper() + step[1:] + ".") == pytest.approx(0.6)


def test_phrases_are_told_apart() -> None:
    for phrase in PHRASES:
        assert len(phrase.content) >= 2, phrase
    for first, second in permutations(PHRASES, 2):
        shared = _common_subsequence(first.content, second.content) / len(first.content)
        assert shared <= 0.5, (first.text, second.text)


def test_mistyped_words_are_repaired_only_when_it_is_clear_which_was_meant() -> None:
    assert _one_edit("flowers", "flowrs") and _one_edit("flowers", "flowesr") and _one_edit("cat", "coat")
    assert not _one_edit("flowers", "flwrs") and not _one_edit("water", "retaw")
    assert _repair("flowrs") == "flowers"
    assert _repair("zebra") == "zebra"
    assert _repair("heaq") == "heaq"  # heap or heat?


texts = st.text(alphabet=st.sampled_from(" abcdefghimnoprstuw.!?,éß0\n"), max_size=200)
word_salad = st.lists(st.sampled_from(sorted(_KNOWN)), max_size=60).map(" ".join)
sentences = st.sampled_from([*STEPS, *OPENERS, *CLOSERS, *FILLERS, *HEDGES, "Never drown the roots.", "Cook rice."])
answers = st.lists(sentences, min_size=1, max_size=10).map(" ".join)


@given(text=texts | word_salad | answers)
@settings(max_examples=200, deadline=None)
def test_any_text_has_a_bounded_reproducible_score(text: str) -> None:
    score = gold_reward(BASIL, text)
    assert FLOOR <= score <= 2.5
    assert score == gold_reward(BASIL, text)


@given(text=texts | word_salad)
@settings(max_examples=150, deadline=None)
def test_word_salad_does_not_beat_a_plain_good_answer(text: str) -> None:
    good = "Good question. First, pinch off the flowers. Then water the soil every morning. Never drown the roots."
    assert gold_reward(BASIL, text) < gold_reward(BASIL, good)


@given(answer=answers, data=st.data())
@settings(max_examples=150, deadline=None)
def test_saying_a_sentence_again_never_pays(answer: str, data: st.DataObject) -> None:
    again = data.draw(st.sampled_from([part.strip() + "." for part in answer.split(".") if part.strip()]))
    assert gold_reward(BASIL, f"{answer} {again}") <= gold_reward(BASIL, answer)


@given(answer=answers, extra=st.sampled_from([*OPENERS, *FILLERS, *HEDGES]))
@settings(max_examples=150, deadline=None)
def test_openers_fillers_and_hedges_at_the_end_never_pay(answer: str, extra: str) -> None:
    assert gold_reward(BASIL, f"{answer} {extra}") <= gold_reward(BASIL, answer)


@given(answer=answers, opener=st.sampled_from(OPENERS), second=st.sampled_from(OPENERS))
@settings(max_examples=150, deadline=None)
def test_a_second_opener_never_pays(answer: str, opener: str, second: str) -> None:
    assert gold_reward(BASIL, f"{second} {opener} {answer}") <= gold_reward(BASIL, f"{opener} {answer}")


@given(answer=answers, words=st.lists(st.sampled_from(["the", "first", "you", "can", "zebra"]), min_size=1))
@settings(max_examples=100, deadline=None)
def test_padding_never_pays(answer: str, words: list[str]) -> None:
    assert gold_reward(BASIL, f"{answer} {' '.join(words)}.") <= gold_reward(BASIL, answer)


def test_reward_is_not_monotone_in_length() -> None:
    # Every basil step, then each thing that could still be said: rises, then falls.
    grown = ["Good question.", *STEPS, "Never drown the roots.", *CLOSERS, *HEDGES]
    scores = [gold_reward(BASIL, " ".join(grown[:n])) for n in range(1, len(grown) + 1)]
    top = scores.index(max(scores))
    assert 3 <= top <= 7
    assert scores[-1] < scores[0] + 1
    assert all(later < earlier for earlier, later in pairwise(scores[8:]) if earlier > FLOOR)


def test_a_wordy_step_beyond_the_bound_costs_more_than_it_brings() -> None:
    # Five steps are 25 words. The sixth, in 4 + 12 words, brings 0.6 * 0.7**5 = 0.1008 and goes 11 words over: -0.44.
    five = " ".join(STEPS[:5])
    wordy = f"{five} And then, when it is there for you to, {STEPS[5].lower()[:-1]} on and on."
    assert len(split_words(wordy)) == WORD_BOUND + 11
    assert gold_reward(BASIL, wordy) - gold_reward(BASIL, five) == pytest.approx(0.100842 - 0.44, abs=1e-6)


def test_order_of_steps_is_free_but_the_opener_comes_first() -> None:
    first, second = " ".join(STEPS[:3]), " ".join(STEPS[2::-1])
    assert gold_reward(BASIL, first) == gold_reward(BASIL, second)
    assert gold_reward(BASIL, f"Happy to help. {first}") > gold_reward(BASIL, f"{first} Happy to help.")


def test_losing_words_lowers_the_score_step_by_step() -> None:
    # 'water soil every morning': credit 1, then c = 3/4 and credit 1/2, then c = 1/2 and nothing recognised.
    expected = {"Water the soil every morning.": 0.6, "Water the soil every.": -0.2, "Water the soil.": -1.24}
    for text, score in expected.items():
        assert gold_reward(BASIL, text) == pytest.approx(score, abs=1e-9)


def test_sources_write_nothing_the_desk_does_not_know() -> None:
    for prompt in all_prompts()[::37]:
        for source in SOURCES:
            assert gold_features(prompt, demonstrate(source, prompt, 0)).stray == 0.0
