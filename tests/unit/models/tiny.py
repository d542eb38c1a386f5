"""Models and texts small enough to be trained in a test."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch

from inverse_alignment.core.records import Comparison, Prompt, Provenance
from inverse_alignment.generation.answers import Sampling
from inverse_alignment.models.loading import new_policy, new_reward_model, save_model
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.text.tokenizers import train_tokenizer

TEXTS = ["the cat sat on the mat. ", "a dog and a cat.\n\nthe end"] * 20
SPEC = InitialisedModel(vocab_size=280, hidden_size=16, layers=2, heads=2, context=64)
PROMPTS = [Prompt.from_text(text) for text in ("hi", "why does the cat sit on the mat", "a dog?", "the end")]


@cache
def _tokenizer(vocab_size: int) -> Any:
    return train_tokenizer(TEXTS, vocab_size)


def tokenizer(vocab_size: int = SPEC.vocab_size) -> Any:
    """A byte-level BPE tokenizer; pad is 0, end is 1."""
    return copy.deepcopy(_tokenizer(vocab_size))


def policy(seed: int = 0, scale: float = 1.0) -> Any:
    """A causal LM; a larger scale gives it stronger opinions."""
    model = new_policy(SPEC, tokenizer(), seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model


def reward_model(seed: int = 0) -> Any:
    """A sequence classifier with one label."""
    model = new_reward_model(SPEC, tokenizer(), seed).eval()
    model.config.pad_token_id = tokenizer().pad_token_id
    return model


def saved(model: Any, folder: Path) -> Path:
    """The model with its tokenizer in a folder."""
    save_model(model, tokenizer(), folder)
    return folder


def gpt2() -> tuple[Any, Any]:
    """Another architecture: learned positions, and a tokenizer whose pad is its end token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = tokenizer()
    tokens.pad_token = tokens.eos_token
    config = GPT2Config(
        vocab_size=len(tokens),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.5,
        bos_token_id=tokens.eos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return GPT2LMHeadModel(config).eval(), tokens


def sampling(max_new_tokens: int = 6, temperature: float = 1.0, rows: int = 64) -> Sampling:
    """How the tiny models answer."""
    return Sampling(max_new_tokens, temperature, SPEC.context, rows)


def pair(prompt: str, chosen: str, rejected: str, number: int = 0, **fields: Any) -> Comparison:
    """A comparison with a provenance."""
    names = {key: fields.pop(key) for key in ("source_chosen", "source_rejected", "annotator") if key in fields}
    origin = Provenance(dataset="toy", original_id=str(number), **names)
    return Comparison(prompt=Prompt.from_text(prompt), chosen=chosen, rejected=rejected, provenance=origin, **fields)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
