"""Evaluation prompts must not be trained on: exact ones, and long runs of their words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from inverse_alignment.core.records import Example, Prompt
from inverse_alignment.data.ledger import prompt_number

_WORD = re.compile(r"\w+")


class EvaluationPrompts:
    """What the prompts of evaluation sets look like: their ids, and every run of `words` words in them.

    A run of 13 words is the measure of Brown et al. (arXiv 2005.14165, appendix C). Shorter prompts match as a whole
    only. Memory is that of the evaluation sets, whatever is compared with them.
    """

    def __init__(self, rows: Iterable[Example], words: int) -> None:
        self._words = words
        self._ids: set[int] = set()
        self._runs: set[int] = set()
        for row in rows:
            self._ids.add(prompt_number(row.prompt))
            self._runs.update(self._runs_of(row.prompt))

    def __len__(self) -> int:
        return len(self._ids)

    def same(self, prompts: np.ndarray) -> np.ndarray:
        """(n,) whether a prompt id is that of an evaluation prompt."""
        return np.isin(prompts, np.fromiter(self._ids, dtype=np.uint64, count=len(self._ids)))

    def overlaps(self, row: Example) -> bool:
        """Whether a row's prompt shares a run of words with an evaluation prompt."""
        return bool(self._runs) and any(run in self._runs for run in self._runs_of(row.prompt))

    def _runs_of(self, prompt: Prompt) -> Iterator[int]:
        if not self._words:
            return
        for message in prompt.messages:
            if message.role == "user":
                words = _WORD.findall(message.content.lower())
                for begin in range(len(words) - self._words + 1):
                    yield hash(tuple(words[begin : begin + self._words]))
