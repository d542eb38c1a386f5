"""The advice desk: the embedded default world, written by six sources and labelled by three annotators.

Everything follows from `WorldConfig` alone, to the byte, on every Python and platform. Only the labels depend on
`heterogeneity`: the same pair keeps its prompt, its two answers, its annotator and its noise.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inverse_alignment.core.records import Comparison, Prompt, Provenance
from inverse_alignment.world.annotators import ANNOTATORS, TEMPERATURE, assign, preference
from inverse_alignment.world.draws import Draws
from inverse_alignment.world.gold import gold_reward
from inverse_alignment.world.lexicon import QUESTIONS, TOPICS
from inverse_alignment.world.sources import SOURCES, demonstrate

__all__ = ["ANNOTATORS", "SOURCES", "WorldConfig", "all_prompts", "demonstrate", "generate", "prompts", "write_dataset"]

DATASET = "advice-desk"
LICENCE = "Apache-2.0"
PER_TOPIC = len(TOPICS[0].settings) * len(QUESTIONS)


class WorldConfig(BaseModel):
    """What makes one advice desk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, description="seed of every choice: prompts, answers, annotators and label noise")
    heterogeneity: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="how far annotators disagree about what is good; 0: pooling is harmless, 1: it averages conflicts",
    )
    topics: int = Field(
        default=8, ge=1, le=len(TOPICS), description="what people ask about; each has steps of its own to be learned"
    )
    prompts: int = Field(
        default=160, ge=1, le=PER_TOPIC * len(TOPICS), description="distinct prompts, spread evenly over the topics"
    )
    pairs: int = Field(default=4800, ge=1, description="labelled pairs; a smaller set is the beginning of a larger one")

    @model_validator(mode="after")
    def _topics_hold_the_prompts(self) -> WorldConfig:
        if self.prompts > self.topics * PER_TOPIC:
            raise ValueError(f"{self.topics} topics have {self.topics * PER_TOPIC} prompts, not {self.prompts}")
        return self


def all_prompts() -> list[Prompt]:
    """Every question the desk can be asked, topic by topic."""
    wishes = [f"{topic.goal} {setting}".strip() for topic in TOPICS for setting in topic.settings]
    return [Prompt.from_text(question.format(wish=wish)) for wish in wishes for question in QUESTIONS]


def prompts(config: WorldConfig) -> list[Prompt]:
    """The world's prompts: distinct, and as many of each topic as of any other (to one)."""
    every = all_prompts()
    columns = [
        Draws("advice-desk prompts", config.seed, topic.keyword).shuffled(every[i * PER_TOPIC : (i + 1) * PER_TOPIC])
        for i, topic in enumerate(TOPICS[: config.topics])
    ]
    return [column[row] for row in range(PER_TOPIC) for column in columns][: config.prompts]


def generate(config: WorldConfig) -> list[Comparison]:
    """The labelled pairs. Answer A beats B with the annotator's Bradley-Terry probability."""
    asked = prompts(config)
    return [_compare(config, asked[i % len(asked)], i) for i in range(config.pairs)]


def _compare(config: WorldConfig, prompt: Prompt, index: int) -> Comparison:
    draws = Draws("advice-desk pair", config.seed, index)
    sources = draws.choice(list(SOURCES)), draws.choice(list(SOURCES))
    annotator = assign(*sources, draws)
    first = demonstrate(sources[0], prompt, 2 * index, seed=config.seed)
    second = demonstrate(sources[1], prompt, 2 * index + 1, seed=config.seed)
    while second == first:
        # One source can say the same thing twice; a far index is used by no other pair.
        second = demonstrate(sources[1], prompt, 2**40 + int(draws.uniform() * 2**40), seed=config.seed)
    # One uniform per pair whatever the heterogeneity, so that the knob moves labels and nothing else.
    first_wins = draws.uniform() < preference(annotator, prompt, first, second, config.heterogeneity)
    winner, loser = (0, 1) if first_wins else (1, 0)
    return Comparison(
        prompt=prompt,
        chosen=(first, second)[winner],
        rejected=(first, second)[loser],
        provenance=Provenance(
            dataset=DATASET,
            source_chosen=sources[winner],
            source_rejected=sources[loser],
            annotator=annotator,
            licence=LICENCE,
            original_id=f"desk-{index:06d}",
        ),
    )


def write_dataset(folder: Path, config: WorldConfig) -> None:
    """Write `pairs.jsonl` (flat columns), `README.md` (the data card) and `world.json` (the config) into a folder.

    The folder is made if need be; files of these names are replaced. Same config, same bytes.
    """
    pairs = generate(config)
    folder.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps(_row(pair), ensure_ascii=False) for pair in pairs)
    _write(folder / "pairs.jsonl", "".join(f"{row}\n" for row in rows))
    _write(folder / "world.json", json.dumps(config.model_dump(), indent=2) + "\n")
    _write(folder / "README.md", data_card(config, pairs))


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))  # bytes, because text mode writes other line ends on Windows


def _row(pair: Comparison) -> dict[str, str | float | None]:
    origin = pair.provenance
    return {
        "id": origin.original_id,
        "prompt": pair.prompt.text(),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "source_chosen": origin.source_chosen,
        "source_rejected": origin.source_rejected,
        "annotator": origin.annotator,
        "margin": pair.margin,
        "licence": origin.licence,
    }


def gold_agreement(pairs: Iterable[Comparison]) -> float:
    """Share of pairs whose chosen answer has the larger gold reward; a gold tie counts one half. NaN if no pairs."""
    scores = [_win(gold_reward(p.prompt, p.chosen), gold_reward(p.prompt, p.rejected)) for p in pairs]
    return sum(scores) / len(scores) if scores else float("nan")


def _win(chosen: float, rejected: float) -> float:
    return 0.5 if chosen == rejected else float(chosen > rejected)


def data_card(config: WorldConfig, pairs: list[Comparison]) -> str:
    """The data card of a generated set, in Markdown."""
    answers = Counter(s for p in pairs for s in (p.provenance.source_chosen, p.provenance.source_rejected))
    wins = Counter(p.provenance.source_chosen for p in pairs)
    gold: dict[str, list[float]] = {name: [] for name in SOURCES}
    for p in pairs:
        gold[p.provenance.source_chosen].append(gold_reward(p.prompt, p.chosen))
        gold[p.provenance.source_rejected].append(gold_reward(p.prompt, p.rejected))
    by_annotator = {name: [p for p in pairs if p.provenance.annotator == name] for name in ANNOTATORS}
    longer = [_win(len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    source_rows = [
        f"| {name} | {style.summary} | {answers[name]} | {_mean(gold[name])} | {_share(wins[name], answers[name])} |"
        for name, style in SOURCES.items()
    ]
    annotator_rows = [
        f"| {name} | {ANNOTATORS[name].summary} | {len(labelled)} | {_number(gold_agreement(labelled))} |"
        for name, labelled in by_annotator.items()
    ]
    lines = [
        "# The advice desk",
        "",
        "Synthetic preferences made by `inverse_alignment.world.text` (Inverse Alignment). No person wrote, read or",
        "labelled an answer; use it to study methods, not to advise anybody.",
        "",
        f"- {len(pairs)} pairs over {len({p.prompt.key for p in pairs})} prompts, licence {LICENCE}",
        f"- config (`world.json`): `{json.dumps(config.model_dump())}`",
        f"- labels: Bradley-Terry with temperature {TEMPERATURE} on gold + heterogeneity x the annotator's bias",
        f"- agreement of all labels with gold: {_number(gold_agreement(pairs))} (a tie counts one half)",
        f"- accuracy of 'the longer answer wins' (words): {_number(sum(longer) / len(longer))}",
        "",
        "| source | style | answers | mean gold | share chosen |",
        "|---|---|---|---|---|",
        *source_rows,
        "",
        "| annotator | taste | pairs | agreement with gold |",
        "|---|---|---|---|",
        *annotator_rows,
        "",
        "`pairs.jsonl` has one object a line: id, prompt, chosen, rejected, source_chosen, source_rejected, annotator,",
        "margin (always null) and licence.",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _mean(values: list[float]) -> str:
    return _number(sum(values) / len(values)) if values else "-"


def _share(part: int, whole: int) -> str:
    return _number(part / whole) if whole else "-"
