"""Loading: everything in the repository is valid, and what is wrong is refused by its place and a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from inverse_alignment.config import PipelineConfig, load, merge, parse_override, presets, read_yaml
from inverse_alignment.core.artifact import canonical_json
from inverse_alignment.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def loaded(*overrides: str, preset: str | None = None) -> PipelineConfig:
    return load(root=ROOT, preset=preset, overrides=overrides)


def refused(*overrides: str) -> UserError:
    with pytest.raises(UserError) as error:
        loaded(*overrides)
    return error.value


def place(error: UserError) -> str:
    """The key's path, without the files that were read."""
    return error.where.partition(" (")[0]


# --- what is in the repository ---------------------------------------------------------------------------------------


def test_params_yaml_holds_the_defaults():
    assert canonical_json(loaded().identity()) == canonical_json(PipelineConfig().identity())
    assert loaded().model_dump(exclude={"arms"}) == PipelineConfig().model_dump(exclude={"arms"})


def missing_keys(section: BaseModel, written: Any, path: str = "") -> list[str]:
    """Keys of a loaded section, and of those in it, that a file does not write."""
    absent: list[str] = []
    for name in type(section).model_fields:
        value, full = getattr(section, name), f"{path}{name}"
        if name not in written:
            absent.append(full)
        elif isinstance(value, BaseModel):
            absent += missing_keys(value, written[name], f"{full}.")
    return absent


def test_every_key_of_the_schema_is_in_params_yaml():
    written = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert missing_keys(loaded(), written) == []
    del written["ppo"]["kl"]["coefficient"], written["rounds"]  # the negative control
    assert missing_keys(loaded(), written) == ["rounds", "ppo.kl.coefficient"]


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [
            annotation,
            *(found for field in annotation.model_fields.values() for found in sections(field.annotation)),
        ]
    return [found for inner in get_args(annotation) for found in sections(inner)]


def test_every_key_has_a_sentence_and_no_section_is_lenient():
    for section in sections(PipelineConfig):
        assert section.model_config.get("extra") == "forbid", section
        assert section.model_config.get("frozen"), section
        for name, field in section.model_fields.items():
            assert field.description or name in ("type", "format"), f"{section.__name__}.{name}"


@pytest.mark.parametrize("path", [None, *sorted((ROOT / "presets").glob("*.yaml"))], ids=str)
def test_every_preset_loads(path):
    if path is not None:
        assert path.stem in presets(ROOT)
        assert loaded(preset=path.stem) != loaded()


# --- precedence ------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with its own parameters and a preset."""
    (tmp_path / "presets").mkdir()
    (tmp_path / "params.yaml").write_text(
        "rounds: 2\nppo: {steps: 5, epochs: 3, kl: {type: fixed, coefficient: 0.2}}\n"
    )
    (tmp_path / "presets" / "small.yaml").write_text("rounds: 1\nppo: {steps: 7, kl: {type: adaptive, target: 3}}\n")
    return tmp_path


def test_set_wins_over_preset_over_params_over_defaults(project):
    config = load(root=project, preset="small", overrides=["ppo.steps=9"])
    assert (config.ppo.steps, config.rounds, config.ppo.epochs, config.ppo.batch_size) == (9, 1, 3, 64)
    assert load(root=project).ppo.kl.coefficient == 0.2
    assert load(root=project, overrides=["rounds=4", "rounds=5"]).rounds == 5
    assert load(project / "presets" / "small.yaml").rounds == 1


def test_a_section_of_another_type_starts_afresh(project):
    kl = load(root=project, preset="small").ppo.kl
    assert (kl.type, kl.coefficient, kl.target) == ("adaptive", 0.05, 3)  # not the 0.2 of the other variant
    assert loaded("arms.similarity.selection={type: random, k: 7}").for_arm("similarity").selection.k == 7


def test_an_override_reaches_an_element_of_a_list():
    config = load(ROOT / "params.yaml", overrides=["data.sources.0.name=mine", "sft.sources.1=coach"])
    before = load(ROOT / "params.yaml")
    assert (config.data.sources[0].name, config.data.sources[0].path) == ("mine", before.data.sources[0].path)
    assert config.sft.sources == (before.sft.sources[0], "coach")
    with pytest.raises(UserError, match="there is no element 4: sources has 1") as caught:
        load(ROOT / "params.yaml", overrides=["data.sources.4.name=mine"])
    assert caught.value.where == "sources.4"
    assert merge({"a": [1, 2]}, {"a": {"x": 1}}) == {"a": {"x": 1}}  # no place: the schema refuses it by its path


def test_the_order_of_overrides_does_not_drop_any():
    for overrides in (
        ("refresh.gate.resamples=300", "refresh.gate.type=paired"),
        ("ppo.kl.target=2", "ppo.kl.type=adaptive"),
    ):
        assert loaded(*overrides) == loaded(*reversed(overrides))
    assert loaded("ppo.kl.target=2", "ppo.kl.type=adaptive").ppo.kl.target == 2


def test_merge_changes_neither_of_its_arguments():
    base, over = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert (base, over) == ({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=[1, 2]", {"a": {"b": {"c": [1, 2]}}}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": ""}),
        ("a=null", {"a": None}),
        ("a=off", {"a": "off"}),
        ("a=true", {"a": True}),
    ],
)
def test_overrides_are_yaml(text, value):
    assert parse_override(text) == value


@pytest.mark.parametrize("text", ["ppo", "=3", "ppo..steps=3", ".a=1", "a.=1", "a=[1", ""])
def test_a_bad_override_is_refused(text):
    error = refused(text)
    assert error.where == f"--set {text}".strip()
    assert error.fix


def test_a_number_in_scientific_notation_is_a_number():
    assert loaded("ppo.learning_rate=1e-3").ppo.learning_rate == 0.001


def test_off_is_a_word():
    assert loaded("refresh.gate.type=off").refresh.gate.type == "off"


# --- what is wrong is refused ----------------------------------------------------------------------------------------

UNKNOWN = {
    "roundz=1": ("roundz", "'rounds'"),
    "ppo.stepz=3": ("ppo.stepz", "'steps'"),
    "ppo.kl.coeficient=1": ("ppo.kl.coeficient", "'coefficient'"),
    "data.aggregate.shares.tran=1": ("data.aggregate.shares.tran", "'train'"),
    "models.policy.head=2": ("models.policy.head", "'heads'"),
    "selection={type: similarity, keep: {type: top_k, kk: 3}}": ("selection.keep.kk", "'k'"),
    "refresh.gate.encoder.dimension=32": ("refresh.gate.encoder.dimension", "'dimensions'"),
    "arms.similarity.selection.scor=mean": ("arms.similarity.selection.scor", "'score'"),
    "arms.similarity.selection.keep.kk=3": ("arms.similarity.selection.keep.kk", "'k'"),
    "arms.random.reffresh.pairs_seen=3": ("arms.random.reffresh", "'refresh'"),
    "data.sources=[{format: jsonl, name: a, pth: b}]": ("data.sources.0.pth", "'path'"),
    "data.sources=[{format: hh, path: a}, {format: jsonl, name: a, path: b, columns: {promt: c}}]": (
        "data.sources.1.columns.promt",
        "'prompt'",
    ),
    "runtime.thread=1": ("runtime.thread", "'threads'"),
    "tracking.experimnt=x": ("tracking.experimnt", "'experiment'"),
}


@pytest.mark.parametrize("override", UNKNOWN)
def test_an_unknown_key_is_refused_by_path_and_nearest_name(override):
    path, name = UNKNOWN[override]
    error = refused(override)
    assert place(error) == path
    assert error.fix == f"did you mean {name}?"


def test_a_key_like_no_other_lists_the_valid_ones():
    assert refused("sft={type: checkpoint, zzz: 3}").fix == "valid names: type"
    assert "arms, data, evaluation" in refused("zzz=1").fix


WRONG = {
    "ppo.steps=ten": ("ppo.steps", "should be a whole number, got 'ten'"),
    "ppo.steps=1.5": ("ppo.steps", "should be a whole number, got 1.5"),
    "ppo.steps=null": ("ppo.steps", "should be a whole number, got null"),
    "ppo.steps=0": ("ppo.steps", "should be greater than or equal to 1, got 0"),
    "ppo.clip=1": ("ppo.clip", "should be less than 1, got 1"),
    "ppo.clip=wide": ("ppo.clip", "should be a number, got 'wide'"),
    "ppo.kl.coefficient=-1": ("ppo.kl.coefficient", "should be greater than or equal to 0, got -1"),
    "ppo=3": ("ppo", "should be a section of keys, got 3"),
    "selection=similarity": ("selection", "should be a section of keys, got 'similarity'"),
    "rounds=99": ("rounds", "should be less than or equal to 50, got 99"),
    "seeds=0": ("seeds", "should be a list, got 0"),
    "seeds=[]": ("seeds", "should have at least one item, got []"),
    "seeds=[0, a]": ("seeds.1", "should be a whole number, got 'a'"),
    "store=3": ("store", "should be a text, got 3"),
    "refresh.use_margins=maybe": ("refresh.use_margins", "should be true or false, got 'maybe'"),
    "runtime.device=tpu": ("runtime.device", "should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
    "arms.similarity=3": ("arms.similarity", "should be a section of keys, got 3"),
    "arms.similarity.selection=similarity": (
        "arms.similarity.selection",
        "should be a section of keys, got 'similarity'",
    ),
    "arms.similarity.selection.keep.k=0": (
        "arms.similarity.selection.keep.k",
        "should be greater than or equal to 1, got 0",
    ),
    "arms.random.selection={type: length_matched_random, like: {type: similarity, keep: {type: weights}}}": (
        "arms.random.selection",
        "like.keep weights every pair, so that there are no picks whose lengths could be matched",
    ),
    "arms.random.selection={type: intersection, of: [{type: likelihood}]}": (
        "arms.random.selection.of",
        "should have at least 2 items, got [{'type': 'likelihood'}]",
    ),
    "arms.random.selection={type: margin, keep: {type: threshold}}": (
        "arms.random.selection.keep.score",
        "this key is required",
    ),
    "arms.random={selection: {type: influence}, rollout: {samples: 1}}": (
        "arms.random.selection.type",
        "influence compares a policy's answers to one prompt, but rollout.samples asks for one",
    ),
    "arms.random={selection: {type: intersection, of: [{type: random}, {type: influence}]}, rollout: {samples: 1}}": (
        "arms.random.selection.type",
        "influence compares a policy's answers to one prompt, but rollout.samples asks for one",
    ),
    "data.sources=[{format: jsonl, name: a}]": ("data.sources.0.path", "this key is required"),
    "data.sources.first.path=x": ("data.sources", "should be a list, got a section of keys"),
    "data.sources.0.path=": ("data.sources.0.path", "should have at least 1 character, got ''"),
    "data.sources=[]": ("data.sources", "should have at least one item, got []"),
    "data.aggregate.shares.train=0.5": ("data.aggregate.shares", "the shares of the splits sum to 0.8, not to 1"),
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_value_is_refused_by_path_and_reason(override):
    error = refused(override)
    assert (place(error), error.what) == WRONG[override]
    assert f"params.yaml + --set {override}" in error.where
    assert error.fix


def test_the_way_out_says_what_the_key_means():
    assert refused("ppo.steps=ten").fix == "steps: iterations per round: rollouts, then updates"
    assert refused("seeds=[a]").fix.startswith("seeds: ")
    assert "valid: fixed, adaptive" in refused("ppo.kl=0.1").fix


FORMATS = "jsonl, json, parquet, dataset, hh, sharegpt, alpaca_eval"
VARIANTS = {
    "ppo.kl.type=fixd": ("ppo.kl.type", "fixed, adaptive"),
    "selection.type=similarty": ("selection.type", "none, random, all, length_matched_random"),
    "arms.similarity.selection.type=zzz": (
        "arms.similarity.selection.type",
        "none, random, all, length_matched_random",
    ),
    "arms.similarity.selection.keep.type=topk": ("arms.similarity.selection.keep.type", "top_k, threshold"),
    "models.reward.type=scratch": ("models.reward.type", "initialise, checkpoint"),
    "evaluation.gold.type=text": ("evaluation.gold.type", "text_world, none"),
    "data.sources=[{format: jsnl, name: a, path: b}]": ("data.sources.0.format", FORMATS),
    "data.sources=[{name: a, path: b}]": ("data.sources.0.format", FORMATS),
}


@pytest.mark.parametrize("override", VARIANTS)
def test_an_unknown_variant_names_the_valid_ones(override):
    error = refused(override)
    path, valid = VARIANTS[override]
    assert place(error) == path
    assert f"valid: {valid}" in error.fix


def test_an_arm_may_not_set_the_shared_start():
    for section in ("sft", "data", "seeds", "evaluation", "runtime"):
        error = refused(f"arms.similarity.{section}={{}}")
        assert error.what == f"an arm cannot set '{section}'"
        assert place(error) == f"arms.similarity.{section}"
        assert error.fix


def test_no_such_arm():
    with pytest.raises(UserError, match="no arm 'randm'") as error:
        loaded().for_arm("randm")
    assert error.value.fix == "did you mean 'random'?"


FILES = {
    "rounds: [1": "not valid YAML",
    "rounds: 1\nrounds: 2": "not valid YAML",
    "ppo: {steps: 1, steps: 2}": "not valid YAML",
    "- a": "holds a list, not a mapping",
    "three": "holds a str, not a mapping",
    "1: 2": "a key should be a text, got 1",
}


@pytest.mark.parametrize("text", FILES)
def test_a_bad_file_is_refused(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load(root=tmp_path)
    assert error.value.what == FILES[text]
    assert str(tmp_path / "params.yaml") in error.value.where


def test_files_that_are_not_there(tmp_path, project, monkeypatch):
    with pytest.raises(UserError, match="configuration file not found"):
        load(root=tmp_path / "nowhere")
    with pytest.raises(UserError, match="no preset 'smal'") as error:
        load(root=project, preset="smal")
    assert error.value.fix == "did you mean 'small'?"
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("rounds: 1")
    with pytest.raises(UserError, match="no preset 'mine', and no such file") as error:
        load(root=project, preset="mine")
    assert error.value.fix == "did you mean 'mine.yaml'?"
    (tmp_path / "latin.yaml").write_bytes(b"rounds: \xe9")
    with pytest.raises(UserError, match="not valid YAML"):
        load(tmp_path / "latin.yaml")


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "params.yaml").write_text("# nothing\n")
    assert load(root=tmp_path) == PipelineConfig()


# --- values that do not fit together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["reference_sample", "rollout", "ppo", "evaluation"])
def test_the_longest_answer_leaves_room_for_a_prompt(section):
    assert loaded(f"{section}.max_new_tokens=120")
    error = refused(f"{section}.max_new_tokens=121")
    assert place(error) == f"{section}.max_new_tokens"
    assert "at most 120" in error.fix
    assert loaded(f"{section}.max_new_tokens=121", "models.policy.context=129")


@pytest.mark.parametrize("section", ["rollout", "ppo"])
def test_so_does_the_longest_answer_of_an_arm(section):
    assert loaded(f"arms.random.{section}.max_new_tokens=120")
    assert place(refused(f"arms.random.{section}.max_new_tokens=121")) == f"arms.random.{section}.max_new_tokens"


def test_minibatches_divide_the_batch():
    assert loaded("ppo.minibatches=4")
    assert place(refused("ppo.minibatches=3")) == "ppo.minibatches"
    assert place(refused("arms.random.ppo.minibatches=3")) == "arms.random.ppo.minibatches"
    assert loaded("ppo.minibatches=3", "ppo.batch_size=63")


def test_heads_divide_the_width():
    assert place(refused("models.reward.heads=5")) == "models.reward.heads"


@pytest.mark.parametrize(("section", "role"), [("sft", "policy"), ("reward", "reward")])
def test_a_checkpoint_stage_needs_a_checkpoint_model(section, role):
    error = refused(f"{section}={{type: checkpoint}}")
    assert place(error) == f"models.{role}.type"
    assert loaded(f"{section}={{type: checkpoint}}", f"models.{role}={{type: checkpoint, path: x}}")


VLLM = "generation={type: vllm, version: 0.32.0}"


@pytest.mark.parametrize("section", ["reference_sample", "rollout", "evaluation"])
def test_vllm_samples_at_some_temperatures_only(section):
    for temperature in (0.01, 2):
        assert loaded(f"{section}.{VLLM}", f"{section}.temperature={temperature}")
    for temperature in (0.009, 2.1):
        assert loaded(f"{section}.temperature={temperature}")
        assert place(refused(f"{section}.{VLLM}", f"{section}.temperature={temperature}")) == f"{section}.temperature"


def test_so_does_the_vllm_of_an_arm():
    hot = ("arms.random.rollout.temperature=3", f"arms.random.rollout.{VLLM}")
    assert loaded(hot[0]) and loaded(hot[1])
    assert place(refused(*hot)) == "arms.random.rollout.temperature"


def test_vllm_needs_a_version():
    assert place(refused("rollout.generation={type: vllm}")) == "rollout.generation.version"


@pytest.mark.parametrize("where", ["ppo.generation", "arms.random.ppo.generation"])
def test_ppo_is_not_sampled_by_vllm_and_the_reason_is_said(where):
    error = refused(f"{where}={{type: vllm, version: 0.32.0}}")
    assert place(error) == where
    assert "its weights anew in every iteration" in error.what and "rollout" in error.fix


# --- identity --------------------------------------------------------------------------------------------------------

SAME = (
    "runtime.device=cpu",
    "runtime.threads=7",
    "runtime.generation_rows=3",
    "runtime.vllm.executable=/opt/vllm/bin/vllm",
    "runtime.vllm.gpus=2",
    "runtime.launcher={type: torchrun, processes: 2}",
    "store=elsewhere",
    "tracking.mlflow_uri=",
    "tracking.experiment=x",
    "data.sources=[{format: jsonl, name: advice, path: elsewhere.jsonl}]",
)
OTHER = (
    "ppo.kl.coefficient=0.06",
    "ppo.minibatches=4",
    "rollout.generation={type: vllm, version: 0.32.0}",
    "evaluation.generation={type: vllm, version: 0.32.0}",
    "seeds=[1]",
    "rounds=2",
    "models.policy.heads=2",
    "data.sources=[{format: jsonl, name: other, path: data/advice/pairs.jsonl}]",
    "arms.random.selection.k=599",
    "arms.more.selection.type=all",
)
ENCODER = "arms.similarity.selection.encoder={{type: sentence_transformers, path: {}}}"


@pytest.mark.parametrize("override", SAME)
def test_where_and_how_it_runs_bears_no_identity(override):
    assert loaded(override) != loaded()
    assert loaded(override).digest() == loaded().digest()


@pytest.mark.parametrize("override", OTHER)
def test_what_changes_results_bears_identity(override):
    assert loaded(override).digest() != loaded().digest()


def test_another_vllm_is_another_identity():
    one = "rollout.generation={{type: vllm, version: {}, dtype: {}}}"
    values = (("0.32.0", "float32"), ("0.33.0", "float32"), ("0.32.0", "bfloat16"))
    assert len({loaded(one.format(*value)).digest() for value in values}) == len(values)


def test_a_path_inside_an_arm_bears_no_identity():
    one, two = loaded(ENCODER.format("a")), loaded(ENCODER.format("b/c"))
    assert one.arms != two.arms
    assert one.digest() == two.digest() != loaded().digest()


def test_an_arm_differs_in_what_it_sets_and_nothing_else():
    config = loaded("arms.random.ppo.kl.coefficient=0.3")
    arm = config.for_arm("random")
    assert (arm.selection.type, arm.ppo.kl.coefficient) == ("random", 0.3)
    assert arm.model_dump(exclude={"selection", "ppo"}) == config.model_dump(exclude={"selection", "ppo"})
    assert arm.ppo.model_dump(exclude={"kl"}) == config.ppo.model_dump(exclude={"kl"})
    assert config.for_arm("none").ppo == config.ppo


def test_a_date_is_a_text(tmp_path):
    (tmp_path / "dated.yaml").write_text("on: 2024-07-26\nimpossible: 2024-13-01\n")
    assert read_yaml(tmp_path / "dated.yaml") == {"on": "2024-07-26", "impossible": "2024-13-01"}
    assert parse_override("models.policy.template_date=2024-13-01") == {
        "models": {"policy": {"template_date": "2024-13-01"}}
    }


def test_a_configuration_that_was_written_out_whole_can_be_read_again():
    sources = [
        {"format": "jsonl", "name": "pairs", "path": "a"},
        {"format": "jsonl", "name": "shown", "path": "b", "kind": "demonstration", "columns": {"response": "answer"}},
        {"format": "alpaca_eval", "name": "native", "path": "c"},
    ]
    for config in (load(), load(overrides=[f"data.sources={json.dumps(sources)}"])):
        assert PipelineConfig.model_validate(config.model_dump()) == config
        assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config
