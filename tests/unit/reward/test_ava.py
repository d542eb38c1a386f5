"""AVA and the Preference Transformer: losses by hand, what every option does, order of held-out pairs, resume."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.records import Comparison
from inverse_alignment.maths.variational import (
    RewardPosterior,
    correlation,
    optimal_mean,
    td_residuals,
    transitions,
)
from inverse_alignment.models.beliefs import AvaObjective, Objective, PreferenceTransformerObjective, TqrCollator
from inverse_alignment.models.tqr import TokenBeliefs, Tqr, TqrForm, new_tqr
from inverse_alignment.models.tqr_scores import TqrScorer
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward.ava import belief_rows, degeneration, fit_tqr
from inverse_alignment.text.render import encode_full, encode_prompt
from tests.unit.models import tiny

TOKENS = tiny.tokenizer()
AVA = AvaObjective(paired=True)
PT = PreferenceTransformerObjective()
OF_AVA, OF_PT = TqrForm(), TqrForm(q="none", score="mean", uncertain=False)
NAN = float("nan")


class Killed(Exception):
    """As if the process had died."""


class Report(FileReport):
    """Dies at a step."""

    die_at = -1

    def progress(self, done, total, unit):
        if done == self.die_at:
            raise Killed
        super().progress(done, total, unit)


def world(count: int, seed: int, wrong: int = 0) -> list[Comparison]:
    """Pairs of answers of the same few words, one of which speaks of a cat and the other, the worse one, of a dog.

    Args:
        wrong: every so-manieth label is wrong; every second one, and labels say nothing.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    pairs = []
    for number in range(count):
        words = generator.choice(["the", "mat", "sat", "on", "end", "why"], size=(2, 5))
        words[0, generator.integers(5)], words[1, generator.integers(5)] = "cat", "dog"
        chosen, rejected = (" ".join(row) for row in (words[::-1] if wrong and number % wrong == 0 else words))
        pairs.append(tiny.pair("hi", chosen, rejected, number))
    return pairs


def train(
    partial, pairs, objective: Objective = AVA, form: TqrForm = OF_AVA, epochs=3, die_at=-1, checkpoint_seconds=3600.0
) -> tuple[Tqr, dict[str, float]]:
    partial.mkdir(exist_ok=True)
    report = Report(partial / "metrics.jsonl")
    report.die_at = die_at
    given = arguments(
        partial=partial, device="cpu", seed=0, epochs=epochs, learning_rate=1e-2, batch_size=16, warmup_share=0.1
    )
    model = new_tqr(tiny.policy(), form)
    rows = belief_rows(TOKENS, pairs, 64)
    return model, fit_tqr(model, TOKENS, rows, given, objective, partial, report, checkpoint_seconds)


def gaps(model: Tqr) -> np.ndarray:
    """By how much the better answer of 200 held-out pairs has the higher score."""
    pairs, score = world(200, 1), TqrScorer(model, TOKENS, 64, 64)
    prompts = [pair.prompt for pair in pairs]
    return score(prompts, [pair.chosen for pair in pairs]) - score(prompts, [pair.rejected for pair in pairs])


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> tuple[Tqr, dict[str, float]]:
    """AVA-p, trained on labels that are right."""
    return train(tmp_path_factory.mktemp("told"), world(128, 0))


def test_it_ranks_pairs_that_it_has_not_seen(told):
    model, metrics = told
    assert (gaps(model) > 0).mean() > 0.9
    assert metrics["steps"] == 24


@pytest.mark.parametrize(
    ("objective", "form"),
    [
        (replace(AVA, fresh=True, beta=2.0), TqrForm(q="fresh", inverse_temperature=2.0)),
        (PT, OF_PT),
    ],
    ids=["fresh Q", "preference transformer"],
)
def test_so_do_the_others(tmp_path, objective, form):
    model, _ = train(tmp_path / "p", world(128, 0), objective, form)
    assert (gaps(model) > 0).mean() > 0.9


def test_of_demonstrations_it_learns_residuals_drawn_to_the_prior(tmp_path):
    """And not which answer is better: of a word that no demonstration has, its reward is anybody's guess."""
    model, _ = train(tmp_path / "p", world(160, 0), replace(AVA, paired=False), TqrForm(weighted=False, score="sum"))
    batch = TqrCollator(TOKENS.pad_token_id, paired=False)(belief_rows(TOKENS, world(60, 1), 64))
    with torch.no_grad():
        found = model.eval()(batch["input_ids"], batch["attention_mask"], batch["counts"])
    residuals, choices = td_residuals(found.action_values, batch["counts"], 1.0), transitions(batch["counts"])
    best = optimal_mean(residuals, found.posterior.log_std.exp(), 1.0)
    assert correlation(found.posterior.mean[choices], best[choices]) > 0.6
    assert found.posterior.log_std[choices].mean() < 0.0  # residuals are better predicted than the prior has it


def test_labels_that_say_nothing_teach_nothing(tmp_path, told):
    """Negative control."""
    control, _ = train(tmp_path / "control", world(128, 0, wrong=2))
    assert abs(gaps(control).mean()) < 0.2 * gaps(told[0]).mean()


def beliefs(rows: int = 2) -> tuple[TokenBeliefs, torch.Tensor]:
    """One pair: an answer of two tokens and one of three, or the chosen one alone."""
    counts = torch.tensor([[False, True, True, False], [False, True, True, True]])[:rows]
    log_probs = torch.tensor([[0.0, -1.0, -2.0, 0.0], [0.0, -3.0, -20.0, -4.0]])[:rows]
    mean = torch.tensor([[0.0, 0.5, 2.0, 0.0], [0.0, 7.0, 7.0, 1.0]])[:rows]
    return TokenBeliefs(log_probs, log_probs, RewardPosterior(mean, torch.zeros_like(mean))), counts


def loss(objective: Objective, weights: tuple[float, ...] = (1.0,)) -> float:
    found, counts = beliefs(2 if objective.paired else 1)
    totals = objective(found, counts, torch.tensor(weights))
    return sum(float(total.value / total.amount) for total in totals)


def test_losses_by_hand():
    # the chosen answer makes one choice: log π = -1, δ = -1 + 2 = 1, μ = ½, σ = 1; CER is σ(2 - 1)
    evidence = -1.0 - 0.125 + (-0.125 - math.log(2 * math.pi) / 2)
    assert loss(replace(AVA, paired=False)) == pytest.approx(-evidence)
    assert loss(AVA) == pytest.approx(-(evidence + 3.0 + 10.0) - math.log(1 / (1 + math.exp(-1))), rel=1e-6)
    # mean rewards 1.25 and 5
    assert loss(PT) == pytest.approx(math.log(1 + math.exp(5 - 1.25)), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"beta": 2.0}, 1.0 - 13.0),
        ({"gamma": 0.5}, (0.5**2 - 0.5**2) / 2),  # δ = 0 in place of 1: as far from μ
        ({"gamma": 0.0}, (1.5**2 - 0.5**2) / 2),
        ({"consistency": 2.0}, 0.125 + math.log(2 * math.pi) / 2),
        ({"inverse": 0.0}, -0.25 - math.log(2 * math.pi) / 2),
        ({"negatives": 0.0}, 13.0),
        ({"floor": -5.0}, 5.0),
        ({"cer": 3.0}, 2 * math.log(1 + math.exp(-1))),
        ({"cer_form": "printed"}, -1 / (1 + math.exp(-1)) - math.log(1 + math.exp(-1))),
        ({"fresh": True, "beta": 2.0}, 0.0),  # β is in the policy
    ],
    ids=str,
)
def test_what_every_option_does(change, difference):
    assert loss(replace(AVA, **change)) - loss(AVA) == pytest.approx(difference, abs=1e-5)


def test_smoothing_of_the_preference_transformer():
    gap = 1.25 - 5.0
    expected = -0.9 * math.log(1 / (1 + math.exp(-gap))) - 0.1 * math.log(1 / (1 + math.exp(gap)))
    assert loss(PreferenceTransformerObjective(0.1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("objective", [AVA, replace(AVA, paired=False), PT])
def test_totals_of_two_processes_add_up_to_those_of_one(objective):
    found, counts = beliefs()

    def totals(*pairs: tuple[int, int], weights: list[float]) -> np.ndarray:
        rows = [pair[side] for side in range(1 + objective.paired) for pair in pairs]
        posterior = RewardPosterior(*(table[rows] for table in found.posterior))
        part = TokenBeliefs(found.log_probs[rows], found.action_values[rows], posterior)
        return np.array(objective(part, counts[rows], torch.tensor(weights)))

    whole = totals((0, 1), (1, 0), weights=[2.0, 0.5])
    parts = totals((0, 1), weights=[2.0]) + totals((1, 0), weights=[0.5])
    np.testing.assert_allclose(whole, parts, rtol=1e-5)


def test_rows_by_hand():
    pair = tiny.pair("hi", chosen="the cat sat", rejected="a dog", weight=2.0, soft_label=0.75)
    certain = tiny.pair("a dog?", chosen="the end", rejected="a cat")
    one, turned, other = belief_rows(TOKENS, [pair, certain], 64)
    chosen, rejected = (encode_full(TOKENS, pair.prompt, text, 64) for text in (pair.chosen, pair.rejected))
    start = len(encode_prompt(TOKENS, pair.prompt, 32))
    assert one == {"chosen_ids": chosen, "rejected_ids": rejected, "start": start, "weight": 1.5}
    assert turned == {"chosen_ids": rejected, "rejected_ids": chosen, "start": start, "weight": 0.5}
    assert other["weight"] == 1.0 and other["chosen_ids"] == encode_full(TOKENS, certain.prompt, "the end", 64)


def test_a_batch_has_chosen_answers_first_and_rejected_ones_only_for_who_looks_at_them():
    rows = [
        {"chosen_ids": [7, 8, 9], "rejected_ids": [7, 5], "start": 1, "weight": 1.0},
        {"chosen_ids": [6, 4, 3], "rejected_ids": [6, 4, 2, 2], "start": 2, "weight": 0.5},
    ]
    batch = TqrCollator(0, paired=True)(rows)
    assert batch["input_ids"].tolist() == [[7, 8, 9, 0], [6, 4, 3, 0], [7, 5, 0, 0], [6, 4, 2, 2]]
    assert batch["counts"].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["weights"].tolist() == [1.0, 0.5]
    assert TqrCollator(0, paired=False)(rows)["input_ids"].tolist() == [[7, 8, 9], [6, 4, 3]]


def test_a_pair_counts_as_much_as_its_weight(tmp_path):
    pairs = [pair.model_copy(update={"weight": 9.0 if i % 3 == 0 else 1.0}) for i, pair in enumerate(world(128, 0, 3))]
    model, _ = train(tmp_path / "p", pairs)  # a third of the labels is wrong, and heavy
    assert (gaps(model) < 0).mean() > 0.9


def test_a_return_that_is_length_or_likelihood_is_found_out():
    rows = belief_rows(TOKENS, [tiny.pair("hi", "the cat " * n, "on the mat", n) for n in range(1, 6)], 64)
    model = new_tqr(tiny.policy(scale=4.0), TqrForm(weighted=False))
    with torch.no_grad():
        model.reward_head.bias.copy_(torch.tensor([0.5, 0.0]))  # every token earns the same
    length = degeneration(model.eval(), rows, TOKENS.pad_token_id, 128)
    assert float(length.length) == pytest.approx(1.0)
    assert float(length.log_likelihood) == pytest.approx(
        float(degeneration(model, rows, TOKENS.pad_token_id, 9).log_likelihood)
    )
    assert -1.0 <= float(length.log_likelihood) < -0.5  # a longer answer is a less likely one
    without = new_tqr(tiny.policy(), OF_PT)
    assert math.isnan(float(degeneration(without, rows, TOKENS.pad_token_id, 128).length))  # of constant returns


def test_a_killed_fit_ends_with_the_same_bytes(tmp_path):
    pairs = world(80, 0)
    straight, expected = train(tmp_path / "straight", pairs, checkpoint_seconds=1e-9)
    with pytest.raises(Killed):
        train(tmp_path / "killed", pairs, die_at=13, checkpoint_seconds=1e-9)
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-10"]
    torch.manual_seed(123)
    resumed, metrics = train(tmp_path / "killed", pairs, checkpoint_seconds=1e-9)
    assert tiny.same(tiny.weights(resumed), tiny.weights(straight)) and metrics == expected
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "straight")]
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 2
