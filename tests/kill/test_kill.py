"""Runs killed by a real SIGKILL end with the same bytes: a few of the cases of `python -m benchmarks.resume`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.resume.__main__ import summarise
from benchmarks.resume.cases import CASES, CONTROLS, Case
from benchmarks.resume.judge import Base, judge, straight
from benchmarks.resume.points import CHECKPOINT, Call, Damage, Skipped
from benchmarks.resume.project import graph, needed
from inverse_alignment.core.artifact import list_files

PPO = "lora-soft-s0-r1-ppo"
BY_NAME = {case.name: case for case in (*CASES, *CONTROLS)}
SWAPPED = Case(
    "PPO's adapters swapped",
    PPO,
    (Call(f"{CHECKPOINT}:save", 3, when="after"),),
    2,
    damage=Damage("swapped", "state/adapters.safetensors", "holds other bytes than were sealed"),
)
SAME = (
    BY_NAME["ppo: LoRA, inside an epoch"],
    BY_NAME["ppo: right after the checkpoint of a soft, of adapters, reference update"],
    BY_NAME["sft: optimiser half written"],
    SWAPPED,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    return straight(tmp_path_factory.mktemp("kill") / "straight", SAME)


@pytest.mark.parametrize("case", SAME, ids=lambda case: case.name)
def test_killed_it_ends_with_the_same_bytes(base, tmp_path, case):
    result = judge(case, base, tmp_path / "case")
    assert result.right, (result.faults, result.differing)
    assert result.kills == 1 and not result.differing


def test_what_a_kill_of_ppo_leaves_is_safetensors_and_json(base, tmp_path):
    kept = needed(graph(base.project), [PPO]) - {PPO}
    project = base.project.clone(tmp_path, base.made, kept)
    assert project.run(PPO, SWAPPED.kills).code == -9
    partial = project.partial("ppo")
    assert [path.name for path in sorted(partial.iterdir())] == [
        "checkpoint-2",
        "checkpoint-3",
        "looks.jsonl",
        "metrics.jsonl",
        "samples.jsonl",
    ]
    state = {"adapters", "reference", "value", "policy_optimizer", "value_optimizer"}
    assert list_files(partial / "checkpoint-3") == sorted(
        ["seal.json", "state/state.json", *(f"state/{name}.safetensors" for name in state)]
    )


@pytest.mark.slow
def test_a_resume_that_forgets_and_one_that_looks_at_no_hash_are_noticed(base, tmp_path):
    unseen = replace(SWAPPED, began=3, damage=Damage("swapped", "state/adapters.safetensors"))
    unseen = replace(unseen, defect=(Skipped(f"{CHECKPOINT}:damage"),))
    result = judge(unseen, base, tmp_path / "unseen")
    assert result.right and any(name.endswith("policy/model.safetensors") for name in result.differing)
    as_a_case = replace(result, case=SWAPPED)
    assert not as_a_case.right
    assert summarise([result, as_a_case], 1.0) | {"cases": None} == {
        "kills": 1,
        "mismatches": 1,
        "faults": 0,
        "controls": 1,
        "controls_noticed": 1,
        "seconds": 1.0,
        "cases": None,
    }


def test_a_point_that_is_not_reached_and_a_message_that_is_not_there_are_faults(base, tmp_path):
    late = replace(SWAPPED, kills=(Call(f"{CHECKPOINT}:save", 99),), damage=None)
    result = judge(late, base, tmp_path / "late")
    assert result.kills == 0 and not result.right and "did not kill it: exit code 0" in result.faults[0]
    other = replace(SWAPPED, damage=Damage("swapped", "state/adapters.safetensors", "is missing"))
    result = judge(other, base, tmp_path / "other")
    assert result.faults == ("nothing says 'checkpoint-3 is passed over: state/adapters.safetensors ... is missing'",)


def test_the_cases_are_enough_and_their_names_differ():
    assert sum(len(case.kills) for case in CASES) >= 20 and len(CONTROLS) >= 1
    assert len(BY_NAME) == len(CASES) + len(CONTROLS)
    assert all(not case.defect for case in CASES) and all(case.defect for case in CONTROLS)
