"""Log-probabilities of given answers: by hand, as rollouts say, and whoever is beside them."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inverse_alignment.core.cache import DiskCache
from inverse_alignment.core.records import Prompt
from inverse_alignment.generation.answers import Answer
from inverse_alignment.generation.rollouts import ask, judge
from inverse_alignment.models.answer_log_probs import Kept, PolicyScorer, Reading, answer_log_probs, log_probs_by, read
from inverse_alignment.models.log_probs import Head
from inverse_alignment.text.render import (
    encode_full,
    encode_prompt,
    encode_prompts,
    encode_response,
    encode_written,
    prompt_budget,
)
from tests.unit.models import tiny

ANSWERS = ["the cat", "a dog and a cat sat on the mat", "", "mat mat mat mat mat", "the end", "dog"]
PROMPTS = [tiny.PROMPTS[i % len(tiny.PROMPTS)] for i in range(len(ANSWERS))]
CONTEXT = tiny.SPEC.context


def scored(policy, prompts=PROMPTS, answers=ANSWERS, context=CONTEXT, tokens=4096, first_tokens=0, **more):
    return answer_log_probs(policy, tiny.tokenizer(), prompts, answers, context, tokens, first_tokens, **more)


def by_hand(policy, prompt, text, first_tokens=0, context=CONTEXT):
    """One row, no padding, the model's own logits, position by position."""
    tokens = tiny.tokenizer()
    begun = encode_prompt(tokens, prompt, prompt_budget(context))
    answer_ids = encode_response(tokens, text)
    kept = answer_ids[: context - len(begun)]
    if first_tokens:
        kept = kept[:first_tokens]
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([[*begun, *kept]])).logits[0].double()
    found = torch.log_softmax(logits, -1)
    return sum(float(found[len(begun) - 1 + step, token]) for step, token in enumerate(kept)), len(kept)


@pytest.mark.parametrize("first_tokens", [0, 1, 3])
def test_each_answer_as_if_it_were_alone(first_tokens):
    policy = tiny.policy(scale=3.0)
    found = scored(policy, first_tokens=first_tokens)
    for row, (prompt, text) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        total, count = by_hand(policy, prompt, text, first_tokens)
        assert found.counts[row] == count
        assert found.sums[row] == pytest.approx(total, abs=1e-4)
        assert found.means[row] == pytest.approx(total / count, abs=1e-4)


def test_another_architecture():
    policy, tokens = tiny.gpt2()
    found = answer_log_probs(policy, tokens, PROMPTS, ANSWERS, CONTEXT, 4096)
    alone = [
        answer_log_probs(policy, tokens, [p], [a], CONTEXT, 4096).sums[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    np.testing.assert_allclose(found.sums, alone, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(len(ANSWERS))), st.integers(1, 200))
def test_neither_order_nor_neighbours_matter(order, tokens):
    policy = tiny.policy(scale=3.0)
    whole = scored(policy)
    moved = scored(policy, [PROMPTS[i] for i in order], [ANSWERS[i] for i in order], tokens=tokens)
    np.testing.assert_allclose(moved.sums, whole.sums[list(order)], atol=1e-4)
    assert moved.counts.tolist() == whole.counts[list(order)].tolist()


def test_rollouts_say_the_same_of_what_was_sampled():
    """The end token counts where the answer ended, and nothing stands in for it where it reached its length."""
    policy, tokens, sampling = tiny.policy(scale=3.0), tiny.tokenizer(), tiny.sampling()
    asked = ask(tiny.PROMPTS, 1, seed=0)
    prompts = encode_prompts(tokens, tiny.PROMPTS, sampling.prompt_tokens)
    texts = ANSWERS[: len(prompts)]
    for ended, kept in ((True, 0), (False, 2)):
        ids = [encode_response(tokens, text)[: kept or None] for text in texts]
        answers = [Answer(*row, ended, text) for *row, text in zip(prompts, ids, texts, strict=True)]
        rollouts = judge(policy, tiny.policy(1), tokens.pad_token_id, asked, answers, sampling, lambda *_: None)
        found = scored(policy, tiny.PROMPTS, texts, first_tokens=kept)
        np.testing.assert_allclose(found.sums, [rollout.log_prob for rollout in rollouts], atol=1e-4)
        assert found.counts.tolist() == [rollout.tokens for rollout in rollouts]


def test_an_answer_that_is_cut_has_no_end():
    tokens = tiny.tokenizer()
    long = "the cat sat on the mat. " * 40
    ((prompt, written),) = encode_written(tokens, [tiny.PROMPTS[0]], [long], 32)
    assert len(prompt) + len(written) == 32 and tokens.eos_token_id not in written
    assert prompt + written[:-1] == encode_full(tokens, tiny.PROMPTS[0], long, 32)[:-1]  # where training puts the end
    policy = tiny.policy(scale=3.0)
    total, count = by_hand(policy, tiny.PROMPTS[0], long, context=32)
    found = scored(policy, [tiny.PROMPTS[0]], [long], context=32)
    assert (found.sums[0], found.counts[0]) == (pytest.approx(total, abs=1e-3), count)


def test_an_answer_that_fits_is_encoded_as_for_training():
    tokens = tiny.tokenizer()
    for (prompt, written), of, text in zip(
        encode_written(tokens, PROMPTS, ANSWERS, CONTEXT), PROMPTS, ANSWERS, strict=True
    ):
        assert prompt + written == encode_full(tokens, of, text, CONTEXT)
        assert written[-1] == tokens.eos_token_id


def test_no_answers_are_no_numbers():
    found = scored(tiny.policy(), [], [])
    assert found.sums.shape == found.counts.shape == (0,)


def test_progress_ends_at_the_total(monkeypatch):
    monkeypatch.setattr("inverse_alignment.models.answer_log_probs.MOST", 4)
    monkeypatch.setattr("inverse_alignment.models.answer_log_probs.MEAN", 2**31)
    told = []
    whole = scored(tiny.policy())
    parts = scored(tiny.policy(), progress=lambda done, total, unit: told.append((done, total)))
    np.testing.assert_allclose(parts.sums, whole.sums, atol=1e-5)
    assert told == [(4, 6), (6, 6)]


READING = Reading(CONTEXT, 4096)
ASKED = list(zip(PROMPTS, ANSWERS, strict=True))


def by(score, asked=ASKED, **more):
    return log_probs_by(score, tiny.tokenizer(), asked, len(asked), READING, **more)


def test_what_is_known_is_not_asked_again_and_the_policy_stays_away(tmp_path, monkeypatch):
    folder = tiny.saved(tiny.policy(scale=3.0), tmp_path / "policy")
    kept = Kept(DiskCache(tmp_path / "cache", 10**9), "s" * 64)
    first = by(PolicyScorer(folder, "cpu"), kept=kept)
    np.testing.assert_array_equal(first.sums, scored(tiny.policy(scale=3.0)).sums)
    second = by(lambda block: 1 / 0, kept=kept)
    np.testing.assert_array_equal(second.sums, first.sums)
    np.testing.assert_array_equal(second.counts, first.counts)
    with pytest.raises(ZeroDivisionError):  # another prompt to the same answers is not known
        by(lambda block: 1 / 0, list(zip(PROMPTS[::-1], ANSWERS, strict=True)), kept=kept)
    with pytest.raises(ZeroDivisionError):  # nor is another policy
        by(lambda block: 1 / 0, kept=Kept(kept.cache, "t" * 64))


def test_known_and_unknown_blocks_come_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("inverse_alignment.models.answer_log_probs.MOST", 1)
    head, kept = Head(tiny.policy(scale=3.0)), Kept(DiskCache(tmp_path, 10**9), "s" * 64)
    by(partial(read, head), ASKED[1:3], kept=kept)
    asked_for = []

    def score(block):
        asked_for.extend(block.ids)
        return read(head, block)

    found = by(score, kept=kept)
    assert len(asked_for) == len(ASKED) - 2
    np.testing.assert_array_equal(found.sums, by(partial(read, head)).sums)


def test_a_scorer_travels_without_its_policy(tmp_path):
    folder = tiny.saved(tiny.policy(scale=3.0), tmp_path / "policy")
    scorer = PolicyScorer(folder, "cpu")
    here = by(scorer)
    bytes_of = pickle.dumps(scorer)
    assert len(bytes_of) < 2000
    np.testing.assert_array_equal(by(pickle.loads(bytes_of)).sums, here.sums)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_who_scores_a_block_does_not_matter(workers, monkeypatch):
    monkeypatch.setattr("inverse_alignment.models.answer_log_probs.MOST", 4)
    many = [(prompt, f"{text} {i}") for i in range(5) for prompt, text in ASKED]
    work = partial(read, Head(tiny.policy(scale=3.0)))

    def apart(work, items):
        items = list(items)
        shards = [[(i, work(item)) for i, item in enumerate(items) if i % workers == w] for w in range(workers)]
        return (found for _, found in sorted((pair for shard in shards for pair in shard), key=lambda pair: pair[0]))

    np.testing.assert_array_equal(by(work, many, spread=apart).sums, by(work, many).sums)


def test_another_policy_says_something_else():
    assert not np.allclose(scored(tiny.policy(0, 3.0)).sums, scored(tiny.policy(1, 3.0)).sums, atol=0.1)


def test_the_prompt_matters():
    policy = tiny.policy(scale=3.0)
    other = [Prompt.from_text("another question entirely")] * len(ANSWERS)
    assert not np.allclose(scored(policy).sums, scored(policy, other).sums, atol=1e-2)
