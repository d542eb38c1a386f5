"""PPO on toys with known answers: it climbs, it falls, it stays, it goes on, it stops."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch

from inverse_alignment.core.records import Prompt
from inverse_alignment.models.loading import load_policy
from inverse_alignment.optimise import ppo
from inverse_alignment.optimise.settings import AdaptiveKl, FixedKl, PpoConfig
from inverse_alignment.text.render import decode_response, encode_prompt
from tests.unit.models import tiny

PROMPTS = tiny.PROMPTS[:2] * 32
FREE = FixedKl(coefficient=0.0)


def settings(**changes) -> PpoConfig:
    fields = {
        "batch_size": 64,
        "learning_rate": 1e-2,
        "value_learning_rate": 1e-2,
        "kl": FREE,
        "max_new_tokens": 4,
        "missing_eos_penalty": 0.0,
        "value_warmup_steps": 0,
    }
    return PpoConfig(**{**fields, **changes})


def has_a(prompts, texts) -> np.ndarray:
    return np.array([float("a" in text) for text in texts])


def run(learner, config, score, steps, prompts=PROMPTS, seed=0):
    sampling = tiny.sampling(config.max_new_tokens)
    return [ppo.iteration(learner, tiny.tokenizer(), prompts, score, config, sampling, seed) for _ in range(steps)]


def learner_for(config, seed=0):
    return ppo.new_learner(tiny.policy(seed), tiny.policy(seed), config)


def snapshot(learner):
    return {
        **{f"policy.{k}": v for k, v in tiny.weights(learner.policy).items()},
        **{f"value.{k}": v for k, v in tiny.weights(learner.value).items()},
    }


def test_it_raises_what_is_rewarded_and_only_that():
    config = settings()
    learner = learner_for(config)
    done = run(learner, config, has_a, 12)
    first, last = done[0].metrics, done[-1].metrics
    assert first["rm_score"] < 0.4 and last["rm_score"] > 0.9
    assert first["kl"] == pytest.approx(0, abs=1e-4) and last["kl"] > 1
    assert tiny.same(tiny.weights(learner.reference.model), tiny.weights(tiny.policy()))  # the reference is frozen
    down = run(learner_for(config), config, lambda prompts, texts: -has_a(prompts, texts), 12)
    assert -down[-1].metrics["rm_score"] < first["rm_score"] / 2  # negated, it is avoided


def test_a_constant_reward_teaches_nothing_in_particular():
    config = settings(learning_rate=1e-3)
    done = run(learner_for(config), config, lambda prompts, texts: np.ones(len(texts)), 4)
    assert done[-1].metrics["kl"] < 0.05


def test_a_high_price_keeps_the_policy_near_its_reference():
    free, dear = settings(), settings(kl=FixedKl(coefficient=10.0))
    moved = run(learner_for(free), free, has_a, 8)[-1].metrics
    stayed = run(learner_for(dear), dear, has_a, 8)[-1].metrics
    assert stayed["kl"] < 0.1 < 0.5 < moved["kl"]


def test_the_three_kl_measures_agree():
    config = settings()
    learner = learner_for(config)
    run(learner, config, has_a, 8)
    learner.policy_optimizer.param_groups[0]["lr"] = 0.0
    measured = [done.metrics for done in run(learner, config, has_a, 12)]
    exact, k1, k3 = (np.mean([m[name] for m in measured]) for name in ("kl", "kl_k1", "kl_k3"))
    assert exact > 0.1
    assert k1 == pytest.approx(exact, rel=0.2) and k3 == pytest.approx(exact, rel=0.2)


# A tiny vocabulary of sequences can be enumerated: the optimum of E[r] - β KL(π || π_ref) is π* ∝ π_ref exp(r / β).

BETA = 0.25
END = 1


@torch.no_grad()
def distribution(model, length):
    """Log-probabilities of all answers of at most one or two tokens, from one forward pass per prefix."""
    prompt = encode_prompt(tiny.tokenizer(), PROMPTS[0], 32)
    first = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1)
    if length == 1:
        return first
    going_on = [token for token in range(len(first)) if token != END]
    logits = model(torch.tensor([[*prompt, token] for token in going_on])).logits[:, -1]
    both = first[going_on, None] + torch.log_softmax(logits.double(), -1)
    return torch.cat([both.flatten(), first[[END]]])


@cache
def rewards(length):
    """Rewards of the answers, in the order of `distribution`."""
    tokens = range(len(tiny.tokenizer()))
    answers = [[one] for one in tokens]
    if length == 2:
        answers = [[one, two] for one in tokens if one != END for two in tokens] + [[END]]
    texts = tiny.tokenizer().backend_tokenizer.decode_batch(answers, skip_special_tokens=True)
    assert texts[::97] == [decode_response(tiny.tokenizer(), known) for known in answers[::97]]
    return torch.from_numpy(graded(None, texts))


def graded(prompts, texts) -> np.ndarray:
    """Several grades, by first and last letter, so that the optimum is no corner of the simplex."""
    return np.array([(grade(text[:1]) + grade(text[-1:])) / 2 for text in texts])


def grade(letter):
    return 1.0 if "a" <= letter <= "m" else 0.5 if "n" <= letter <= "z" else 0.0


def optimum(length):
    return torch.log_softmax(distribution(tiny.policy(), length) + rewards(length) / BETA, -1)


def divergence(log_p, log_q):
    return float((log_p.exp() * (log_p - log_q)).sum())


def approach(length, steps):
    config = settings(
        batch_size=256,
        learning_rate=1e-2,
        kl=FixedKl(coefficient=BETA),
        max_new_tokens=length,
        epochs=2,
        minibatches=2,
        lam=1.0,
    )
    learner = learner_for(config)
    prompts = [PROMPTS[0]] * config.batch_size
    for index in range(steps):
        for optimizer in (learner.policy_optimizer, learner.value_optimizer):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - index / steps)  # noise that shrinks: it can settle
        sampling = tiny.sampling(length, rows=256)
        ppo.iteration(learner, tiny.tokenizer(), prompts, graded, config, sampling, 0)
    return divergence(distribution(learner.policy, length), optimum(length))


@pytest.mark.parametrize(("length", "steps"), [(1, 15), pytest.param(2, 40, marks=pytest.mark.slow)])
def test_it_approaches_the_exact_optimum(length, steps):
    start = divergence(distribution(tiny.policy(), length), optimum(length))
    assert distribution(tiny.policy(), length).exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert start > 0.5
    assert approach(length, steps) < 0.05


def test_with_the_wrong_sign_it_does_not(monkeypatch):
    right = ppo.policy_loss
    monkeypatch.setattr(ppo, "policy_loss", lambda new, old, gain, mask, clip: right(new, old, -gain, mask, clip))
    start = divergence(distribution(tiny.policy(), 1), optimum(1))
    assert approach(1, 10) > start


def test_saved_and_loaded_it_goes_on_to_the_bit(tmp_path):
    config = settings(value_warmup_steps=1, kl=AdaptiveKl(coefficient=0.1, target=0.5, horizon=200))
    straight = learner_for(config)
    metrics = [done.metrics for done in run(straight, config, has_a, 5)]

    first = learner_for(config)
    run(first, config, has_a, 2)
    tiny.saved(first.policy, tmp_path / "policy")
    ppo.save_learner(first, tmp_path / "state", "a digest")
    torch.manual_seed(99)  # nothing may hang on the global generator
    second = ppo.new_learner(load_policy(tmp_path / "policy"), tiny.policy(), config)
    assert ppo.load_learner(second, tmp_path / "state") == "a digest"
    assert [done.metrics for done in run(second, config, has_a, 3)] == metrics[2:]
    assert tiny.same(snapshot(second), snapshot(straight))
    assert second.kl_coefficient == straight.kl_coefficient != 0.1 and second.step == straight.step == 5
    for name in ("one", "two"):
        ppo.save_learner(second if name == "one" else straight, tmp_path / name, "d")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name

    amnesiac = ppo.new_learner(load_policy(tmp_path / "policy"), tiny.policy(), config)
    amnesiac.step, amnesiac.warmup = 2, 0
    run(amnesiac, config, has_a, 3)
    assert not tiny.same(snapshot(amnesiac), snapshot(straight))  # weights alone are not the state


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_stops_before_anything_moves(bad):
    config = settings()
    learner = learner_for(config)
    run(learner, config, has_a, 1)
    before = snapshot(learner)

    def score(prompts, texts):
        return np.where(np.arange(len(texts)) == 3, bad, 0.0)

    with pytest.raises(FloatingPointError, match="score is not finite in iteration 1"):
        run(learner, config, score, 1)
    assert tiny.same(snapshot(learner), before) and learner.step == 1


@pytest.mark.parametrize(
    ("loss", "breaks", "what"),
    [
        ("policy_loss", lambda x: x * float("nan"), "loss"),
        ("policy_loss", lambda x: (x * 0).sqrt(), "gradient"),  # a finite loss, an infinite slope
        ("value_loss", lambda x: x * float("inf"), "loss"),
        ("value_loss", lambda x: (x * 0).sqrt(), "gradient"),
    ],
)
def test_no_model_learns_from_a_loss_or_gradient_that_is_not_finite(monkeypatch, loss, breaks, what):
    config = settings()
    learner = learner_for(config)
    run(learner, config, has_a, 1)
    before = snapshot(learner)
    right = getattr(ppo, loss)

    def broken(*arguments):
        result = right(*arguments)
        return result._replace(loss=breaks(result.loss))

    monkeypatch.setattr(ppo, loss, broken)
    with pytest.raises(FloatingPointError, match=f"{what} is not finite"):
        run(learner, config, has_a, 1)
    part = loss.partition("_")[0]
    after = snapshot(learner)
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith(part))


def test_while_it_warms_up_only_the_value_model_moves():
    config = settings(value_warmup_steps=2)
    learner = learner_for(config)
    start = snapshot(learner)
    warm = run(learner, config, has_a, 2)
    after = snapshot(learner)
    assert all(torch.equal(after[name], start[name]) for name in start if name.startswith("policy."))
    assert not torch.equal(after["value.head.weight"], start["value.head.weight"])
    assert "policy_loss" not in warm[-1].metrics and learner.warmup == 0
    third = run(learner, config, has_a, 1)[0]
    assert "policy_loss" in third.metrics
    assert not tiny.same(tiny.weights(learner.policy), tiny.weights(tiny.policy()))


def test_the_value_model_learns_to_predict():
    config = settings(value_warmup_steps=100, lam=1.0, value_clip=10.0, epochs=4)

    def by_prompt(prompts, texts):
        return np.array([1.0 if prompt == PROMPTS[0] else -1.0 for prompt in prompts])

    done = run(learner_for(config), config, by_prompt, 15)
    assert done[0].metrics["explained_variance"] == pytest.approx(0, abs=1e-4)  # it starts at zero everywhere
    assert done[-1].metrics["explained_variance"] > 0.9


def test_the_adaptive_controller_moves_the_price_towards_its_target():
    low = settings(kl=AdaptiveKl(coefficient=0.1, target=1e-3, horizon=640))
    learner = learner_for(low)
    assert [d.metrics["kl_coefficient"] for d in run(learner, low, has_a, 1)] == [0.1]  # the one that was used
    assert learner.kl_coefficient == pytest.approx(0.1 * (1 - 0.2 * 64 / 640))  # KL was 0: below every target
    run(learner, low, has_a, 3)
    assert learner.kl_coefficient > 0.1 * 0.98 * 1.02  # and is above this one now
    fixed = settings(kl=FixedKl(coefficient=0.1))
    steady = learner_for(fixed)
    run(steady, fixed, has_a, 2)
    assert steady.kl_coefficient == 0.1


def test_scores_are_clipped_and_answers_that_did_not_end_are_fined(monkeypatch):
    config = settings(score_clip=5.0, missing_eos_penalty=1.5, max_new_tokens=2)
    seen = {}
    right = ppo.penalised

    def spy(credit, log_ratios, mask, coefficient):
        seen["scores"] = credit.sum(-1).tolist()
        return right(credit, log_ratios, mask, coefficient)

    answers = ppo.answer

    def some_end(*arguments):
        import dataclasses

        return [dataclasses.replace(a, ended=row % 2 == 0) for row, a in enumerate(answers(*arguments))]

    monkeypatch.setattr(ppo, "penalised", spy)
    monkeypatch.setattr(ppo, "answer", some_end)
    done = run(learner_for(config), config, lambda *_: np.array([10.0, 10.0, -7.0, 0.25]), 1, prompts=PROMPTS[:4])[0]
    assert seen["scores"] == [5.0, 3.5, -5.0, -1.25]
    assert done.scores.tolist() == [10.0, 10.0, -7.0, 0.25]  # what is reported is not clipped
    assert done.metrics["ended_share"] == 0.5 and done.metrics["rm_score"] == pytest.approx(3.3125)


def test_the_chunk_in_which_answers_are_sampled_changes_nothing():
    config = settings()
    results = []
    for rows in (64, 7):
        learner = learner_for(config)
        sampling = tiny.sampling(config.max_new_tokens, rows=rows)
        done = ppo.iteration(learner, tiny.tokenizer(), PROMPTS, has_a, config, sampling, 0)
        results.append((done.answers, snapshot(learner)))
    assert results[0][0] == results[1][0] and tiny.same(results[0][1], results[1][1])


def test_equal_prompts_are_answered_with_different_noise_and_new_noise_each_step():
    config = settings(learning_rate=1e-12)
    learner = learner_for(config)
    one, two = run(learner, config, has_a, 2, prompts=[PROMPTS[0]] * 8)
    assert len({tuple(a.response_ids) for a in one.answers}) > 6
    assert [a.response_ids for a in one.answers] != [a.response_ids for a in two.answers]
    again = run(learner_for(config), config, has_a, 1, prompts=[PROMPTS[0]] * 8, seed=1)[0]
    assert [a.response_ids for a in again.answers] != [a.response_ids for a in one.answers]


@pytest.mark.parametrize(("count", "batch"), [(10, 5), (10, 4), (3, 7)])
def test_every_prompt_comes_once_per_pass_and_the_step_is_the_whole_cursor(count, batch):
    prompts = [Prompt.from_text(str(number)) for number in range(count)]
    steps = count  # batch · count positions: exactly `batch` passes
    asked = [ppo.prompts_of_step(prompts, step, batch, seed=3) for step in range(steps)]
    stream = [prompt.text() for part in asked for prompt in part]
    for start in range(0, len(stream), count):
        assert Counter(stream[start : start + count]) == Counter(str(number) for number in range(count))
    assert stream[:count] != stream[count : 2 * count]  # shuffled anew
    assert ppo.prompts_of_step(prompts, 2, batch, seed=3) == asked[2]
    many = [Prompt.from_text(str(number)) for number in range(50)]
    assert ppo.prompts_of_step(many, 0, 50, seed=3) != ppo.prompts_of_step(many, 0, 50, seed=4)


def test_advantages_are_whitened_so_that_the_unit_of_the_reward_does_not_matter():
    config = settings(epochs=1, minibatches=1, score_clip=1e6)
    norms = []
    for unit in (1.0, 50.0):
        done = run(learner_for(config), config, lambda prompts, texts, unit=unit: unit * has_a(prompts, texts), 1)[0]
        norms.append(done.metrics["policy_grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-3) and norms[0] > 0


def test_minibatches_cover_every_rollout_once_per_pass_in_a_new_order_each_time(monkeypatch):
    config = settings(epochs=2, minibatches=4)
    seen = []
    right = ppo._rows

    def spy(experience, index):
        if len(experience.batch) == 64:  # not the groups of like length inside a minibatch
            seen.append(index.tolist())
        return right(experience, index)

    monkeypatch.setattr(ppo, "_rows", spy)
    run(learner_for(config), config, has_a, 2)
    passes = [[row for part in seen[start : start + 4] for row in part] for start in range(0, len(seen), 4)]
    assert len(passes) == 4 and all(sorted(order) == list(range(64)) for order in passes)
    assert len({tuple(order) for order in passes}) == 4
    assert all(len(index) == 16 for index in seen)
