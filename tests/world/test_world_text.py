"""The advice desk as a dataset: same bytes, readable, many hands, and one knob that moves labels only."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Prompt
from inverse_alignment.world.annotators import TEMPERATURE, assign, preference, utility
from inverse_alignment.world.draws import Draws
from inverse_alignment.world.gold import gold_reward, split_words, topic_of
from inverse_alignment.world.lexicon import TOPICS
from inverse_alignment.world.text import (
    ANNOTATORS,
    PER_TOPIC,
    SOURCES,
    WorldConfig,
    all_prompts,
    demonstrate,
    generate,
    gold_agreement,
    prompts,
    write_dataset,
)

# The default world. A change here changes every published result that used it: bump the dataset, do not just re-pin.
GOLDEN_SHA256 = "410a12d8003d5289c7001e9d78384a42a177134f91267109fe61c000cd4117a9"
COLUMNS = "id prompt chosen rejected source_chosen source_rejected annotator margin licence"
SENTENCES = re.compile(r"([A-Z][a-z]*,?( [A-Za-z]+,?)*[.!?])( [A-Z][a-z]*,?( [A-Za-z]+,?)*[.!?])*")


@pytest.fixture(scope="module")
def pairs() -> list[Comparison]:
    return generate(WorldConfig())


@pytest.fixture(scope="module")
def by_heterogeneity() -> dict[float, list[Comparison]]:
    return {h: generate(WorldConfig(heterogeneity=h, pairs=3000)) for h in (0.0, 0.5, 1.0)}


def texts(pair: Comparison) -> set[str]:
    return {pair.chosen, pair.rejected}


def test_default_dataset_is_the_same_bytes_everywhere(tmp_path: Path) -> None:
    write_dataset(tmp_path, WorldConfig())
    assert hashlib.sha256((tmp_path / "pairs.jsonl").read_bytes()).hexdigest() == GOLDEN_SHA256
    assert json.loads((tmp_path / "world.json").read_text()) == WorldConfig().model_dump()


def test_another_process_and_hash_seed_write_the_same_files(tmp_path: Path) -> None:
    config = WorldConfig(pairs=50, seed=3)
    write_dataset(tmp_path / "here", config)
    code = (
        "import sys; from pathlib import Path; from inverse_alignment.world.text import WorldConfig, write_dataset;"
        "write_dataset(Path(sys.argv[1]), WorldConfig(pairs=50, seed=3));"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules), 'the text world must stay light'"
    )
    environment = {"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=environment)
    for name in ("pairs.jsonl", "README.md", "world.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_rows_are_flat_and_round_trip(tmp_path: Path) -> None:
    config = WorldConfig(pairs=30)
    write_dataset(tmp_path, config)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(list(row) == COLUMNS.split() for row in rows)
    for row, pair in zip(rows, generate(config), strict=True):
        assert (row["prompt"], row["chosen"], row["rejected"]) == (pair.prompt.text(), pair.chosen, pair.rejected)
        assert row["margin"] is None and row["licence"] == "Apache-2.0"
        assert row["annotator"] == pair.provenance.annotator


def test_data_card_states_its_counts(tmp_path: Path) -> None:
    config = WorldConfig(pairs=600, prompts=48)
    write_dataset(tmp_path, config)
    card, pairs = (tmp_path / "README.md").read_text(encoding="utf-8"), generate(config)
    editor = [p for p in pairs if p.provenance.annotator == "editor"]
    assert f"| editor | {ANNOTATORS['editor'].summary} | {len(editor)} | {gold_agreement(editor):.3f} |" in card
    assert "600 pairs over 48 prompts" in card
    longer = [(len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    accuracy = sum(0.5 if a == b else float(a > b) for a, b in longer) / len(longer)
    assert f"'the longer answer wins' (words): {accuracy:.3f}" in card


def test_a_smaller_set_begins_a_larger_one_and_seeds_differ() -> None:
    assert generate(WorldConfig(pairs=40)) == generate(WorldConfig(pairs=80))[:40]
    assert generate(WorldConfig(pairs=40, seed=1)) != generate(WorldConfig(pairs=40))


def test_prompts_are_distinct_and_balanced() -> None:
    asked = prompts(WorldConfig())
    assert len({p.id for p in asked}) == 160
    assert len({p.id for p in all_prompts()}) == PER_TOPIC * len(TOPICS) == 480
    assert {topic_of(p).keyword for p in asked} == {topic.keyword for topic in TOPICS[:8]}
    subset = prompts(WorldConfig(prompts=48))
    assert asked[:48] == subset


def test_many_hands(pairs: list[Comparison]) -> None:
    assert len(SOURCES) >= 6 and len(ANNOTATORS) >= 3
    answers = Counter(s for p in pairs for s in (p.provenance.source_chosen, p.provenance.source_rejected))
    labels = Counter(p.provenance.annotator for p in pairs)
    assert set(answers) == set(SOURCES) and min(answers.values()) > 1000
    assert set(labels) == set(ANNOTATORS) and min(labels.values()) > 1000
    assert len({p.id for p in pairs}) == len(pairs)
    assert all(p.chosen != p.rejected for p in pairs)


def test_answers_are_readable(pairs: list[Comparison]) -> None:
    lengths = []
    for text in {t for p in pairs for t in texts(p)}:
        assert SENTENCES.fullmatch(text), text
        lengths.append(len(split_words(text)))
    assert min(lengths) >= 5 and max(lengths) <= 60
    assert sorted(lengths)[len(lengths) // 20] >= 10 and sorted(lengths)[-len(lengths) // 20] <= 45
    # The control: the pattern refuses what it is there to refuse.
    for bad in ("Oil the  pan.", "oil the pan.", "Oil the pan", "Oil the pan .", "Oil the pan. then rest."):
        assert not SENTENCES.fullmatch(bad)


def test_vocabulary_is_small(pairs: list[Comparison]) -> None:
    vocabulary = {w for p in pairs for t in (p.prompt.text(), *texts(p)) for w in split_words(t)}
    assert 400 < len(vocabulary) <= 700


def test_answers_vary(pairs: list[Comparison]) -> None:
    written = [t for p in pairs for t in (p.chosen, p.rejected)]
    assert len(set(written)) > 0.8 * len(written)


def test_style_tells_the_source() -> None:
    # Naive Bayes on words: style is in the text, so where an answer lies says who wrote it.
    asked = prompts(WorldConfig())
    counts = {name: Counter[str]() for name in SOURCES}
    for i, prompt in enumerate(asked[:80]):
        for name in SOURCES:
            counts[name].update(re.findall(r"\w+|[!.]", demonstrate(name, prompt, i).lower()))
    totals = {name: counts[name].total() + 600 for name in SOURCES}
    right = 0
    for prompt in asked[80:]:
        for name in SOURCES:
            words = re.findall(r"\w+|[!.]", demonstrate(name, prompt, 0).lower())
            scores = {s: sum(math.log((counts[s][w] + 1) / totals[s]) for w in words) for s in SOURCES}
            right += max(scores, key=lambda s: scores[s]) == name
    assert right / (80 * len(SOURCES)) > 0.9


def test_quality_of_sources_differs_and_overlaps(pairs: list[Comparison]) -> None:
    gold: dict[str, list[float]] = {name: [] for name in SOURCES}
    for p in pairs:
        gold[p.provenance.source_chosen].append(gold_reward(p.prompt, p.chosen))
        gold[p.provenance.source_rejected].append(gold_reward(p.prompt, p.rejected))
    means = {name: sum(values) / len(values) for name, values in gold.items()}
    assert max(means, key=lambda s: means[s]) == "expert"
    assert max(means.values()) - min(means.values()) > 1.0
    assert 0 < sum(means.values()) / len(means) < 1
    ninth_decile_of_novices = sorted(gold["novice"])[-len(gold["novice"]) // 10]
    assert ninth_decile_of_novices > sorted(gold["expert"])[len(gold["expert"]) // 10]


def test_annotators_sit_where_their_sources_are(pairs: list[Comparison]) -> None:
    labelled = {name: Counter[str]() for name in SOURCES}
    for p in pairs:
        for source in (p.provenance.source_chosen, p.provenance.source_rejected):
            labelled[source][p.provenance.annotator] += 1
    for source, annotator in (("expert", "editor"), ("salesman", "skimmer"), ("lawyer", "worrier")):
        assert labelled[source][annotator] > 0.5 * labelled[source].total()


def test_assignment_follows_the_affinities() -> None:
    # expert-expert: weights 3 * 3, 0.8 * 0.8, 0.8 * 0.8, so the editor has 9 / 10.28 = 0.8755 of them.
    drawn = Counter(assign("expert", "expert", Draws("test", i)) for i in range(2000))
    assert drawn["editor"] / 2000 == pytest.approx(0.8755, abs=0.03)  # four standard errors


def test_heterogeneity_moves_labels_and_nothing_else(by_heterogeneity: dict[float, list[Comparison]]) -> None:
    flipped = 0
    for low, high in zip(by_heterogeneity[0.0], by_heterogeneity[1.0], strict=True):
        assert (low.prompt, low.id, low.provenance.annotator) == (high.prompt, high.id, high.provenance.annotator)
        assert texts(low) == texts(high)
        if low.provenance.annotator == "editor":
            assert low == high
        flipped += low.chosen != high.chosen
    assert flipped > 0.2 * len(by_heterogeneity[0.0])


def test_heterogeneity_costs_the_biased_their_agreement_with_gold(
    by_heterogeneity: dict[float, list[Comparison]],
) -> None:
    agreement = {
        name: [
            gold_agreement([p for p in by_heterogeneity[h] if p.provenance.annotator == name]) for h in (0.0, 0.5, 1.0)
        ]
        for name in ANNOTATORS
    }
    assert all(0.85 < values[0] < 0.91 for values in agreement.values())  # one taste, the same noise
    assert agreement["editor"][0] == agreement["editor"][2]
    for name in ("skimmer", "worrier"):
        at_0, at_half, at_1 = agreement[name]
        assert at_0 - 0.1 > at_half > at_1 + 0.1
        assert 0.45 < at_1 < 0.65


def test_tastes_contradict_each_other_only_when_heterogeneous(pairs: list[Comparison]) -> None:
    def contradictions(heterogeneity: float) -> float:
        gaps = [
            [
                utility(name, p.prompt, p.chosen, heterogeneity) - utility(name, p.prompt, p.rejected, heterogeneity)
                for name in ("skimmer", "worrier")
            ]
            for p in pairs[:1500]
        ]
        return sum(a * b < 0 for a, b in gaps) / len(gaps)

    assert contradictions(0.0) == 0.0
    assert contradictions(1.0) > 0.35


def test_preference_by_hand() -> None:
    basil = Prompt.from_text("How do I keep basil alive?")
    loud, careful = "Pinch off the flowers!", "Pinch off the flowers. Results can vary."
    # Gold 0.6 and 0.45: σ(0.15 / 0.25) = σ(0.6) = 0.645656.
    assert TEMPERATURE == 0.25
    assert preference("editor", basil, loud, careful, 1.0) == pytest.approx(0.645656, abs=1e-6)
    # Skimmer: + 0.5 for '!', and 3 words fewer at 0.09: gap 0.15 + 0.77 = 0.92, σ(3.68) = 0.975398.
    assert preference("skimmer", basil, loud, careful, 1.0) == pytest.approx(0.975398, abs=1e-6)
    # Worrier: -0.35 for the missing hedge: gap -0.2, σ(-0.8) = 0.310026.
    assert preference("worrier", basil, loud, careful, 1.0) == pytest.approx(0.310026, abs=1e-6)
    for name in ANNOTATORS:
        assert preference(name, basil, loud, careful, 0.0) == pytest.approx(0.645656, abs=1e-6)
        both = preference(name, basil, loud, careful, 0.7) + preference(name, basil, careful, loud, 0.7)
        assert both == pytest.approx(1.0, abs=1e-12)
    assert preference("skimmer", basil, "word " * 10_000, loud, 1.0) == 0.0  # no overflow


def test_biases_by_hand() -> None:
    basil = Prompt.from_text("How do I keep basil alive?")
    # 16 words: opener, one step, caution, closer. Gold 0.4 + 0.6 + 0.3 = 1.3.
    text = "Good question. Pinch off the flowers! Never drown the roots. Be proud of each small win."
    expected = {
        "editor": 1.3,
        "skimmer": 1.3 + 0.5 - 16 * 0.09,
        "worrier": 1.3 + 0.4 - 2 * 0.5 - 0.2,  # one caution, warm twice, one step
    }
    for name, value in expected.items():
        assert utility(name, basil, text, 1.0) == pytest.approx(value, abs=1e-9)
        assert utility(name, basil, text, 0.5) == pytest.approx((value + 1.3) / 2, abs=1e-9)


def test_answers_of_a_source_are_numbered() -> None:
    prompt = all_prompts()[0]
    assert demonstrate("coach", prompt, 4) == demonstrate("coach", prompt, 4)
    assert len({demonstrate("coach", prompt, i) for i in range(20)}) > 10
    assert demonstrate("coach", prompt, 4, seed=1) != demonstrate("coach", prompt, 4)


def test_draws_are_uniform_and_keyed() -> None:
    draws = Draws("test", 0)
    values = [draws.uniform() for _ in range(4000)]
    assert min(values) >= 0 and max(values) < 1
    assert sum(values) / 4000 == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 4000))
    assert Draws("test", 1).uniform() != Draws("test", 0).uniform()
    assert sorted(draws.shuffled("abcdef")) == list("abcdef")
    picked = Counter(draws.weighted("abc", (0.0, 1.0, 3.0)) for _ in range(4000))
    assert picked["a"] == 0 and picked["c"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_mistakes_are_explained() -> None:
    with pytest.raises(UserError, match="did you mean 'expert'"):
        demonstrate("expertt", all_prompts()[0], 0)
    with pytest.raises(UserError, match="did you mean 'editor'"):
        utility("editer", all_prompts()[0], "", 0.0)
    for bad in ({"heterogeneity": 1.5}, {"prompts": 161}, {"pairs": 0}, {"heterogenity": 0.5}):
        with pytest.raises(ValidationError):
            WorldConfig.model_validate(bad)
