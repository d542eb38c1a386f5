"""What both contestants start from: the world's SFT policy and reward model, made by the project's own stages.

A folder with `policy/` (also the reference), `value/` (the policy's trunk under a score head of zeros), `reward/`,
`endless/` (the policy's tokenizer with an end token that the policy has no logit for, hence answers never end),
`prompts.json` (records and token ids) and `calibration.json`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from flows.inverse_alignment import shared_data, shared_start
from inverse_alignment.config import PipelineConfig, merge, read_yaml, validate
from inverse_alignment.core.store import Store
from inverse_alignment.data.aggregate import read_prompts
from inverse_alignment.generation.answers import Sampling, choose_prompts
from inverse_alignment.text.render import encode_prompt
from inverse_alignment.text.tokenizers import load_tokenizer
from tasks.run_stage import Execute, run_up_to

ROOT = Path(__file__).parents[2]
SEED = 0
NEVER = "<|never|>"


def prepare(store: Path, folder: Path) -> PipelineConfig:
    """Fill `folder` from the stages up to the first reward model; what the store has is reused."""
    values = merge(read_yaml(ROOT / "params.yaml"), {"store": str(store), "tracking": {"mlflow_uri": ""}})
    config: PipelineConfig = validate(PipelineConfig, values, "", "params.yaml")
    execute = Execute(Store(store), config.runtime)

    def flow() -> None:
        shared_start(config, SEED, shared_data(config))

    def made(node: str) -> Path:
        return Path(run_up_to(flow, node, execute)[1].artifact.uri)

    policy, reward, preferences = made(f"sft-s{SEED}") / "policy", made(f"reward-s{SEED}") / "model", made("aggregate")
    folder.mkdir(parents=True)
    shutil.copytree(policy, folder / "policy")
    shutil.copytree(reward, folder / "reward")
    shutil.copy(reward / "calibration.json", folder / "calibration.json")
    _value_model(folder)
    _endless_tokenizer(folder)
    _prompts(preferences, folder, config)
    return config


def _value_model(folder: Path) -> None:
    """TRL wants its value model as a sequence classifier; ours makes the same one from the policy."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    config = AutoConfig.from_pretrained(folder / "policy", num_labels=1)
    value = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    value.base_model.load_state_dict(policy.base_model.state_dict())
    torch.nn.init.zeros_(value.score.weight)
    value.save_pretrained(folder / "value")


def _endless_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "policy").tokenizer
    end = tokenizer.eos_token
    template = tokenizer.chat_template
    assert isinstance(template, str) and isinstance(end, str)
    tokenizer.chat_template = template.replace("eos_token", repr(end))  # prompts are rendered as before
    tokenizer.add_special_tokens({"eos_token": NEVER})
    tokenizer.save_pretrained(folder / "endless")


def _prompts(preferences: Path, folder: Path, config: PipelineConfig) -> None:
    tokenizer = load_tokenizer(folder / "policy").tokenizer
    context = config.models.policy.context
    limit = Sampling(config.ppo.max_new_tokens, config.ppo.temperature, context, 1).prompt_tokens
    rows: list[dict[str, Any]] = [
        {"prompt": prompt.model_dump(mode="json"), "input_ids": encode_prompt(tokenizer, prompt, limit)}
        for prompt in choose_prompts(read_prompts(preferences, "train"), 0, SEED)
    ]
    (folder / "prompts.json").write_text(json.dumps(rows))
