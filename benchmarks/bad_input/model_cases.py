"""Cases of model folders: weights, tokenizers, chat templates and encoders that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.bad_input.case import Case
from benchmarks.bad_input.project import CONTEXT, MODEL, TRAINED_REWARD, Project

AT_POLICY, AT_REWARD = "models.policy.path", "models.reward.path"
WEIGHTS = f"{MODEL}/model.safetensors"


def policy(change: Callable[[Project], object], **more: Any) -> Callable[[Project], None]:
    """Start the policy from a checkpoint, and spoil its folder."""

    def spoil(project: Project) -> None:
        change(project)
        project.checkpoint("policy", **more)

    return spoil


def reward(change: Callable[[Project], object], path: str = TRAINED_REWARD) -> Callable[[Project], None]:
    """Use a trained reward model, and spoil its folder."""

    def spoil(project: Project) -> None:
        change(project)
        project.checkpoint("reward", path=path)
        project.edit_params(reward={"type": "checkpoint"})

    return spoil


def encoder(change: Callable[[Project], object]) -> Callable[[Project], None]:
    """Compare answers with a sentence encoder, and spoil its folder."""

    def spoil(project: Project) -> None:
        change(project)
        selection = {"encoder": {"type": "sentence_transformers", "path": "models/encoder"}}
        project.edit_params(arms={"similarity": {"selection": selection}})

    return spoil


def _cut(project: Project, name: str = WEIGHTS, keep: int = -100) -> None:
    project.write(name, (project / name).read_bytes()[:keep])


def _pickled(project: Project) -> None:
    import torch

    (project / WEIGHTS).unlink()
    torch.save({"weight": torch.zeros(2)}, project / MODEL / "pytorch_model.bin")


def _no_end(project: Project) -> None:
    project.edit_json(f"{MODEL}/tokenizer_config.json", eos_token=None)


def _template(text: str) -> Callable[[Project], object]:
    return lambda project: project.write(f"{MODEL}/chat_template.jinja", text)


def _more_tokens(project: Project) -> None:
    tokenizer = json.loads((project / MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    free = 1 + max(
        [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])],
    )
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": free + i, "content": f"<|extra {i}|>", **flags} for i in range(80)]
    project.write(f"{MODEL}/tokenizer.json", json.dumps(tokenizer))


def _system_rows(project: Project) -> None:
    def as_chat(row: dict[str, Any]) -> dict[str, Any]:
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["prompt"]}]
        return {**row, "prompt": turns}

    project.edit_row(7, as_chat)
    _template(REFUSING)(project)


REFUSING = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system role here') }}{% endif %}{{ message['content'] }}{% endfor %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def _encoder(**modules: Any) -> Callable[[Project], object]:
    def make(project: Project) -> None:
        kind = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer", **modules}
        project.write("models/encoder/modules.json", json.dumps([kind]))
        project.write("models/encoder/config.json", '{"model_type": "bert"}')

    return make


MODELS = [
    Case(
        "model-without-weights",
        policy(lambda project: (project / WEIGHTS).unlink()),
        ("no safetensors weights",),
        (MODEL, AT_POLICY),
        ("save_pretrained",),
    ),
    Case(
        "no-such-model",
        policy(lambda project: None, path="models/tyni"),
        ("no folder 'models/tyni'",),
        (AT_POLICY,),
        ("models.policy.revision",),
    ),
    Case(
        "hub-model-without-a-commit",
        policy(lambda project: None, path="EleutherAI/pythia-70m", revision="main"),
        ("main",),
        ("models.policy.revision",),
        ("40 hexadecimal digits",),
    ),
    Case(
        "hub-model-that-cannot-be-fetched",
        policy(lambda project: None, path="EleutherAI/pythia-70m", revision="a39f36b100fe8a5377810d56c3f4789b9c53ac42"),
        ("EleutherAI/pythia-70m",),
        (AT_POLICY,),
        ("download it",),
    ),
    Case(
        "pickle-only-checkpoint",
        policy(_pickled),
        ("pickled", "pytorch_model.bin"),
        (MODEL, AT_POLICY),
        ("safetensors",),
    ),
    Case(
        "truncated-safetensors",
        policy(_cut),
        ("should have", "bytes", "cut short"),
        (WEIGHTS, AT_POLICY),
        ("fetch the file again",),
    ),
    Case(
        "weights-are-a-git-lfs-pointer",
        policy(lambda project: project.write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")),
        ("pointer of Git LFS",),
        (WEIGHTS, AT_POLICY),
        ("git lfs pull",),
    ),
    Case(
        "model-without-configuration",
        policy(lambda project: (project / MODEL / "config.json").unlink()),
        ("no config.json",),
        (MODEL, AT_POLICY),
        ("save_pretrained",),
    ),
    Case(
        "context-beyond-the-positions",
        policy(lambda project: None, context=4 * CONTEXT),
        (f"{4 * CONTEXT} tokens", f"{CONTEXT} positions"),
        ("models.policy.context",),
        (f"at most {CONTEXT}",),
    ),
    Case(
        "weights-of-another-shape",
        policy(lambda project: project.edit_json(f"{MODEL}/config.json", intermediate_size=24)),
        ("weights are not those of the configuration", "mlp"),
        (f"{MODEL}/config.json",),
        ("fetch the checkpoint again",),
    ),
    Case(
        "no-causal-language-model",
        policy(lambda project: project.edit_json(f"{MODEL}/config.json", model_type="vit")),
        ("cannot load the model", "AutoModelForCausalLM"),
        (MODEL,),
        ("architecture",),
    ),
    Case(
        "reward-model-without-a-score-head",
        reward(lambda project: None, path=MODEL),
        ("no score head",),
        (MODEL, AT_REWARD),
        ("reward.type=train",),
    ),
    Case(
        "truncated-reward-model",
        reward(lambda project: _cut(project, f"{TRAINED_REWARD}/model.safetensors", 60)),
        ("no whole header",),
        (f"{TRAINED_REWARD}/model.safetensors", AT_REWARD),
        ("fetch the file again",),
    ),
    Case(
        "tokenizer-missing",
        policy(lambda project: (project / MODEL / "tokenizer.json").unlink()),
        ("holds no tokenizer", "tokenizer.json"),
        (MODEL, AT_POLICY),
        ("save_pretrained",),
    ),
    Case(
        "tokenizer-that-is-broken",
        policy(lambda project: _cut(project, f"{MODEL}/tokenizer.json")),
        ("not valid JSON",),
        (f"{MODEL}/tokenizer.json", AT_POLICY),
        ("fetch the file again",),
    ),
    Case(
        "tokenizer-without-end-token",
        policy(_no_end),
        ("no end-of-sequence token",),
        (f"{MODEL}/tokenizer_config.json", "eos_token"),
        ("name one",),
    ),
    Case(
        "tokenizer-with-more-tokens-than-the-model",
        policy(_more_tokens),
        ("tokens, but the model embeds only",),
        (f"{MODEL}/tokenizer.json", AT_POLICY),
        ("tokenizer that the model was trained with",),
    ),
    Case(
        "template-that-is-no-template",
        policy(_template("{% for message in messages %}{{ message['content'] }}")),
        ("chat template is not valid Jinja",),
        (MODEL, "chat template"),
        ("copy of the checkpoint",),
    ),
    Case(
        "template-refuses-the-roles",
        policy(_system_rows),
        ("chat template does not accept", "no system role here"),
        ("advice", "desk-000006"),
        ("leave such conversations out",),
    ),
    Case(
        "encoder-that-is-no-encoder",
        encoder(lambda project: project.write("models/encoder/config.json", "{}")),
        ("not a sentence-transformers model",),
        ("models/encoder", "selection.encoder.path"),
        ("SentenceTransformer.save",),
    ),
    Case(
        "encoder-without-weights",
        encoder(_encoder()),
        ("no safetensors weights",),
        ("models/encoder", "selection.encoder.path"),
        ("save_pretrained",),
    ),
    Case(
        "encoder-that-would-run-code",
        encoder(_encoder(type="modeling_own.Transformer")),
        ("would run code from the checkpoint", "modeling_own"),
        ("models/encoder/modules.json",),
        ("modules are those of sentence-transformers",),
    ),
    Case(
        "no-such-encoder",
        encoder(lambda project: None),
        ("no folder 'models/encoder'",),
        ("selection.encoder.path",),
        ("selection.encoder.revision",),
    ),
]
