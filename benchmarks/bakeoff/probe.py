"""What a selector does to the reward model before any policy has learned from it, judged by gold.

Nothing here reaches a selection, a refresh or a gate: the models are made first, gold only measures them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bakeoff.plan import Arm, Unit, node_name
from flows.inverse_alignment import Start, inverse_alignment
from inverse_alignment.config import PipelineConfig, merge
from inverse_alignment.core.artifact import Artifact
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.records import Comparison, Rollout, read_jsonl
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.data.aggregate import read_split
from inverse_alignment.evaluation.reward_accuracy import gold_rewards, on_policy_pairs, score_pairs
from inverse_alignment.maths.best_of_n import best_of_n
from inverse_alignment.maths.grouping import within_group_variance
from inverse_alignment.models.loading import reward_model_from_trunk
from inverse_alignment.models.reward_scores import CalibratedReward, Calibration, RewardScorer, load_calibrated
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward.bradley_terry import PairLoss, fit, pair_rows
from inverse_alignment.reward.refresh import mix
from inverse_alignment.stages.reward_model import TrainReward
from inverse_alignment.text.tokenizers import load_tokenizer
from inverse_alignment.world.gold import gold_reward
from tasks.run_stage import Execute, run_up_to

CPU = torch.device("cpu")
BEST_OF = (1, 2, 4, 8)


class Probe:
    """Judges reward models of one unit on the SFT policy's answers and on held-out pairs."""

    def __init__(self, config: PipelineConfig, unit: Unit, start: Start, rollouts: Artifact) -> None:
        self.config, self.unit, self.start = config, unit, start
        self._judged: dict[str, dict[str, Any]] = {}
        self.answers = read_jsonl(Path(rollouts.uri) / "rollouts.jsonl", Rollout)
        self.sample = read_jsonl(Path(start.reference_rollouts.uri) / "rollouts.jsonl", Rollout)
        self.test = read_split(Path(start.preferences.uri), "test")
        self.pool = read_split(Path(start.preferences.uri), "train")
        self.gold = gold_rewards(gold_reward, self.answers)

    def first(self) -> dict[str, Any]:
        """The reward model that all arms start from."""
        return self._of(self.start.reward.part("model"))

    def refreshed(self, arm: Arm, execute: Execute) -> dict[str, Any]:
        """The arm's first refresh, without the gate: what the gate was asked to judge."""
        name = node_name(arm)
        sets = merge(arm.sets, {"refresh": {"gate": {"type": "off"}}})
        config = self.config.model_copy(update={"arms": {name: sets}, "rounds": 1})
        seed = self.unit.seed
        _, entry = run_up_to(
            lambda: inverse_alignment(config, name, seed, self.start), f"{name}-s{seed}-r1-refresh", execute
        )
        return self._of(entry.artifact.part("model"))

    def subset(self, selection: Artifact, partial: Path) -> dict[str, Any]:
        """A reward model of the selected pairs alone, from the SFT policy: as many as of every other selector."""
        config, seed = self.config.reward, self.unit.seed
        assert isinstance(config, TrainReward)
        rows = [json.loads(line) for line in (Path(selection.uri) / "selection.jsonl").read_text().splitlines()]
        chosen = mix(
            np.array([row["row"] for row in rows]),
            np.array([row["weight"] for row in rows]),
            len(self.pool),
            self.config.refresh.pairs_seen,
            0.0,
            derive_seed("subset", seed),
        )
        return self.judge(self._trained([self.pool[i] for i in chosen.indices], chosen.weights, config, partial))

    def judge(self, reward: CalibratedReward) -> dict[str, Any]:
        """Accuracy, variance and margin in units of the reference sample, and gold of the best of n answers."""
        prompts = [answer.prompt for answer in self.answers]
        keys = [prompt.key for prompt in prompts]
        scores = reward(prompts, [answer.response for answer in self.answers])
        offline = score_pairs(reward, self.test)
        return {
            "on_policy_accuracy": on_policy_pairs(self.answers, self.gold).accuracy(scores),
            "offline_accuracy": float(offline.correct().mean()),
            "reward_variance": within_group_variance(scores, keys),
            "margin": float((offline.chosen - offline.rejected).mean()),
            "best_of": {str(n): best_of_n(self._table(scores), self._table(self.gold), n) for n in BEST_OF},
        }

    def _table(self, values: np.ndarray) -> np.ndarray:
        """(answers,) to (prompts, samples)."""
        rows: dict[str, list[float]] = {}
        for answer, value in zip(self.answers, values, strict=True):
            rows.setdefault(answer.prompt.key, []).append(float(value))
        return np.array(list(rows.values()))

    def _of(self, model: Artifact) -> dict[str, Any]:
        """`judge` of a stored model, once for equal ones."""
        if model.digest not in self._judged:
            context, rows = self.config.models.reward.context, self.config.runtime.scoring_rows
            self._judged[model.digest] = self.judge(load_calibrated(Path(model.uri), CPU, context, rows))
        return self._judged[model.digest]

    def _trained(
        self, pairs: list[Comparison], weights: np.ndarray, config: TrainReward, partial: Path
    ) -> CalibratedReward:
        folder, context = Path(self.start.sft.part("policy").uri), self.config.models.reward.context
        tokenizer = load_tokenizer(folder).tokenizer
        model = reward_model_from_trunk(folder, self.unit.seed)
        model.config.pad_token_id = tokenizer.pad_token_id
        settings = arguments(
            partial=partial,
            device="cpu",
            seed=self.unit.seed,
            epochs=1,
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            warmup_share=config.warmup_share,
        )
        loss = PairLoss(config.label_smoothing, config.centring, config.use_margins)
        rows = pair_rows(tokenizer, pairs, weights.tolist(), context)
        fit(model, tokenizer, rows, settings, loss, partial, FileReport(partial / "metrics.jsonl"), 1e9)
        scorer = RewardScorer(model, tokenizer, context, self.config.runtime.scoring_rows)
        prompts, answers = [r.prompt for r in self.sample], [r.response for r in self.sample]
        return CalibratedReward(scorer, Calibration.of(scorer(prompts, answers)))
