"""Every stage on a tiny world, end to end: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inverse_alignment.core.artifact import METRICS, external, list_files
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.core.records import Prompt, Rollout, read_jsonl, write_jsonl
from inverse_alignment.data.aggregate import FILES, read_split
from inverse_alignment.evaluation.reward_accuracy import on_policy_pairs
from inverse_alignment.models.loading import load_policy, save_model
from inverse_alignment.models.reward_scores import load_calibrated, save_calibration
from inverse_alignment.models.specs import CheckpointModel
from inverse_alignment.reward.settings import GateOff
from inverse_alignment.selection.settings import (
    AllSelection,
    NoSelection,
    RandomSelection,
    SimilaritySelection,
    Threshold,
    TopK,
)
from inverse_alignment.stages.aggregate import AggregateStage
from inverse_alignment.stages.evaluate import NoGold
from inverse_alignment.stages.reward_model import CheckpointReward, RewardStage
from inverse_alignment.stages.select import SelectStage
from inverse_alignment.stages.sft import CheckpointSft, SftStage, TrainSft
from inverse_alignment.stages.tokenizers import TokenizersConfig
from inverse_alignment.world.gold import gold_reward
from tests.stages import chain
from tests.stages.chain import Chain

CPU = torch.device("cpu")
AUDITED = {
    f"audit_{name}" for name in ("score", "score_ci95", "accuracy", "agreement", "agreement_pairs", "correlation")
}
MODEL_FILES = {"chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def digest(folder: Path) -> str:
    return external("any", folder).digest


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def branch(built, tmp_path):
    """What was built, with room for more that nobody else sees."""
    return Chain(tmp_path, dict(built.made), {})


def standard_scores(reward: Path, rollouts: Path) -> np.ndarray:
    sample = read_jsonl(rollouts / "rollouts.jsonl", Rollout)
    scored = load_calibrated(reward, CPU, chain.MODEL.context, 64)
    return scored([r.prompt for r in sample], [r.response for r in sample])


# --- what each stage writes -------------------------------------------------------------------------------------------


def test_one_vocabulary_gives_policy_and_reward_model_the_same_tokenizer(built):
    folder = built.made["tokenizers"]
    assert names(folder) == {"policy", "reward"} and digest(folder / "policy") == digest(folder / "reward")
    assert built.metrics["tokenizers"] == {"policy_vocabulary": 400, "reward_vocabulary": 400}


def test_preferences_have_five_splits_that_share_no_prompt(built):
    folder = built.made["preferences"]
    splits = {name: read_split(folder, name) for name in ("train", "validation", "gate", "test", "audit")}
    assert names(folder) == {f"{name}.jsonl" for name in splits} | {"statistics.json", *FILES.values()}
    prompts = [{pair.prompt.id for pair in pairs} for pairs in splits.values()]
    assert sum(len(part) for part in prompts) == len(set().union(*prompts))
    counted = built.metrics["preferences"]
    assert counted["pairs"] == 300 and counted == {
        "pairs": sum(len(pairs) for pairs in splits.values()),
        **{f"{name}_pairs": len(pairs) for name, pairs in splits.items()},
        "other_rows": 0,
    }


def test_sft_writes_a_policy_that_plain_transformers_loads(built):
    folder, metrics = built.made["sft"], built.metrics["sft"]
    assert names(folder) == {"policy"} and names(folder / "policy") >= MODEL_FILES
    assert load_policy(folder / "policy").num_parameters() == metrics["parameters"]
    assert metrics["demonstrations"] > 100 and metrics["steps"] == -(-metrics["demonstrations"] // 16)
    assert metrics["train_loss"] < np.log(400)  # better than knowing nothing
    logged = read_metrics(built.partial("sft") / METRICS)
    assert {"step", "loss", "grad_norm", "learning_rate"} == set(logged[-1])


def test_sft_imitates_the_sources_that_are_named(branch):
    made = branch.made
    data = {"preferences": made["preferences"], "tokenizers": made["tokenizers"]}
    with pytest.raises(UserError, match="no source policy 'choach'") as error:
        branch.run("typo", "sft", data, SftStage(sft=TrainSft(sources=("choach",)), model=chain.MODEL))
    assert "coach" in error.value.fix
    few = TrainSft(demonstrations=8, epochs=1)
    branch.run("few", "sft", data, SftStage(sft=few, model=chain.MODEL))
    assert branch.metrics["few"]["demonstrations"] == 8


def test_a_rollout_answers_every_train_prompt(built):
    sample = read_jsonl(built.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    prompts = {pair.prompt.key for pair in read_split(built.made["preferences"], "train")}
    assert {r.prompt.key for r in sample} == prompts and len(sample) == 2 * len(prompts)
    assert max(r.tokens for r in sample) == chain.TOKENS
    metrics = built.metrics["reference_rollouts"]
    assert metrics["answers"] == len(sample) and metrics["kl_to_sft"] == pytest.approx(0, abs=1e-5)
    assert metrics["tokens"] == pytest.approx(np.mean([r.tokens for r in sample]))
    assert metrics["ended_share"] == pytest.approx(np.mean([r.ended for r in sample]))


def test_every_reward_model_is_standardised_on_the_reference_sample(built):
    for name in ("reward", "refreshed", "audit"):
        folder = built.made[name] / "model"
        assert names(folder) >= MODEL_FILES | {"calibration.json"}
        scores = standard_scores(folder, built.made["reference_rollouts"])
        assert scores.mean() == pytest.approx(0, abs=1e-5) and scores.std() == pytest.approx(1, abs=1e-5)
    metrics = built.metrics["reward"]
    assert metrics["validation_pairs"] == built.metrics["preferences"]["validation_pairs"]
    assert 0 <= metrics["validation_accuracy"] <= 1 and 0 <= metrics["validation_longer_wins"] <= 1


def test_the_reward_model_starts_from_the_sft_trunk(branch):
    made = branch.made
    inputs = {name: made[name] for name in ("preferences", "tokenizers", "reference_rollouts")}
    stage = RewardStage(reward={"type": "train", "epochs": 1, "learning_rate": 1e-9}, model=chain.MODEL)
    branch.run("on_trunk", "reward_model", {**inputs, "trunk": made["sft"] / "policy"}, stage)
    branch.run("from_scratch", "reward_model", inputs, stage)
    trunk = load_policy(made["sft"] / "policy").model.layers[0].mlp.up_proj.weight
    for name, alike in (("on_trunk", True), ("from_scratch", False)):
        model = load_calibrated(branch.made[name] / "model", CPU, 128, 64).scorer.model
        assert torch.allclose(model.model.layers[0].mlp.up_proj.weight, trunk, atol=1e-6) == alike


def changed_split(branch: Chain, name: str, split: str, **fields: float) -> dict[str, Path]:
    """What the reward stage takes, with fields of every second pair of a split changed."""
    made = branch.made
    shutil.copytree(made["preferences"], branch.root / name)
    pairs = read_split(made["preferences"], split)
    half = [pair.model_copy(update=fields) if i % 2 else pair for i, pair in enumerate(pairs)]
    write_jsonl(branch.root / name / f"{split}.jsonl", half)
    inputs = {key: made[key] for key in ("tokenizers", "reference_rollouts")}
    return {**inputs, "preferences": branch.root / name, "trunk": made["sft"] / "policy"}


@pytest.mark.parametrize("fields", [{"weight": 5.0}, {"soft_label": 0.6}], ids=["weight", "soft label"])
def test_weights_and_soft_labels_of_pairs_reach_the_reward_model(branch, fields):
    inputs = changed_split(branch, "changed", "train", **fields)
    branch.run("other", "reward_model", inputs, chain.reward_stage("train"))
    assert branch.metrics["other"]["pairs"] == len(read_split(branch.made["preferences"], "train"))
    assert digest(branch.made["other"] / "model") != digest(branch.made["reward"] / "model")


def test_a_reward_model_and_its_audit_are_made_alike_from_splits_of_their_own(built, branch):
    counted = {name: built.metrics[name]["pairs"] for name in ("reward", "audit")}
    splits = built.metrics["preferences"]
    assert counted == {"reward": splits["train_pairs"], "audit": splits["audit_pairs"]}
    assert digest(built.made["reward"] / "model") != digest(built.made["audit"] / "model")
    doubted = {split: changed_split(branch, f"{split}-doubted", split, soft_label=0.5) for split in ("train", "audit")}
    for name, own in (("reward", "train"), ("audit", "audit")):
        for split, inputs in doubted.items():
            branch.run(f"{name}-{split}", "reward_model", inputs, chain.reward_stage(own))
            same = digest(branch.made[f"{name}-{split}"] / "model") == digest(built.made[name] / "model")
            assert same == (split != own), f"{name}, where labels of {split} changed"


def test_a_selection_says_what_it_picked(built):
    folder, pool = built.made["selection"], read_split(built.made["preferences"], "train")
    kept = rows(folder / "selection.jsonl")
    assert [set(row) for row in kept] == [{"row", "id", "weight", "score"}] * 40
    assert all(pool[row["row"]].id == row["id"] and row["weight"] == 1.0 for row in kept)
    audit = json.loads((folder / "audit.json").read_text())
    assert audit["pool"] == len(pool) and audit["selected"] == 40
    assert sum(audit["selected_by_source"].values()) == 80 and sum(audit["selected_by_annotator"].values()) == 40
    assert sum(audit["pool_by_source"].values()) == 2 * len(pool)
    assert sum(audit["pool_by_annotator"].values()) == len(pool)
    assert audit["mean_score"] == pytest.approx(np.mean([row["score"] for row in kept]))
    assert -1 <= audit["mean_pair_similarity"] <= 0.95
    assert built.metrics["selection"] == {
        "selected": 40,
        "pool": len(pool),
        "mean_score": audit["mean_score"],
        "effective_pairs": pytest.approx(40),
    }
    scores = np.load(folder / "scores.npy", allow_pickle=False)
    assert len(scores) == len(pool) and np.isfinite(scores).sum() == audit["candidates"]
    assert [scores[row["row"]] for row in kept] == pytest.approx([row["score"] for row in kept], abs=0)
    assert np.nanmean(scores) == pytest.approx(audit["pool_mean_score"])
    assert audit["pool_mean_score"] < audit["mean_score"]
    assert audit["pool_effective_pairs"] is None  # cosines are no weights


def test_random_and_all_are_controls_without_scores(branch):
    pool = len(read_split(branch.made["preferences"], "train"))
    chain.select(branch, "random", RandomSelection(k=20))
    chain.select(branch, "again", RandomSelection(k=20))
    chain.select(branch, "all", AllSelection())
    picked = {name: rows(branch.made[name] / "selection.jsonl") for name in ("random", "again", "all")}
    assert picked["random"] == picked["again"] and len({row["row"] for row in picked["random"]}) == 20
    assert all(row["score"] is None for row in picked["random"])
    assert [row["row"] for row in picked["all"]] == list(range(pool))
    audit = json.loads((branch.made["all"] / "audit.json").read_text())
    assert audit["selected_by_source"] == audit["pool_by_source"] and audit["mean_score"] is None
    inputs = {"preferences": branch.made["preferences"], "rollouts": branch.root / "other"}
    inputs["rollouts"].mkdir()
    lines = (branch.made["reference_rollouts"] / "rollouts.jsonl").read_text().splitlines()
    (inputs["rollouts"] / "rollouts.jsonl").write_text("\n".join(lines[1:]) + "\n")
    branch.run("later", "select", inputs, SelectStage(selection=RandomSelection(k=20)))
    assert rows(branch.made["later"] / "selection.jsonl") != picked["random"]  # another draw in every round


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (RandomSelection(k=10**6), "k is 1000000, but only"),
        (SimilaritySelection(keep=TopK(k=10**6)), "k is 1000000, but only"),
        (SimilaritySelection(keep=Threshold(score=1.0), compare_with="all_rollouts"), "no pair reaches the score 1.0"),
    ],
)
def test_an_impossible_selection_is_refused(branch, selection, message):
    with pytest.raises(UserError, match=message) as error:
        chain.select(branch, "impossible", selection)
    assert error.value.where.startswith("selection.")


def test_no_selection_is_never_built(branch):
    with pytest.raises(AssertionError):
        chain.select(branch, "none", NoSelection())


# --- refresh and gate -------------------------------------------------------------------------------------------------


def test_a_refresh_reports_its_gate(built):
    verdict = json.loads((built.made["refreshed"] / "gate.json").read_text())
    assert names(built.made["refreshed"]) == {"model", "seen", "gate.json"}
    assert verdict["gate"] == "off" and verdict["pairs_seen"] == 64
    assert verdict["refreshed"] is verdict["accepted"] is True and verdict["warning"] is None
    assert verdict["pairs"] == built.metrics["preferences"]["gate_pairs"]
    assert {"gain", "low", "detectable", "incumbent_accuracy", "challenger_accuracy"} <= set(verdict)
    assert verdict["reward_variance_before"] > 0 and verdict["reward_variance_after"] > 0
    assert (
        built.metrics["refreshed"]["replayed"] == 21 and built.metrics["refreshed"]["steps"] == 8
    )  # 0.33 · 64, 64 / 8


def test_a_refused_refresh_hands_on_the_incumbents_very_bytes(branch):
    # The gate asks about pairs that the incumbent knows; the refresh sees them with every label turned round.
    poisoned = branch.root / "poisoned"
    shutil.copytree(branch.made["preferences"], poisoned)
    known = read_split(poisoned, "train")
    write_jsonl(poisoned / "gate.jsonl", known)
    write_jsonl(poisoned / "validation.jsonl", known)
    turned = [pair.model_copy(update={"chosen": pair.rejected, "rejected": pair.chosen}) for pair in known]
    write_jsonl(poisoned / "train.jsonl", turned)
    branch.made["preferences"] = poisoned
    long = chain.REFRESH.model_copy(update={"pairs_seen": 320})
    refused = chain.refresh(branch, "refused", long.model_copy(update={"gate": chain.PAIRED}))
    forced = chain.refresh(branch, "forced", long.model_copy(update={"gate": GateOff()}))
    incumbent = digest(branch.made["reward"] / "model")
    verdict = json.loads((refused / "gate.json").read_text())
    assert verdict["accepted"] is False and verdict["low"] <= 0 and verdict["gate"] == "paired"
    assert verdict["gain"] < 0 and verdict["challenger_accuracy"] < 0.5 < verdict["incumbent_accuracy"]
    assert verdict["pairs"] == round(0.5 * len(known))
    assert digest(refused / "model") == incumbent != digest(forced / "model")
    assert json.loads((forced / "gate.json").read_text())["accepted"] is True


def test_a_paired_gate_accepts_what_is_better(branch):
    known = branch.root / "known"  # the gate asks about what the challenger has just learned
    shutil.copytree(branch.made["preferences"], known)
    for split in ("gate", "validation"):
        shutil.copyfile(known / "train.jsonl", known / f"{split}.jsonl")
    branch.made["preferences"] = known
    learned = chain.REFRESH.model_copy(update={"pairs_seen": 256, "replay_share": 0.6})
    paired, off = (learned.model_copy(update={"gate": gate}) for gate in (chain.PAIRED, GateOff()))
    folder = chain.refresh(branch, "accepted", paired)
    verdict = json.loads((folder / "gate.json").read_text())
    assert verdict["accepted"] is (verdict["low"] > 0) is True
    assert digest(folder / "model") == digest(chain.refresh(branch, "forced", off) / "model")  # it changes no weight


# --- PPO --------------------------------------------------------------------------------------------------------------


def test_ppo_writes_policy_state_and_samples(built):
    folder = built.made["ppo"]
    assert (
        names(folder) == {"policy", "state", "samples.jsonl", "looks.jsonl", "alarms.json"}
        and names(folder / "policy") >= MODEL_FILES
    )
    logged = read_metrics(built.partial("ppo") / METRICS)
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    assert "policy_loss" not in logged[0] and "policy_loss" in logged[1]  # one step of warm-up
    state = json.loads((folder / "state" / "state.json").read_text())
    assert state["step"] == 4 and state["warmup"] == 0
    assert state["reward_digest"] == digest(built.made["refreshed"] / "model")
    samples = rows(folder / "samples.jsonl")
    assert [row["step"] for row in samples] == [2] * 8 + [4] * 8
    assert set(samples[0]) == {"step", "prompt", "response", "rm_score", "kl"}
    Prompt.model_validate(samples[0]["prompt"])
    last = built.metrics["ppo"]
    assert last["step"] == 4 and last["rm_score"] == logged[-1]["rm_score"] and last["kl"] == logged[-1]["kl"]
    assert np.mean([row["rm_score"] for row in samples[8:]]) == pytest.approx(last["rm_score"])
    assert digest(folder / "policy") != digest(built.made["sft"] / "policy")


@pytest.fixture
def halves(branch):
    """Two rounds of two steps, the second against another reward model or the same."""
    stage = chain.ppo_stage(chain.PPO.model_copy(update={"steps": 2}))
    branch.run("first", "ppo", chain.ppo_inputs(branch, "refreshed"), stage)
    branch.run("same", "ppo", chain.ppo_inputs(branch, "refreshed", after="first"), stage)
    branch.run("changed", "ppo", chain.ppo_inputs(branch, "reward", after="first"), stage)
    return branch


def test_two_rounds_of_one_reward_model_are_one_long_round(halves):
    for part in ("policy", "state"):
        assert digest(halves.made["same"] / part) == digest(halves.made["ppo"] / part)
        assert digest(halves.made["changed"] / part) != digest(halves.made["ppo"] / part)
    logged = [row for name in ("first", "same") for row in read_metrics(halves.partial(name) / METRICS)]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]


def test_the_value_model_warms_up_again_only_after_the_reward_changed(halves):
    first_row = {name: read_metrics(halves.partial(name) / METRICS)[0] for name in ("same", "changed")}
    assert "policy_loss" in first_row["same"] and "policy_loss" not in first_row["changed"]
    assert "policy_loss" in read_metrics(halves.partial("changed") / METRICS)[1]


def killed(branch: Chain, name: str, step: int, checkpoint_seconds: float) -> None:
    inputs = {key: str(path) for key, path in chain.ppo_inputs(branch, "refreshed").items()}
    order = {"root": str(branch.root), "name": name, "inputs": inputs, "step": step}
    order["checkpoint_seconds"] = checkpoint_seconds
    done = subprocess.run([sys.executable, "-m", "tests.stages.killed_ppo", json.dumps(order)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    shutil.rmtree(branch.root / name)  # scratch; what survives is the partial state


def assert_same_bytes(branch: Chain, name: str) -> None:
    expected, found = branch.made["ppo"], branch.made[name]
    assert list_files(found) == list_files(expected)
    for file in list_files(expected):
        assert (found / file).read_bytes() == (expected / file).read_bytes(), file


@pytest.mark.parametrize(
    ("step", "checkpoint_seconds", "kept"),
    [(3, 1e-9, ["checkpoint-1", "checkpoint-2"]), pytest.param(2, 3600.0, [], marks=pytest.mark.slow)],
)
def test_killed_in_mid_round_ppo_ends_with_the_same_bytes(built, branch, step, checkpoint_seconds, kept):
    killed(branch, "killed", step, checkpoint_seconds)
    partial = branch.partial("killed")
    assert sorted(path.name for path in partial.glob("checkpoint-*")) == kept
    assert len(read_metrics(partial / METRICS)) == step  # rows beyond the checkpoint, to be written again
    branch.run("killed", "ppo", chain.ppo_inputs(branch, "refreshed"), chain.ppo_stage())
    assert_same_bytes(branch, "killed")
    assert (partial / METRICS).read_bytes() == (built.partial("ppo") / METRICS).read_bytes()


def test_killed_after_its_last_line_ppo_can_still_be_repeated(branch):
    often = chain.RUNTIME.model_copy(update={"checkpoint_seconds": 1e-9})
    inputs = chain.ppo_inputs(branch, "refreshed")
    for _ in range(2):  # the first time the store did not live to publish what it got
        shutil.rmtree(branch.root / "twice", ignore_errors=True)
        branch.run("twice", "ppo", inputs, chain.ppo_stage(), often)
    assert_same_bytes(branch, "twice")


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_an_evaluation_measures_policy_reward_model_and_refresh(built):
    folder = built.made["evaluation"]
    assert names(folder) == {"evaluation.json", "answers.jsonl", "samples.jsonl", "curve.jsonl", "looks.jsonl"}
    measured = json.loads((folder / "evaluation.json").read_text())
    test = read_split(built.made["preferences"], "test")
    assert measured["offline_pairs"] == len(test) and set(measured["offline_by_source"]) == {
        source for pair in test for source in (pair.provenance.source_chosen, pair.provenance.source_rejected)
    }
    low, high = measured["gold_reward_ci95"]
    assert low <= measured["gold_reward"] <= high and measured["kl_to_sft"] > 0
    assert 0 <= measured["on_policy_accuracy"] <= 1 and measured["on_policy_pairs"] > 0
    assert built.metrics["evaluation"] == {k: v for k, v in measured.items() if isinstance(v, (int, float))}
    shown = rows(folder / "samples.jsonl")
    assert len(shown) == 2 and set(shown[0]) == {"prompt", "response", "rm_score", "audit_score", "gold"}
    curve = rows(folder / "curve.jsonl")
    assert [point["step"] for point in curve] == [2, 4]
    kept = [row for row in rows(built.made["ppo"] / "samples.jsonl") if row["step"] == 4]
    gold = [gold_reward(Prompt.model_validate(row["prompt"]), row["response"]) for row in kept]
    assert curve[1]["gold"] == pytest.approx(np.mean(gold))
    assert curve[1]["rm_score"] == pytest.approx(built.metrics["ppo"]["rm_score"])


def test_accuracy_before_and_after_a_refresh_is_that_of_the_two_models(built):
    sample = read_jsonl(built.made["reference_rollouts"] / "rollouts.jsonl", Rollout)
    pairs = on_policy_pairs(sample, np.array([gold_reward(r.prompt, r.response) for r in sample]))
    for when, name in (("before", "reward"), ("after", "refreshed")):
        scores = standard_scores(built.made[name] / "model", built.made["reference_rollouts"])
        assert built.metrics["evaluation"][f"on_policy_accuracy_{when}"] == pytest.approx(pairs.accuracy(scores))


def test_without_a_refresh_there_is_no_after_and_without_gold_no_truth(branch):
    rollouts = branch.made["reference_rollouts"]
    chain.evaluate(branch, "vanilla", chain.EVALUATION, rollouts=rollouts)
    vanilla = json.loads((branch.made["vanilla"] / "evaluation.json").read_text())
    assert vanilla["on_policy_accuracy_before"] is not None and vanilla["on_policy_accuracy_after"] is None
    assert names(branch.made["vanilla"]) == {"evaluation.json", "answers.jsonl", "samples.jsonl"}  # no PPO, no curve
    blind = chain.EVALUATION.model_copy(update={"gold": NoGold()})
    chain.evaluate(branch, "blind", blind, rollouts=rollouts, ppo=branch.made["ppo"])
    measured = json.loads((branch.made["blind"] / "evaluation.json").read_text())
    unknown = {"gold_reward", "gold_reward_ci95", "on_policy_accuracy"}
    unknown |= {"on_policy_accuracy_before", "on_policy_accuracy_after", *AUDITED}
    unasked = {name for name, value in vanilla.items() if value is None}
    unknown |= {"win_rate", "win_rate_ci95", "like_length_win_rate", "like_length_win_rate_ci95"}
    unknown |= {"on_policy_ece", "proxy_truth_mmd"}
    assert {name for name, value in measured.items() if value is None} == unknown | unasked
    assert measured["offline_accuracy"] == vanilla["offline_accuracy"] and measured["rm_score"] == vanilla["rm_score"]
    for file in ("curve.jsonl", "samples.jsonl"):
        assert all(row["gold"] is row["audit_score"] is None for row in rows(branch.made["blind"] / file))


def reversed_model(reward: Path, folder: Path) -> Path:
    """The same reward model with the sign of its score turned round."""
    scored = load_calibrated(reward, CPU, chain.MODEL.context, 64)
    scored.scorer.model.score.weight.data.neg_()
    save_model(scored.scorer.model, scored.scorer.tokenizer, folder)
    save_calibration(replace(scored.calibration, mean=-scored.calibration.mean), folder)
    return folder


def test_an_audit_scores_what_the_reward_model_scores(branch):
    own = branch.made["refreshed"] / "model"
    turned = reversed_model(own, branch.root / "reversed")
    audited = {}
    for name, model in (("own", own), ("turned", turned), ("other", branch.made["audit"] / "model")):
        chain.evaluate(branch, name, chain.EVALUATION, audit=model, ppo=branch.made["ppo"])
        audited[name] = json.loads((branch.made[name] / "evaluation.json").read_text())
        low, high = audited[name]["audit_score_ci95"]
        assert low <= audited[name]["audit_score"] <= high and audited[name]["audit_agreement_pairs"] > 0
        curve = rows(branch.made[name] / "curve.jsonl")
        assert [point["step"] for point in curve] == [2, 4]
        sign = {"own": 1, "turned": -1}.get(name)
        for point in [*curve, *rows(branch.made[name] / "samples.jsonl")]:
            assert sign is None or point["audit_score"] == pytest.approx(sign * point["rm_score"], abs=1e-4)
    mine, other = audited["own"], audited["turned"]
    assert mine["audit_score"] == pytest.approx(mine["rm_score"]) == pytest.approx(-other["audit_score"])
    assert mine["audit_accuracy"] == mine["offline_accuracy"] == pytest.approx(1 - other["audit_accuracy"])
    assert mine["audit_agreement"] == 1 and other["audit_agreement"] == 0
    assert mine["audit_correlation"] == pytest.approx(1) == pytest.approx(-other["audit_correlation"])
    assert 0 < audited["other"]["audit_agreement"] < 1 and abs(audited["other"]["audit_correlation"]) < 0.999


# --- other models -----------------------------------------------------------------------------------------------------


def test_policy_and_reward_model_may_have_different_tokenizers(tmp_path):
    other = chain.whole_round(Chain(tmp_path), reward=chain.OTHER_MODEL)
    assert other.metrics["tokenizers"] == {"policy_vocabulary": 400, "reward_vocabulary": 320}
    policy = json.loads((other.made["ppo"] / "policy" / "config.json").read_text())
    reward = json.loads((other.made["refreshed"] / "model" / "config.json").read_text())
    assert (policy["vocab_size"], reward["vocab_size"]) == (400, 320)
    assert np.isfinite(other.metrics["evaluation"]["rm_score"])


def test_models_of_your_own_are_used_as_they_are(branch):
    made = dict(branch.made)
    source = {"source.desk": made["preferences"].parent / "data" / "pairs.jsonl"}
    policy, reward = made["sft"] / "policy", made["reward"] / "model"
    inputs = {"policy_model": policy, "reward_model": reward}
    spec = CheckpointModel(path="not/where/it/lies", context=chain.MODEL.context)
    branch.run("tokenizers", "tokenizers", inputs, TokenizersConfig(policy=spec, reward=spec))
    stage = AggregateStage(sources=chain.SOURCES, aggregate=chain.SETTINGS, context=128, reward_context=128)
    branch.run("preferences", "aggregate", {**source, "tokenizers": branch.made["tokenizers"]}, stage)
    assert digest(branch.made["preferences"]) == digest(made["preferences"])
    data = {name: branch.made[name] for name in ("preferences", "tokenizers")}
    branch.run("sft", "sft", {**data, "policy_model": policy}, SftStage(sft=CheckpointSft(), model=spec))
    assert digest(branch.made["sft"] / "policy") == digest(policy)
    chain.roll_out(branch, "reference_rollouts", branch.made["sft"] / "policy")
    data["reference_rollouts"] = branch.made["reference_rollouts"]
    given = RewardStage(reward=CheckpointReward(), model=spec)
    branch.run("reward", "reward_model", {**data, "reward_model": reward}, given)
    assert digest(branch.made["reward"] / "model") == digest(reward)
    assert "steps" not in branch.metrics["reward"]
    with pytest.raises(UserError, match="not a reward model"):
        branch.run("wrong", "reward_model", {**data, "reward_model": policy}, given)


def test_a_checkpoint_can_be_trained_further(built, branch):
    made = branch.made
    data = {"preferences": made["preferences"], "tokenizers": made["tokenizers"]}
    spec = CheckpointModel(path="elsewhere", context=chain.MODEL.context)
    tuned = SftStage(sft=TrainSft(epochs=1, demonstrations=64, learning_rate=1e-3), model=spec)
    branch.run("tuned", "sft", {**data, "policy_model": made["sft"] / "policy"}, tuned)
    assert branch.metrics["tuned"]["train_loss"] < built.metrics["sft"]["train_loss"]  # it goes on from there
    data["reference_rollouts"] = made["reference_rollouts"]
    stage = RewardStage(reward={"type": "train", "epochs": 1}, model=spec)
    branch.run("fresh_head", "reward_model", {**data, "reward_model": made["sft"] / "policy"}, stage)
    assert branch.metrics["fresh_head"]["steps"] > 0
