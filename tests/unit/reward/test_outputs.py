"""Models with several outputs on a planted shortcut, and that a killed training of them ends with the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inverse_alignment.core.batches import pad_right
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.models.folding import folded, new_decoder
from inverse_alignment.models.loading import new_reward_model
from inverse_alignment.models.reward_scores import RewardScorer, read_outputs
from inverse_alignment.models.score_features import score_layer
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward.bradley_terry import PairLoss
from inverse_alignment.reward.outputs import bottleneck_loss, fit_outputs, odin_loss, output_rows, pair_loss
from inverse_alignment.text.render import encode_response
from tests.unit.models import tiny

PLAIN = PairLoss(0.0, 0.01, False)
SUBJECT = {True: "the cat", False: "a dog"}


def text(good: bool, words: int) -> str:
    return SUBJECT[good] + " sat" * words


def planted(count: int, seed: int = 0):
    """Pairs in which the good answer wins or, more often, the longer one."""
    generator = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        (g, a), (h, b) = ((bool(generator.integers(2)), int(generator.integers(0, 9))) for _ in range(2))
        gap = 1.5 * (g - h) + 0.6 * (a - b)
        first, second = text(g, a), text(h, b)
        if generator.random() > 1 / (1 + np.exp(-gap)):
            first, second = second, first
        pairs.append(tiny.pair("q", first, second, number))
    return pairs


def tokens(answer: str) -> int:
    return len(encode_response(tiny.tokenizer(), answer))


def fresh(outputs: int):
    model = new_reward_model(tiny.SPEC, tiny.tokenizer(), 0, outputs)
    model.config.pad_token_id = tiny.tokenizer().pad_token_id
    return model


def train(model, partial, loss, pairs, report=FileReport, epochs=4.0, checkpoint_seconds=3600.0):
    partial.mkdir(exist_ok=True)
    rows = output_rows(tiny.tokenizer(), pairs, [[1.0]] * len(pairs), 48)
    given = arguments(
        partial=partial, device="cpu", seed=0, epochs=epochs, learning_rate=5e-3, batch_size=32, warmup_share=0.1
    )
    return fit_outputs(
        model, tiny.tokenizer(), rows, given, loss, partial, report(partial / "metrics.jsonl"), checkpoint_seconds
    )


ANSWERS = [text(good, words) for good in (True, False) for words in range(9)]
PROMPTS = [tiny.pair("q", "a", "b").prompt] * len(ANSWERS)


def length_correlation(scores: np.ndarray) -> float:
    return float(np.corrcoef(scores, [tokens(answer) for answer in ANSWERS])[0, 1])


def good_wins(scores: np.ndarray) -> float:
    return float((scores[:9] > scores[9:]).mean())


def test_odins_kept_head_follows_quality_and_bradley_terry_follows_length(tmp_path):
    pairs = planted(256)
    plain = fresh(1)
    train(plain, tmp_path / "plain", lambda batch, _: pair_loss(PLAIN, batch, batch.outputs[:, 0]), pairs)
    both = fresh(2)
    heads = score_layer(both, 2)
    train(both, tmp_path / "odin", lambda batch, _: odin_loss(PLAIN, batch, heads.weight, 1.0, 1.0), pairs)
    scores = read_outputs(both, tiny.tokenizer(), PROMPTS, ANSWERS, 48, 64)
    blind = length_correlation(RewardScorer(plain, tiny.tokenizer(), 48, 64)(PROMPTS, ANSWERS))
    assert blind > 0.7  # the negative control
    assert abs(length_correlation(scores[:, 0])) < 0.35 < 0.8 < length_correlation(scores[:, 1])
    assert good_wins(scores[:, 0]) >= 0.8
    kept = folded(both, fresh(1), heads.weight[:1], None)
    alone = RewardScorer(kept, tiny.tokenizer(), 48, 64)(PROMPTS, ANSWERS)
    np.testing.assert_allclose(alone, scores[:, 0], atol=1e-5)


def coded(model, divergence: float):
    def loss(batch, trained):
        return bottleneck_loss(PLAIN, batch, lambda codes: trained.decoder(codes)[:, 0], divergence, 7)

    return loss


def bottlenecked(size: int = 4):
    model = fresh(2 * size)
    model.decoder = new_decoder(size, 0, torch.device("cpu"))
    return model


def test_a_dear_code_says_less_and_its_mean_is_the_score_of_a_plain_classifier(tmp_path):
    divergences = {}
    for divergence in (0.001, 3.0):
        model = bottlenecked()
        train(model, tmp_path / str(divergence), coded(model, divergence), planted(128), epochs=3.0)
        outputs = read_outputs(model, tiny.tokenizer(), PROMPTS, ANSWERS, 48, 64)
        means, log_variances = np.split(outputs, 2, axis=1)
        divergences[divergence] = 0.5 * (means**2 + np.exp(log_variances) - log_variances - 1).sum(1).mean()
        scores = means @ model.decoder.weight.detach().double().numpy()[0]
        encoder = score_layer(model, 8).weight
        kept = folded(model, fresh(1), model.decoder.weight @ encoder[:4], None)
        alone = RewardScorer(kept, tiny.tokenizer(), 48, 64)(PROMPTS, ANSWERS)
        np.testing.assert_allclose(alone, scores, atol=1e-5)
    assert divergences[3.0] < 0.2 * divergences[0.001]


class Killed(BaseException):
    """Stands in for a kill."""


class Dying(FileReport):
    def progress(self, done, total, unit):
        if done == 13:
            raise Killed


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_bytes_noise_and_decoder_included(tmp_path):
    pairs = planted(96)
    straight, killed, resumed = bottlenecked(), bottlenecked(), bottlenecked()
    expected = train(straight, tmp_path / "a", coded(straight, 0.1), pairs, epochs=6.0)
    with pytest.raises(Killed):
        train(killed, tmp_path / "b", coded(killed, 0.1), pairs, Dying, epochs=6.0, checkpoint_seconds=1e-9)
    torch.manual_seed(99)
    found = train(resumed, tmp_path / "b", coded(resumed, 0.1), pairs, epochs=6.0)
    assert found == expected and tiny.same(tiny.weights(resumed), tiny.weights(straight))
    assert not torch.equal(resumed.decoder.weight, bottlenecked().decoder.weight)


def test_rows_know_the_lengths_of_answers_and_leave_out_what_the_tokenizer_cannot_tell_apart():
    pairs = [tiny.pair("q", text(True, 3), "a dog"), tiny.pair("q", "x" * 90, "x" * 91)]  # the second is cut
    (row,) = output_rows(tiny.tokenizer(), pairs, [[2.0], [1.0]], 48)
    assert row["lengths"] == [tokens(text(True, 3)), tokens("a dog")] and row["counts"] == [2.0]


def test_a_decoder_depends_on_its_seed_alone():
    one, again, other = (new_decoder(4, seed, torch.device("cpu")).weight for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    ids, mask = pad_right([[3, 4, 1]], 0)
    assert fresh(2)(input_ids=ids, attention_mask=mask.long()).logits.shape == (1, 2)
