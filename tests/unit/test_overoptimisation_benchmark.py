"""The benchmark of over-optimisation: its policies are what they are called, and its verdict is not always yes."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.overoptimisation import text, world
from benchmarks.overoptimisation.__main__ import measure, shown
from inverse_alignment.world.tabular import expected_reward, kl_divergence, optimum_log_probs


def test_a_world_is_standardised_and_its_exploits_are_rare_and_bad():
    found = world.World.of(0, exploits=True)
    weights = np.exp(found.reference) / world.PROMPTS
    assert (weights * found.gold).sum() == pytest.approx(0) and (weights * found.gold**2).sum() == pytest.approx(1)
    odd = found.features[..., world.TRAITS :].sum(-1) > 0
    assert weights[odd].sum() < 0.15 and found.gold[odd].mean() < found.gold[~odd].mean() - 1
    assert not world.World.of(0, exploits=False).features[..., world.TRAITS :].any()


def test_more_comparisons_make_a_better_proxy():
    found = world.World.of(1, exploits=False)
    error = [np.abs(found.proxy(pairs, 0) - found.gold).mean() for pairs in (50, 3200)]
    assert error[1] < 0.8 * error[0]  # what it cannot see is left


def test_best_of_n_is_what_sampling_gives():
    found = world.World.of(2, exploits=True)
    proxy = found.proxy(200, 0)
    place = int(np.flatnonzero(world.NS == 2)[0])
    draw, cumulative = np.random.default_rng(0), np.exp(found.reference).cumsum(-1)
    worth = []
    for prompt in range(world.PROMPTS):
        answers = np.minimum((cumulative[prompt] <= draw.random((20_000, 2, 1))).sum(-1), found.gold.shape[1] - 1)
        best = np.take_along_axis(answers, proxy[prompt][answers].argmax(-1)[:, None], -1)[:, 0]
        worth.append(found.gold[prompt][best].mean())
    path = found.best_of_n(proxy)
    assert path.gold[place] == pytest.approx(np.mean(worth), abs=0.02)
    assert path.distance[0] == pytest.approx(0, abs=1e-6) and (np.diff(path.distance) > 0).all()


def test_optimised_policies_are_the_exact_optima():
    found = world.World.of(3, exploits=False)
    proxy = found.proxy(100, 0)
    path = found.optimised(proxy)
    reference, reward = torch.from_numpy(found.reference), torch.from_numpy(proxy)
    policy = optimum_log_probs(reference, reward, float(world.PRICES[5]))
    assert path.distance[5] ** 2 == pytest.approx(float(kl_divergence(policy, reference).mean()))
    assert path.gold[5] == pytest.approx(float(expected_reward(policy, torch.from_numpy(found.gold)).mean()))
    assert path.distance.max() <= world.MOST_DISTANCE


def test_the_law_is_seen_with_exploits_and_not_without():
    result = measure((50, 3200), 4)
    assert result["reproduced"] and result["worlds"]["exploits, best_of_n"]["rho_b"][2] < 0
    assert not result["worlds"]["no exploits, best_of_n"]["rho_b"][2] < 0
    sizes = result["worlds"]["exploits, best_of_n"]["sizes"]
    assert sizes[0]["b"][1] > sizes[1]["b"][2]
    assert shown((0.5, -1.0, 2.0)) == "+0.50 (-1.00 to +2.00)"


def test_a_smaller_reward_model_learns_from_the_first_pairs_and_is_judged_on_the_same():
    rows = [{"id": str(number), "prompt": f"p{number % 3}"} for number in range(9)]  # p2 is held out
    train = [row["id"] for row in rows if row["prompt"] != "p2"]
    lines = [json.dumps(row) for row in rows]
    kept = [json.loads(line) for line in text.with_train(lines, train, 2).splitlines()]
    assert [row["id"] for row in kept] == ["0", "1", "2", "5", "8"]
    with pytest.raises(ValueError, match="6 train pairs, not 7"):
        text.with_train(lines, train, 7)


def test_planted_curves_of_text_come_back_and_their_order_too():
    d = np.linspace(0.0, 4.0, 20)
    of_size = dict(zip(text.SIZES, (0.8, 0.6, 0.4, 0.2), strict=True))

    def found(shift: float) -> dict:
        return {
            str(size): {
                "accuracy": 0.7,
                "path": [[x * x, 0.5 + x * (1 + shift - b * math.log(x or 1.0)), 0.0] for x in d],
            }
            for size, b in of_size.items()
        }

    result = text.measure([found(shift) for shift in (0.0, 0.1, 0.2)])
    assert [row["b"][0] for row in result["sizes"]] == pytest.approx(list(of_size.values()))
    assert [row["a"][0] for row in result["sizes"]] == pytest.approx([1.1] * 4)
    assert result["rho_b"][0] < -0.95 and abs(result["rho_a"][0]) < 0.3
    assert "| 100 | 70% | +1.10 (" in text.table(result)


def test_how_far_a_proxy_can_be_followed():
    kl, up_and_down = np.arange(6.0), np.array([0.0, 3.0, 3.0, 0.0, -9.0, -9.0])
    path = np.stack([kl, 1.0 + up_and_down, kl], 1)
    assert text.back_at(path) == 2.0  # means of three: 2, 2, -2, -6
    assert text.back_at(np.stack([kl, -kl, kl], 1)) == 0.0
