"""`statistics.json` as the data card reads it; whatever an artifact of another version lacks is None or empty."""

from __future__ import annotations

from pydantic import Field

from inverse_alignment.report.comparison import Reading


class Words(Reading):
    """Words per answer."""

    mean: float | None = None
    median: float | None = None
    p95: float | None = None


class Group(Reading):
    """Pairs of one dataset, policy or annotator, or all of them; `data.statistics` defines the fields."""

    rows: int | None = None
    pairs: int | None = None
    prompts: int | None = None
    dropped: dict[str, int] | None = None
    ties: int | None = None
    kept_after_tokenisation: float | None = None
    truncated: int | None = None
    splits: dict[str, dict[str, int]] | None = None
    chosen_words: Words = Words()
    rejected_words: Words = Words()
    longer_wins: float | None = None
    licences: dict[str, int] | None = None


class Policy(Group):
    """Pairs for which one policy wrote an answer."""

    wins: int | None = None
    losses: int | None = None

    @property
    def win_share(self) -> float | None:
        """Of its answers those that were preferred."""
        if self.wins is None or self.losses is None or not self.wins + self.losses:
            return None
        return self.wins / (self.wins + self.losses)


class Agreement(Reading):
    """How often two annotators who judged the same two answers agree."""

    one: str
    other: str
    agree: int
    disagree: int

    @property
    def share(self) -> float | None:
        """Of the questions that both judged."""
        asked = self.agree + self.disagree
        return self.agree / asked if asked else None


class Contradictions(Reading):
    """Questions that were labelled both ways; `data.contradictions` defines the fields."""

    questions: int | None = None
    within_annotator: int | None = None
    across_datasets: int | None = None
    agreement: tuple[Agreement, ...] | None = None


class OtherRows(Reading):
    """Prompts, demonstrations or judgements of one dataset."""

    kind: str | None = None
    rows: int | None = None
    kept: int | None = None
    prompts: int | None = None
    dropped: dict[str, int] | None = None
    splits: dict[str, dict[str, int]] | None = None
    response_words: Words = Words()
    licences: dict[str, int] | None = None


class Statistics(Group):
    """All pairs, and their parts."""

    contradictions: Contradictions | None = None
    datasets: dict[str, Group] = Field(default_factory=dict)
    policies: dict[str, Policy] = Field(default_factory=dict)
    annotators: dict[str, Group] = Field(default_factory=dict)
    others: dict[str, OtherRows] = Field(default_factory=dict)
