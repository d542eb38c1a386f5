"""Prompts in, answers out: rendering, sampling in chunks, and what policy and reference say about the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from inverse_alignment.core.batches import TokenBatch, pad_left, pad_right
from inverse_alignment.core.records import Prompt, Rollout
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.generation.hf import ended, sample
from inverse_alignment.maths.masked import masked_sum
from inverse_alignment.models.log_probs import compare_with_reference
from inverse_alignment.text.render import decode_response, encode_prompt, prompt_budget

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: longest answer.
        temperature: divides the logits.
        context: most tokens of prompt and answer together; a longer prompt loses its oldest part.
        rows: rows sampled at once; changes nothing but speed and memory.
    """

    max_new_tokens: int
    temperature: float
    context: int
    rows: int

    @property
    def prompt_tokens(self) -> int:
        """Most tokens of a prompt: as in training, unless a long answer leaves less."""
        return min(prompt_budget(self.context), self.context - self.max_new_tokens)


@dataclass(frozen=True)
class Answer:
    """One sampled answer, as tokens and as text."""

    prompt_ids: list[int]
    response_ids: list[int]
    ended: bool
    text: str


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    sampling: Sampling,
) -> list[Answer]:
    """One answer per prompt and seed, in order."""
    ids = [encode_prompt(tokenizer, prompt, sampling.prompt_tokens) for prompt in prompts]
    answers: list[Answer] = []
    for start in range(0, len(ids), sampling.rows):
        batch = sample(
            model,
            ids[start : start + sampling.rows],
            seeds[start : start + sampling.rows],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            end_token=tokenizer.eos_token_id,
            pad_token=tokenizer.pad_token_id,
        )
        done = ended(batch, tokenizer.eos_token_id).tolist()
        for row, is_done in enumerate(done):
            tokens = batch.response_ids[row][batch.response_mask[row]].tolist()
            answers.append(Answer(ids[start + row], tokens, is_done, decode_response(tokenizer, tokens)))
    return answers


def batch_of(answers: Sequence[Answer], pad_token: int, device: torch.device) -> TokenBatch:
    """The answers as one padded batch."""
    prompt_ids, prompt_mask = pad_left([a.prompt_ids for a in answers], pad_token, device)
    response_ids, response_mask = pad_right([a.response_ids for a in answers], pad_token, device)
    return TokenBatch(prompt_ids, prompt_mask, response_ids, response_mask)


def roll_out(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    samples: int,
    seed: int,
    sampling: Sampling,
    progress: Callable[[int, int, str], None],
) -> list[Rollout]:
    """`samples` answers to each prompt, with log-probabilities and the KL to the reference.

    The noise of a row is keyed by (seed, prompt, sample), so that two policies answer with the same noise.
    """
    asked = [(prompt, index) for prompt in prompts for index in range(samples)]
    rollouts: list[Rollout] = []
    for start in range(0, len(asked), sampling.rows):
        chunk = asked[start : start + sampling.rows]
        seeds = [derive_seed("rollout", seed, prompt.key, index) for prompt, index in chunk]
        answers = answer(policy, tokenizer, [prompt for prompt, _ in chunk], seeds, sampling)
        batch = batch_of(answers, tokenizer.pad_token_id, policy.device)
        view = compare_with_reference(policy, reference, batch, sampling.temperature)
        columns = [
            masked_sum(values, batch.response_mask, -1).tolist()
            for values in (view.log_probs, view.ref_log_probs, view.kl)
        ]
        rollouts += [
            Rollout(
                prompt=prompt,
                response=given.text,
                sample=index,
                log_prob=log_prob,
                ref_log_prob=ref_log_prob,
                kl_estimate=max(kl, 0.0),
                tokens=len(given.response_ids),
                ended=given.ended,
            )
            for (prompt, index), given, log_prob, ref_log_prob, kl in zip(chunk, answers, *columns, strict=True)
        ]
        progress(len(rollouts), len(asked), "answers")
    return rollouts


def choose_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` distinct prompts (0 for all), in an order that depends on their content and the seed alone."""
    distinct = {prompt.key: prompt for prompt in prompts}
    order = sorted(distinct, key=lambda key: derive_seed("prompts", seed, key))
    return [distinct[key] for key in (order[:count] if count else order)]
