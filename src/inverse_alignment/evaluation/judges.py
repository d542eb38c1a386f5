"""Who decides which of two answers is better: a reward model, or a language model behind an OpenAI-compatible endpoint.

A judge reads two answers in one order. Asked in both orders (`judged`), one that contradicts itself has said that it
cannot tell: a tie (Zheng et al., arXiv 2306.05685, section 3.4).
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, urlsplit

import numpy as np

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.protocols import Score
from inverse_alignment.core.records import Prompt

FIRST, TIE, SECOND = 1.0, 0.5, 0.0
RETRIES, FIRST_WAIT_SECONDS, SECONDS = 3, 1.0, 120.0
PASSING = {http.client.TOO_MANY_REQUESTS, *range(http.client.INTERNAL_SERVER_ERROR, 600)}
INSTRUCTION = (
    "Act as an impartial judge of two answers to a user. Consider whether they are helpful, correct, relevant and no "
    "longer than they need to be. Do not let their order or their length sway you. Reply with [[A]] if answer A is "
    "better, [[B]] if answer B is better, and [[C]] for a tie, and with nothing else."
)
"""After the pairwise prompt of MT-bench (arXiv 2306.05685, figure 5), without its request for an explanation."""
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_VALUES = {"A": FIRST, "B": SECOND, "C": TIE}


class Judge(Protocol):
    """Somebody who compares answers."""

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """(n,) 1 where the first answer is better, 0 where the second is, ½ for a tie."""


class Judged(NamedTuple):
    """What a judge said in both orders.

    Attributes:
        first_wins: (n,) 1, ½ or 0; ½ where the two orders contradict each other.
        consistent: (n,) whether both orders gave the same verdict.
    """

    first_wins: np.ndarray
    consistent: np.ndarray


def judged(judge: Judge, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> Judged:
    """Ask in both orders; contradictions are ties."""
    forward, backward = judge(prompts, first, second), 1 - judge(prompts, second, first)
    consistent = forward == backward
    return Judged(np.where(consistent, forward, TIE), consistent)


@dataclass(frozen=True)
class RewardJudge:
    """A reward model as a judge: the higher score wins, scores that differ by at most `tie_margin` are a tie.

    It reads answers one by one, hence no order can sway it.
    """

    score: Score
    tie_margin: float = 0.0

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """See `Judge`."""
        scores = self.score([*prompts, *prompts], [*first, *second])
        gap = scores[: len(prompts)] - scores[len(prompts) :]
        return np.where(abs(gap) <= self.tie_margin, TIE, np.where(gap > 0, FIRST, SECOND))


@dataclass(frozen=True)
class EndpointJudge:
    """A language model behind a chat-completions endpoint, asked one pair at a time at temperature 0.

    The key is read from the environment when it asks, and is never kept or shown.

    Attributes:
        url: base of the endpoint, as `https://host/v1`.
        model: its name there.
        key_variable: environment variable that holds the key; empty for an endpoint that wants none.
        wait_seconds: before the second try; doubled for each further one.
    """

    url: str
    model: str
    key_variable: str = ""
    wait_seconds: float = FIRST_WAIT_SECONDS

    def __call__(self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """See `Judge`. A reply without a verdict is a tie.

        Raises:
            UserError: there is no key, or the endpoint does not answer.
        """
        asked = zip(prompts, first, second, strict=True)
        return np.array([self._verdict(prompt, a, b) for prompt, a, b in asked])

    def _verdict(self, prompt: Prompt, a: str, b: str) -> float:
        question = f"[User]\n{prompt.text()}\n\n[Answer A]\n{a}\n\n[Answer B]\n{b}\n\n[Verdict]"
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 16}
        found = _VERDICT.findall(self._content(self._reply(json.dumps(body))))
        return _VALUES[found[-1]] if found else TIE

    def _reply(self, body: str) -> bytes:
        """The first reply that is not a passing failure."""
        for attempt in range(RETRIES + 1):
            if attempt:
                time.sleep(self.wait_seconds * 2 ** (attempt - 1))
            try:
                status, content = _post(urlsplit(self.url), body, self._headers())
            except (OSError, http.client.HTTPException) as error:
                said = str(error) or type(error).__name__
                continue
            if status == http.client.OK:
                return content
            said = f"status {status}: {content[:200].decode(errors='replace')}"
            if status not in PASSING:
                break
        raise UserError(
            f"the judge does not answer: {said}", where=self.url, fix="correct evaluation.judge, or try later"
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.key_variable:
            key = os.environ.get(self.key_variable)
            if not key:
                raise UserError(
                    f"the environment variable {self.key_variable} holds no key",
                    where="evaluation.judge.key_variable",
                    fix=f"export {self.key_variable}=..., or name another variable",
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _content(self, reply: bytes) -> str:
        try:
            return str(json.loads(reply)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError) as error:
            shown = reply[:200].decode(errors="replace")
            raise UserError(
                f"the judge's reply is no chat completion: {shown}",
                where=self.url,
                fix="name the base of an OpenAI-compatible endpoint, which ends in /v1",
            ) from error


def _post(base: SplitResult, body: str, headers: dict[str, str]) -> tuple[int, bytes]:
    secure = base.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(base.hostname or "", base.port, timeout=SECONDS)
    try:
        connection.request("POST", f"{base.path.rstrip('/')}/chat/completions", body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Agreement(NamedTuple):
    """How two labellings of the same pairs agree; each label is 1, ½ or 0.

    Attributes:
        pairs: how many were labelled by both.
        share: of equal labels, ties included.
        chance: what two labellers with these habits would agree on by chance.
        kappa: Cohen's, `(share - chance) / (1 - chance)`; None where chance is 1.
        decided: of pairs that neither calls a tie.
        decided_share: of equal labels among those; None without any.
    """

    pairs: int
    share: float
    chance: float
    kappa: float | None
    decided: int
    decided_share: float | None

    def json(self) -> dict[str, Any]:
        """As JSON."""
        return self._asdict()


def agreement(first: np.ndarray, second: np.ndarray) -> Agreement:
    """Agreement of two labellings (n,), n >= 1, with ties as a label of their own (Cohen 1960; arXiv 2306.05685)."""
    share = float((first == second).mean())
    chance = float(sum((first == label).mean() * (second == label).mean() for label in (FIRST, TIE, SECOND)))
    decided = (first != TIE) & (second != TIE)
    return Agreement(
        len(first),
        share,
        chance,
        (share - chance) / (1 - chance) if chance < 1 else None,
        int(decided.sum()),
        float((first == second)[decided].mean()) if decided.any() else None,
    )
