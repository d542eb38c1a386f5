"""Log-probabilities of a pool's answers, from texts to numbers, beside the bare forward of the same batches."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from inverse_alignment.core.batches import length_groups
from inverse_alignment.core.blocks import blocks
from inverse_alignment.core.records import Prompt
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
MODELS = {
    "the world's policy": InitialisedModel(context=CONTEXT),
    "width 256, 4 layers": InitialisedModel(hidden_size=256, layers=4, context=CONTEXT),
}


def measure(pairs: int, turns: int) -> dict[str, Any]:
    """For each model the share of the bare forward's throughput, and both in tokens a second."""
    asked = _answers(pairs)
    tokenizer = train_tokenizer([text for prompt, answer in asked for text in (prompt.text(), answer)], 1024)
    return {name: _measured(spec, tokenizer, asked, turns) for name, spec in MODELS.items()}


def _measured(spec: InitialisedModel, tokenizer: Any, asked: list[tuple[Prompt, str]], turns: int) -> dict[str, Any]:
    policy = new_policy(spec, tokenizer, seed=0).eval()
    head, reading = Head(policy), scoring.Reading(CONTEXT, TOKENS)
    batches = _batches(tokenizer, asked)
    tokens = sum(batch.numel() for batch in batches)
    shares, bare = [], []
    for turn in range(turns + 1):
        seconds = {}
        for name in sorted(("bare", "ours"), reverse=turn % 2 == 0):
            began = time.perf_counter()
            if name == "bare":
                _forward(policy, batches)
            else:
                scoring.log_probs_by(partial(scoring.read, head), tokenizer, asked, len(asked), reading)
            seconds[name] = time.perf_counter() - began
        if turn:  # the first one warms up
            shares.append(seconds["bare"] / seconds["ours"])
            bare.append(seconds["bare"])
    share = statistics.median(shares)
    return {
        "share_of_bare_forward": share,
        "bare_tokens_per_second": tokens / statistics.median(bare),
        "answers_per_second": len(asked) / statistics.median(bare) * share,
        "answers": len(asked),
        "shares": shares,
    }


def _batches(tokenizer: Any, asked: list[tuple[Prompt, str]]) -> list[torch.Tensor]:
    """What the policy reads, batch by batch, encoded beforehand."""
    found = []
    for block in blocks(asked, lambda one: one[1], scoring.MEAN, scoring.MOST):
        written = encode_written(tokenizer, *zip(*block, strict=True), CONTEXT)
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
        return [(row.prompt, answer) for row in islice(rows, pairs) for answer in row.answers]
