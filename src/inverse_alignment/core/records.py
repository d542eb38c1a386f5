"""Text records: what a preference set, a prompt list or a rollout file holds, one JSON object a line.

A record is frozen and refuses unknown fields. Every comparison says where it came from (`Provenance`), because
without it nobody can ask which source policies a selector picked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inverse_alignment.core.errors import UserError

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "validation", "gate", "test", "audit"]
SPLITS: tuple[Split, ...] = ("train", "validation", "gate", "test", "audit")
MOST_WEIGHT = 1e6
"""No row counts more than this in a loss: far beyond any use, and far from where single precision ends."""


class Record(BaseModel):
    """Base of everything written one JSON object a line."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Prompt(Record):
    """A conversation that ends in a user turn, waiting for an answer."""

    messages: tuple[Message, ...] = Field(min_length=1)

    @staticmethod
    def from_text(text: str) -> Prompt:
        """A single-turn prompt."""
        return Prompt(messages=(Message(role="user", content=text),))

    @property
    def id(self) -> str:
        """Grouping key for splits: 16 hex digits of the first user turn, case and punctuation ignored.

        Two conversations that open alike share it, so that neither can sit in train while the other is in test.
        """
        first = next((m.content for m in self.messages if m.role == "user"), self.messages[0].content)
        words = " ".join(re.findall(r"\w+", first.lower()))
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """Identity of the whole conversation: 16 hex digits over every role and turn, to the letter."""
        turns = "\x1e".join(f"{m.role}\x1f{m.content}" for m in self.messages)
        return hashlib.sha256(turns.encode()).hexdigest()[:16]

    def as_chat(self) -> list[dict[str, str]]:
        """The messages as the list of dicts that chat templates take."""
        return [{"role": m.role, "content": m.content} for m in self.messages]

    def text(self) -> str:
        """Plain text for people and encoders; several turns are prefixed by their role."""
        if len(self.messages) == 1:
            return self.messages[0].content
        return "\n\n".join(f"{m.role}: {m.content}" for m in self.messages)


class Origin(Record):
    """Where a record came from."""

    dataset: str
    split: Split | None = None
    licence: str = "unknown"
    original_id: str


class Provenance(Origin):
    """Where a comparison came from. Sources are the *policies that wrote* the two answers."""

    source_chosen: str = "unnamed"
    source_rejected: str = "unnamed"
    annotator: str = "unnamed"


class Authorship(Origin):
    """Where a single answer came from: who wrote it, and who judged it, if anyone did."""

    source: str = "unnamed"
    annotator: str = "unnamed"


class Example(Record):
    """One row of a source: about a prompt, with the origin that every row has."""

    prompt: Prompt
    provenance: Origin

    @property
    def id(self) -> str:
        """Unique name of the row inside an aggregated set."""
        return f"{self.provenance.dataset}/{self.provenance.original_id}"

    @property
    def answers(self) -> tuple[str, ...]:
        """The texts that answer the prompt: none, one, or the chosen and the rejected one."""
        return ()


class PromptOnly(Example):
    """A prompt without an answer: something to ask a policy."""


class Answered(Example):
    """A prompt with one answer."""

    response: str

    @property
    def answers(self) -> tuple[str, ...]:
        """See `Example.answers`."""
        return (self.response,)


class Demonstration(Answered):
    """An answer worth imitating."""

    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT, description="weight of the row in a loss")
    provenance: Authorship


class Judgement(Answered):
    """An unpaired label: whether `response` is a good answer to `prompt`."""

    label: bool
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT, description="weight of the row in a loss")
    provenance: Authorship


class Comparison(Example):
    """One labelled preference: `chosen` was preferred to `rejected` as the answer to `prompt`."""

    chosen: str
    rejected: str
    margin: float | None = Field(
        default=None, gt=0, le=1, description="strength of the preference in (0, 1], if the source has one"
    )
    soft_label: float | None = Field(
        default=None, ge=0.5, le=1, description="probability that `chosen` is the better one; null: taken as certain"
    )
    weight: float = Field(default=1.0, gt=0, le=MOST_WEIGHT, description="weight of the pair in a loss")
    provenance: Provenance

    @property
    def answers(self) -> tuple[str, ...]:
        """See `Example.answers`."""
        return self.chosen, self.rejected


class Rollout(Record):
    """One answer sampled from a frozen policy, with what the sampler knew about it."""

    prompt: Prompt
    response: str
    sample: int = Field(ge=0, description="index among the samples of this prompt")
    log_prob: float = Field(description="sum over response tokens of log pi(y_t | x, y_<t), nats")
    ref_log_prob: float = Field(description="the same under the frozen SFT policy, nats")
    kl_estimate: float = Field(description="exact KL(pi || SFT) at each state the answer visited, summed, nats")
    tokens: int = Field(ge=0, description="response length in policy tokens, end token included")
    ended: bool = Field(description="whether the policy ended the answer itself")


R = TypeVar("R", bound=BaseModel)


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> int:
    """Write records one JSON object a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            count += 1
    return count


def iter_jsonl(path: Path, kind: type[R]) -> Iterator[R]:
    """Read records of one kind, refusing a bad line by its number.

    Raises:
        UserError: a line is not a valid record of `kind`.
    """
    with path.open("rb") as file:  # bytes, so that a line that is not UTF-8 is refused like any other bad one
        for number, line in enumerate(file, start=1):
            yield parsed(line, kind, path, number)


def parsed(line: bytes, kind: type[R], path: Path, number: int) -> R:
    """The record of one line of a file.

    Raises:
        UserError: the line is not a valid record of `kind`.
    """
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "line"
        raise UserError(
            f"not a valid {kind.__name__}: {first['msg']}",
            where=f"{path}, line {number}, field '{field}'",
            fix="restore the file, or delete its artifact folder so that it is built again",
        ) from error


def read_jsonl(path: Path, kind: type[R]) -> list[R]:
    """All records of a file; see `iter_jsonl`."""
    return list(iter_jsonl(path, kind))
