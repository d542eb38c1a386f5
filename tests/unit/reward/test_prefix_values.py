"""TCRM in training: the penalties of a batch by hand, and what they make of the scores of half an answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from inverse_alignment.core.batches import pad_right
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.maths.contrastive import info_nce
from inverse_alignment.maths.prefixes import temporal_smoothness
from inverse_alignment.models.sequence_scores import watched_scores
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.reward import bradley_terry
from inverse_alignment.reward.bradley_terry import PairCollator, PairLoss, WeightedRewardTrainer, fit, pair_rows
from inverse_alignment.text.render import encode_prompt
from tests.unit.models import tiny

GOOD, BAD = ["the cat sat on the mat", "a cat sat on a mat"], ["the dog sat on the mat", "a dog sat on a mat"]
PAIRS = [tiny.pair(f"q{i}", GOOD[i % 2], BAD[(i // 2) % 2], i, weight=1.0 + i % 3) for i in range(32)]


def rows_of(pairs):
    return pair_rows(tiny.tokenizer(), pairs, [1.0] * len(pairs), 48)


def loss(settings, rows):
    trainer = SimpleNamespace(_pair_loss=settings)
    model = tiny.reward_model()
    with torch.no_grad():
        return float(WeightedRewardTrainer.compute_loss(trainer, model, PairCollator(0)(rows)))  # type: ignore[arg-type]


def test_the_penalties_of_a_batch_by_hand():
    rows = rows_of(PAIRS[:3])
    plain = loss(PairLoss(0.0, 0.01, False), rows)
    smooth, ahead = torch.zeros(3), torch.zeros(3)
    for i, row in enumerate(rows):
        assert row["start"] == len(encode_prompt(tiny.tokenizer(), PAIRS[i].prompt, 24))
        for side in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                found = watched_scores(tiny.reward_model(), *pad_right([row[side]], 0))
            values = found.values[0, row["start"] - 1 :]  # from the last token of the prompt
            smooth[i] += ((values[:-1] - values[1:]) ** 2).mean()
            ahead[i] += ((values[:-1] - values[-1]) ** 2).mean()
    weights = torch.tensor([1.0, 2.0, 3.0]) / 6
    expected = plain + 3.0 * float(weights @ smooth) + 0.5 * float(weights @ ahead)
    assert loss(PairLoss(0.0, 0.01, False, smoothness=3.0, look_ahead=0.5), rows) == pytest.approx(expected, abs=1e-6)
    assert expected > plain + 1e-5


def change(folder, settings):
    """Mean squared change of the score from token to token of an answer, in spreads of the scores of whole answers."""
    folder.mkdir()
    model = tiny.reward_model()
    given = arguments(
        partial=folder, device="cpu", seed=0, epochs=8, learning_rate=5e-3, batch_size=8, warmup_share=0.1
    )
    rows = rows_of(PAIRS)
    fit(model, tiny.tokenizer(), rows, given, settings, folder, FileReport(folder / "metrics.jsonl"), 3600)
    ids, mask = pad_right([row[side] for side in ("chosen_ids", "rejected_ids") for row in rows], 0)
    with torch.no_grad():
        found = watched_scores(model.eval(), ids, mask)
    begun = torch.tensor([row["start"] - 1 for row in rows]).repeat(2).unsqueeze(-1)
    changes = temporal_smoothness(found.values, mask & (torch.arange(ids.shape[1]) >= begun))
    spread = float(-found.final.chunk(2)[1].mean() + found.final.chunk(2)[0].mean())
    assert spread > 0.5
    return float(changes.mean()) / spread**2


@pytest.mark.slow
def test_beginnings_come_to_say_what_the_whole_will(tmp_path):
    free = change(tmp_path / "free", PairLoss(0.0, 0.01, False))
    asked = change(tmp_path / "asked", PairLoss(0.0, 0.01, False, smoothness=1.0, look_ahead=0.1))
    assert asked < 0.6 * free, (asked, free)


def test_several_processes_do_not_read_beginnings(monkeypatch, tmp_path):
    monkeypatch.setattr(bradley_terry, "group", lambda: SimpleNamespace(size=2, rank=0))
    with pytest.raises(UserError, match="read, and pairs contrasted, by one process"):
        fit(tiny.reward_model(), None, rows_of(PAIRS), {}, PairLoss(0, 0, False, 0.1), tmp_path, None, 3600)


def test_the_contrast_of_a_batch_by_hand():
    rows = rows_of(PAIRS[:3])
    settings = PairLoss(0.0, 0.01, False, contrast=2.0, temperature=0.5, dropout=0.25)
    torch.manual_seed(5)
    found = loss(settings, rows)
    ids, mask = pad_right([row[side] for side in ("chosen_ids", "rejected_ids") for row in rows], 0)
    with torch.no_grad():
        chosen, rejected = watched_scores(tiny.reward_model(), ids, mask).features.chunk(2)
    torch.manual_seed(5)
    first, second = (torch.nn.functional.dropout(chosen - rejected, 0.25) for _ in range(2))
    term = float(torch.tensor([1.0, 2.0, 3.0]) / 6 @ info_nce(first, second, 0.5))
    assert found == pytest.approx(loss(PairLoss(0.0, 0.01, False), rows) + 2.0 * term, abs=1e-5)
    assert term > 0.01
