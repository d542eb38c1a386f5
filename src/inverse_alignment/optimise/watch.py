"""What is looked at beside the reward while a policy is trained; nothing is learned from it.

`described` counts what the answers of an iteration say, at no cost. A look asks the policy the same held-out prompts
with the same noise again and again, so that what changes between two looks is the policy; reward model and audit model
score them, and the policy says how likely it finds answers of the offline set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inverse_alignment.core.protocols import Estimate, Score
from inverse_alignment.core.records import Comparison, Prompt
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.generation.answers import Answer, Sampling, answer, choose_prompts
from inverse_alignment.maths.density_ratio import effective_sample_size
from inverse_alignment.maths.grouping import within_group_variance
from inverse_alignment.models.answer_log_probs import answer_log_probs
from inverse_alignment.text.phrases import common_opening_share, distinct_share, has_phrase, refuses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEAST_SPREAD = 1e-9  # what rounding leaves of a constant


def described(answers: Sequence[Answer], scores: np.ndarray, stock_phrases: Sequence[str]) -> dict[str, float]:
    """What an iteration's answers say over and over, and whether the longer ones score higher."""
    texts = [one.text for one in answers]
    along = _correlation(scores, np.array([len(one.response_ids) for one in answers], dtype=float))
    return {
        **({} if along is None else {"length_correlation": along}),
        "refusal_share": float(np.mean([refuses(text) for text in texts])),
        "stock_phrase_share": float(np.mean([has_phrase(text, stock_phrases) for text in texts])),
        "common_opening_share": common_opening_share(texts),
        "distinct_2": distinct_share(texts),
    }


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's; None where one of them is constant."""
    a, b = first - first.mean(), second - second.mean()
    spread = a.std() * b.std()
    return float((a * b).mean() / spread) if spread > LEAST_SPREAD else None


@dataclass(frozen=True)
class Watch:
    """Whom a look asks.

    Attributes:
        prompts: each as often as answers are wanted.
        seeds: of the noise of each answer, the same at every look.
        reward: the model that PPO climbs.
        audit: one that nothing is optimised against; None without.
        offline: prompts and answers of the offline set, and their log-probabilities under the SFT policy, nats.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    reward: Estimate
    audit: Score | None
    offline: tuple[Sequence[Prompt], Sequence[str], np.ndarray]

    def look(
        self, step: int, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, tokens: int
    ) -> Seen:
        """Ask and score; the policy stays as it is. `tokens` are read at once."""
        texts = [one.text for one in answer(policy, tokenizer, self.prompts, self.seeds, sampling)]
        estimate = self.reward(self.prompts, texts)
        audited = self.audit(self.prompts, texts) if self.audit else None
        prompts, given, before = self.offline
        now = answer_log_probs(policy, tokenizer, prompts, given, sampling.context, tokens).sums
        keys = [prompt.key for prompt in self.prompts]
        metrics = {
            "look_rm_score": float(estimate.mean.mean()),
            "look_reward_variance": within_group_variance(estimate.mean, keys),
            "look_ess": effective_sample_size(now - before) / len(before),
        }
        if audited is not None:
            metrics["look_audit_score"] = float(audited.mean())
        if estimate.std is not None:
            metrics["look_disagreement"] = float(estimate.std.mean())
        nothing: list[None] = [None] * len(texts)
        audits = nothing if audited is None else audited.tolist()
        columns = zip(self.prompts, texts, estimate.mean.tolist(), audits, strict=True)
        rows = [
            {
                "step": step,
                "prompt": prompt.model_dump(mode="json"),
                "response": text,
                "rm_score": score,
                "audit_score": second,
            }
            for prompt, text, score, second in columns
        ]
        return Seen(metrics, rows)


@dataclass(frozen=True)
class Seen:
    """What a look found: its metrics, and a JSON row for each answer."""

    metrics: dict[str, float]
    rows: list[dict[str, Any]]

    def append(self, path: Path) -> None:
        """Add the rows to a file, one a line."""
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row, sort_keys=True)}\n" for row in self.rows)


def watch_of(
    pairs: Sequence[Comparison],
    counts: tuple[int, int],
    reward: Estimate,
    audit: Score | None,
    sft: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    reading: tuple[int, int],
    seed: int,
) -> Watch:
    """A watch over a few held-out prompts.

    Args:
        pairs: of a split that neither model learned from.
        counts: how many prompts, and how many answers to each.
        sft: the frozen policy and its tokenizer; it says how likely the offline answers were before training.
        reading: most tokens of prompt and answer, and tokens read at once.
    """
    prompts = choose_prompts([pair.prompt for pair in pairs], counts[0], derive_seed("watch", seed))
    asked = [prompt for prompt in prompts for _ in range(counts[1])]
    noise = [derive_seed("look", seed, prompt.key, sample) for prompt in prompts for sample in range(counts[1])]
    chosen = {pair.prompt.key: pair for pair in pairs}
    given = [chosen[prompt.key].chosen for prompt in prompts]
    before = answer_log_probs(*sft, prompts, given, *reading).sums
    return Watch(asked, noise, reward, audit, (prompts, given, before))
