"""The sizes of models that were never made, against models that were, and against published counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GPTNeoXConfig, LlamaConfig, Qwen2Config

from inverse_alignment.core.errors import UserError
from inverse_alignment.models.adapters import adapter_weights, add_adapters
from inverse_alignment.models.footprint import Adapters, configuration_of, footprint, peak_of, read_configuration
from tests.unit.models import tiny

QWEN_05B = Qwen2Config(
    vocab_size=151_936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
PYTHIA_160M = GPTNeoXConfig(
    vocab_size=50_304, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)
SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SMALL, intermediate_size=96)
GROUPED = Qwen2Config(**SMALL, intermediate_size=96, num_key_value_heads=2, tie_word_embeddings=True)
NEOX = GPTNeoXConfig(**SMALL, intermediate_size=96)


@pytest.mark.parametrize(("config", "parameters"), [(QWEN_05B, 494_032_768), (PYTHIA_160M, 162_322_944)])
def test_published_counts(config: Any, parameters: int) -> None:
    assert footprint(config, "policy", 16).parameters == parameters


def test_models_that_are_made_here_have_the_sizes_that_were_planned() -> None:
    planned = footprint(configuration_of(tiny.SPEC), "policy", 64)
    made = tiny.policy()
    assert planned.parameters == made.num_parameters()
    assert planned.trunk == sum(weight.numel() for weight in made.base_model.parameters())
    assert planned.tied and planned.vocabulary == len(tiny.tokenizer())
    reward = footprint(configuration_of(tiny.SPEC), "reward", 64)
    assert reward.parameters == tiny.reward_model().num_parameters()
    assert (reward.vocabulary, reward.tied) == (0, False)


def test_adapters_have_the_sizes_that_were_planned() -> None:
    planned = footprint(configuration_of(tiny.SPEC), "policy", 64, adapters=Adapters(4, ()))
    made = tiny.policy()
    add_adapters(made, 4, 8.0, (), 0)
    assert planned.trained == sum(weight.numel() for weight in adapter_weights(made).values())
    assert planned.parameters == tiny.policy().num_parameters()
    fewer = footprint(configuration_of(tiny.SPEC), "policy", 64, adapters=Adapters(4, ("q_proj",)))
    assert 0 < fewer.trained < planned.trained


@pytest.mark.parametrize("config", [LLAMA, GROUPED, NEOX], ids=lambda config: config.model_type)
def test_the_cache_has_the_size_that_was_planned(config: Any) -> None:
    model, cache = AutoModelForCausalLM.from_config(config), DynamicCache(config=config)
    with torch.no_grad():
        model(input_ids=torch.zeros((3, 7), dtype=torch.int64), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert footprint(config, "policy", 16).cache(rows=3, tokens=7) == held


@pytest.mark.parametrize("config", [LLAMA, GROUPED, NEOX], ids=lambda config: config.model_type)
def test_passes_take_what_was_planned(config: Any) -> None:
    """A real pass has no mask where nothing is padded; the plan's has one, and so plans a little more."""
    planned, model = footprint(config, "policy", 64), AutoModelForCausalLM.from_config(config).eval()
    ids = torch.zeros((64, 64), dtype=torch.int64)

    def states() -> Any:
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    states()  # tables that are made once
    learned = peak_of(model, lambda: states().sum().backward()) / ids.numel()
    with torch.no_grad():
        read = peak_of(model, states) / ids.numel()
    assert learned == pytest.approx(planned.learning, rel=0.15)
    assert read == pytest.approx(planned.reading, rel=0.35)
    assert planned.learning > 2 * planned.reading


def test_bfloat16_takes_half_of_nearly_everything() -> None:
    full, half = (footprint(LLAMA, "policy", 64, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert half.weights == full.weights / 2 and half.cache(2, 3) == full.cache(2, 3) / 2
    assert 0.5 <= half.learning / full.learning < 0.7  # norms are computed in float32


def test_attention_that_shows_its_weights_takes_more() -> None:
    usual, eager = (footprint(LLAMA, "reward", 64, eager=eager) for eager in (False, True))
    assert eager.reading > usual.reading + 4 * 64 * 4  # a table of heads x tokens in float32


def test_a_configuration_in_a_folder_is_read_and_a_damaged_one_refused(tmp_path: Path) -> None:
    LLAMA.save_pretrained(tmp_path)
    read = footprint(read_configuration(tmp_path / "config.json", "models.policy"), "policy", 16)
    assert read == footprint(LLAMA, "policy", 16)
    for text in (json.dumps({"model_type": "nothing known"}), "{}", "no JSON"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"models\.policy"):
            read_configuration(tmp_path / "config.json", "models.policy")
