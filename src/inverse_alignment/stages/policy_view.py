"""What selectors look at, each part loaded or computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from inverse_alignment.core.artifact import canonical_json, sha256_file, sha256_text
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.fingerprint import code_digest, versions
from inverse_alignment.core.protocols import Embed
from inverse_alignment.core.records import Rollout, read_jsonl
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.data.pool import Pool, open_split
from inverse_alignment.embedding.settings import EncoderConfig
from inverse_alignment.models.answer_log_probs import Kept, LogProbs, PolicyScorer, Reading, log_probs_by
from inverse_alignment.models.loading import pick_device
from inverse_alignment.models.reward_scores import RewardScorer, load_calibrated
from inverse_alignment.models.score_features import PairFeatures, Scored, pair_features, score_features
from inverse_alignment.selection.keep import tie_order
from inverse_alignment.selection.likelihood import PairLogProbs
from inverse_alignment.selection.nearest import room
from inverse_alignment.stages.encoders import encoder
from inverse_alignment.text.tokenizers import load_tokenizer


class PolicyView:
    """The pool, and what a frozen policy, its reference and the reward model say of it. Nothing here knows gold.

    Args:
        inputs: of the stage; only those that are asked for need to be there.
        policy_tokens: most tokens of prompt and answer together that the policy reads; None where it is not asked.
        reward_tokens: the same of the reward model.
    """

    def __init__(
        self, inputs: Mapping[str, Path], context: StageContext, policy_tokens: int | None, reward_tokens: int | None
    ) -> None:
        self.inputs, self.context = inputs, context
        self._policy_tokens, self._reward_tokens = policy_tokens, reward_tokens
        self.log_probs = cache(self._log_probs)

    @cached_property
    def pool(self) -> Pool:
        """The pairs of the train split."""
        return open_split(self.inputs["preferences"], "train")

    @cached_property
    def ties(self) -> np.ndarray:
        """See `tie_order`."""
        return tie_order(self.pool.column(lambda pair: pair.id))

    @cached_property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Characters of the chosen answers, and of the rejected ones."""
        both = np.array([[len(pair.chosen), len(pair.rejected)] for pair in self.pool])
        return both[:, 0], both[:, 1]

    def encoder(self, config: EncoderConfig, key: str) -> Embed:
        """The encoder that a key of the configuration names."""
        return encoder(config, self.inputs, self.context, key.removeprefix("selection."))

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """The frozen policy's answers."""
        return read_jsonl(self.inputs["rollouts"] / "rollouts.jsonl", Rollout)

    @cached_property
    def _scorer(self) -> RewardScorer:
        assert self._reward_tokens is not None  # whoever asks for a reward model says how much it reads
        runtime = self.context.runtime
        device = pick_device(runtime.device)
        return load_calibrated(self.inputs["reward"], device, self._reward_tokens, runtime.scoring_rows).classifier

    @cached_property
    def pair_features(self) -> PairFeatures:
        """What the reward model makes of every pair."""
        most, folder = self.context.runtime.selection_mib * 2**20, self.context.partial
        place = partial(room, most_bytes=most, folder=folder, name="features")
        return pair_features(self._scorer, self.pool, self.context.report.progress, place)

    @cached_property
    def rollout_features(self) -> Scored:
        """What the reward model makes of every rollout."""
        prompts, answers = [r.prompt for r in self.rollouts], [r.response for r in self.rollouts]
        return score_features(self._scorer, prompts, answers, self.context.report.progress)

    def seed(self, purpose: str) -> int:
        """Another one in every round, like the policy's answers."""
        return derive_seed(purpose, self.context.seed, sha256_file(self.inputs["rollouts"] / "rollouts.jsonl"))

    def _log_probs(self, who: Literal["policy", "reference"], first_tokens: int) -> PairLogProbs:
        """What the policy or its reference says of both answers of every pair; of the first tokens, or of all (0)."""
        folder, runtime = self.inputs[who], self.context.runtime
        if who == "reference" and folder == self.inputs["policy"]:
            return self.log_probs("policy", first_tokens)
        assert self._policy_tokens is not None  # whoever asks for a policy says how much it reads
        reading = Reading(self._policy_tokens, runtime.scoring_rows * self._policy_tokens, first_tokens)
        asked = ((pair.prompt, answer) for pair in self.pool for answer in pair.answers)
        found = log_probs_by(
            PolicyScorer(folder, runtime.device),
            load_tokenizer(folder).tokenizer,
            asked,
            2 * len(self.pool),
            reading,
            self.context.report.progress,
            self.context.spread,
            Kept(self.context.cache, self._space(who, reading)) if who in self.context.digests else None,
        )
        return PairLogProbs(*(LogProbs(found.sums[side::2], found.counts[side::2]) for side in (0, 1)))

    def _space(self, who: str, reading: Reading) -> str:
        """Digest of everything that decides what is read of an answer, besides the answer."""
        runtime = self.context.runtime
        return sha256_text(
            canonical_json(
                {
                    "code": code_digest("inverse_alignment.models.answer_log_probs"),
                    "versions": versions(("torch", "transformers", "tokenizers")),
                    "policy": self.context.digests[who],
                    "reading": asdict(reading),
                    "device": pick_device(runtime.device).type,
                    "threads": runtime.threads,
                }
            )
        )
