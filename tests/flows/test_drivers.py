"""The plain flow under its drivers: reuse, plan, resume after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from flows.compare import compare
from inverse_alignment.config import PipelineConfig
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.store import Store
from tasks import dvc_file, run_stage
from tests.flows.toy_run import config_for
from tests.flows.toy_stages import TOYS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a"}\n')
    return path


def execute(config: PipelineConfig) -> run_stage.Remember:
    remember = run_stage.Remember()
    driver = run_stage.Execute(Store(Path(config.store)), RuntimeConfig(), (remember,), TOYS)
    with run_stage.driving(driver):
        compare(config)
    return remember


def plan(config: PipelineConfig) -> run_stage.Plan:
    return run_stage.plan(lambda: compare(config), Store(Path(config.store)), TOYS)


def built(remember: run_stage.Remember) -> set[str]:
    return {name for name, (_, entry) in remember.entries.items() if not entry.reused}


def test_graph_names_and_edges(tmp_path: Path) -> None:
    nodes = {node.name: node for node in run_stage.draw(lambda: compare(config_for(tmp_path, Path("nowhere.jsonl"))))}
    assert list(nodes)[:6] == ["tokenizers", "aggregate", "sft-s0", "reference-s0", "reward-s0", "start-s0"]
    assert "none-s0-r1-select" not in nodes and "none-s0-r2-refresh" not in nodes
    refresh = nodes["random-s0-r2-refresh"]
    assert set(refresh.inputs) == {"reward", "selection", "preferences", "rollouts", "reference_rollouts", "seen"}
    assert refresh.inputs["seen"].uri == "pending:random-s0-r1-refresh/seen"
    assert "seen" not in nodes["random-s0-r1-refresh"].inputs
    assert refresh.inputs["reward"].uri == "pending:random-s0-r1-refresh/model"
    evaluate = nodes["random-s0-r2-evaluate"]
    assert evaluate.inputs["reward"].uri == "pending:random-s0-r2-refresh/model"
    assert evaluate.inputs["reward_before"].uri == "pending:random-s0-r1-refresh/model"
    assert "reward_before" not in nodes["none-s0-r2-evaluate"].inputs
    assert evaluate.inputs["start"].uri == "pending:start-s0"
    assert nodes["random-s0-r1-ppo"].inputs["policy"].uri == "pending:sft-s0/policy"
    assert nodes["random-s0-r2-ppo"].inputs["state"].uri == "pending:random-s0-r1-ppo/state"
    assert "state" not in nodes["random-s0-r1-ppo"].inputs
    assert nodes["reward-s0"].inputs["trunk"].uri == "pending:sft-s0/policy"
    assert {"select.random.s0.r1", "refresh.random.s0.r2", "ppo.none.s0.r1", "evaluate.none.s0.r2"} <= set(
        nodes["compare"].inputs
    )
    assert [nodes[name].seed for name in ("tokenizers", "aggregate", "compare", "sft-s0")] == [None, None, None, 0]


def test_every_seed_has_a_start_and_all_arms_share_it(tmp_path: Path) -> None:
    config = config_for(tmp_path, Path("nowhere.jsonl"), seeds=[3, 5], rounds=1)
    nodes = run_stage.draw(lambda: compare(config))
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    assert names.index("start-s5") < names.index("none-s3-r1-rollout")
    firsts = [node for node in nodes if node.name.endswith("-s5-r1-ppo")]
    assert len(firsts) == 3 and {node.inputs["policy"].uri for node in firsts} == {"pending:sft-s5/policy"}


def audited(store: Path, data: Path, **changes: object) -> PipelineConfig:
    """The same with a third of the prompts for an audit model."""
    shares = {"train": 0.35, "validation": 0.1, "gate": 0.1, "test": 0.1, "audit": 0.35}
    pooled = {"sources": [{"format": "jsonl", "name": "toy", "path": str(data)}], "aggregate": {"shares": shares}}
    return PipelineConfig.model_validate({"rounds": 2, "store": str(store), "data": pooled, **changes})


def test_an_audit_model_is_made_like_the_first_one_and_only_looked_at(tmp_path: Path) -> None:
    nodes = {node.name: node for node in run_stage.draw(lambda: compare(audited(tmp_path, Path("nowhere.jsonl"))))}
    reward, audit = nodes["reward-s0"], nodes["audit-s0"]
    assert (audit.stage, audit.inputs, audit.seed) == (reward.stage, reward.inputs, reward.seed)
    assert audit.config == reward.config.model_copy(update={"split": "audit"})
    takes = {
        name: {key for key, given in node.inputs.items() if given.uri.startswith("pending:audit-s0")}
        for name, node in nodes.items()
    }
    assert {name: keys for name, keys in takes.items() if keys} == {
        "compare": {"audit.s0"},
        "start-s0": {"audit"},
        **{
            f"{arm}-s0-r{n}-{stage}": {"audit"}
            for arm in ("none", "random", "similarity")
            for n in (1, 2)
            for stage in ("ppo", "evaluate")  # PPO watches it, and learns nothing from it
        },
    }
    assert nodes["start-s0"].inputs["audit"].uri == "pending:audit-s0/model"


def test_a_round_that_an_audit_is_to_end_needs_an_audit_model(tmp_path: Path) -> None:
    stops = {"ppo": {"watch": {"stop_at": ["audit"]}}}
    run_stage.draw(lambda: compare(audited(tmp_path, Path("nowhere.jsonl"), **stops)))
    with pytest.raises(UserError, match="but there is none") as refused:
        run_stage.draw(lambda: compare(config_for(tmp_path, Path("nowhere.jsonl"), **stops)))
    assert "stop_at" in refused.value.where
    blind = audited(tmp_path, Path("nowhere.jsonl"), ppo={"watch": {"every": 0}})
    nodes = {node.name: node for node in run_stage.draw(lambda: compare(blind))}
    assert "audit" not in nodes["none-s0-r1-ppo"].inputs


def test_every_seed_has_an_audit_model_of_its_own_and_without_a_share_there_is_none(tmp_path: Path) -> None:
    def names(config: PipelineConfig) -> set[str]:
        return {node.name for node in run_stage.draw(lambda: compare(config))}

    plain = names(config_for(tmp_path, Path("nowhere.jsonl"), seeds=[1, 4]))
    assert names(audited(tmp_path, Path("nowhere.jsonl"), seeds=[1, 4])) == plain | {"audit-s1", "audit-s4"}
    assert not any(name.startswith("audit") for name in plain)


def test_a_token_level_reward_model_is_made_once_a_seed_where_an_arm_asks_for_it(tmp_path: Path) -> None:
    arms = {"plain": {"selection": {"type": "none"}}, "dense": {"ppo": {"credit": {"type": "token"}}}}
    config = config_for(tmp_path, Path("nowhere.jsonl"), arms=arms, seeds=[1, 4])
    nodes = {node.name: node for node in run_stage.draw(lambda: compare(config))}
    assert [name for name in nodes if name.startswith("token-")] == ["token-reward-s1", "token-reward-s4"]
    assert nodes["token-reward-s4"].inputs["reward"].uri == "pending:reward-s4/model"
    asks = {name for name, node in nodes.items() if node.inputs.get("token_reward")}
    assert asks == {f"dense-s{seed}-r{n}-ppo" for seed in (1, 4) for n in (1, 2)}
    assert nodes["dense-s4-r2-ppo"].inputs["token_reward"].uri == "pending:token-reward-s4/model"
    assert dvc_file.sections(nodes["token-reward-s1"]) == ["models", "token_reward"]


def test_an_audit_model_is_a_stage_of_dvc_and_can_be_run_alone(tmp_path: Path, data: Path) -> None:
    config = audited(tmp_path / "store", data)
    rendered = yaml.safe_load(dvc_file.render(run_stage.draw(lambda: compare(config)), ROOT))["stages"]
    stage = rendered["audit-s0"]
    assert stage["cmd"] == "inverse-alignment stage audit-s0" and stage["params"] == ["models", "reward"]
    assert stage["deps"] == rendered["reward-s0"]["deps"]
    assert "pipeline/audit-s0.json" in rendered["none-s0-r1-evaluate"]["deps"]
    assert "pipeline/audit-s0.json" in rendered["none-s0-r1-ppo"]["deps"]
    assert "pipeline/audit-s0.json" not in rendered["random-s0-r1-refresh"]["deps"]
    remember = run_stage.Remember()
    driver = run_stage.Execute(Store(Path(config.store)), RuntimeConfig(), (remember,), TOYS)
    run_stage.run_up_to(lambda: compare(config), "audit-s0", driver)
    assert set(remember.entries) == {"tokenizers", "aggregate", "sft-s0", "reference-s0", "audit-s0"}
    assert {"audit-s0", "reward-s0"} <= {*execute(config).entries}


@pytest.mark.parametrize(
    ("changes", "where", "what"),
    [
        (
            {
                "reward": {"type": "checkpoint"},
                "models": {"reward": {"type": "checkpoint", "path": "anywhere", "context": 128}},
            },
            "reward.type",
            "nothing says how to train",
        ),
        ({"rollout": {"split": "audit"}}, "rollout.split", "for the audit model alone"),
        ({"reference_sample": {"split": "audit"}}, "reference_sample.split", "for the audit model alone"),
        (
            {"arms": {"mine": {"selection": {"type": "random"}, "rollout": {"split": "audit"}}}},
            "arms.mine.rollout.split",
            "for the audit model alone",
        ),
    ],
)
def test_an_audit_that_could_not_be_one_is_refused_before_anything_runs(
    tmp_path: Path, data: Path, changes: dict[str, object], where: str, what: str
) -> None:
    config = audited(tmp_path / "store", data, **changes)
    with pytest.raises(UserError, match=what) as error:
        execute(config)
    assert error.value.where == where
    assert not (tmp_path / "store").exists()


def test_second_run_reuses_everything_and_equal_stages_run_once(tmp_path: Path, data: Path) -> None:
    config = config_for(tmp_path / "store", data)
    first = execute(config)
    assert "none-s0-r1-rollout" in built(first)
    assert "random-s0-r1-rollout" not in built(first)  # the same policy, prompts and seed
    assert built(execute(config)) == set()
    assert plan(config).counts() == {"reuse": len(first.entries), "run": 0, "depends": 0}


def test_plan_says_exactly_what_a_run_builds(tmp_path: Path, data: Path) -> None:
    config = config_for(tmp_path / "store", data)
    planned = plan(config)
    statuses = {name: item.status for name, item in planned.planned.items()}
    assert statuses["tokenizers"] == "run" and planned.planned["tokenizers"].why == "never built"
    assert planned.planned["aggregate"].why == "depends on tokenizers"
    assert planned.planned["random-s0-r1-rollout"].why == "same as none-s0-r1-rollout"
    assert {item.node.name for item in planned.missing} == built(execute(config))


def test_plan_after_a_change_names_the_field_and_reruns_only_what_follows(tmp_path: Path, data: Path) -> None:
    execute(config_for(tmp_path / "store", data))
    changed = config_for(tmp_path / "store", data, refresh={"replay_share": 0.5})
    planned = plan(changed)
    refresh = planned.planned["random-s0-r1-refresh"]
    assert (refresh.status, refresh.why) == ("run", "config.refresh.replay_share: 0.33 -> 0.5")
    assert planned.planned["sft-s0"].status == planned.planned["none-s0-r2-ppo"].status == "reuse"
    assert planned.planned["random-s0-r1-ppo"].why == "depends on random-s0-r1-refresh"
    # the toy rollouts of the other arm's second round differ too, for its policy does
    assert built(execute(changed)) == {item.node.name for item in planned.missing}


def test_changed_data_runs_again_and_runtime_does_not_count(tmp_path: Path, data: Path) -> None:
    execute(config_for(tmp_path / "store", data))
    assert plan(config_for(tmp_path / "store", data, runtime={"generation_rows": 8})).missing == []
    data.write_text('{"prompt": "b"}\n')
    assert plan(config_for(tmp_path / "store", data)).planned["tokenizers"].why.startswith("inputs.source.toy")


def test_a_damaged_artifact_is_built_again(tmp_path: Path, data: Path) -> None:
    config = config_for(tmp_path / "store", data)
    entry = execute(config).entries["sft-s0"][1]
    (Path(entry.artifact.uri) / "policy" / "content.txt").write_text("damaged")
    assert plan(config).planned["sft-s0"].why == "its files were changed or removed"
    assert built(execute(config)) == {"sft-s0"}  # the same bytes come back, so nothing after it runs


def test_up_to_runs_ancestors_alone(tmp_path: Path, data: Path) -> None:
    config = config_for(tmp_path / "store", data)
    remember = run_stage.Remember()
    driver = run_stage.Execute(Store(Path(config.store)), RuntimeConfig(), (remember,), TOYS)
    node, entry = run_stage.run_up_to(lambda: compare(config), "reward-s0", driver)
    assert node.name == "reward-s0" and not entry.reused
    assert set(remember.entries) == {"tokenizers", "aggregate", "sft-s0", "reference-s0", "reward-s0"}
    with pytest.raises(UserError, match="did you mean 'random-s0-r2-ppo'"):
        run_stage.run_up_to(lambda: compare(config), "random-s0-r2-pppo", driver)


def test_metrics_and_circumstances_are_kept(tmp_path: Path, data: Path) -> None:
    entry = execute(config_for(tmp_path / "store", data)).entries["sft-s0"][1]
    rows = [json.loads(line) for line in (Path(entry.artifact.uri) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert entry.metrics["rate"] is None  # NaN has no JSON
    facts = json.loads((Path(entry.artifact.uri) / "runtime.json").read_text())
    assert facts["seconds"] >= 0 and "runtime.json" not in entry.record["files"]


def test_an_error_reaches_observers_and_the_next_run_goes_on(tmp_path: Path, data: Path) -> None:
    failures: list[str] = []

    class Failures(run_stage.Remember):
        def failed(self, node: run_stage.Node, error: BaseException) -> None:
            failures.append(f"{node.name}: {type(error).__name__}")

    data.write_text("broken")
    config = config_for(tmp_path / "store", data)
    with (
        run_stage.driving(run_stage.Execute(Store(Path(config.store)), RuntimeConfig(), (), TOYS)),
        run_stage.observing(Failures()),
        pytest.raises(UserError),
    ):
        compare(config)
    assert failures == ["tokenizers: UserError"]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"arms": {"Bad_name": {"selection": {"type": "none"}}}}, "arms.Bad_name"),
        ({"seeds": [1, 1]}, "seeds"),
    ],
)
def test_names_that_cannot_name_nodes_are_refused(tmp_path: Path, changes: dict[str, object], where: str) -> None:
    config = config_for(tmp_path, Path("nowhere.jsonl"), **changes)
    with pytest.raises(UserError) as error:
        run_stage.draw(lambda: compare(config))
    assert error.value.where == where


def test_run_stage_needs_a_driver(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no driver"):
        compare(config_for(tmp_path, ROOT / "pyproject.toml"))


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **more}


def toy_run(store: Path, data: Path, **more: str) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.flows.toy_run", str(store), str(data)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_kill_9_repeats_no_finished_stage_and_ends_with_the_same_bytes(tmp_path: Path, data: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    command = [sys.executable, "-m", "tests.flows.toy_run", str(tmp_path / "killed"), str(data)]
    killed = subprocess.Popen(
        command, cwd=ROOT, env=environment(TOY_LOG=str(log), TOY_HANG="PpoStage:2"), start_new_session=True
    )
    deadline = time.monotonic() + 60
    while log.read_text().count("start PpoStage") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = log.read_text().splitlines()
    assert before[-1] == "start PpoStage"

    again = toy_run(tmp_path / "killed", data, TOY_LOG=str(log))
    after = log.read_text().splitlines()[len(before) :]
    assert after[0] == "start PpoStage resumed"
    finished = [line for line in before if line.startswith("end")]
    repeated = toy_run(tmp_path / "whole", data)
    assert len(finished) + len([line for line in after if line.startswith("end")]) == len(repeated["built"])
    assert again["digests"] == repeated["digests"]


def test_a_reused_run_imports_nothing_heavy(tmp_path: Path, data: Path) -> None:
    toy_run(tmp_path / "store", data)
    second = toy_run(tmp_path / "store", data)
    assert (second["built"], second["heavy"]) == ([], [])


def test_code_that_changes_is_a_reason_and_a_docstring_is_not(tmp_path: Path) -> None:
    script = f"""
import sys, json
sys.path.insert(0, {str(tmp_path / "code")!r})
from pathlib import Path
from inverse_alignment.core.context import RuntimeConfig
from inverse_alignment.core.configuration import Section
from inverse_alignment.core.store import Store
from inverse_alignment.stages.registry import StageSpec
from tasks import run_stage
stages = {{"small": StageSpec("small_stage", "small")}}
def flow():
    return run_stage.run_stage("small", "small", {{}}, Section())
store = Store(Path({str(tmp_path / "store")!r}))
why = run_stage.plan(flow, store, stages).planned["small"].why
with run_stage.driving(run_stage.Execute(store, RuntimeConfig(), (), stages)):
    flow()
print(why)
"""
    text = '"""A stage."""\ndef build(inputs, config, context):\n    """{doc}"""\n    return {{"value": {value}}}\n'
    (tmp_path / "code").mkdir()
    seen = []
    for doc, value in (("one", 1), ("two", 1), ("two", -1)):
        (tmp_path / "code" / "small_stage.py").write_text(text.format(doc=doc, value=value))
        done = subprocess.run(
            [sys.executable, "-B", "-c", script],
            env=environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        seen.append(done.stdout.strip())
    assert seen[:2] == ["never built", ""] and seen[2].startswith("code:")
