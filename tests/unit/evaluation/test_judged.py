"""Benchmarks under rewards whose scores are known, and under tiny models: scores, intervals and shortcuts."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.evaluation.judged import NULL_ANSWERS, judge, score_texts, swapped
from inverse_alignment.evaluation.rewardbench import SECTIONS, Benchmark, Item
from inverse_alignment.models.implicit_rewards import load_implicit_reward
from inverse_alignment.models.reward_scores import RewardScorer
from tests.unit.models import tiny

CPU = torch.device("cpu")


def item(prompt, *answers, right=1, subset="", unit="", weight=1.0, kind="best"):
    return Item(Prompt.from_text(prompt), answers, right, subset, unit or prompt, weight, kind)


def pairs(*items, layout="pairs", name="mine"):
    return Benchmark(layout, name, sections={name: list(items)})


def by_text(scores, otherwise=0.0):
    """A reward that knows answers by heart, whatever the prompt."""
    return lambda prompts, answers: np.array([scores.get(answer, otherwise) for answer in answers])


def random_reward(prompts, answers):
    """A number per text and prompt, which neither decides in any way one could see."""
    seeds = (
        int(prompt.key, 16) ^ int.from_bytes(answer.encode(), "little")
        for prompt, answer in zip(prompts, answers, strict=True)
    )
    return np.array([np.random.Generator(np.random.Philox(key=seed % 2**127)).normal() for seed in seeds])


def only(benchmark, score, **more):
    """The single section of a benchmark."""
    (found,) = judge([benchmark], score, 0, **more)
    (section,) = found.sections
    return section


def test_pairs_by_hand():
    benchmark = pairs(item("p", "good", "so so"), item("q", "bad", "a good deal"), item("r", "good", "as good"))
    section = only(benchmark, by_text({"good": 1.0, "as good": 1.0, "bad": -1.0}))
    assert section.score.mean == pytest.approx((1 + 0 + 0.5) / 3)
    assert (section.items, section.units, section.chance) == (3, 3, 0.5)
    assert section.longer_wins == 0.0
    assert 0 <= section.score.low < section.score.mean < section.score.high <= 1


def test_intervals_draw_prompts_not_pairs():
    many = [item(f"p{i}", f"good {j}" if i % 2 else f"bad {j}", "middle") for i in range(8) for j in range(40)]
    few = [item(f"p{i}", "good 0" if i % 2 else "bad 0", "middle") for i in range(8)]
    score = by_text({**{f"good {j}": 1.0 for j in range(40)}, **{f"bad {j}": -1.0 for j in range(40)}})
    widths = []
    for items in (many, few):
        section = only(pairs(*items), score)
        assert section.units == 8 and section.score.mean == 0.5
        widths.append(section.score.high - section.score.low)
    assert widths[0] == pytest.approx(widths[1], abs=0.15) and widths[0] > 0.5


PUBLISHED = {  # how many of how many prompts a model had right, from the example in RewardBench's README
    "alpacaeval-easy": (50, 100), "alpacaeval-hard": (67, 95), "alpacaeval-length": (56, 95),
    "mt-bench-easy": (16, 28), "mt-bench-med": (29, 40), "mt-bench-hard": (20, 37),
    "llmbar-natural": (52, 100), "llmbar-adver-neighbor": (58, 134), "llmbar-adver-GPTInst": (36, 92),
    "llmbar-adver-GPTOut": (22, 47), "llmbar-adver-manual": (17, 46),
    "refusals-dangerous": (97, 100), "refusals-offensive": (100, 100), "xstest-should-refuse": (154, 154),
    "xstest-should-respond": (71, 250), "donotanswer": (112, 136),
    "math-prm": (132, 447), "hep-cpp": (103, 164), "hep-go": (104, 164), "hep-java": (116, 164),
    "hep-js": (109, 164), "hep-python": (90, 164), "hep-rust": (106, 164),
}  # fmt: skip


def rewardbench(prior=()):
    sections = {
        name: [
            item(f"{subset} {i}", "1" if i < PUBLISHED[subset][0] else "-1", "0", subset=subset,
                 weight=984 / 447 if subset == "math-prm" else 1.0)
            for subset in subsets for i in range(PUBLISHED[subset][1])
        ]
        for name, subsets in SECTIONS.items()
    }  # fmt: skip
    if prior:
        sections["Prior Sets"] = list(prior)
    return Benchmark("RewardBench", "RewardBench", sections=sections)


def as_number(prompts, answers):
    return np.array([float(answer) for answer in answers])


def test_the_published_example_of_rewardbench_prompt_by_prompt():
    (found,) = judge([rewardbench()], as_number, 0, probing=False)
    means = {section.name: section.score.mean for section in found.sections}
    golden = {"Chat": 0.6089385, "Chat Hard": 0.4495614, "Safety": 0.7216216, "Reasoning": 0.4667567}
    assert means == pytest.approx(golden, abs=5e-8)
    assert found.overall is not None and found.with_prior is None
    assert found.overall.mean == pytest.approx(0.5617196, abs=5e-8)
    assert found.overall.low < 0.5617 < found.overall.high and found.overall.high - found.overall.low < 0.05
    assert found.sections[0].subsets["mt-bench-med"] == (40, 0.725)


def test_prior_sets_count_half_and_a_lacking_section_leaves_no_score():
    prior = [item("a", "1", "0", subset="shp"), item("b", "0", "1", subset="summarize")]
    (found,) = judge([rewardbench(prior)], as_number, 0, probing=False)
    assert found.overall is not None and found.with_prior is not None
    assert found.overall.mean == pytest.approx(0.5617196, abs=5e-8)
    assert found.with_prior.mean == pytest.approx((4 * 0.56171959 + 0.25) / 4.5, abs=5e-8)
    part = rewardbench()
    del part.sections["Safety"]
    (found,) = judge([part], as_number, 0, probing=False)
    assert found.overall is None and found.lacking == ["Safety"]


def test_ties_by_the_number_of_the_released_code():
    items = [
        item("a", "2", "0", "-1", unit="0", kind="reference"),
        item("b", "2.0", "1.8", "1.5", "0.5", "-1", right=3, unit="0", kind="tied"),
        item("c", "0", "1", "-1", unit="1", kind="reference"),
        item("d", "3", "1", "0.5", "0", right=2, unit="1", kind="tied"),
    ]
    section = only(pairs(*items, layout="RewardBench 2", name="Ties"), as_number, probing=False)
    assert section.score.mean == pytest.approx(0.64928223, abs=1e-8)
    assert (section.items, section.units, section.chance) == (4, 2, None)


def test_best_of_four_by_hand_and_by_chance():
    four = [item("p", "3", "1", "2", "0"), item("q", "3", "3", "3.0", "0"), item("r", "0", "1", "2", "3")]
    section = only(pairs(*four, layout="RewardBench 2", name="Math"), as_number, probing=False)
    assert section.score.mean == pytest.approx((1 + 1 / 3 + 0) / 3) and section.chance == 0.25
    many = [item(f"p{i}", *(f"{i} {j}" for j in range(4))) for i in range(500)]
    section = only(pairs(*many, layout="RewardBench 2", name="Math"), random_reward, probing=False)
    assert abs(section.score.mean - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 500)
    assert section.score.low < 0.25 < section.score.high


def test_a_random_reward_is_at_chance_and_its_shortcuts_too():
    items = [item(f"question {i}", f"good {i}", f"bad {i}") for i in range(300)]
    section = only(pairs(*items), random_reward)
    bound = 4 * 0.5 / math.sqrt(300)
    assert section.probes is not None
    probes = section.probes
    alone = (section.score.mean, probes.swapped_prompt, probes.own_prompt_wins, probes.beats_empty)
    for found in (*alone, *probes.null_wins.values()):
        assert abs(found - 0.5) < bound
    assert section.probes.prompt_share < 0.03


ITEMS = [
    item("colour of snow", "white", "green"),
    item("colour of grass", "green", "white"),
    item("sky", "blue", "red"),
]


def test_a_reward_that_reads_the_prompt_is_lost_without_it():
    right = {"colour of snow": "white", "colour of grass": "green", "sky": "blue"}

    def score(prompts, answers):
        return np.array([float(right[p.text()] == a) - float(not a) for p, a in zip(prompts, answers, strict=True)])

    section = only(pairs(*ITEMS), score)
    assert section.score.mean == 1.0 and section.probes is not None
    assert section.probes.swapped_prompt < 0.7
    assert section.probes.own_prompt_wins == 1.0
    assert section.probes.beats_empty == 1.0
    assert set(section.probes.null_wins.values()) == {0.0}


def test_a_reward_that_reads_the_answer_alone_is_noticed():
    section = only(pairs(*ITEMS), by_text({"white": 2.0, "green": 1.0, "blue": 3.0, "red": 0.0}, otherwise=1.5))
    assert section.score.mean == pytest.approx(2 / 3) and section.probes is not None
    assert section.probes.swapped_prompt == pytest.approx(2 / 3)
    assert section.probes.own_prompt_wins == 0.5  # all ties
    assert section.probes.beats_empty == pytest.approx(2 / 3)
    assert set(section.probes.null_wins) == set(NULL_ANSWERS)
    assert section.probes.null_wins["verdict"] == pytest.approx(1 / 3)


def test_a_reward_that_reads_the_prompt_alone_is_noticed():
    section = only(pairs(*ITEMS), lambda prompts, answers: np.array([float(len(p.text())) for p in prompts]))
    assert section.score.mean == 0.5 and section.probes is not None
    assert section.probes.prompt_share == pytest.approx(1.0)
    assert section.probes.beats_empty == 0.5


def test_a_reward_for_length_is_the_baseline():
    items = [item(f"p{i}", "one " * (1 + i % 3), "two " * 2) for i in range(9)]
    section = only(pairs(*items), lambda prompts, answers: np.array([float(len(a.split())) for a in answers]))
    assert section.longer_wins == section.score.mean == 0.5
    assert section.probes is not None and section.probes.null_wins["praise"] == 1.0


def test_a_single_prompt_cannot_be_swapped():
    assert swapped([item("p", "a", "b"), item("p", "c", "d")], 0) is None
    section = only(pairs(item("p", "1", "0")), lambda prompts, answers: np.zeros(len(answers)))
    assert section.probes is not None and section.probes.swapped_prompt is None


def test_swapped_prompts_are_others_and_decided_by_the_seed():
    items = [item(f"p{i % 7}", f"a{i}", f"b{i}") for i in range(20)]
    found = swapped(items, 3)
    assert found is not None
    assert all(other.key != each.prompt.key for other, each in zip(found, items, strict=True))
    assert len({other.key for other in found}) == 7
    assert found == swapped(items, 3) != swapped(items, 4)


def test_texts_are_asked_about_once_and_progress_is_told():
    asked, told = [], []

    def score(prompts, answers):
        asked.extend(zip((p.key for p in prompts), answers, strict=True))
        return np.zeros(len(answers))

    texts = [(Prompt.from_text(f"p{i % 300}"), "a") for i in range(900)]
    found = score_texts(score, texts, lambda done, total, unit: told.append((done, total)))
    assert len(asked) == len(set(asked)) == len(found) == 300
    assert told == [(256, 300), (300, 300)]
    assert only(pairs(*ITEMS), score, probing=False).probes is None
    assert not any(answer in ("", *NULL_ANSWERS.values()) for _, answer in asked)


def test_the_result_is_json():
    (found,) = judge([rewardbench()], as_number, 0, probing=False)
    plain = json.loads(json.dumps(found.as_json()))
    assert plain["overall"]["mean"] == found.overall.mean
    assert plain["sections"][0]["score"]["low"] == found.sections[0].score.low
    assert plain["sections"][0]["subsets"]["mt-bench-med"] == {"items": 40, "score": 0.725}
    assert [*plain] == [each.name for each in dataclasses.fields(found)]


# ---------------------------------------------------------------------------------------------- models

ASKED = [
    item("hi", "the cat sat", "a dog"),
    item("a dog?", "the end", "mat " * 30),
    item("the end", "a cat", "dog dog"),
]


def texts_of(items):
    return [each.prompt for each in items for _ in each.answers], [a for each in items for a in each.answers]


@pytest.fixture(scope="module")
def implicit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    policy, reference = (tiny.saved(tiny.policy(seed, 3.0), folder / str(seed)) for seed in (0, 1))
    return load_implicit_reward(policy, reference, CPU, tiny.SPEC.context, 512)


def test_scores_do_not_depend_on_what_else_is_asked(implicit):
    prompts, answers = texts_of(ASKED)
    for score in (implicit, RewardScorer(tiny.reward_model(), tiny.tokenizer(), tiny.SPEC.context, 8)):
        together = score(prompts, answers)
        alone = np.concatenate([score([p], [a]) for p, a in zip(prompts, answers, strict=True)])
        assert together == pytest.approx(alone, abs=2e-5)
        assert together.dtype == np.float64 and len(set(together.round(6))) > 3
        (one,), (more,) = (judge(given, score, 0) for given in ([pairs(*ASKED)], [pairs(*ASKED[::-1])]))
        assert one.sections[0].score.mean == more.sections[0].score.mean


def test_the_implicit_reward_is_the_log_ratio(implicit):
    from inverse_alignment.models.answer_log_probs import answer_log_probs

    prompts, answers = texts_of(ASKED)
    own, other = (
        answer_log_probs(model, tiny.tokenizer(), prompts, answers, tiny.SPEC.context, 64).sums
        for model in (implicit.policy, implicit.reference)
    )
    assert implicit(prompts, answers) == pytest.approx(own - other, abs=1e-4)
    halved = dataclasses.replace(implicit, beta=0.5)
    assert halved(prompts, answers) == pytest.approx(0.5 * (own - other), abs=1e-4)
    same = dataclasses.replace(implicit, reference=implicit.policy)
    assert not same(prompts, answers).any()


def test_a_reference_with_another_tokenizer_is_refused(tmp_path):
    policy = tiny.saved(tiny.policy(), tmp_path / "policy")
    other = tiny.saved(tiny.policy(), tmp_path / "other")
    tokens = tiny.tokenizer()
    tokens.add_tokens(["new"])
    tokens.save_pretrained(other)
    with pytest.raises(UserError, match="different tokenizers"):
        load_implicit_reward(policy, other, CPU, 64, 512)
