"""The six source policies of the advice desk: who wrote the answers. Each has a style and its own range of quality."""

from __future__ import annotations

from dataclasses import dataclass

from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.records import Prompt
from inverse_alignment.world.draws import Draws
from inverse_alignment.world.gold import topic_of
from inverse_alignment.world.lexicon import CAUTION_FRAMES, CLOSERS, FILLERS, HEDGES, OPENERS, TOPICS, Topic


@dataclass(frozen=True)
class Source:
    """How one source writes. Probabilities are per answer, that of `off_topic` per step.

    Attributes:
        summary: the style in a few words.
        frames: what a step is put into, `{phrase}` being the step; the first frame is for the first step alone where
            `opens_with_first` holds.
        steps: weights of saying 1, 2, ... steps.
        openers, closers, fillers, hedges: the phrases it uses, and `n_*` weights of using 0, 1, ... of them.
        caution: probability of giving the topic's caution.
        off_topic: probability that a step belongs to another topic.
        repeat: probability that one of the steps is said again at the end.
        mark: end mark of every sentence.
    """

    summary: str
    frames: tuple[str, ...]
    steps: tuple[float, ...]
    opens_with_first: bool = False
    openers: tuple[str, ...] = ()
    n_openers: tuple[float, ...] = (1.0,)
    closers: tuple[str, ...] = ()
    n_closers: tuple[float, ...] = (1.0,)
    fillers: tuple[str, ...] = ()
    n_fillers: tuple[float, ...] = (1.0,)
    hedges: tuple[str, ...] = ()
    n_hedges: tuple[float, ...] = (1.0,)
    caution: float = 0.0
    off_topic: float = 0.0
    repeat: float = 0.0
    mark: str = "."


SOURCES: dict[str, Source] = {
    "expert": Source(
        summary="on-topic steps in order, friendly and concise",
        frames=("First, {phrase}.", "Then {phrase}.", "Next, {phrase}.", "After that, {phrase}."),
        opens_with_first=True,
        steps=(0, 0.15, 0.35, 0.35, 0.15),
        openers=OPENERS[:3],
        n_openers=(0.4, 0.6),
        caution=0.4,
        off_topic=0.06,
    ),
    "coach": Source(
        summary="warm opener, few steps, encouragement",
        frames=("You can {phrase}.", "Try to {phrase}.", "Let us {phrase}."),
        steps=(0.3, 0.45, 0.25),
        openers=OPENERS[2:],
        n_openers=(0, 0.8, 0.2),
        closers=CLOSERS,
        n_closers=(0.15, 0.6, 0.25),
        caution=0.1,
        off_topic=0.08,
    ),
    "manual": Source(
        summary="terse imperatives, no warmth",
        frames=("{phrase}.",),
        steps=(0, 0, 0.25, 0.35, 0.25, 0.15),
        caution=0.3,
        off_topic=0.15,
        repeat=0.2,
    ),
    "lawyer": Source(
        summary="hedges and cautions around few steps",
        frames=(
            "You may want to {phrase}.",
            "It is often wise to {phrase}.",
            "Perhaps {phrase}.",
            "You might {phrase}.",
        ),
        steps=(0.25, 0.45, 0.3),
        hedges=HEDGES,
        n_hedges=(0, 0.45, 0.4, 0.15),
        caution=0.7,
        off_topic=0.05,
    ),
    "salesman": Source(
        summary="exclamation marks, filler and plugs",
        frames=("Just {phrase} today.", "Simply {phrase}.", "Now {phrase}."),
        steps=(0.2, 0.4, 0.4),
        openers=OPENERS[3:],
        n_openers=(0.7, 0.3),
        fillers=FILLERS[:7],
        n_fillers=(0, 0.4, 0.4, 0.2),
        off_topic=0.1,
        mark="!",
    ),
    "novice": Source(
        summary="steps of other topics, repetition, guesses",
        frames=("I think you {phrase}.", "I guess you {phrase}.", "Someone told me to {phrase}.", "Also {phrase}."),
        steps=(0, 0.3, 0.45, 0.25),
        openers=OPENERS[:2],
        n_openers=(0.65, 0.35),
        fillers=FILLERS[7:],
        n_fillers=(0.6, 0.4),
        caution=0.05,
        off_topic=0.35,
        repeat=0.35,
    ),
}


def demonstrate(source: str, prompt: Prompt, index: int, *, seed: int = 0) -> str:
    """The `index`-th answer of a source to a prompt: always the same text for the same arguments.

    Args:
        source: a name in `SOURCES`.
        prompt: a question of the advice desk.
        index: which of the source's answers, from 0; neighbouring indices share nothing.
        seed: the world's seed.

    Raises:
        UserError: unknown source, or a prompt that is not of this world.
    """
    if source not in SOURCES:
        raise UserError(f"unknown source '{source}'", where="demonstrate", fix=nearest(source, list(SOURCES)))
    style, topic = SOURCES[source], topic_of(prompt)
    draws = Draws("advice-desk answer", seed, source, prompt.text(), index)
    sentences = _some(draws, style.openers, style.n_openers)
    sentences += _some(draws, style.hedges, style.n_hedges)
    sentences += _steps(draws, style, topic)
    if draws.chance(style.caution):
        sentences.append(draws.choice(CAUTION_FRAMES).format(phrase=topic.caution))
    for filler in _some(draws, style.fillers, style.n_fillers):
        sentences.insert(1 + int(draws.uniform() * len(sentences)), filler)
    sentences += _some(draws, style.closers, style.n_closers)
    return " ".join(_sentence(text, style.mark) for text in sentences)


def _some(draws: Draws, phrases: tuple[str, ...], weights: tuple[float, ...]) -> list[str]:
    """A few of the phrases, none twice; weights[k] is the weight of taking k."""
    count = draws.weighted(range(len(weights)), weights)
    return draws.shuffled(phrases)[:count]


def _steps(draws: Draws, style: Source, topic: Topic) -> list[str]:
    count = draws.weighted(range(1, len(style.steps) + 1), style.steps)
    said = []
    for step in draws.shuffled(topic.steps)[:count]:
        if draws.chance(style.off_topic):
            other = draws.choice([t for t in TOPICS if t is not topic])
            step = draws.choice(other.steps)
        said.append(step)
    if draws.chance(style.repeat):
        said.append(draws.choice(said))
    later = style.frames[1:] if style.opens_with_first else style.frames
    frames = [style.frames[0] if style.opens_with_first and i == 0 else draws.choice(later) for i in range(len(said))]
    return [frame.format(phrase=step) for frame, step in zip(frames, said, strict=True)]


def _sentence(text: str, mark: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + mark
