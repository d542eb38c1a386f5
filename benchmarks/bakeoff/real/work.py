"""One seed and target: a policy that resembles a writer, what every selector picks for it, and a refresh on that."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.bakeoff.real.collection import kind_of
from benchmarks.bakeoff.real.plan import (
    ORACLE,
    Unit,
    config_of,
    digest_of,
    digest_of_code,
    imitation,
    node_name,
    refreshed,
    sizes,
)
from flows.inverse_alignment import Data, shared_data
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.artifact import Artifact, external
from inverse_alignment.core.records import Comparison, Prompt, Rollout, read_jsonl
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.core.store import open_store
from inverse_alignment.data.aggregate import read_split
from inverse_alignment.embedding import lexical
from inverse_alignment.embedding.settings import LexicalEncoder
from inverse_alignment.evaluation.reward_accuracy import longer_wins, score_pairs
from inverse_alignment.models.answer_log_probs import LogProbs, PolicyScorer, Reading, log_probs_by
from inverse_alignment.models.reward_scores import load_calibrated
from inverse_alignment.models.specs import CheckpointModel
from inverse_alignment.reward.refresh import judge
from inverse_alignment.reward.settings import GateOff, GateOn
from inverse_alignment.selection.selection import Selection, shares
from inverse_alignment.selection.similarity import SCORES, pair_similarity
from inverse_alignment.stages.sft import SftStage
from inverse_alignment.text.tokenizers import load_tokenizer
from tasks import stages
from tasks.run_stage import Execute, driving, run_stage

CPU = torch.device("cpu")
KINDS = ("target", "held_out", "others")
STRATA = 5
"""Classes of equal size of chosen answers' lengths, and of rejected ones', as in `length_matched_random`."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The selectors of one unit that have no row yet."""

    unit: Unit
    selectors: tuple[str, ...]
    data: Path
    folder: Path
    shown: tuple[tuple[str, str, str], ...]
    """Writer, prompt and answer of validation rows, by which the policy is recognised."""


class Base(NamedTuple):
    """What all targets of a seed share: everybody's policy, its answers, the first reward model."""

    data: Data
    policy: Artifact
    sample: Artifact
    reward: Artifact


@dataclass
class Bench:
    """One unit with all that its selectors are given."""

    unit: Unit
    config: PipelineConfig
    base: Base
    policy: Artifact
    rollouts: Artifact
    pool: Sequence[Comparison]
    tests: dict[str, list[Comparison]]
    gate: list[Comparison]
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    def scored(self, model: Artifact) -> dict[str, Any]:
        """Scores of both answers of the test pairs of each kind and of the gate's, once for equal models."""
        if model.digest not in self.scores:
            context, rows = self.config.models.reward.context, self.config.runtime.scoring_rows
            score = load_calibrated(Path(model.uri), CPU, context, rows).scorer
            asked = {**self.tests, "gate": self.gate}
            self.scores[model.digest] = {kind: score_pairs(score, pairs) for kind, pairs in asked.items()}
        return self.scores[model.digest]


def run(job: Job) -> list[Row]:
    """Everything of a unit, in the folder of its seed; killed, it goes on from the artifacts that are there."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    began = time.monotonic()
    config = config_of(job.unit, job.data, job.folder / "artifacts")
    with driving(Execute(open_store(config.store), config.runtime)):
        base = _base(config, job.unit)
        bench = _bench(config, job.unit, base)
        policy = {**_answers(bench), **recognised(bench, job.shown)}
        seconds = {"seconds_start": round(time.monotonic() - began, 1)}
        return [{**_row(bench, name), "policy": policy, **seconds} for name in job.selectors]


def _base(config: PipelineConfig, unit: Unit) -> Base:
    seed, data = unit.seed, shared_data(config)
    start = stages.sft(config, seed, data.preferences, data.tokenizers)
    policy, pairs = start.part("policy"), data.preferences
    given = {"policy": policy, "reference": policy, "preferences": pairs}
    sample = stages.roll_out(f"sample-s{seed}", config, seed, rollout=config.reference_sample, **given)
    reward = stages.reward_model(
        f"reward-s{seed}",
        config,
        seed,
        split="train",
        preferences=pairs,
        tokenizers=data.tokenizers,
        reference_rollouts=sample,
        sft=start,
    )
    return Base(data, policy, sample, reward.part("model"))


def _bench(config: PipelineConfig, unit: Unit, base: Base) -> Bench:
    """The policy that resembles the target, and its answers to the pool's prompts."""
    pairs, seed = base.data.preferences, unit.seed
    model = CheckpointModel(path=base.policy.uri, context=config.models.policy.context)
    inputs = {"preferences": pairs, "tokenizers": base.data.tokenizers, "policy_model": base.policy}
    made = run_stage(
        f"imitate-{unit.target}-s{seed}", "sft", inputs, SftStage(sft=imitation(unit.target), model=model), seed
    )
    policy = made.part("policy")
    given = {"policy": policy, "reference": base.policy, "preferences": pairs}
    rollouts = stages.roll_out(f"{unit.target}-s{seed}-rollout", config, seed, rollout=config.rollout, **given)
    tests: dict[str, list[Comparison]] = {kind: [] for kind in KINDS}
    for pair in read_split(Path(pairs.uri), "test"):
        names = {"source_chosen": pair.provenance.source_chosen, "source_rejected": pair.provenance.source_rejected}
        tests[kind_of(names, unit.target, unit.out)].append(pair)
    pool, gate = (read_split(Path(pairs.uri), split) for split in ("train", "gate"))
    return Bench(
        unit, config, base, policy, rollouts, pool, _capped(tests), _nearest(config, gate, _rollouts(rollouts))
    )


def _rollouts(rollouts: Artifact) -> list[Rollout]:
    return read_jsonl(Path(rollouts.uri) / "rollouts.jsonl", Rollout)


def _nearest(config: PipelineConfig, pairs: list[Comparison], rollouts: list[Rollout]) -> list[Comparison]:
    """The part of the gate split that the gate judges on, as in the refresh stage: it keeps no refused challenger."""
    gate = config.refresh.gate
    assert isinstance(gate, GateOn) and isinstance(gate.encoder, LexicalEncoder)
    similarity = pair_similarity(
        [pair.chosen for pair in pairs],
        [pair.rejected for pair in pairs],
        [pair.prompt.key for pair in pairs],
        [rollout.response for rollout in rollouts],
        [rollout.prompt.key for rollout in rollouts],
        lexical.LexicalEncoder(gate.encoder.dimensions),
        same_prompt=False,
    )
    scores = SCORES["mean"](similarity.chosen, similarity.rejected)
    order = np.argsort(-scores, kind="stable")
    return [pairs[row] for row in np.sort(order[: max(2, round(len(pairs) * gate.aligned_share))])]


def _capped(tests: dict[str, list[Comparison]]) -> dict[str, list[Comparison]]:
    """As many of each kind as the collection took for one target: the others came in with other targets."""
    most = sizes().test_pairs
    return {
        kind: sorted(found, key=lambda pair: derive_seed("real: test", kind, pair.provenance.original_id))[:most]
        for kind, found in tests.items()
    }


def _row(bench: Bench, selector: str) -> Row:
    began, unit, config = time.monotonic(), bench.unit, bench.config
    if selector == ORACLE:
        selection = _oracle(bench)
    else:
        config = config.for_arm(node_name(selector))
        selection = stages.select(f"{_at(unit, selector)}-select", config, unit.seed, **_seen(bench))
    kept = [json.loads(line) for line in (Path(selection.uri) / "selection.jsonl").read_text().splitlines()]
    picked = np.array([row["row"] for row in kept])
    judged: Row = {"gate": None, "judged": None}
    if selector in refreshed():
        judged = _judged(bench, config, selection, selector)
    return {
        "seed": unit.seed,
        "target": unit.target,
        "selector": selector,
        "model": Path(unit.model).name,
        "held_out": unit.out,
        "nearest": list(unit.nearest),
        "code": digest_of_code(),
        "config": digest_of(unit, selector, bench.config),
        **_picked(bench, picked),
        **judged,
        "longer_wins": {kind: float(longer_wins(bench.tests[kind]).mean()) for kind in KINDS},
        "seconds": round(time.monotonic() - began, 1),
    }


def _at(unit: Unit, selector: str) -> str:
    return f"{unit.target}-s{unit.seed}-{node_name(selector)}"


def _seen(bench: Bench) -> dict[str, Artifact]:
    return {
        "preferences": bench.base.data.preferences,
        "rollouts": bench.rollouts,
        "policy": bench.policy,
        "reference": bench.base.policy,
        "reward": bench.base.reward,
    }


def _oracle(bench: Bench) -> Artifact:
    """As many pairs with an answer of the target as `random` draws, at random; all, if there are fewer."""
    rows = np.array([place for place, pair in enumerate(bench.pool) if bench.unit.target in _names(pair)])
    random = bench.config.for_arm("random").selection
    generator = np.random.Generator(np.random.Philox(key=derive_seed("oracle", bench.unit.seed)))
    most = min(len(rows), getattr(random, "k", len(rows)))
    kept = np.sort(generator.choice(rows, size=most, replace=False))
    folder = Path(bench.config.store).parent / "oracle" / bench.unit.target
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"row": int(row), "id": bench.pool[row].id, "weight": 1.0, "score": None} for row in kept]
    (folder / "selection.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return external("selection", folder)


def _refreshed(bench: Bench, config: PipelineConfig, selection: Artifact, selector: str) -> Artifact:
    """The challenger, whatever a gate would say of it."""
    unit, given = bench.unit, {"preferences": bench.base.data.preferences, "policy": bench.policy}
    ungated = config.model_copy(update={"refresh": config.refresh.model_copy(update={"gate": GateOff()})})
    made = stages.refresh(
        f"{_at(unit, selector)}-refresh",
        ungated,
        unit.seed,
        1,
        reward=bench.base.reward,
        first_reward=bench.base.reward,
        selection=selection,
        rollouts=bench.rollouts,
        reference_rollouts=bench.base.sample,
        seen=None,
        **given,
    )
    return made.part("model")


def _judged(bench: Bench, config: PipelineConfig, selection: Artifact, selector: str) -> Row:
    """What the refresh does on held-out pairs, and what the gate would have said of it."""
    before = bench.scored(bench.base.reward)
    after = bench.scored(_refreshed(bench, config, selection, selector))
    gate = config.refresh.gate
    assert isinstance(gate, GateOn)
    seed = derive_seed("gate", bench.unit.seed)
    verdict = judge(before["gate"], after["gate"], gate.confidence, gate.resamples, seed)
    return {
        "gate": {"accepted": verdict.accepted, **verdict.gap._asdict()},
        "judged": {kind: change(before[kind], after[kind]) for kind in KINDS},
    }


def change(before: Any, after: Any) -> dict[str, float]:
    """Accuracy before and after, and nats gained a pair, each model at its best scale."""
    found = judge(before, after, confidence=0.5, resamples=100, seed=0)
    return {
        "pairs": len(before.chosen),
        "before": found.incumbent_accuracy,
        "after": found.challenger_accuracy,
        "nats": found.gap.mean,
    }


def _picked(bench: Bench, rows: np.ndarray) -> Row:
    """Who wrote what was picked, who would have if only lengths had decided, and how long it is."""
    groups = {"target": {bench.unit.target}, "nearest": set(bench.unit.nearest)}
    lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in bench.pool])
    classes = strata(lengths, STRATA)
    written = {
        name: np.array([sum(writer in group for writer in _names(pair)) for pair in bench.pool])
        for name, group in groups.items()
    }
    selection = Selection(rows, np.ones(len(rows)), np.ones(len(rows)))
    return {
        "pool": {"pairs": len(bench.pool), "by_source": shares(bench.pool)["source"]},
        "selected": {"pairs": len(rows), "by_source": shares(bench.pool, selection)["source"]},
        "length_matched": {name: expected(classes, rows, found) for name, found in written.items()},
        "characters": {"pool": float(lengths.mean()), "selected": float(lengths[rows].mean())},
    }


def _names(pair: Comparison) -> tuple[str, str]:
    return pair.provenance.source_chosen, pair.provenance.source_rejected


def strata(lengths: np.ndarray, classes: int) -> np.ndarray:
    """The stratum of each pair, (n,): the class of its chosen answer's length, and that of its rejected one's.

    Args:
        lengths: (n, 2); the classes are quantiles.
    """
    inner = [np.quantile(column, np.arange(1, classes) / classes, method="lower") for column in lengths.T]
    chosen, rejected = (np.searchsorted(bounds, column) for bounds, column in zip(inner, lengths.T, strict=True))
    return np.asarray(chosen * classes + rejected)


def expected(classes: np.ndarray, rows: np.ndarray, written: np.ndarray) -> float:
    """The share of answers a group would have in pairs that are drawn blindly from the strata of the picked ones.

    Args:
        classes: (n,) strata of the pool.
        rows: the picked pairs.
        written: (n,) answers of each pair that the group wrote.
    """
    means = np.bincount(classes, weights=written) / np.maximum(np.bincount(classes), 1)
    return float(means[classes[rows]].mean() / 2)


def _answers(bench: Bench) -> Row:
    answers = _rollouts(bench.rollouts)
    return {
        "answers": len(answers),
        "kl": float(np.mean([answer.kl_estimate for answer in answers])),
        "tokens": float(np.mean([answer.tokens for answer in answers])),
        "ended": float(np.mean([answer.ended for answer in answers])),
    }


def recognised(bench: Bench, shown: Collection[tuple[str, str, str]]) -> Row:
    """Whether the policy writes like its target: the target's rank among all writers.

    By how much likelier the policy finds a writer's answers to held-out prompts than everybody's policy does, in nats
    per token; 1 is the first.
    """
    asked = [(Prompt.from_text(prompt), answer) for _, prompt, answer in shown]
    means = _per_token(bench, bench.policy, asked) - _per_token(bench, bench.base.policy, asked)
    gained: dict[str, list[float]] = {}
    for (writer, _, _), mean in zip(shown, means, strict=True):
        gained.setdefault(writer, []).append(float(mean))
    of = {writer: float(np.mean(values)) for writer, values in gained.items()}
    order = sorted(of, key=lambda writer: -of[writer])
    target = bench.unit.target
    return {"rank_of_target": order.index(target) + 1, "writers": len(order), "nats_on_target": of[target]}


def _per_token(bench: Bench, policy: Artifact, asked: Sequence[tuple[Any, str]]) -> np.ndarray:
    context, folder = bench.config.models.policy.context, Path(policy.uri)
    reading = Reading(context, bench.config.runtime.scoring_rows * context)
    found: LogProbs = log_probs_by(
        PolicyScorer(folder, "cpu"), load_tokenizer(folder).tokenizer, asked, len(asked), reading
    )
    return found.means
