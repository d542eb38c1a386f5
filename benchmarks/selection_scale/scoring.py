"""Log-probabilities of a pool's answers, from texts to numbers, beside the bare forward of the same batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.selection_scale.measure import timed
from inverse_alignment.core.batches import length_groups
from inverse_alignment.core.blocks import blocks
from inverse_alignment.core.records import Comparison, Prompt
from inverse_alignment.data.read import read
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.models import answer_log_probs as scoring
from inverse_alignment.models.loading import new_policy
from inverse_alignment.models.log_probs import Head
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.text.render import encode_written
from inverse_alignment.text.tokenizers import train_tokenizer
from inverse_alignment.world.text import WorldConfig, write_dataset

CONTEXT, TOKENS = 128, 16_384
WORLDS, LARGER = "the world's policy: width 64, 2 layers", "width 256, 4 layers"
MODELS = {
    WORLDS: (InitialisedModel(context=CONTEXT), 1),
    LARGER: (InitialisedModel(hidden_size=256, layers=4, context=CONTEXT), 4),
}
"""Policies, and how many times fewer pairs each is asked about than the fastest."""


def measure(pairs: int, turns: int) -> dict[str, Any]:
    """For each model the share of the bare forward's throughput, and both in tokens a second."""
    asked = _answers(pairs)
    tokenizer = train_tokenizer([text for prompt, answer in asked for text in (prompt.text(), answer)], 1024)
    return {
        name: _measured(spec, tokenizer, asked[: len(asked) // fewer], turns) for name, (spec, fewer) in MODELS.items()
    }


def _measured(spec: InitialisedModel, tokenizer: Any, asked: list[tuple[Prompt, str]], turns: int) -> dict[str, Any]:
    policy = new_policy(spec, tokenizer, seed=0).eval()
    head, reading = Head(policy), scoring.Reading(CONTEXT, TOKENS)
    batches = _batches(tokenizer, asked)
    tokens = sum(batch.numel() for batch in batches)
    turns_of: dict[str, Callable[[], Any]] = {
        "bare": partial(_forward, policy, batches),
        "ours": partial(scoring.log_probs_by, partial(scoring.read, head), tokenizer, asked, len(asked), reading),
    }
    spent: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
    for turn in range(turns + 1):
        for name in sorted(turns_of, reverse=turn % 2 == 0):
            seconds, _ = timed(turns_of[name])
            if turn:  # the first one warms up
                spent[name].append(seconds)
    plain, mine = np.array(spent["bare"]), np.array(spent["ours"])
    shares = plain / mine
    return {
        "share_of_bare_forward": float(np.median(shares[:, 0])),
        "share_by_cpu_time": float(np.median(shares[:, 1])),
        "bare_tokens_per_second": tokens / float(np.median(plain[:, 0])),
        "answers_per_second": len(asked) / float(np.median(mine[:, 0])),
        "answers": len(asked),
        "shares": shares[:, 0].tolist(),
    }


def _batches(tokenizer: Any, asked: list[tuple[Prompt, str]]) -> list[torch.Tensor]:
    """What the policy reads, batch by batch, encoded beforehand."""
    found = []
    for block in blocks(asked, lambda one: one[1], scoring.MEAN, scoring.MOST):
        prompts, answers = [prompt for prompt, _ in block], [answer for _, answer in block]
        written = encode_written(tokenizer, prompts, answers, CONTEXT)
        lengths = [len(prompt) + len(answer) - 1 for prompt, answer in written]
        for group in length_groups(lengths, TOKENS):
            some = [written[row] for row in group]
            found.append(scoring._sequences(some, tokenizer.pad_token_id, torch.device("cpu")).input_ids)
    return found


@torch.no_grad()
def _forward(policy: Any, batches: list[torch.Tensor]) -> None:
    for ids in batches:
        policy(input_ids=ids, use_cache=False)


def _answers(pairs: int) -> list[tuple[Prompt, str]]:
    """Both answers of every pair of the text world, as a selection asks for them."""
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), WorldConfig(pairs=max(pairs, 2000)))
        rows = read(JsonlSource(name="world", path=str(Path(folder) / "pairs.jsonl")))
        kept = islice((row for row in rows if isinstance(row, Comparison)), pairs)
        return [(row.prompt, answer) for row in kept for answer in row.answers]
