"""What stages need in memory, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inverse_alignment.models import log_probs, memory
from inverse_alignment.models.memory import Footprint, Need, Optimisation, Phase, Writing

MODEL = Footprint(
    parameters=1000,
    trunk=800,
    adapters=0,
    embedding=200,
    tied=False,
    vocabulary=20,
    capped=False,
    hidden=10,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=5,
    reading=100.0,
    learning=300.0,
)
REWARD = replace(MODEL, parameters=810, vocabulary=0)
SETTINGS = Optimisation(batch=8, minibatch=4, tokens=1000, separate=True, moving=False, copied=False, here=False)
WRITING = Writing(rows=8, prompt=6, answer=4)


def ppo(policy: Footprint = MODEL, models: int = 1, **changes: object) -> Need:
    return memory.ppo(policy, REWARD, models, replace(SETTINGS, **changes), WRITING, 8, 12)  # type: ignore[arg-type]


def phase(need: Need, name: str) -> Phase:
    return next(phase for phase in need.phases if phase.name == name)


def test_training_in_float32_with_adamw_takes_sixteen_bytes_a_number():
    assert MODEL.weights == 4000
    assert memory.gradients(1000) == 4000 and memory.adamw(1000) == 8000
    assert memory.gradients(1000, 2) == 2000 and memory.adamw(1000, 2) == 4000


def test_the_cache_holds_a_key_and_a_value_per_layer_and_kv_head():
    assert memory.kv_cache(layers=24, kv_heads=2, head_dim=64, itemsize=2, rows=8, tokens=1024) == 100_663_296
    assert MODEL.cache(rows=3, tokens=7) == 3360


def test_a_minibatch_is_read_in_as_many_passes_as_it_needs():
    assert memory.passes(32, 128, 2048) == (2, 16)
    assert memory.passes(3, 128, 2048) == (1, 3)
    assert memory.passes(4, 100, 50) == (4, 1)  # a row longer than that is read all the same


def test_ppo_keeps_four_models_of_which_two_learn():
    assert ppo().kept == {"policy": 4000, "reference": 4000, "reward": 3240, "value": 3244, "optimiser": 14_488}
    assert ppo(models=2).kept["reward"] == 6480


def test_a_shared_critic_is_a_head():
    shared = ppo(separate=False)
    assert (shared.kept["value"], shared.kept["optimiser"]) == (44, 8088)
    assert shared.total < ppo().total


def test_with_adapters_the_reference_is_the_policy_without_them():
    adapted = replace(MODEL, adapters=100)
    kept = ppo(adapted).kept
    assert kept == {"policy": 4400, "reference": 0, "reward": 3240, "value": 3644, "optimiser": 1688}
    assert ppo(adapted, moving=True).kept["reference"] == 400
    assert ppo(moving=True).kept["reference"] == 8000


def test_the_gradients_of_an_iteration_stay_while_the_next_one_writes():
    generate = phase(ppo(), "generate")
    assert generate.gradients == 4000 + 3244
    assert generate.cache == 2 * 2 * 2 * 5 * 4 * 8 * 10  # layers, kv heads, width of a head, bytes, rows, tokens
    # at last a layer's keys are copied as they grow, and 24 bytes go to each of 8 x 20 logits
    assert generate.activations == 3200 + 3840


def test_the_critic_learns_when_the_policys_activations_have_gone():
    few = replace(MODEL, vocabulary=1, embedding=10)
    separate = phase(ppo(few), "learn")  # four rows of ten tokens in one pass
    assert separate.total == 4000 + 300 * 40  # the policy's gradients, and the critic's activations
    shared = phase(ppo(few, separate=False), "learn")
    assert shared.total == 300 * 40 + 3 * 4 * 4 * 1 * 4 + 10 * 4  # activations, logits, the head's gradient
    logits = phase(ppo(), "learn")
    assert logits.total == 300 * 40 + 3 * 4 * 4 * 20 * 4 + 200 * 4  # here the policy's part is the larger


def test_gradients_of_earlier_passes_add_to_the_activations_of_the_next():
    two = phase(ppo(tokens=20), "learn")  # two rows at once
    assert (two.gradients, two.activations) == (7244, 300 * 20 + 3 * 2 * 4 * 20 * 4)
    assert two.total < phase(ppo(tokens=1000), "learn").total


def test_on_a_gpu_an_optimisers_step_copies_the_largest():
    assert phase(ppo(copied=True), "step") == Phase("step", 7244, 4000)
    assert phase(ppo(copied=False), "step") == Phase("step", 7244, 0)


def test_activations_make_room_for_gradients():
    small = memory.learning(MODEL, tokens=1, head=0)
    assert (small.gradients, small.activations) == (4000, 0)  # 300 of activations and the head's 800 are gone by then
    large = memory.learning(MODEL, tokens=100, head=0)
    assert large.total == 30_000 + 800
    tied = memory.learning(replace(MODEL, tied=True), tokens=1, head=0)
    assert tied.total == 4000 + 800  # the table's gradient comes from two sides


def test_where_the_device_is_the_machine_the_policy_that_is_saved_needs_it_too():
    assert [phase.name for phase in ppo().phases] == ["generate", "score", "look", "learn", "step"]
    assert phase(ppo(here=True), "save") == Phase("save", gradients=7244, activations=4000 - 3240)
    adapted = ppo(replace(MODEL, adapters=100))  # merged weights are new ones, wherever that is
    assert phase(adapted, "save") == Phase("save", gradients=400 + 444, activations=4000 - 3240)
    assert phase(adapted, "load") == Phase("load")  # optimisers and reward model, not there yet, are larger here


def test_bfloat16_halves_what_training_keeps():
    need = memory.sft(replace(MODEL, itemsize=2), rows=2, width=10, triton=False)
    assert need.kept == {"policy": 2000, "optimiser": 4000}


def test_on_a_gpu_the_fused_head_takes_a_whole_tile_however_small_the_vocabulary():
    here, there = (memory.sft(MODEL, rows=2, width=10, triton=triton).peak.total for triton in (False, True))
    assert here == 300 * 20 + int(8.25 * 20 * 20 * 4) + 800
    assert there == 300 * 20 + 20 * 32_768 * 4 + 800


def test_a_refresh_has_the_incumbent_beside_it():
    need = memory.reward_training("refresh", REWARD, 4, 12, 8, incumbent=REWARD.weights)
    assert need.kept == {"reward": 6480, "optimiser": 6480}
    assert need.peak.name == "learn" and need.peak.total == 300 * 48
    assert memory.reward_training("reward_model", REWARD, 0, 12, 8).kept == {"reward": 3240}


def test_several_processes_hold_their_gradients_twice_and_on_one_machine_everything():
    alone = memory.reward_training("reward_model", REWARD, 4, 12, 1)
    shared = memory.reward_training("reward_model", REWARD, 4, 12, 1, processes=2)
    assert shared.total == alone.total + 3240
    assert memory.together(shared, 2).total == 2 * shared.total


def test_a_server_that_writes_is_gone_before_the_answers_are_looked_at():
    names = [phase.name for phase in memory.rollout(MODEL, WRITING, 1000, served=True).phases]
    assert names == ["look"]


def test_evaluation_keeps_every_reward_model():
    need = memory.evaluate(memory.rollout(MODEL, WRITING, 1000), REWARD, 3, 8, 12)
    assert need.kept == {"policy": 4000, "reference": 4000, "reward": 9720}


@pytest.mark.parametrize("vocabulary", [20, 2_000_000])
def test_no_more_logits_than_the_product_makes_at_once(vocabulary):
    many = replace(MODEL, vocabulary=vocabulary)
    look = phase(ppo(many), "look").activations
    assert look <= 3.5 * 2**24 * 4 + 3 * 8 * 4 * 10 * 4
    assert (look > 2**24) == (vocabulary > 20)


def test_the_bound_on_logits_is_that_of_the_product():
    assert memory.HEAD_NUMBERS == log_probs.HEAD_NUMBERS
