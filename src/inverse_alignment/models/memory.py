"""How much memory a stage needs on its device: arithmetic on sizes, all in bytes. No model is made here.

What a stage keeps all the time (weights, optimiser states) is told from what comes and goes (gradients, activations,
the cache of keys and values). A stage passes through phases; it needs what it keeps and the most that one phase adds.
Sizes of single models come from `models.footprint`. Data, the program itself and the allocator's rounding are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

FLOAT = 4
"""Bytes of a number in float32, in which everything but a checkpoint's first training is computed."""
GIB = 2**30
HEAD_NUMBERS = 2**24
"""Logits that PPO and rollouts have at one time; `models.log_probs.HEAD_NUMBERS`, held equal by a test."""
LEARNED_LOGITS = 3
"""Tensors as large as the logits in the backward pass of a log-probability: log softmax, its gradient, theirs."""
COMPARED_LOGITS = 3.5
"""Tensors as large as two policies' logits while they are compared: theirs, and in the exact KL 2.5 times as many."""
DRAWN_BYTES = 24
"""Bytes per logit while a token is drawn: two in float32, softmax and its sum in float64."""
TILE = 4096, 32_768
"""Tokens and vocabulary entries of a tile of TRL's fused language-model head."""
TILES_IN_TORCH = 8.25
"""Tensors as large as a tile in its backward pass where torch computes it; Triton overwrites the one there is."""


@dataclass(frozen=True)
class Footprint:
    """The sizes of a model from which those of a stage follow.

    Attributes:
        parameters: numbers in its weights, tied ones counted once; adapters not included.
        trunk: those of them that are below the head: what a value model copies.
        adapters: numbers in one set of adapters; 0 without.
        embedding: numbers in the table of token embeddings.
        tied: whether that table is the head's matrix too, so that it has two gradients to add up.
        vocabulary: entries of the head; 0 for a reward model.
        capped: whether logits are more than a linear map of the states, and so are made for every token.
        hidden: d, width of the states.
        layers, heads, kv_heads, head_dim: of attention.
        reading: bytes per token that a pass without gradients has at one time.
        learning: bytes per token that a forward and a backward pass have at one time, gradients of weights left out.
        itemsize: bytes of a number in its weights.
    """

    parameters: int
    trunk: int
    adapters: int
    embedding: int
    tied: bool
    vocabulary: int
    capped: bool
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    reading: float
    learning: float
    itemsize: int = FLOAT

    @property
    def weights(self) -> int:
        """Bytes of all weights, adapters included."""
        return (self.parameters + self.adapters) * self.itemsize

    @property
    def trained(self) -> int:
        """Numbers that learn: the adapters where there are some, or else everything."""
        return self.adapters or self.parameters

    @property
    def trained_trunk(self) -> int:
        """The same of a value model on a copy of the trunk, its head `w · h + b` included."""
        return (self.adapters or self.trunk) + self.hidden + 1

    def cache(self, rows: int, tokens: int) -> int:
        """Bytes of the keys and values of some rows: see `kv_cache`."""
        return kv_cache(self.layers, self.kv_heads, self.head_dim, self.itemsize, rows, tokens)


def believing(model: Footprint, q: Literal["pretrained", "fresh", "none"], weighted: bool) -> Footprint:
    """The sizes of `models.tqr.Tqr` on a policy's trunk: two numbers of a reward for each token, its Q, and weights.

    Args:
        model: of the policy.
        q: see `models.tqr.TqrForm`.
        weighted: likewise; queries and keys as wide as the states.
    """
    own = 2 * (model.hidden + 1) + (2 * model.hidden**2 if weighted else 0)
    match q:
        case "pretrained":
            return replace(model, parameters=model.parameters + own)
        case "fresh":
            return replace(model, parameters=model.trunk + model.vocabulary * model.hidden + own, tied=False)
        case "none":
            return replace(model, parameters=model.trunk + own, tied=False, vocabulary=0)


@dataclass(frozen=True)
class Phase:
    """What one part of a stage adds to what the stage keeps, in bytes."""

    name: str
    gradients: int = 0
    activations: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        """All three."""
        return self.gradients + self.activations + self.cache


@dataclass(frozen=True)
class Need:
    """What a stage needs on its device, in bytes.

    Attributes:
        stage: its name.
        kept: what it keeps all the time, by what it is.
        phases: what comes and goes.
    """

    stage: str
    kept: Mapping[str, int]
    phases: Sequence[Phase] = field(default_factory=tuple)

    @property
    def peak(self) -> Phase:
        """The phase that adds most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def total(self) -> int:
        """What is kept, and the most that a phase adds."""
        return sum(self.kept.values()) + self.peak.total


@dataclass(frozen=True)
class Writing:
    """How answers are written and looked at.

    Attributes:
        rows: answers written at once.
        prompt: most tokens of a prompt.
        answer: most tokens of an answer.
    """

    rows: int
    prompt: int
    answer: int

    @property
    def width(self) -> int:
        """Most tokens of both together."""
        return self.prompt + self.answer


# ------------------------------------------------------------------------------------------------- parts


def gradients(trained: int, itemsize: int = FLOAT) -> int:
    """Bytes of the gradients of n numbers that learn: `n · itemsize`."""
    return trained * itemsize


def adamw(trained: int, itemsize: int = FLOAT) -> int:
    """Bytes of AdamW's two moments of n numbers that learn: `2 · n · itemsize`."""
    return 2 * trained * itemsize


def kv_cache(layers: int, kv_heads: int, head_dim: int, itemsize: int, rows: int, tokens: int) -> int:
    """Bytes of the cached keys and values of some sequences:
    `2 · layers · kv_heads · head_dim · itemsize · rows · tokens`.
    """
    return 2 * layers * kv_heads * head_dim * itemsize * rows * tokens


def passes(rows: int, width: int, most: int) -> tuple[int, int]:
    """How often a model is asked, and the most rows it reads at once: what fits into `most` tokens, at least one."""
    at_once = min(rows, max(1, most // width))
    return -(-rows // at_once), at_once


def drawing(model: Footprint, writing: Writing) -> Phase:
    """Writing answers: reading the prompts with their cache, or, later, the whole cache, one tensor of it copied as it
    grows, heads that share keys and values spread out in one layer, and `DRAWN_BYTES` for each row and logit.
    """
    full = model.cache(writing.rows, writing.width)
    shared = model.heads // model.kv_heads
    copied = full // (2 * model.layers) + (full // model.layers * shared if shared > 1 else 0)
    first = int(model.reading * writing.rows * writing.prompt)
    later = copied + DRAWN_BYTES * writing.rows * model.vocabulary
    return Phase(
        "generate", activations=max(first - (full - model.cache(writing.rows, writing.prompt)), later), cache=full
    )


def looking(model: Footprint, writing: Writing, rows: int, most: int) -> Phase:
    """Asking policy and reference about answers: a pass over `most` tokens, or the logits of both a part at a time."""
    at_once = passes(rows, writing.width, most)[1]
    states = at_once * writing.answer * model.hidden * FLOAT
    numbers = at_once * (writing.width if model.capped else writing.answer) * model.vocabulary
    logits = COMPARED_LOGITS * (2 * numbers if model.capped else min(2 * numbers, HEAD_NUMBERS)) * FLOAT
    return Phase("look", activations=int(max(model.reading * at_once * writing.width + states, 3 * states + logits)))


def scoring(model: Footprint, rows: int, width: int) -> Phase:
    """Scoring texts with a reward model: one pass without gradients, `rows · width` tokens."""
    return Phase("score", activations=int(model.reading * rows * width))


def together(need: Need, processes: int) -> Need:
    """What several processes on one machine need, each of which needs this."""
    phases = [
        Phase(phase.name, *(processes * size for size in (phase.gradients, phase.activations, phase.cache)))
        for phase in need.phases
    ]
    return Need(need.stage, {name: processes * size for name, size in need.kept.items()}, phases)


def learning(model: Footprint, tokens: int, head: int, copies: int = 0) -> Phase:
    """A forward and a backward pass in one go, `head` bytes for the logits, `copies` for a copy of the gradients.

    At its beginning there are all activations and the head's gradient, at its end all gradients, a tied table's twice;
    in between, the ones make room for the others. Hence the larger of the two ends.
    """
    every = gradients(model.trained, model.itemsize)
    table = 0 if model.adapters else model.embedding * model.itemsize
    first = int(model.learning * tokens) + head + (table if model.vocabulary else 0) + copies
    last = every + (table if model.tied else 0) + copies
    return Phase("learn", gradients=min(every, last), activations=max(first, last) - min(every, last))


# ------------------------------------------------------------------------------------------------- stages


def sft(model: Footprint, rows: int, width: int, triton: bool, processes: int = 1) -> Need:
    """Supervised fine-tuning: weights, AdamW, and a minibatch of demonstrations of full length.

    Args:
        rows: of one process.
        triton: whether TRL's fused head runs as Triton kernels, as it does on a GPU.
        processes: that share out a batch; several have their gradients twice, as torch's DDP sends them in buckets.
    """
    tokens, entries = min(rows * width, TILE[0]), min(model.vocabulary, TILE[1])
    head = tokens * TILE[1] * model.itemsize if triton else int(TILES_IN_TORCH * tokens * entries * FLOAT)
    widened = model.embedding * FLOAT if model.itemsize < FLOAT else 0  # the head's gradient is summed in float32
    return Need(
        "sft",
        {"policy": model.weights, "optimiser": adamw(model.trained, model.itemsize)},
        [learning(model, rows * width, head + widened, _buckets(model, processes))],
    )


def _buckets(model: Footprint, processes: int) -> int:
    return gradients(model.trained, model.itemsize) if processes > 1 else 0


def direct(model: Footprint, sequences: int, width: int, references: int, processes: int = 1) -> Need:
    """A direct method: weights, AdamW, frozen models of the policy's size, a batch of sequences of full length.

    Args:
        sequences: answers in one forward pass.
        references: frozen models beside it: the SFT policy, and a reference that is not the same.
    """
    tokens = sequences * width
    logits = min(tokens * model.vocabulary, HEAD_NUMBERS) * FLOAT
    return Need(
        "direct",
        {
            "policy": model.weights,
            "reference": references * model.parameters * model.itemsize,
            "optimiser": adamw(model.trained, model.itemsize),
        },
        [learning(model, tokens, int(COMPARED_LOGITS * logits), _buckets(model, processes))],
    )


def reward_training(
    stage: str,
    model: Footprint,
    sequences: int,
    width: int,
    scored: int,
    incumbent: int = 0,
    processes: int = 1,
) -> Need:
    """Training of a reward model: weights, AdamW, a minibatch of sequences of full length; then it scores texts.

    One with a Q (see `believing`) has logits of its tokens besides, some at a time if there are many.

    Args:
        sequences: in a minibatch of one process; a pair is two. 0: it is not trained, only asked.
        scored: texts scored at once.
        incumbent: bytes of the reward model that is there already.
        processes: see `sft`.
    """
    kept = {"reward": model.weights + incumbent}
    if not sequences:
        return Need(stage, kept, [scoring(model, scored, width)])
    logits = int(LEARNED_LOGITS * min(sequences * width * model.vocabulary, HEAD_NUMBERS) * FLOAT)
    return Need(
        stage,
        {**kept, "optimiser": adamw(model.trained, model.itemsize)},
        [learning(model, sequences * width, logits, _buckets(model, processes)), scoring(model, scored, width)],
    )


def rollout(model: Footprint, writing: Writing, look_tokens: int, served: bool = False) -> Need:
    """Answers of a policy, and what the policy and the reference say about them.

    Args:
        served: whether a server writes them, before the policy is here.
    """
    return Need(
        "rollout",
        {"policy": model.weights, "reference": model.weights},
        [*([] if served else [drawing(model, writing)]), looking(model, writing, writing.rows, look_tokens)],
    )


def evaluate(there: Need, reward: Footprint, models: int, scored: int, width: int) -> Need:
    """A rollout beside `models` reward models, which then score the answers."""
    kept = {**there.kept, "reward": models * reward.weights}
    return Need("evaluate", kept, [*there.phases, scoring(reward, scored, width)])


@dataclass(frozen=True)
class Optimisation:
    """What of PPO's settings decides how much memory it needs.

    Attributes:
        batch: answers per iteration.
        minibatch: answers per step of the optimisers.
        tokens: padded tokens read at once.
        separate: whether the critic has a trunk of its own.
        moving: whether the reference moves, and so is another one than the SFT policy.
        copied: whether an optimiser's step makes a copy of all weights at once, as torch's does on a GPU.
        here: whether the device's memory is the machine's, so that what is made on the CPU needs it too.
    """

    batch: int
    minibatch: int
    tokens: int
    separate: bool
    moving: bool
    copied: bool
    here: bool


def ppo(
    policy: Footprint, reward: Footprint, models: int, settings: Optimisation, writing: Writing, scored: int, width: int
) -> Need:
    """PPO: four models of which two learn, and the phases of an iteration; then the policy is saved.

    With adapters the policy without them is the reference. Gradients stay until the next iteration's first step. A
    critic with a trunk of its own learns after the policy, beside the policy's gradients.

    Args:
        policy: with the adapters that learn, if any.
        models: reward models kept, of one size: the reward model, and a token-level one beside it.
        scored: texts scored at once.
        width: most tokens of one of them.
    """
    plain = policy.parameters * FLOAT
    value = (policy.trunk + policy.adapters if settings.separate else 0) + policy.hidden + 1
    trained = {
        "policy": policy.trained,
        "value": policy.trained_trunk if settings.separate else policy.hidden + 1,
    }
    copied = policy.adapters * FLOAT if policy.adapters else plain
    kept = {
        "policy": policy.weights,
        "reference": (0 if policy.adapters else plain) + (copied if settings.moving else 0),
        "reward": models * reward.weights,
        "value": value * FLOAT,
        "optimiser": sum(adamw(count) for count in trained.values()),
    }
    every = sum(gradients(count) for count in trained.values())
    at_once = [
        drawing(policy, writing),
        scoring(reward, scored, width),
        looking(policy, writing, settings.batch, settings.tokens),
    ]
    return Need(
        "ppo",
        kept,
        [
            *(Phase(phase.name, every, phase.activations, phase.cache) for phase in at_once),
            _update(policy, trained["value"], settings, writing),
            Phase("step", every, max(trained.values()) * FLOAT if settings.copied else 0),
            *_ends(policy, kept, every, settings),
        ],
    )


def _update(policy: Footprint, value: int, settings: Optimisation, writing: Writing) -> Phase:
    times, rows = passes(settings.minibatch, writing.width, settings.tokens)
    numbers = rows * (writing.width if policy.capped else writing.answer) * policy.vocabulary
    head = LEARNED_LOGITS * (numbers if policy.capped else min(numbers, HEAD_NUMBERS)) * FLOAT
    tokens, every = rows * writing.width, gradients(policy.trained) + gradients(value)
    theirs = int(policy.learning * tokens) if settings.separate else 0  # begins when the policy's have gone
    if times > 1:  # the gradients of the passes before are there
        table = policy.embedding * FLOAT if policy.tied and not policy.adapters else 0
        return Phase("learn", every, max(int(policy.learning * tokens) + head + table, theirs))
    most = max(
        learning(policy, tokens, head).total, gradients(policy.trained) + theirs, gradients(policy.trained + value)
    )
    return Phase("learn", min(every, most), most - min(every, most))


def _ends(policy: Footprint, kept: Mapping[str, int], every: int, settings: Optimisation) -> list[Phase]:
    """What is there before and after the iterations: the SFT policy again, and with adapters their merged weights."""
    plain = policy.parameters * FLOAT
    found = []
    if policy.adapters:  # the SFT policy is loaded beside, before there are optimisers and a reward model
        found.append(Phase("load", activations=max(0, plain - kept["reward"] - kept["optimiser"])))
    spare = (plain if settings.here else 0) + (plain if policy.adapters else 0)
    if spare:  # the reward model has gone
        found.append(Phase("save", gradients=every, activations=max(0, spare - kept["reward"])))
    return found
