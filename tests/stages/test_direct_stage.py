"""The stage of direct methods: what each learns from, and where a moving reference goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inverse_alignment.core.artifact import list_files
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Rollout, read_jsonl, write_jsonl
from inverse_alignment.data.aggregate import read_split
from inverse_alignment.models.loading import load_policy
from inverse_alignment.optimise.direct_settings import AvaD, AvaP, Direct, Dpo, Irft, Kto, Selm, SoftAnchor, TrDpo
from inverse_alignment.optimise.settings import Lora
from inverse_alignment.selection.settings import RandomSelection
from inverse_alignment.stages.direct import DirectStage, rows_of
from tests.stages import chain

FAST = {"batch_size": 16, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> chain.Chain:
    made = chain.shared_start(chain.Chain(tmp_path_factory.mktemp("direct")))
    chain.select(made, "selection", RandomSelection(k=40))
    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_policy(folder).state_dict())


def apart(one: Path, other: Path) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


METHODS = [Dpo(**FAST), Kto(**FAST), Selm(**FAST), Irft(**FAST), AvaD(**FAST), AvaP(**FAST)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.type)
def test_every_method_makes_a_policy_of_its_own(start: chain.Chain, method: Direct) -> None:
    out = chain.direct(start, f"every-{method.type}", method)
    assert apart(out / "policy", start.made["sft"] / "policy")
    kept = ["heads.safetensors"] if isinstance(method, AvaD) else []
    assert [path.name for path in (out / "state").iterdir()] == kept
    found = start.metrics[f"every-{method.type}"]
    assert found["rows"] > 0 and found["steps"] == -(-found["rows"] // 16)
    assert method.type == "kto" or found["good_log_ratio" if method.type == "ava_d" else "sft_margin"] > 0


def test_a_selection_is_all_that_is_learned_from_and_its_weights_count(start: chain.Chain) -> None:
    inputs = {"preferences": start.made["preferences"], "selection": start.made["selection"]}
    stage = DirectStage(method=Dpo(), context=chain.MODEL.context)
    rows = rows_of(stage.method, inputs, stage, None)  # type: ignore[arg-type]
    kept = [json.loads(line) for line in (start.made["selection"] / "selection.jsonl").read_text().splitlines()]
    pool = read_split(start.made["preferences"], "train")
    assert [row.answers for row in rows] == [(pool[k["row"]].chosen, pool[k["row"]].rejected) for k in kept]
    assert [row.weight for row in rows] == [k["weight"] * pool[k["row"]].weight for k in kept]
    single = DirectStage(method=Kto(), context=chain.MODEL.context)
    one_by_one = rows_of(single.method, inputs, single, None)  # type: ignore[arg-type]
    assert len(one_by_one) == 2 * len(rows) and [row.good for row in one_by_one[:2]] == [True, False]
    shown = DirectStage(method=AvaD(), context=chain.MODEL.context)
    alone = rows_of(shown.method, inputs, shown, None)  # type: ignore[arg-type]
    assert [row.answers for row in alone] == [row.answers[:1] for row in rows]
    assert [row.weight for row in alone] == [row.weight for row in rows]


def test_selm_takes_the_best_and_the_worst_as_the_reward_model_has_them(start: chain.Chain) -> None:
    from inverse_alignment.core.context import StageContext
    from inverse_alignment.models.reward_scores import load_calibrated

    inputs = {
        "preferences": start.made["preferences"],
        "rollouts": start.made["reference_rollouts"],
        "reward": start.made["reward"] / "model",
    }
    stage = DirectStage(method=Selm(), context=chain.MODEL.context, reward_context=chain.MODEL.context)
    context = StageContext(start.root, start.root, None, chain.RUNTIME)  # type: ignore[arg-type]
    rows = rows_of(stage.method, inputs, stage, context)
    score = load_calibrated(inputs["reward"], torch.device("cpu"), chain.MODEL.context, 64)
    own = {r.prompt.key: r.response for r in read_jsonl(inputs["rollouts"] / "rollouts.jsonl", Rollout) if not r.sample}
    for row in rows[:10]:
        best, worst, mine = score([row.prompt] * 3, row.answers)
        assert best >= mine >= worst and best > worst and row.answers[2] == own[row.prompt.key]


def test_a_moving_reference_goes_on_in_the_next_round(start: chain.Chain) -> None:
    method = TrDpo(**FAST, reference=SoftAnchor(alpha=0.1))
    first = chain.direct(start, "soft-r1", method)
    assert list_files(first / "state") == ["reference.safetensors"]
    reference, policy = load_file(first / "state" / "reference.safetensors"), weights(first / "policy")
    assert any(not torch.equal(reference[name], policy[name]) for name in reference)
    going = chain.direct(start, "soft-r2", method, policy="soft-r1", state=first / "state")
    fresh = chain.direct(start, "soft-r2-fresh", method, policy="soft-r1")
    assert apart(going / "policy", fresh / "policy")


def test_what_is_believed_of_rewards_goes_on_in_the_next_round(start: chain.Chain) -> None:
    first = chain.direct(start, "ava-r1", AvaP(**FAST))
    going = chain.direct(start, "ava-r2", AvaP(**FAST), policy="ava-r1", state=first / "state")
    fresh = chain.direct(start, "ava-r2-fresh", AvaP(**FAST), policy="ava-r1")
    assert apart(going / "policy", fresh / "policy")


def test_with_adapters_a_plain_model_comes_out(start: chain.Chain) -> None:
    out = chain.direct(start, "adapted", TrDpo(**FAST, lora=Lora(rank=2, alpha=8.0)))
    assert weights(out / "policy").keys() == weights(start.made["sft"] / "policy").keys()
    assert apart(out / "policy", start.made["sft"] / "policy") and list_files(out / "state") == []


def test_own_answers_to_other_prompts_are_one_clear_error(start: chain.Chain, tmp_path: Path) -> None:
    rollouts = read_jsonl(start.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    strangers = {pair.prompt.key for pair in read_split(start.made["preferences"], "test")}
    assert not any(rollout.prompt.key in strangers for rollout in rollouts)
    pair = read_split(start.made["preferences"], "test")[0]
    write_jsonl(tmp_path / "rollouts.jsonl", [rollouts[0].model_copy(update={"prompt": pair.prompt})])
    inputs = {"preferences": start.made["preferences"], "rollouts": tmp_path}
    for method in (Irft(), Selm()):
        stage = DirectStage(method=method, context=chain.MODEL.context)
        with pytest.raises(UserError, match=f"nothing that {method.type} could learn from"):
            rows_of(method, inputs, stage, None)  # type: ignore[arg-type]
