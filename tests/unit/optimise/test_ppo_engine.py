"""What PPO must not depend on: passes, chunks. Where its reference moves, what its critic reads, when it stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inverse_alignment.core.batches import Sequences
from inverse_alignment.generation.answers import batch_of
from inverse_alignment.models import log_probs
from inverse_alignment.models.heads import ValueHead, ValueModel
from inverse_alignment.models.log_probs import Head, compare_with_reference, grouped, token_log_probs
from inverse_alignment.optimise import ppo
from inverse_alignment.optimise.settings import FixedKl, HardReference, Lora, SharedCritic, SoftReference
from tests.unit.models import tiny
from tests.unit.optimise.test_ppo import FREE, PROMPTS, has_a, learner_for, run, settings, snapshot

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def gradients(learner, config, tokens):
    """Gradients of one whole-batch minibatch, read `tokens` at a time."""
    learner.tokens = tokens
    done = ppo.answer(learner.policy, tiny.tokenizer(), tiny.PROMPTS, [1, 2, 3, 4], tiny.sampling(8))
    batch = batch_of(done, 0, learner.policy.device)
    view = ppo.look(learner, batch, 1.0)
    mask = batch.response_mask
    wave = torch.linspace(-1, 1, mask.numel()).reshape(mask.shape)
    part = ppo.Experience(batch, view.log_probs - 0.1 * wave, view.values, wave, 2 * wave)
    frozen = learner.warmup > 0
    learner.policy_optimizer.param_groups[0]["lr"] = learner.value_optimizer.param_groups[0]["lr"] = 0.0
    measured = ppo._update_minibatch(learner, part, config, frozen, "a test")
    parameters = [*learner.policy.named_parameters(), *learner.value.named_parameters()]
    return measured, {name: p.grad.clone() for name, p in parameters if p.grad is not None}


@pytest.mark.parametrize("critic", [None, SharedCritic(coefficient=0.5)])
def test_passes_over_a_minibatch_add_up_to_its_gradient(critic):
    config = settings(max_new_tokens=8, max_grad_norm=1e9, **({} if critic is None else {"critic": critic}))
    whole, one = gradients(learner_for(config), config, 10**6)
    parts, several = gradients(learner_for(config), config, 12)  # a row at a time
    assert one.keys() == several.keys() and len(one) > 10
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, msg=name, **CLOSE)
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert max(float(value.abs().max()) for value in one.values()) > 1e-3


def test_the_groups_of_a_batch_hold_every_row_once_and_keep_to_the_limit():
    done = ppo.answer(tiny.policy(), tiny.tokenizer(), PROMPTS, list(range(64)), tiny.sampling(8))
    batch = batch_of(done, 0, torch.device("cpu"))
    for tokens in (12, 100, 10**6):
        groups = [index.tolist() for index in grouped(batch, tokens)]
        assert sorted(row for rows in groups for row in rows) == list(range(64))
        widths = [max(len(done[row].prompt_ids) + len(done[row].response_ids) for row in rows) for rows in groups]
        sizes = zip(groups, widths, strict=True)
        assert all(len(rows) == 1 or len(rows) * width <= tokens for rows, width in sizes)


def test_how_much_is_read_at_once_changes_no_look():
    config = settings(max_new_tokens=8, reference=SoftReference(alpha=0.5))
    learner = learner_for(config)
    run(learner, config, has_a, 2)
    done = ppo.answer(learner.policy, tiny.tokenizer(), PROMPTS[:9], list(range(9)), tiny.sampling(8))
    batch = batch_of(done, 0, learner.policy.device)
    together = ppo.look(learner, batch, 0.7)
    learner.tokens = 12
    for one, other in zip(ppo.look(learner, batch, 0.7), together, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    plain = compare_with_reference(learner.policy, learner.sft.model, batch, 0.7)
    torch.testing.assert_close(together.kl, plain.kl, **CLOSE)
    torch.testing.assert_close(together.sft_log_probs, plain.ref_log_probs, **CLOSE)
    assert (together.ref_log_probs - together.sft_log_probs).abs().max() > 1e-3  # the reference has moved


def test_logits_made_in_chunks_and_again_for_the_backward_pass_change_nothing(monkeypatch):
    policy = tiny.policy()
    done = ppo.answer(policy, tiny.tokenizer(), tiny.PROMPTS, [1, 2, 3, 4], tiny.sampling(8))
    sequences = Sequences.of(batch_of(done, 0, policy.device))

    def look():
        policy.zero_grad()
        head = Head(policy)
        found = token_log_probs(head, head.states(sequences), sequences.targets, 0.8)
        (found * torch.linspace(0, 1, len(found))).sum().backward()
        return found.detach(), [p.grad.clone() for p in policy.parameters()]

    whole, gradient = look()
    monkeypatch.setattr(log_probs, "HEAD_NUMBERS", 3 * policy.config.vocab_size)
    chunked, again = look()
    torch.testing.assert_close(chunked, whole, **CLOSE)
    torch.testing.assert_close(again, gradient, **CLOSE)
    assert len(whole) > 6  # several chunks


def test_a_model_that_does_more_than_a_linear_map_is_asked_for_its_own_logits():
    assert Head(tiny.policy()).is_linear
    policy = tiny.policy()
    right = policy.forward
    policy.forward = lambda *args, **kwargs: _capped(right(*args, **kwargs))
    head = Head(policy)
    assert not head.is_linear
    done = ppo.answer(tiny.policy(), tiny.tokenizer(), tiny.PROMPTS, [1, 2, 3, 4], tiny.sampling(4))
    sequences = Sequences.of(batch_of(done, 0, policy.device))
    found = token_log_probs(head, head.states(sequences), sequences.targets, 1.0)
    for row, given in enumerate(done):
        ids = torch.tensor([given.prompt_ids + given.response_ids])
        with torch.no_grad():
            expected = torch.log_softmax(policy(input_ids=ids).logits[0], -1)
        start = len(given.prompt_ids)
        mine = found[sequences.rows == row].tolist()
        assert mine == pytest.approx(
            [float(expected[start + t - 1, token]) for t, token in enumerate(given.response_ids)], abs=1e-4
        )


def _capped(output):
    output.logits = 0.05 * torch.tanh(output.logits / 0.05)
    return output


# the reference


def test_a_hard_reference_is_the_policy_of_the_last_copy():
    config = settings(reference=HardReference(every=2))
    learner = learner_for(config)
    start = tiny.weights(learner.reference.model)
    run(learner, config, has_a, 1)
    assert tiny.same(tiny.weights(learner.reference.model), start)
    run(learner, config, has_a, 1)
    assert tiny.same(tiny.weights(learner.reference.model), tiny.weights(learner.policy))
    copied = tiny.weights(learner.reference.model)
    run(learner, config, has_a, 1)
    assert tiny.same(tiny.weights(learner.reference.model), copied)
    assert tiny.same(tiny.weights(learner.sft.model), start)  # the KL to SFT is still one to SFT


def test_a_soft_reference_is_a_moving_average():
    config = settings(reference=SoftReference(alpha=0.25))
    learner = learner_for(config)
    old = tiny.weights(learner.reference.model)
    run(learner, config, has_a, 1)
    new = tiny.weights(learner.policy)
    for name, value in tiny.weights(learner.reference.model).items():
        torch.testing.assert_close(value, 0.75 * old[name] + 0.25 * new[name], rtol=1e-5, atol=1e-7)
    assert not tiny.same(new, old)


def test_soft_with_all_of_the_policy_is_hard_at_every_step():
    hard, soft = settings(reference=HardReference(every=1)), settings(reference=SoftReference(alpha=1.0))
    learners = [learner_for(config) for config in (hard, soft)]
    for learner, config in zip(learners, (hard, soft), strict=True):
        run(learner, config, has_a, 2)
    assert tiny.same(snapshot(learners[0]), snapshot(learners[1]))


def test_a_moving_reference_lets_the_policy_go_further_at_the_same_price():
    price = FixedKl(coefficient=1.0)
    fixed, moving = settings(kl=price), settings(kl=price, reference=HardReference(every=1))
    held = run(learner_for(fixed), fixed, has_a, 10)[-1].metrics
    free = run(learner_for(moving), moving, has_a, 10)[-1].metrics
    assert held["kl_to_reference"] == pytest.approx(held["kl_k3"])
    assert free["kl"] > 2 * held["kl"] and free["kl_to_reference"] < free["kl_k3"] / 2


def test_the_moving_reference_is_part_of_the_state(tmp_path):
    config = settings(kl=FixedKl(coefficient=0.5), reference=SoftReference(alpha=0.3))
    straight = learner_for(config)
    run(straight, config, has_a, 4)
    half = learner_for(config)
    run(half, config, has_a, 2)
    ppo.save_learner(half, tmp_path, "digest")
    resumed = learner_for(config)
    resumed.policy.load_state_dict(half.policy.state_dict())
    assert ppo.load_learner(resumed, tmp_path) == "digest"
    run(resumed, config, has_a, 2)
    assert tiny.same(snapshot(resumed), snapshot(straight))
    assert tiny.same(tiny.weights(resumed.reference.model), tiny.weights(straight.reference.model))
    forgetful = learner_for(config)  # the negative control: a reference that starts over
    forgetful.policy.load_state_dict(half.policy.state_dict())
    ppo.load_learner(forgetful, tmp_path)
    forgetful.reference.model.load_state_dict(tiny.policy().state_dict())
    run(forgetful, config, has_a, 2)
    assert not tiny.same(snapshot(forgetful), snapshot(straight))


# the critic


def test_a_shared_critic_learns_on_the_policys_trunk_and_climbs_too():
    config = settings(critic=SharedCritic(coefficient=0.5))
    learner = learner_for(config)
    assert type(learner.value) is ValueHead and isinstance(learner_for(settings()).value, ValueModel)
    done = run(learner, config, has_a, 12)
    assert done[0].metrics["rm_score"] < 0.4 and done[-1].metrics["rm_score"] > 0.9
    assert done[-1].metrics["value_loss"] < done[0].metrics["value_loss"]


def test_while_a_shared_critic_warms_up_the_trunk_stays():
    config = settings(critic=SharedCritic(), value_warmup_steps=2)
    learner = learner_for(config)
    before = tiny.weights(learner.policy)
    done = run(learner, config, has_a, 2)
    assert tiny.same(tiny.weights(learner.policy), before)
    assert done[1].metrics["value_loss"] < done[0].metrics["value_loss"] and "policy_loss" not in done[1].metrics
    run(learner, config, has_a, 1)
    assert not tiny.same(tiny.weights(learner.policy), before)


def test_the_value_loss_reaches_the_shared_trunk_by_its_coefficient():
    found = []
    for coefficient in (1e-6, 5.0):
        config = settings(critic=SharedCritic(coefficient=coefficient), max_new_tokens=8, max_grad_norm=1e9)
        learner = learner_for(config)
        torch.nn.init.normal_(learner.value.head.weight, generator=torch.Generator().manual_seed(0))
        found.append(gradients(learner, config, 10**6)[1]["model.layers.0.mlp.up_proj.weight"])
    assert (found[1] - found[0]).norm() > 0.1 * found[0].norm()


# when to stop


def test_a_policy_that_has_moved_enough_stays_for_the_rest_of_the_iteration():
    free, bounded = settings(epochs=4, kl=FREE), settings(epochs=4, kl=FREE, max_update_kl=1e-4)
    long, short = learner_for(free), learner_for(bounded)
    moved = run(long, free, has_a, 1)[0].metrics
    stopped = run(short, bounded, has_a, 1)[0].metrics
    assert stopped["stopped_early"] == 1.0 and "stopped_early" not in moved
    start = tiny.weights(tiny.policy())

    def distance(learner):
        return sum(float((value - start[name]).norm()) for name, value in tiny.weights(learner.policy).items())

    assert 0 < distance(short) < 0.6 * distance(long)
    generous = settings(epochs=4, kl=FREE, max_update_kl=1e6)
    same = learner_for(generous)
    assert run(same, generous, has_a, 1)[0].metrics["stopped_early"] == 0.0
    assert tiny.same(snapshot(same), snapshot(long))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_none_names_its_row_and_answer_before_anything_is_learned(bad):
    config = settings()
    learner = learner_for(config)
    before = snapshot(learner)

    def score(prompts, texts):
        scores = np.zeros(len(texts))
        scores[5] = bad
        return scores

    with pytest.raises(FloatingPointError, match="a score is not finite in iteration 0, row 5: '"):
        run(learner, config, score, 1)
    assert tiny.same(snapshot(learner), before)


# adapters

LORA = Lora(rank=4, alpha=8)


def opinionated():
    """A trunk with something in it: adapters on random small weights have nothing to turn."""
    return tiny.policy(scale=20.0)


def test_a_policy_with_adapters_climbs_while_its_own_weights_stay():
    config = settings(lora=Lora(rank=8, alpha=32), learning_rate=3e-2)
    learner = ppo.new_learner(opinionated(), opinionated(), config)
    done = run(learner, config, has_a, 10)
    assert done[0].metrics["kl"] == pytest.approx(0, abs=1e-5) and done[-1].metrics["kl"] > 0.5
    assert done[-1].metrics["rm_score"] > done[0].metrics["rm_score"] + 0.3
    below = {name.replace(".base_layer.", "."): value for name, value in tiny.weights(learner.policy).items()}
    assert all(torch.equal(below[name], value) for name, value in tiny.weights(opinionated()).items())
    merged = ppo.plain_policy(learner, opinionated())
    answers = ppo.answer(learner.policy, tiny.tokenizer(), PROMPTS[:8], list(range(8)), tiny.sampling(4))
    assert ppo.answer(merged, tiny.tokenizer(), PROMPTS[:8], list(range(8)), tiny.sampling(4)) == answers


@pytest.mark.parametrize("reference", [HardReference(every=2), SoftReference(alpha=0.5)])
def test_adapters_and_a_moving_reference_go_on_to_the_bit(tmp_path, reference):
    config = settings(lora=LORA, reference=reference, kl=FixedKl(coefficient=0.5), learning_rate=3e-2)
    straight = learner_for(config)
    moved = run(straight, config, has_a, 4)[-1].metrics
    assert moved["kl_to_reference"] < moved["kl_k3"]
    half = learner_for(config)
    run(half, config, has_a, 2)
    ppo.save_learner(half, tmp_path, "digest")
    resumed = learner_for(config)
    ppo.load_learner(resumed, tmp_path)
    run(resumed, config, has_a, 2)
    assert tiny.same(snapshot(resumed), snapshot(straight))
