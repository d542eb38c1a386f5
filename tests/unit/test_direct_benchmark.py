"""The study of direct methods: gains are paired by seed, and the SFT policy is a base like any other."""

from argparse import Namespace

import pytest

from benchmarks.bakeoff import rows as rows_file
from benchmarks.direct import extrapolated, study
from benchmarks.direct.__main__ import described, interval


def row(dpo, sft_gold):
    found = {"sft": {"gold": [sft_gold], "kl": [0.0], "answers": [0.0, 1.0]}}
    found["dpo"] = {"gold": [sft_gold, *dpo], "kl": [0.0, 1.0, 3.0], "answers": [0.5, 0.5]}
    found["tr_dpo"] = {"gold": [sft_gold, *(gold - 0.5 for gold in dpo)], "kl": [0.0, 4.0, 8.0], "answers": [0.0, 0.5]}
    return {"found": found}


def test_gains_are_at_equal_kl_and_paired_by_seed():
    rows = [row([1.0, 2.0], 0.0), row([2.0, 4.0], 1.0)]
    dpo, moving = described("dpo", rows, {}), described("tr_dpo", rows, {})
    assert dpo["gold_at_equal_kl"] == pytest.approx([1.5, 3.0])  # at 2 nats, half way between the rounds
    assert dpo["gain_at_equal_kl"] == pytest.approx(interval([1.5, 2.0])) and dpo["base"] == "sft"
    assert moving["gold_at_equal_kl"] == pytest.approx([0.25, 1.25])
    assert moving["gain_at_equal_kl"] == pytest.approx(interval([-1.25, -1.75]))
    assert dpo["win_rate_over_base"] == 0.5 and moving["win_rates"] == [0.25, 0.25]
    assert dpo["gold_reward"] == [2.0, 4.0] and dpo["kl_to_sft"] == [3.0, 3.0]


def test_a_kl_that_is_never_reached_has_no_gold():
    assert study.gold_at_kl({"kl": [0.0, 1.0], "gold": [0.0, 1.0]}, 2.0) is None


def test_extrapolation_is_held_against_the_policy_as_it_is():
    def found(gold):
        searched = {"0": [1.0, 0.0, 1.0], "1": [1.5, gold, 4.0]}
        return {"alpha": 1.0, "gold_best": 0.0, "searched": searched, "gold": [0.5, 0.25], "kl": [1.0, 5.0]}

    result = extrapolated.described([found(-1.0), found(-2.0)])
    assert result["gain"] == pytest.approx(interval([-0.25, -0.25]))
    assert result["searched"]["1"]["gold"] == pytest.approx(interval([-1.0, -2.0]))
    assert result["searched"]["1"]["rm"] == pytest.approx(interval([0.5, 0.5])) and result["searched"]["1"]["kl"] == 4.0
    assert "| `dpo` | 1, 1 | 0, 0 | 1.0 | 5.0 |" in extrapolated.table({"dpo": result})


def test_a_seed_is_run_once_and_again_where_its_row_is_of_other_code(tmp_path):
    path, ran = tmp_path / "rows.jsonl", []

    def run(seed, folder):
        ran.append((seed, folder.name))
        return {"value": 10 * seed}

    given = Namespace(rows=path, seeds=2, folder=tmp_path)
    assert rows_file.by_seed(given, "a", run) == [{"value": 0}, {"value": 10}]
    path.write_bytes(path.read_bytes()[:-5])  # the last row is cut short
    assert rows_file.by_seed(given, "a", run) == [{"value": 0}, {"value": 10}]
    assert ran == [(0, "s0"), (1, "s1"), (1, "s1")]
    rows_file.by_seed(given, "b", run)
    assert len(ran) == 5 and {row["code"] for row in rows_file.read(path)} == {"a", "b"}
