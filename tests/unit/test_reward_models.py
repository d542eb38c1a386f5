"""The comparison of reward models: its draws, its bookkeeping, its statistics, and one tiny unit from end to end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bakeoff import rows as table
from benchmarks.reward_models import analysis, page, policy
from benchmarks.reward_models.__main__ import missing
from benchmarks.reward_models.collection import pairs_of
from benchmarks.reward_models.plan import BASELINE, METHODS, POLICIES, REAL, REFERENCE, WORLD, Sizes, Unit, digest_of
from benchmarks.reward_models.work import run
from inverse_alignment.core.errors import UserError
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.world.text import WorldConfig

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TINY = Sizes(
    model=InitialisedModel(vocab_size=300, hidden_size=16, layers=1, heads=2, context=96),
    train_pairs=12,
    test_pairs=10,
    sft_epochs=1,
    world=WorldConfig(prompts=40, pairs=100, heterogeneity=0.0),
    bon_samples=16,
    bon_tokens=4,
)


def row(method, data=WORLD, seed=0, by_prompt=(1.0, 0.0), **more):
    found = {"accuracy": float(np.mean(by_prompt)), "by_prompt": list(by_prompt), "test_pairs": len(by_prompt)}
    plain = {"code": "c", "config": digest_of(TINY, method), "commit": "abc1234", "seconds": 1.0}
    return {"data": data, "seed": seed, "method": method, **plain, **found, **more}


def test_a_seed_draws_its_own_pairs_and_no_prompt_is_on_both_sides():
    first, again, other = (pairs_of(Unit(WORLD, seed), TINY, None) for seed in (0, 0, 1))
    assert first == again and first != other
    assert len(first.train) == 12 and len(first.test) == 10
    assert not {p.prompt.key for p in first.train} & {p.prompt.key for p in first.test}


def test_real_pairs_keep_their_own_split_and_prompts_come_before_second_pairs_of_one(tmp_path):
    rows = [
        {
            "id": str(i),
            "split": ("train", "test")[i % 2],
            "prompt": f"q{i // 6}",
            "chosen": f"a{i}",
            "rejected": f"b{i}",
        }
        for i in range(36)
    ]
    (tmp_path / "pairs").mkdir()
    with gzip.open(tmp_path / "pairs" / f"{REAL[0]}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(each) + "\n" for each in rows)
    found = pairs_of(Unit(REAL[0], 0), TINY, tmp_path)
    assert all(int(pair.chosen[1:]) % 2 == 0 for pair in found.train)
    assert len({pair.prompt.key for pair in found.test[:6]}) == 6
    with pytest.raises(UserError, match="no pairs of alpaca_eval"):
        pairs_of(Unit("alpaca_eval", 0), TINY, tmp_path)
    with pytest.raises(UserError, match="no pairs of"):
        pairs_of(Unit(REAL[0], 0), TINY, None)


def test_only_what_has_no_row_of_this_code_and_these_settings_is_missing():
    rows = [row(BASELINE), row("bt"), row("ava_p", code="old"), row("ava_d", config="other"), row("ava_p", seed=1)]
    names = [BASELINE, "bt", "ava_p", "ava_d"]
    assert missing(rows, Unit(WORLD, 0), names, TINY, "c") == ["ava_p", "ava_d"]
    assert analysis.current(rows, TINY, "c") == [rows[0], rows[1], rows[4]]
    names = [None, *METHODS, *POLICIES]
    assert len({digest_of(TINY, name) for name in names}) == len(names)
    assert digest_of(TINY, BASELINE) == digest_of(TINY)


def test_an_interval_counts_seeds_before_prompts():
    noisy = [np.array([0.0, 1.0] * 50)] * 5
    apart = [np.full(100, value) for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    prompts, seeds = analysis.interval(noisy), analysis.interval(apart)
    assert prompts.mean == seeds.mean == 0.5
    assert 0.44 < prompts.low < 0.5 < prompts.high < 0.56  # standard error 0.05 / √5
    assert seeds.low < 0.3 and seeds.high > 0.7  # standard error about 0.35 / √5
    alone = analysis.interval(noisy[:1])
    assert alone.high - alone.low > 1.5 * (prompts.high - prompts.low)


def test_differences_are_taken_inside_a_seed_and_prompt():
    rows = [
        row(name, seed=seed, by_prompt=tuple(np.clip(base + gain, 0, 1)))
        for seed, base in enumerate((np.array([0.1, 0.9]), np.array([0.3, 0.5])))
        for name, gain in ((BASELINE, 0.0), (REFERENCE, 0.0), ("ava_p", 0.1))
    ]
    said = analysis.result(rows)["data"][WORLD]["ava_p"]
    assert said["accuracy"]["mean"] == pytest.approx(0.55)
    assert said["over_bt"]["mean"] == pytest.approx(0.1) and said["over_bt"]["ci95"] == pytest.approx([0.1, 0.1])
    assert "over_longer_wins" in said and said["seeds"] == 2 and said["test_pairs"] == 4


def test_the_page_is_made_between_its_marks(tmp_path):
    best = {"best_of": {"1": 0.1, "16": 0.3, "4": 0.2}, "gold_accuracy": 0.75}  # as JSON sorts them
    best["oracle_best_of"] = best["best_of"]
    careful = {"cautious_best_of": {"uwo": {"1": 0.1, "16": 0.4, "4": 0.25}}}
    metrics = {"training": {"corr_return_length": 0.5, "corr_return_log_prob": None}}
    ppo = {"kl": 1.5, "rm_score": 2.0, "tokens": 9.0}
    rows = [row(BASELINE), row("bt", **best), row("ava_p", by_prompt=(1.0, 1.0), **best, **metrics, **careful)]
    rows += [row("ppo_bt", by_prompt=(0.5, 0.5), **ppo), row("ppo_ava_p_dense", by_prompt=(0.75, 0.75), **ppo)]
    path = tmp_path / "page.md"
    path.write_text("".join(f"before\n<!-- made: {name} -->\nSTALE\n<!-- end -->\n" for name in page.PARTS))
    page.render(rows, path)
    text = path.read_text()
    assert "STALE" not in text and text.count("before") == len(page.PARTS)
    assert "| AVA-p | 100.0 [100.0, 100.0] |" in text and "| AVA-p | +50.0 [+0.0, +100.0] |" in text
    gold = "0.750 [0.750, 0.750] | +0.250 [+0.250, +0.250]"
    assert f"| AVA-p, token by token | {gold} | 1.50 | 9.0 |" in text
    assert "| AVA-p | 75.0 | 0.100 | 0.200 | 0.300 |" in text and "| AVA-p | 0.50, – |" in text and "One seed" in text
    assert "| gold of the best of 16 | by the mean | lower bound | uwo | worst case |" in text
    assert "| AVA-p | 0.300 | – | 0.400 | – |" in text
    with pytest.raises(ValueError, match="no rows"):
        page.render([], path)
    path.write_text("<!-- made: poem -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="nothing makes the part 'poem'"):
        page.render(rows, path)


def test_every_method_has_a_name_on_the_page():
    assert set(page.NAMES) == set(analysis.ORDER)


@pytest.mark.slow
def test_a_unit_from_end_to_end_and_its_backbone_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "PPO", policy.PPO.model_copy(update={"steps": 1, "batch_size": 4, "max_new_tokens": 4}))
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    names = [BASELINE, "bt", "ava_p", "laplace", "ensemble", "ppo_ava_p_dense", "ppo_ensemble_uwo"]
    unit = Unit(WORLD, 0)
    found = list(run(unit, names, TINY, None, tmp_path))
    assert [each["method"] for each in found] == names
    for each in found[1:5]:
        assert 0.0 <= each["accuracy"] <= 1.0 and len(each["by_prompt"]) <= 10
        assert set(each["best_of"]) == {"1", "4", "16"} and each["best_of"]["1"] == found[1]["best_of"]["1"]
    ways = [set(each["cautious_best_of"]) for each in found[1:5]]
    assert ways == [set(), *[{"lower_bound", "uwo"}] * 2, {"lower_bound", "uwo", "worst_case"}]
    for each in found[5:]:
        assert np.mean(each["by_prompt"]) == pytest.approx(each["gold"]) and each["kl"] >= 0.0
    (folder,) = tmp_path.iterdir()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    (again,) = run(unit, ["bt"], TINY, None, tmp_path)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert {**again, "seconds": 0} == {**found[1], "seconds": 0}
    table.append(tmp_path / "rows.jsonl", {**again, "commit": "abc"})
    assert missing(table.read(tmp_path / "rows.jsonl"), unit, ["bt", "ava_p"], TINY, again["code"]) == ["ava_p"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the collection ../shared/data is not there")
@pytest.mark.parametrize("name", REAL)
def test_real_pairs_are_read(name):
    found = pairs_of(Unit(name, 0), Sizes(), DATA)
    assert len(found.train) == Sizes().train_pairs and len(found.test) >= 200
