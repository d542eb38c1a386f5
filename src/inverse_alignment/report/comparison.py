"""What `compare` stores: every arm, seed and round side by side, in one frozen, JSON-able value.

Light on purpose: the table in the terminal and `summary.json` are made from it without a plotting library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inverse_alignment.core.artifact import canonical_json
from inverse_alignment.core.errors import UserError

FILE = "comparison.json"
PAGE = "report.html"
SCHEMA = 1

Interval = tuple[float, float]


class Reading(BaseModel):
    """Base of what is read from the artifact of another stage: fields the report does not use are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SourceAccuracy(Reading):
    """Held-out offline pairs of one source policy."""

    pairs: int
    rm_accuracy: float | None = Field(
        description="share of the pairs in which the reward model prefers the chosen answer"
    )
    longer_wins: float | None = Field(description="the same for the rule that the longer answer wins")


class Evaluation(Reading):
    """One policy with the reward model it was trained against."""

    gold_reward: float | None = None
    gold_reward_ci95: Interval | None = Field(None, description="over prompts and samples of this one policy")
    rm_score: float
    kl_to_sft: float = Field(description="nats per answer")
    response_tokens: float
    ended_share: float
    audit_score: float | None = Field(None, description="of a reward model that nothing was optimised against, in sd")
    audit_score_ci95: Interval | None = Field(None, description="over prompts of this one policy")
    audit_accuracy: float | None = Field(None, description="of the audit model on the held-out offline pairs")
    audit_agreement: float | None = Field(
        None, description="share of pairs of answers to one prompt that both reward models rank alike"
    )
    audit_correlation: float | None = None
    offline_accuracy: float | None = None
    offline_pairs: int | None = None
    longer_wins_accuracy: float | None = None
    offline_by_source: dict[str, SourceAccuracy] = {}
    on_policy_accuracy: float | None = None
    on_policy_pairs: int | None = None
    on_policy_accuracy_before: float | None = None
    on_policy_accuracy_after: float | None = None
    reward_variance: float | None = Field(None, description="mean over prompts of the variance of the RM score")
    win_rate: float | None = Field(None, description="against the SFT policy's answers, by gold, else by the audit")
    like_length_win_rate: float | None = Field(None, description="the same over answers of like length")
    judge_win_rate: float | None = Field(None, description="the same by a judge, if one is asked")
    on_policy_ece: float | None = Field(None, description="calibration error on the policy's own answers")
    offline_ece: float | None = Field(None, description="the same on the held-out offline pairs")
    proxy_truth_mmd: float | None = None
    length_correlation: float | None = None
    refusal_share: float | None = None
    over_refusal_share: float | None = Field(None, description="of harmless prompts that the user names")
    probe_nll: float | None = Field(None, description="nats per token of given answers")
    probe_nll_sft: float | None = Field(None, description="the same under the SFT policy")


class Sample(Reading):
    """One answer, with what gold and reward models say of it."""

    prompt: str
    response: str
    gold: float | None = None
    rm_score: float
    audit_score: float | None = None


class Answer(Reading):
    """One of all answers that were scored, as far as it says what a prompt's answers are worth."""

    prompt_key: str
    gold: float | None = None
    audit_score: float | None = None


class CurvePoint(Reading):
    """Answers of the policy on the way through PPO. `step` counts over the rounds, from 1."""

    step: int
    gold: float | None = None
    rm_score: float
    audit_score: float | None = None
    kl: float


class TrainingPoint(Reading):
    """What PPO reported of one iteration; null where a value was not finite."""

    step: int
    kl: float | None = None
    entropy: float | None = None
    tokens: float | None = None
    ended_share: float | None = None


class Alarm(Reading):
    """A finding of PPO about itself."""

    name: str
    step: int
    text: str


class Alarms(Reading):
    """All findings of a round."""

    alarms: tuple[Alarm, ...]


class SelectionAudit(Reading):
    """Which pairs a selector took, against the pool it took them from."""

    pool: int
    selected: int
    selected_by_source: dict[str, int]
    pool_by_source: dict[str, int]
    selected_by_annotator: dict[str, int] = {}
    pool_by_annotator: dict[str, int] = {}
    mean_score: float | None = None
    mean_pair_similarity: float | None = None


class Gate(Reading):
    """Whether a refreshed reward model replaced the incumbent, and on what evidence."""

    refreshed: bool = Field(True, description="whether the trigger asked for a refresh; without, nobody was judged")
    accepted: bool
    gate: str = Field(description="'paired', or 'off' where every challenger is accepted")
    gain: float | None = Field(None, description="log-likelihood gain of the challenger, nats per pair")
    low: float | None = Field(None, description="one-sided lower bound of the gain")
    detectable: float | None = Field(None, description="smallest gain this many pairs can show")
    pairs: int
    incumbent_accuracy: float | None = None
    challenger_accuracy: float | None = None
    reward_variance_before: float | None = None
    reward_variance_after: float | None = None
    pairs_seen: int | None = None
    drift_mmd: float | None = None
    drift_ess: float | None = None
    drift_answers: int | None = None
    drift_variance: float | None = None
    warning: str | None = None


class Stratum(Reading):
    """Train pairs whose labels are about as strong, and how the reward model that learned from them ranks them."""

    stratum: int = Field(description="from 0, the weakest")
    pairs: int
    strength: float = Field(description="mean over pairs of the difference of scores, mean over models")
    std: float = Field(description="mean over pairs of its standard deviation over models")
    accuracy: float = Field(description="of the trained model, against the labels as they came")
    loss: float = Field(description="of the trained model, nats a pair")


class Part(BaseModel):
    """Base of what the comparison is made of: written by us, so unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Start(Part):
    """The SFT policy of a seed: where every arm begins, and what KL is measured to."""

    seed: int
    evaluation: Evaluation
    samples: tuple[Sample, ...]
    worth: dict[str, float] = Field({}, description="of each held-out prompt the mean gold, else audit score")
    strata: tuple[Stratum, ...] = Field((), description="of the train pairs, where their strength was measured")


class Round(Part):
    """One round of one arm. Arms without refresh have neither selection nor gate."""

    round: int = Field(ge=1)
    evaluation: Evaluation
    samples: tuple[Sample, ...]
    curve: tuple[CurvePoint, ...]
    training: tuple[TrainingPoint, ...]
    alarms: tuple[Alarm, ...]
    selection: SelectionAudit | None
    gate: Gate | None


class Run(Part):
    """One arm with one seed, oldest round first."""

    arm: str
    seed: int
    rounds: tuple[Round, ...]
    worth: dict[str, float] = Field({}, description="of the last round, as `Start.worth`")

    @property
    def final(self) -> Evaluation:
        """The evaluation of the last round."""
        return self.rounds[-1].evaluation


class Node(Part):
    """An artifact the comparison stands on. `inputs` are content digests by the name its stage knows them by."""

    kind: str
    fingerprint: str
    digest: str
    inputs: dict[str, str]


class Comparison(Part):
    """Everything the report shows."""

    schema_version: int = SCHEMA
    title: str
    config_digest: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    starts: tuple[Start, ...]
    runs: tuple[Run, ...]
    lineage: dict[str, Node] = Field(description="by input name, for example ppo.random.s0.r2")
    statistics: dict[str, Any] = Field(description="the preference set, as its stage describes it")

    @property
    def has_gold(self) -> bool:
        """Whether every final policy has a gold reward."""
        return all(run.final.gold_reward is not None for run in self.runs)

    @property
    def has_audit(self) -> bool:
        """Whether every first and final policy was scored by an audit model."""
        evaluations = [*(start.evaluation for start in self.starts), *(run.final for run in self.runs)]
        return all(evaluation.audit_score is not None for evaluation in evaluations)

    def of_arm(self, arm: str) -> list[Run]:
        """The runs of one arm, in the order of the seeds."""
        return [run for run in self.runs if run.arm == arm]

    def selects(self, arm: str) -> bool:
        """Whether this arm selects pairs: for a refresh, or for a direct method."""
        return any(round_.selection is not None for run in self.of_arm(arm) for round_ in run.rounds)

    def is_direct(self, arm: str) -> bool:
        """Whether this arm is optimised without RL: then its policy was not asked inside a round."""
        return not any(round_.training for run in self.of_arm(arm) for round_ in run.rounds)

    def refreshes(self, arm: str) -> bool:
        """Whether this arm refreshes its reward model."""
        return any(round_.gate is not None for run in self.of_arm(arm) for round_ in run.rounds)


def save(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.json`, the same bytes for the same value."""
    text = canonical_json(comparison.model_dump(mode="json"))
    (folder / FILE).write_text(f"{text}\n", encoding="utf-8")


def load(folder: Path) -> Comparison:
    """Read `comparison.json`.

    Raises:
        UserError: it is missing or not a comparison.
    """
    path = folder / FILE
    fix = "delete the artifact's folder and run again: it is built from the evaluations"
    if not path.is_file():
        raise UserError("the comparison has no data", where=str(path), fix=fix)
    try:
        return Comparison.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError("not a comparison this version can read", where=str(path), fix=fix) from error
