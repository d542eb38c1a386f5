"""Sampling: the right distribution, a row's own noise, the end token, and log-probabilities that agree with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from inverse_alignment.core.batches import Sequences, TokenBatch
from inverse_alignment.core.records import Prompt
from inverse_alignment.core.seeding import uniforms
from inverse_alignment.generation.answers import answer, batch_of, choose_prompts, of_model
from inverse_alignment.generation.hf import ended, inverse_cdf, sample
from inverse_alignment.generation.rollouts import ask, judge
from inverse_alignment.generation.rollouts import draw as answers_of
from inverse_alignment.models.heads import ValueModel
from inverse_alignment.models.log_probs import compare_with_reference
from inverse_alignment.text.render import encode_prompt
from tests.unit.models import tiny

LOGITS = torch.tensor([0.3, -1.0, 2.0, 0.1, -math.inf, 1.0])
NEVER = -1  # an end token that no model writes


def probabilities() -> np.ndarray:
    odds = np.exp([0.3, -1.0, 2.0, 0.1, -math.inf, 1.0])
    return odds / odds.sum()


def drawn(noise: torch.Tensor) -> np.ndarray:
    return np.bincount(inverse_cdf(LOGITS.expand(len(noise), -1), noise).numpy(), minlength=6)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.499, 1), (0.501, 2), (0.749, 2), (0.751, 3), (1 - 1e-12, 3)]
)
def test_inverse_cdf_by_hand(uniform, token):
    logits = torch.tensor([[0.0, 0.5, 0.25, 0.25, 0.0]]).log()  # a token of probability zero is never drawn
    assert inverse_cdf(logits, torch.tensor([uniform], dtype=torch.float64)).item() == token


def test_an_even_grid_of_uniforms_gives_the_distribution():
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    np.testing.assert_allclose(drawn(grid) / 10_000, probabilities(), atol=1e-4)


def test_our_noise_gives_the_distribution_and_a_wrong_one_would_be_noticed():
    counts = drawn(torch.from_numpy(uniforms(range(20_000), 1)[:, 0]))
    expected = probabilities()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], expected[possible] * 20_000).pvalue > 0.01
    wrong = expected[possible] ** 0.9
    assert stats.chisquare(counts[possible], wrong / wrong.sum() * 20_000).pvalue < 1e-6


@pytest.fixture(scope="module")
def model():
    return tiny.policy(scale=20.0)


@pytest.fixture(scope="module")
def prompt_ids():
    return [encode_prompt(tiny.tokenizer(), prompt, 32) for prompt in tiny.PROMPTS]


def draw(model, prompts, seeds, max_new_tokens=8, temperature=1.0, end_token=NEVER):
    return sample(
        model, prompts, seeds, max_new_tokens=max_new_tokens, temperature=temperature, end_token=end_token, pad_token=0
    )


def test_a_row_depends_on_its_prompt_and_seed_alone(model, prompt_ids):
    assert len({len(ids) for ids in prompt_ids}) > 1  # or there would be no padding
    seeds = [7, 8, 9, 10]
    together = draw(model, prompt_ids, seeds).response_ids
    backwards = draw(model, prompt_ids[::-1], seeds[::-1]).response_ids.flip(0)
    alone = torch.cat([draw(model, [ids], [seed]).response_ids for ids, seed in zip(prompt_ids, seeds, strict=True)])
    assert torch.equal(together, alone) and torch.equal(together, backwards)
    other = draw(model, prompt_ids, [70, 8, 9, 10]).response_ids
    assert torch.equal(other[1:], together[1:]) and not torch.equal(other[0], together[0])


@pytest.mark.parametrize("rows", [1, 3])
def test_chunk_size_changes_nothing(model, rows):
    arguments = (model, tiny.tokenizer(), tiny.PROMPTS * 2, list(range(8)))
    assert answer(*arguments, tiny.sampling(rows=rows)) == answer(*arguments, tiny.sampling(rows=64))


def test_an_answer_stops_after_its_first_end_token(model, prompt_ids):
    free = draw(model, prompt_ids, [1, 2, 3, 4], max_new_tokens=8).response_ids
    end = int(free[0, 2])
    assert end not in free[0, :2]
    stopped = draw(model, prompt_ids, [1, 2, 3, 4], max_new_tokens=8, end_token=end)
    for row, tokens in enumerate(free.tolist()):
        expected = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        assert stopped.response_ids[row][stopped.response_mask[row]].tolist() == expected
        assert not stopped.response_ids[row][~stopped.response_mask[row]].any()  # pads alone
        assert ended(stopped, end)[row].item() == (end in tokens)
    assert stopped.response_mask[0].sum() == 3


def test_sampling_stops_when_every_row_has_ended(model, prompt_ids):
    end = int(draw(model, prompt_ids[:1], [1]).response_ids[0, 1])
    assert draw(model, prompt_ids[:1], [1], max_new_tokens=50, end_token=end).response_ids.shape == (1, 2)


def test_the_longest_answer_has_max_new_tokens(model, prompt_ids):
    assert draw(model, prompt_ids, [1, 2, 3, 4], max_new_tokens=3).response_mask.sum(-1).tolist() == [3] * 4


def greedy(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-count:]


def test_a_low_temperature_is_greedy_and_a_high_one_is_not(model, prompt_ids):
    expected = [greedy(model, ids, 5) for ids in prompt_ids]
    cold = draw(model, prompt_ids, [1, 2, 3, 4], max_new_tokens=5, temperature=1e-4).response_ids.tolist()
    warm = draw(model, prompt_ids, [1, 2, 3, 4], max_new_tokens=5, temperature=3.0).response_ids.tolist()
    assert cold == expected and warm != expected


def step_by_step(model, prompt, response, temperature):
    """Log-probabilities from one full forward pass per token: no cache, no padding, no batch."""
    ids, found = list(prompt), []
    with torch.no_grad():
        for token in response:
            logits = model(torch.tensor([ids])).logits[0, -1] / temperature
            found.append(torch.log_softmax(logits, -1)[token].item())
            ids.append(token)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_step_by_step_forward(model, temperature):
    answers = answer(model, tiny.tokenizer(), tiny.PROMPTS, [1, 2, 3, 4], tiny.sampling(temperature=temperature))
    batch = batch_of(answers, 0, torch.device("cpu"))
    view = compare_with_reference(model, tiny.policy(5), batch, temperature)
    for row, given in enumerate(answers):
        expected = step_by_step(model, given.prompt_ids, given.response_ids, temperature)
        np.testing.assert_allclose(view.log_probs[row][batch.response_mask[row]].numpy(), expected, atol=1e-4)
    wrong = compare_with_reference(model, model, batch, temperature * 1.5).log_probs
    assert (wrong - view.log_probs).abs().max() > 0.01


def padded(batch: TokenBatch, left: int, right: int) -> TokenBatch:
    def pad(tensor, before, after):
        return torch.nn.functional.pad(tensor, (before, after))

    return TokenBatch(
        pad(batch.prompt_ids, left, 0),
        pad(batch.prompt_mask, left, 0),
        pad(batch.response_ids, 0, right),
        pad(batch.response_mask, 0, right),
    )


def test_padding_and_neighbours_move_neither_log_probs_nor_values_nor_kl(model):
    reference = tiny.policy(5, scale=20.0)
    value = ValueModel.from_policy(model)
    torch.nn.init.normal_(value.head.weight, generator=torch.Generator().manual_seed(0))
    answers = answer(model, tiny.tokenizer(), tiny.PROMPTS, [1, 2, 3, 4], tiny.sampling())
    batch = batch_of(answers, 0, torch.device("cpu"))

    def look(batch):
        view = compare_with_reference(model, reference, batch, 1.0)
        with torch.no_grad():
            sequences = Sequences.of(batch)
            return torch.stack([*view, sequences.spread(value(sequences))])

    together = look(batch)
    assert together[2][batch.response_mask].min() > 1e-4  # the two models do differ
    for row, given in enumerate(answers):
        width = len(given.response_ids)
        for alone in (batch_of([given], 0, torch.device("cpu")), padded(batch.rows(torch.tensor([row])), 3, 2)):
            torch.testing.assert_close(look(alone)[:, 0, :width], together[:, row, :width], rtol=1e-4, atol=1e-4)
    blind = TokenBatch(batch.prompt_ids, torch.ones_like(batch.prompt_mask), batch.response_ids, batch.response_mask)
    assert (look(blind) - together)[:, 0].abs().max() > 0.01  # pads read as text do change everything


def test_rows_of_a_batch_lose_the_columns_that_nobody_needs():
    off, on = False, True
    batch = TokenBatch(
        torch.tensor([[0, 0, 5], [0, 6, 7], [8, 9, 4]]),
        torch.tensor([[off, off, on], [off, on, on], [on, on, on]]),
        torch.tensor([[11, 0, 0], [12, 13, 0], [14, 15, 16]]),
        torch.tensor([[on, off, off], [on, on, off], [on, on, on]]),
    )
    part = batch.rows(torch.tensor([1, 0]))
    assert part.prompt_ids.tolist() == [[6, 7], [0, 5]] and part.prompt_mask.tolist() == [[on, on], [off, on]]
    assert part.response_ids.tolist() == [[12, 13], [11, 0]] and part.response_mask.tolist() == [[on, on], [on, off]]
    assert part.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 1, 1]]
    assert batch.rows(torch.tensor([2, 0])).prompt_ids.shape == (2, 3)


def test_a_batch_with_inconsistent_shapes_or_an_empty_answer_cannot_be_built():
    ids, mask = torch.ones(2, 2, dtype=torch.int64), torch.ones(2, 2, dtype=torch.bool)
    TokenBatch(ids, mask, ids, mask)
    for broken in ((ids, mask, ids[:1], mask[:1]), (ids, mask[:, :1], ids, mask), (ids, mask, ids, mask & False)):
        with pytest.raises(ValueError):
            TokenBatch(*broken)


def rolled_out(policy, reference, progress=lambda done, total, unit: None):
    sampling, tokenizer, asked = tiny.sampling(rows=3), tiny.tokenizer(), ask(tiny.PROMPTS, 2, 3)
    answers = answers_of(of_model(policy, tokenizer, sampling), tokenizer, asked, sampling, progress)
    return judge(policy, reference, tokenizer.pad_token_id, asked, answers, sampling, progress)


def test_rollouts_report_log_probs_and_the_exact_kl(model):
    reference = tiny.policy(5, scale=20.0)
    rollouts = rolled_out(model, reference)
    assert [(r.prompt.key, r.sample) for r in rollouts] == [(p.key, i) for p in tiny.PROMPTS for i in (0, 1)]
    assert rollouts[0].response != rollouts[1].response  # each sample has noise of its own
    assert all(r.kl_estimate > 0 and r.log_prob != pytest.approx(r.ref_log_prob) for r in rollouts)
    own = rolled_out(model, model)
    assert [r.response for r in own] == [r.response for r in rollouts]
    for r in own:
        assert r.kl_estimate == pytest.approx(0.0, abs=1e-5) and r.log_prob == pytest.approx(r.ref_log_prob, abs=1e-5)
    # Rolled out the other way round, the log-probabilities of equal answers change places.
    other = rolled_out(reference, model)
    equal = [(a, b) for a, b in zip(rollouts, other, strict=True) if a.response == b.response]
    for a, b in equal:
        assert a.log_prob == pytest.approx(b.ref_log_prob, abs=1e-3)


def test_rollouts_say_how_far_they_are(model, monkeypatch):
    monkeypatch.setattr("inverse_alignment.generation.rollouts.TELL_EVERY", 3)
    told = []
    rolled_out(model, model, lambda *word: told.append(word))
    counts = [(3, 8), (6, 8), (8, 8)]
    assert told == [(*count, unit) for unit in ("answers", "answers compared") for count in counts]


def test_chosen_prompts_are_distinct_and_do_not_depend_on_the_order_of_the_data():
    doubled = [*tiny.PROMPTS, *tiny.PROMPTS]
    first = choose_prompts(doubled, 3, seed=1)
    assert len({p.key for p in first}) == 3
    assert choose_prompts(doubled[::-1], 3, seed=1) == first
    assert {p.key for p in choose_prompts(doubled, 0, seed=1)} == {p.key for p in tiny.PROMPTS}
    many = [Prompt.from_text(str(i)) for i in range(20)]
    assert choose_prompts(many, 5, seed=1) != choose_prompts(many, 5, seed=2)
