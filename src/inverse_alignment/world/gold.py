"""The gold reward of the advice desk: an exact score of any text, computed from the text alone.

    r(x, y) = max(-3,  Σₖ 0.6 · 0.7ᵏ⁻¹ · s₍ₖ₎                  distinct on-topic steps, best first
                     + 0.4 · opener                            a friendly first sentence
                     + 0.3 · caution                           the topic's own caution
                     - 1.0 · (1 - s₍₁₎)                        no useful step at all
                     - 0.5 · off-topic - 0.4 · repeats
                     - 0.25 · fillers - 0.15 · hedges
                     - 0.1 · max(0, exclamations - 1)
                     - 0.04 · max(0, words - 30)
                     - 0.08 · stray words
                     - 0.5 · unfinished - 0.5 · empty)

The text is cut into sentences and each is explained by the one phrase of the lexicon whose content words it covers
best, in order: with coverage c = (longest common subsequence) / (content words of the phrase), its credit is
max(0, 2c - 1), so an answer that drops or swaps a word loses a little rather than everything. s₍ₖ₎ is the k-th largest
credit among the distinct steps of the prompt's topic. A sentence that no phrase explains has credit 0 and all of its
words are stray.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from math import fsum

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.world.lexicon import (
    CLOSERS,
    FILLERS,
    FRAME_WORDS,
    FUNCTION_WORDS,
    HEDGE_WORDS,
    HEDGES,
    NEGATIONS,
    OPENERS,
    TOPICS,
    Topic,
)

STEP, STEP_DECAY = 0.6, 0.7
OPENER, CAUTION = 0.4, 0.3
HELPLESS, OFF_TOPIC, REPEAT = 1.0, 0.5, 0.4
FILLER, HEDGE, EXCLAMATION = 0.25, 0.15, 0.1
EXTRA_WORD, WORD_BOUND, STRAY = 0.04, 30, 0.08
UNFINISHED, EMPTY = 0.5, 0.5
FLOOR = -3.0


@dataclass(frozen=True)
class Phrase:
    """A phrase of the lexicon; `topic` is the keyword for steps and cautions, else empty."""

    kind: str
    text: str
    topic: str
    content: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What a text says, counted. Credits are in [0, 1] each, so sums of them are soft counts.

    Attributes:
        words, sentences, exclamations: plain counts.
        steps: credit of each distinct on-topic step, largest first.
        opener: credit of a friendly opener as the first sentence.
        caution: credit of the topic's own caution.
        warmth: openers and closers anywhere.
        fillers: filler sentences, openers after the first sentence, closers after the first closer.
        hedges: hedge sentences, and hedge words in other sentences.
        off_topic: steps and cautions of other topics, and those of this topic told the wrong way round.
        repeats: sentences that say again what an earlier one said.
        stray: words that belong to no recognised phrase.
        unfinished: the text does not end with a full stop, exclamation or question mark.
    """

    words: int
    sentences: int
    exclamations: int
    steps: tuple[float, ...]
    opener: float
    caution: float
    warmth: float
    fillers: float
    hedges: float
    off_topic: float
    repeats: int
    stray: int
    unfinished: bool


@dataclass(frozen=True)
class GoldFeatures:
    """Each term of the gold reward in reward units, penalties negative; their sum, floored, is the reward."""

    steps: float
    opener: float
    caution: float
    helpless: float
    off_topic: float
    repeats: float
    fillers: float
    hedges: float
    exclamations: float
    length: float
    stray: float
    unfinished: float
    empty: float

    @property
    def total(self) -> float:
        """The gold reward: max(-3, sum of the terms)."""
        # fsum, as `sum` of floats rounds differently from Python 3.12 on.
        return max(FLOOR, fsum(getattr(self, field.name) for field in fields(self)))


def split_words(text: str) -> tuple[str, ...]:
    """Lower-case words of a text; digits count as words."""
    return tuple(re.findall(r"[^\W_]+", text.lower()))


def split_sentences(text: str) -> list[str]:
    """Sentences with at least one word, end marks kept."""
    return [part.strip() for part in re.findall(r"[^.!?\n]+[.!?]*", text) if split_words(part)]


def content_words(text: str) -> tuple[str, ...]:
    """The words of a text that are not function words."""
    return tuple(word for word in split_words(text) if word not in FUNCTION_WORDS)


def _phrases() -> tuple[Phrase, ...]:
    fixed = [("opener", OPENERS), ("closer", CLOSERS), ("filler", FILLERS), ("hedge", HEDGES)]
    general = [Phrase(kind, text, "", content_words(text)) for kind, texts in fixed for text in texts]
    steps = [Phrase("step", step, t.keyword, content_words(step)) for t in TOPICS for step in t.steps]
    cautions = [Phrase("caution", t.caution, t.keyword, content_words(t.caution)) for t in TOPICS]
    return tuple(general + steps + cautions)


PHRASES: tuple[Phrase, ...] = _phrases()
_KNOWN = frozenset(word for phrase in PHRASES for word in phrase.content) | FUNCTION_WORDS | FRAME_WORDS | HEDGE_WORDS
_BY_WORD: dict[str, list[int]] = {}
for _index, _phrase in enumerate(PHRASES):
    for _word in dict.fromkeys(_phrase.content):
        _BY_WORD.setdefault(_word, []).append(_index)


def topic_of(prompt: Prompt) -> Topic:
    """The topic that the last user turn asks about.

    Raises:
        UserError: the turn names no topic of this world, or several.
    """
    turn = next((m.content for m in reversed(prompt.messages) if m.role == "user"), "")
    asked = set(split_words(turn))
    found = [topic for topic in TOPICS if topic.keyword in asked]
    if len(found) != 1:
        raise UserError(
            f"the gold reward knows only questions that name one topic of the advice desk; this one names {len(found)}",
            where=f"prompt {turn[:60]!r}",
            fix="score prompts made by inverse_alignment.world.text, or leave gold out of this evaluation",
        )
    return found[0]


def gold_reward(prompt: Prompt, response: str) -> float:
    """The gold reward r(x, y) of the module's equation, in [-3, 2.5].

    Args:
        prompt: a question of the advice desk; its last user turn names the topic.
        response: any text, garbled policy samples and the empty string included.

    Raises:
        UserError: the prompt is not of this world.
    """
    return gold_features(prompt, response).total


def gold_features(prompt: Prompt, response: str) -> GoldFeatures:
    """The terms of the gold reward, for explaining a score; arguments and errors as in `gold_reward`."""
    return features_of(read(prompt, response))


def features_of(reading: Reading) -> GoldFeatures:
    """The terms of the module's equation from what was counted."""
    best = reading.steps[0] if reading.steps else 0.0
    return GoldFeatures(
        steps=fsum(STEP * STEP_DECAY**k * credit for k, credit in enumerate(reading.steps)),
        opener=OPENER * reading.opener,
        caution=CAUTION * reading.caution,
        helpless=-HELPLESS * (1.0 - best),
        off_topic=-OFF_TOPIC * reading.off_topic,
        repeats=-REPEAT * reading.repeats,
        fillers=-FILLER * reading.fillers,
        hedges=-HEDGE * reading.hedges,
        exclamations=-EXCLAMATION * max(0, reading.exclamations - 1),
        length=-EXTRA_WORD * max(0, reading.words - WORD_BOUND),
        stray=-STRAY * reading.stray,
        unfinished=-UNFINISHED * reading.unfinished,
        empty=-EMPTY * (reading.words == 0),
    )


@dataclass(frozen=True)
class _Sentence:
    """One sentence, explained: its phrase if any, that phrase's credit, and what is left over."""

    key: tuple[str, ...]
    phrase: Phrase | None
    credit: float
    negated: bool
    hedge_words: int
    words: int
    stray: int


def read(prompt: Prompt, response: str) -> Reading:
    """Count what `response` says about the topic of `prompt`; see `Reading`.

    Raises:
        UserError: the prompt is not of this world.
    """
    topic = topic_of(prompt).keyword
    sentences = [_explain(sentence, topic) for sentence in split_sentences(response)]
    steps: dict[str, float] = {}
    soft = dict.fromkeys(("opener", "caution", "warmth", "fillers", "hedges", "off_topic"), 0.0)
    seen: set[tuple[str, ...]] = set()
    repeats = closers = 0
    for place, sentence in enumerate(sentences):
        credit = sentence.credit
        repeats += sentence.key in seen
        seen.add(sentence.key)
        soft["hedges"] += sentence.hedge_words
        if sentence.phrase is None:
            continue
        match _role(sentence.phrase, topic, sentence.negated):
            case "step":
                steps[sentence.phrase.text] = max(credit, steps.get(sentence.phrase.text, 0.0))
            case "caution":
                soft["caution"] = max(credit, soft["caution"])
            case "off_topic":
                soft["off_topic"] += credit
            case "opener":
                soft["warmth"] += credit
                soft["opener" if place == 0 else "fillers"] += credit
            case "closer":
                soft["warmth"] += credit
                soft["fillers"] += credit if closers else 0.0
                closers += 1
            case "filler":
                soft["fillers"] += credit
            case "hedge":
                soft["hedges"] += credit
    words = sum(sentence.words for sentence in sentences)
    return Reading(
        words=words,
        sentences=len(sentences),
        exclamations=response.count("!"),
        steps=tuple(sorted(steps.values(), reverse=True)),
        repeats=repeats,
        stray=sum(sentence.stray for sentence in sentences),
        unfinished=words > 0 and not response.rstrip().endswith((".", "!", "?")),
        **soft,
    )


def _role(phrase: Phrase, topic: str, negated: bool) -> str:
    """The kind of a phrase in this answer; advice for another topic, or told the wrong way round, is off topic."""
    if phrase.kind not in ("step", "caution"):
        return phrase.kind
    right_way = negated == (phrase.kind == "caution")
    return phrase.kind if right_way and phrase.topic == topic else "off_topic"


# Policies and annotators score the same sentences again and again: a few thousand of them make up the whole world.
@lru_cache(maxsize=65536)
def _explain(sentence: str, topic: str) -> _Sentence:
    raw = split_words(sentence)
    words = tuple(_repair(word) for word in raw)
    best, credit, rank = None, 0.0, (0.0, False, 0)
    for index in sorted({index for word in words for index in _BY_WORD.get(word, ())}):
        phrase = PHRASES[index]
        coverage = _common_subsequence(phrase.content, words) / len(phrase.content)
        # At equal coverage the prompt's own topic is meant, then the phrase that explains more of the sentence.
        candidate = (coverage, phrase.topic == topic, len(phrase.content))
        if coverage > 0.5 and candidate > rank:
            best, credit, rank = phrase, 2 * coverage - 1, candidate
    explained = frozenset(best.content) | FUNCTION_WORDS | FRAME_WORDS | HEDGE_WORDS if best else frozenset()
    return _Sentence(
        key=("phrase", best.text) if best and credit >= 0.5 else words,
        phrase=best,
        credit=credit,
        negated=not NEGATIONS.isdisjoint(words),
        hedge_words=sum(word in HEDGE_WORDS for word in words),
        words=len(raw),
        stray=sum(word not in explained for word in raw),
    )


def _common_subsequence(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Length of the longest common subsequence of two word sequences."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


@lru_cache(maxsize=65536)
def _repair(word: str) -> str:
    """The one known word within a single letter's edit of an unknown one, else the word itself.

    A mistyped word still counts as stray; repairing it only keeps the step it belongs to recognisable.
    """
    if word in _KNOWN or len(word) < 4:
        return word
    close = [known for known in _KNOWN if abs(len(known) - len(word)) <= 1 and _one_edit(word, known)]
    return close[0] if len(close) == 1 else word


def _one_edit(first: str, second: str) -> bool:
    """Whether one insertion, deletion, substitution or swap of neighbours turns one word into the other."""
    start = 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    a, b = first[start:], second[start:]
    swapped = len(a) == len(b) >= 2 and a[1] + a[0] + a[2:] == b
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or swapped
