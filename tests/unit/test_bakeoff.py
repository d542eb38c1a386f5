"""The bake-off's bookkeeping: what a row says, what is missing, and statistics on rows written by hand."""

import json
from pathlib import Path

import pytest

from benchmarks.bakeoff import analysis, page, rows
from benchmarks.bakeoff.plan import HETEROGENEITIES, TUNING_SEEDS, Arm, Unit, arms, config_of, digest_of_arm, read_plan

STEPS = 8


def judged(value):
    """What a reward model was measured to be."""
    best_of = {str(n): value * n for n in (1, 2, 4, 8)}
    return {"on_policy_accuracy": value, "reward_variance": 2 * value, "margin": 3 * value, "best_of": best_of}


def row(arm, heterogeneity=0.0, seed=0, slope=0.1, accepted=None, kl=1.0, **more):
    """A run whose gold rises by `slope` and whose KL rises by `kl` a step after three steps without either."""
    moved = [max(0, step - 3) for step in range(STEPS)]
    return {
        "arm": arm,
        "selector": arm.partition("+")[0],
        "rule": arm.partition("+")[2] or "full",
        "heterogeneity": heterogeneity,
        "seed": seed,
        "code": "c",
        "commit": "abc1234",
        "config": f"of-{arm}",
        "seconds": 2.0,
        "seconds_probe": 1.0,
        "way": {
            "step": list(range(STEPS)),
            "kl": [kl * step for step in moved],
            "gold": [slope * step - 1.0 for step in moved],
            "rm_score": [0.0] * STEPS,
        },
        "start_evaluation": {"gold_reward": -1.0, "offline_accuracy": 0.75, "on_policy_accuracy": 0.6},
        "rounds": [
            {
                "evaluation": {"gold_reward": slope, "on_policy_accuracy": 0.5},
                "gate": None
                if accepted is None
                else {
                    "gate": "off" if "gate_off" in arm else "paired",
                    "accepted": accepted,
                    "gain": 0.01,
                    "detectable": 0.02,
                },
            }
        ],
        "before_rl": {model: judged(place * slope) for place, model in enumerate(("start", "refreshed", "subset"))},
        **more,
    }


def test_a_way_is_smoothed_and_starts_where_the_policy_had_not_moved():
    way = analysis.Way.of(row("none", slope=0.3))
    assert way.start == -1.0
    # kl 0, 0, 0, 0, 1, 2, 3, 4 in threes
    assert way.kl == pytest.approx([0, 0, 1 / 3, 1, 2, 3])
    assert way.steps == [1, 2, 3, 4, 5, 6]
    assert way.gold_at(1.5) == pytest.approx(0.3 * 1.5 - 1)
    assert way.gold_at(3.1) is None
    assert way.steps_to(0.6) == pytest.approx(5.0)  # where two steps have passed
    assert way.steps_to(1.0) is None


def test_numbers_of_an_arm(monkeypatch):
    monkeypatch.setattr(analysis, "TARGET_KL", 2.0)
    monkeypatch.setattr(analysis, "GAIN", 0.5)
    found = analysis.summarise(
        [
            *(row("none", level, seed, 0.1) for level in (0.0, 1.0) for seed in (0, 1)),
            *(row("random", level, seed, 0.1, accepted=False) for level in (0.0, 1.0) for seed in (0, 1)),
            *(
                row("best", level, seed, 0.1 + 0.2 * level, accepted=level > 0)
                for level in (0.0, 1.0)
                for seed in (0, 1)
            ),
            row("stays", 0.0, 0, 0.1, accepted=True, kl=0.1),
        ]
    )
    best, none, stays = found["best"], found["none"], found["stays"]
    assert none["gold_at_equal_kl"] == pytest.approx(-0.8) and none["ci95"] == pytest.approx([-0.8, -0.8])
    # two runs equal to those of `none`, and two that are 0.4 higher
    assert best["gold_at_equal_kl"] == pytest.approx(-0.6)
    assert best["p_improve_over_none"] == best["wins_over_random"] == 0.75
    assert best["gain_over_none"] == pytest.approx(0.2)
    assert best["acceptance_rate"] == 0.5 and none["acceptance_rate"] is None
    assert none["p_improve_over_none"] is None and none["p_improve_over_random"] == 0.5
    # gold rises by 0.5 in five thirds of a step where it rises at all in so few steps, else never
    assert none["steps_to_threshold"] == STEPS + 1 and none["runs_that_reach_threshold"] == 0
    assert best["runs_that_reach_threshold"] == 2
    assert stays["gold_at_equal_kl"] is None and stays["runs_that_reach_kl"] == 0 and stays["runs"] == 1
    assert stays["p_improve_over_none"] is None and stays["gain_over_none"] is None
    assert best["seeds"] == 2 and best["seconds"] == 3.0


def test_a_rule_is_held_against_the_full_one_with_the_same_selector(monkeypatch):
    monkeypatch.setattr(analysis, "TARGET_KL", 2.0)
    slopes = {"none": 0.0, "random+gate_off": 0.1, "random+lora": 0.3, "best+gate_off": 0.3, "best+lora": 0.2}
    rows = [row(name, slope=slope, seed=seed) for name, slope in slopes.items() for seed in (0, 1)]
    found = analysis.over_full_rule([*rows, row("late+lora", slope=0.9)])
    assert list(found) == ["lora"] and list(found["lora"]) == ["all", "random", "best"]  # `late` has no full rule
    gains = {name: gain.mean for name, gain in found["lora"].items()}
    assert gains == {"all": pytest.approx(0.1), "random": pytest.approx(0.4), "best": pytest.approx(-0.2)}


def test_an_arm_is_held_against_random_under_its_own_rule(monkeypatch):
    monkeypatch.setattr(analysis, "TARGET_KL", 2.0)
    slopes = {"none": 0.0, "random": 0.1, "random+lora": 0.3, "best": 0.2, "best+lora": 0.2, "best+head": 0.2}
    found = analysis.summarise([row(name, slope=slope) for name, slope in slopes.items()])
    assert found["best"]["gain_over_random"] == pytest.approx(0.2)
    assert found["best+lora"]["gain_over_random"] == pytest.approx(-0.2)
    assert found["best+head"]["gain_over_random"] is None and found["best+head"]["gain_over_none"] == pytest.approx(0.4)


def test_a_run_that_never_is_so_far_is_left_out_on_both_sides(monkeypatch):
    monkeypatch.setattr(analysis, "TARGET_KL", 2.0)
    gaps = analysis.differences({(0.0, 0): 1.0, (0.0, 1): None, (0.5, 0): 3.0}, {(0.0, 0): 0.5, (0.0, 1): 0.5})
    assert gaps == {(0.0, 0): 0.5, (0.0, 1): None}
    assert [part.tolist() for part in analysis.strata({(1.0, 0): 2.0, (0.0, 0): 1.0, (0.0, 1): None})] == [[1.0], [2.0]]


def test_the_best_are_chosen_over_random_and_no_control_is_a_candidate(monkeypatch):
    monkeypatch.setattr(analysis, "TARGET_KL", 2.0)
    slopes = {"none": 0.1, "random": 0.1, "all": 0.9, "similarity": 0.2, "likelihood": 0.3, "influence": 0.0}
    ungated = [row(f"{name}+gate_off", slope=slope) for name, slope in slopes.items()]
    gated = [row(name, slope=1 - slope) for name, slope in slopes.items()]
    found = analysis.best_selectors([*gated, *ungated], 2)
    assert found == ["likelihood", "similarity"]


def of_cells(arm, gain, **more):
    """Runs of an arm in six worlds that differ."""
    return [
        row(arm, level, seed, 0.1 + level / 10 + seed / 10 + gain(level, seed), **more)
        for level in (0.0, 1.0)
        for seed in range(3)
    ]


def test_the_default_is_what_surely_gains_over_both_baselines(monkeypatch):
    monkeypatch.setattr(analysis, "TARGET_KL", 2.0)
    grid = [
        *of_cells("none", lambda level, seed: 0.0),
        *of_cells("random", lambda level, seed: 0.0),
        *of_cells("random+gate_off", lambda level, seed: 0.3),
        *of_cells("all", lambda level, seed: 0.9),  # a control
        *of_cells("similarity", lambda level, seed: 0.2),
        *of_cells("likelihood", lambda level, seed: 0.1),
        *of_cells("influence", lambda level, seed: 0.5 if seed else -0.5),  # not surely
        *of_cells("margin_small", lambda level, seed: 0.8, kl=0.1),  # never far enough
        *of_cells("similarity+gate_off", lambda level, seed: 0.3),  # no better than random pairs without the gate
    ]
    found = analysis.verdict(grid)
    assert found.candidates == 5 and found.confidence == pytest.approx(0.99)
    assert set(found.passing) == {"similarity", "likelihood"} and found.chosen == "similarity"
    assert found.passing["similarity"]["random"] == pytest.approx((0.4, 0.4, 0.4))
    nothing = analysis.verdict([one for one in grid if one["arm"] in ("none", "random", "influence")])
    assert nothing.chosen is None and nothing.passing == {}


def test_nothing_is_chosen_before_all_worlds_are_there(monkeypatch):
    monkeypatch.setattr(analysis, "TARGET_KL", 2.0)
    grid = [
        *of_cells("none", lambda *_: 0.0),
        *of_cells("random", lambda *_: 0.0),
        *of_cells("similarity", lambda *_: 0.2),
    ]
    assert page.default(grid) == "3 seeds at 2 heterogeneities: not all 30 worlds are there, nothing is chosen."
    monkeypatch.setattr(page, "CELLS", 6)
    assert page.default(grid) == (
        "Of 1 candidates (confidence 95.00% each), `similarity` +0.40 (+0.40 to +0.40) over none and "
        "+0.40 (+0.40 to +0.40) over random. The default becomes `similarity`."
    )
    assert "the default stays" in page.default(grid[:12])


def test_rows_survive_a_line_that_was_cut_short(tmp_path: Path):
    path = tmp_path / "deep" / "rows.jsonl"
    rows.append(path, row("none"))
    with path.open("a") as file:
        file.write('{"arm": "rand')
    rows.append(path, row("random"))
    assert [one["arm"] for one in rows.read(path)] == ["none", "random"]
    assert rows.read(tmp_path / "no.jsonl") == []


def test_a_run_is_missing_until_a_row_of_its_code_and_settings_is_there():
    chosen, unit = [Arm("none", "full", {}), Arm("random", "lora", {})], Unit(0.0, 0)
    digests = {"none": "of-none", "random+lora": "of-random+lora"}
    known = [row("none"), row("random+lora")]
    assert rows.missing(known, unit, chosen, "c", digests) == []
    assert rows.missing(known, unit, chosen, "other", digests) == chosen
    assert rows.missing(known, unit, chosen, "c", {**digests, "none": "changed"}) == chosen[:1]
    assert rows.missing(known, Unit(0.0, 1), chosen, "c", digests) == chosen
    assert rows.missing(known, Unit(0.5, 0), chosen, "c", digests) == chosen


def test_of_each_run_the_newest_row_counts():
    found = rows.newest([row("none", slope=1), row("random"), row("none", slope=2)])
    assert [(one["arm"], one["rounds"][0]["evaluation"]["gold_reward"]) for one in found] == [
        ("none", 2),
        ("random", 0.1),
    ]


def test_every_arm_of_the_plan_is_a_valid_configuration_of_its_own(tmp_path: Path):
    plan = read_plan()
    every = arms(plan["selectors"], plan["rules"])
    assert len({arm.name for arm in every}) == len(every) and sum(arm.selector == "none" for arm in every) == 1
    unit = Unit(0.5, 3)
    config = config_of(unit, every, tmp_path)
    digests = [digest_of_arm(config, arm, unit) for arm in every]
    assert len(set(digests)) == len(every)
    again = config_of(unit, every[:1], tmp_path / "elsewhere")
    assert digest_of_arm(again, every[0], unit) == digests[0]  # neither a path nor another arm matters
    assert digest_of_arm(config, every[0], Unit(1.0, 3)) != digests[0]


def test_every_arm_sees_as_many_pairs_and_ppo_steps(tmp_path: Path):
    plan, unit = read_plan(), Unit(0.0, 0)
    every = arms(plan["selectors"], plan["rules"])
    config = config_of(unit, every, tmp_path)
    settings = [config.for_arm(name) for name in config.arms]
    seen = {(one.refresh.pairs_seen, one.refresh.batch_size, one.ppo.steps, one.ppo.batch_size) for one in settings}
    assert len(seen) == 1


SEEN = [
    *(
        row(name, level, seed, slope, accepted)
        for name, slope, accepted in (
            ("none", 0.1, None),
            ("random", 0.1, True),
            ("similarity", 0.2, False),
            ("random+gate_off", 0.1, True),
            ("similarity+gate_off", 0.3, True),
            ("random+lora", 0.1, True),
            ("similarity+lora", 0.2, True),
        )
        for level in (0.0, 1.0)
        for seed in (0, 1)
    ),
]


def test_a_page_keeps_what_people_wrote_and_shows_what_rows_say(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(analysis, "TARGET_KL", 2.0)
    path = tmp_path / "page.md"
    parts = "\n\n".join(f"Of {name}:\n\n<!-- made: {name} -->\nSTALE\n<!-- end -->" for name in page.PARTS)
    path.write_text(f"# Title\n\n{parts}\n\nThe end.\n")
    page.render(SEEN, tmp_path / "figures", path)
    first = path.read_text()
    assert first.startswith("# Title\n\nOf provenance:") and first.endswith("The end.\n") and "STALE" not in first
    # 0.2 a step against 0.1, two steps from the start: 0.2 more, in all cells alike
    line = next(line for line in first.splitlines() if line.startswith("| `similarity` | -0.60"))
    assert "| +0.20 (+0.20 to +0.20) | +0.20 (+0.20 to +0.20) | 1.00 (1.00 to 1.00) |" in line and "| 0% |" in line
    assert "| `similarity+gate_off` | -0.40" in first and "| `similarity+lora` |" in first
    assert "| `similarity` | 1 | 0 of 4 | +0.0100 | 0.0200 |" in first
    assert "| `similarity+gate_off` | 1 | gate off | +0.0100 | 0.0200 |" in first
    assert "28 runs: heterogeneity 0, 1, seeds 0 to 1; commit abc1234, code digest `c`" in first
    drawn = {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
    assert {"gain.svg", "curves.svg", "best-of-n.svg"} <= set(drawn)
    page.render(SEEN, tmp_path / "figures", path)
    assert path.read_text() == first
    assert {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()} == drawn


def test_a_page_is_not_made_of_rows_of_two_versions_nor_of_parts_that_nothing_makes(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text("<!-- made: nonsense -->\n<!-- end -->")
    with pytest.raises(ValueError, match="no rows"):
        page.render([], tmp_path, path)
    with pytest.raises(ValueError, match="several versions"):
        page.render([row("none"), row("none", seed=1) | {"code": "d"}], tmp_path, path)
    with pytest.raises(ValueError, match="nothing makes the part 'nonsense'"):
        page.render([row("none")], tmp_path, path)


def test_results_come_from_no_seed_that_tuned_the_world():
    assert HETEROGENEITIES == (0.0, 0.5, 1.0) and not set(TUNING_SEEDS) & set(range(10))


def test_a_row_is_one_line_of_json(tmp_path: Path):
    rows.append(tmp_path / "r.jsonl", row("none"))
    text = (tmp_path / "r.jsonl").read_text()
    assert text.count("\n") == 1 and json.loads(text)["arm"] == "none"
