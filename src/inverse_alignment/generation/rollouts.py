"""Rollouts of a frozen policy: who answers, and what policy and reference say about the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from transformers import PreTrainedModel

from inverse_alignment.core.context import StageContext
from inverse_alignment.core.records import Prompt, Rollout
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.generation.answers import Answer, Sampling, answers_by, batch_of, of_model
from inverse_alignment.generation.settings import GenerationConfig, VllmGeneration
from inverse_alignment.maths.masked import masked_sum
from inverse_alignment.models.loading import load_policy, pick_device, place
from inverse_alignment.models.log_probs import compare_with_reference
from inverse_alignment.text.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inverse_alignment.core.protocols import Generate

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
TELL_EVERY = 64
"""Answers between two words of progress."""


@dataclass(frozen=True)
class Asked:
    """A prompt that is to be answered, the how manieth time, and with which noise."""

    prompt: Prompt
    sample: int
    seed: int


def ask(prompts: Sequence[Prompt], samples: int, seed: int) -> list[Asked]:
    """Every prompt `samples` times. The noise is keyed by (seed, prompt, sample), so two policies get the same."""
    return [
        Asked(prompt, index, derive_seed("rollout", seed, prompt.key, index))
        for prompt in prompts
        for index in range(samples)
    ]


def roll_out(
    policy: Path,
    reference: Path,
    asked: Sequence[Asked],
    generation: GenerationConfig,
    sampling: Sampling,
    context: StageContext,
) -> list[Rollout]:
    """One answer to each, with log-probabilities and the KL to the reference.

    Args:
        policy: folder of the frozen policy; its tokenizer renders and decodes.
        reference: folder of the SFT policy.
    """
    device, progress = pick_device(context.runtime.device), context.report.progress
    tokenizer = load_tokenizer(policy).tokenizer
    if isinstance(generation, VllmGeneration):
        answers = _by_vllm(policy, tokenizer, asked, generation, sampling, context)
        model = place(load_policy(policy), device).eval()  # only now: the server had the device to itself
    else:
        model = place(load_policy(policy), device).eval()
        answers = draw(of_model(model, tokenizer, sampling), tokenizer, asked, sampling, progress)
    frozen = place(load_policy(reference), device).eval()
    return judge(model, frozen, tokenizer.pad_token_id, asked, answers, sampling, progress)


def _by_vllm(
    policy: Path,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    generation: VllmGeneration,
    sampling: Sampling,
    context: StageContext,
) -> list[Answer]:
    from inverse_alignment.generation.vllm import Sampler, serving, vocabulary_of

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what an earlier stage's models have left in this process
    progress = context.report.progress
    with serving(
        policy,
        sampling.context,
        Sampler(
            sampling.max_new_tokens,
            sampling.temperature,
            tokenizer.eos_token_id,
            vocabulary_of(policy),
            sampling.rows,
        ),
        generation,
        context.runtime.vllm,
        context.partial.with_name(f"{context.partial.name}.vllm.log"),  # beside it: a log is no state to go on from
        lambda: progress(0, len(asked), "answers, while vLLM starts"),
    ) as generate:
        return draw(generate, tokenizer, asked, sampling, progress)


def draw(
    generate: Generate,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    sampling: Sampling,
    progress: Progress,
) -> list[Answer]:
    """One answer to each, in order."""
    answers = answers_by(generate, tokenizer, [one.prompt for one in asked], [one.seed for one in asked], sampling)
    return list(_told(answers, len(asked), "answers", progress))


def judge(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    pad_token: int,
    asked: Sequence[Asked],
    answers: Sequence[Answer],
    sampling: Sampling,
    progress: Progress,
) -> list[Rollout]:
    """What policy and reference, in this process, say about answers, whoever wrote them."""

    def rollouts() -> Iterator[Rollout]:
        for start in range(0, len(asked), sampling.rows):
            rows = slice(start, start + sampling.rows)
            yield from _compared(policy, reference, pad_token, asked[rows], answers[rows], sampling.temperature)

    return list(_told(rollouts(), len(asked), "answers compared", progress))


def _compared(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    pad_token: int,
    asked: Sequence[Asked],
    answers: Sequence[Answer],
    temperature: float,
) -> list[Rollout]:
    batch = batch_of(answers, pad_token, policy.device)
    view = compare_with_reference(policy, reference, batch, temperature)
    columns = [
        masked_sum(values, batch.response_mask, -1).tolist() for values in (view.log_probs, view.ref_log_probs, view.kl)
    ]
    return [
        Rollout(
            prompt=one.prompt,
            response=given.text,
            sample=one.sample,
            log_prob=log_prob,
            ref_log_prob=ref_log_prob,
            kl_estimate=max(kl, 0.0),
            tokens=len(given.response_ids),
            ended=given.ended,
        )
        for one, given, log_prob, ref_log_prob, kl in zip(asked, answers, *columns, strict=True)
    ]


def _told(items: Iterator[T], total: int, unit: str, progress: Progress) -> Iterator[T]:
    for done, item in enumerate(items, 1):
        yield item
        if done % TELL_EVERY == 0 or done == total:
            progress(done, total, unit)
