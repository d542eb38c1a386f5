"""Adapters: nothing at first, something afterwards, never a trace in the model below them, and mergeable."""

from __future__ import annotations

import pytest
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.models.adapters import (
    POLICY,
    REFERENCE,
    adapter_weights,
    add_adapters,
    add_reference,
    load_adapters,
    merged_weights,
    save_adapters,
    using,
)
from tests.unit.models import tiny

IDS = torch.tensor([[5, 6, 7, 8]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.clone()


def taught(model, name=POLICY, seed=1):
    """Give the adapters something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in adapter_weights(model, name).items():
            if "lora_B" in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(params=["llama", "gpt2"])
def plain(request):
    return tiny.policy() if request.param == "llama" else tiny.gpt2()[0]


def test_new_adapters_say_nothing_and_only_they_learn(plain):
    before, weights = logits(plain), plain.num_parameters()
    add_adapters(plain, 4, 8, (), seed=0)
    assert torch.equal(logits(plain), before)
    learns = [name for name, weight in plain.named_parameters() if weight.requires_grad]
    assert learns and all(".policy." in name for name in learns)
    assert plain.num_parameters() > weights and not any("lm_head" in name for name in learns)


def test_the_seed_decides_and_targets_choose_the_layers():
    def made(seed, targets=()):
        model = tiny.policy()
        add_adapters(model, 4, 8, targets, seed)
        return adapter_weights(model)

    assert tiny.same(made(0), made(0)) and not tiny.same(made(0), made(1))
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in made(0, ("q_proj", "v_proj"))} == {"q_proj", "v_proj"}


def test_without_them_the_model_is_the_one_below(plain):
    before = logits(plain)
    add_adapters(plain, 4, 8, (), seed=0)
    after = logits(taught(plain))
    assert (after - before).abs().max() > 1e-2
    with using(plain, None):
        assert torch.equal(logits(plain), before)
    assert torch.equal(logits(plain), after)


def test_merged_the_weights_answer_alike_and_the_model_stays_as_it_is(plain):
    import copy

    spare = copy.deepcopy(plain)
    add_adapters(plain, 4, 8, (), seed=0)
    expected = logits(taught(plain))
    spare.load_state_dict(merged_weights(plain))
    torch.testing.assert_close(logits(spare), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(plain), expected)


def test_a_reference_begins_as_the_policy_and_does_not_follow_by_itself():
    model = tiny.policy()
    add_adapters(model, 4, 8, (), seed=0)
    copied = logits(taught(model))
    add_reference(model, 4, 8, ())
    later = logits(taught(model, seed=2))
    with using(model, REFERENCE):
        assert torch.equal(logits(model), copied)
    assert torch.equal(logits(model), later) and not torch.equal(later, copied)
    assert all(not weight.requires_grad for weight in adapter_weights(model, REFERENCE).values())
    assert all(weight.requires_grad for weight in adapter_weights(model, POLICY).values())


def test_saved_and_loaded_they_are_the_same_to_the_bit(tmp_path):
    model, other = tiny.policy(), tiny.policy()
    for each in (model, other):
        add_adapters(each, 4, 8, (), seed=0)
    save_adapters(taught(model), tmp_path / "a.safetensors")
    assert not torch.equal(logits(other), logits(model))
    load_adapters(other, tmp_path / "a.safetensors")
    assert torch.equal(logits(other), logits(model))


def test_a_layer_that_is_not_there_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match="no layer of the policy is called 'q_prj'") as caught:
        add_adapters(tiny.policy(), 4, 8.0, ("v_proj", "q_prj"), 0)
    assert caught.value.where == "ppo.lora.targets" and caught.value.fix == "did you mean 'q_proj'?"
