"""AVA on the policy itself: what its loss is, what it moves, and resuming to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import read_metrics
from inverse_alignment.models.beliefs import TqrCollator
from inverse_alignment.models.trl_training import arguments
from inverse_alignment.optimise.direct import Row, encoded, plain
from inverse_alignment.optimise.direct_ava import (
    Believer,
    _log_probs,
    ava_loss,
    belief_rows,
    believing,
    fit,
    load_heads,
    objective_of,
    save_heads,
)
from inverse_alignment.optimise.direct_settings import AvaD, AvaP
from inverse_alignment.optimise.settings import Lora
from tests.unit.killed import Killed, MortalReport
from tests.unit.models import tiny

GOOD, BAD = ["the cat", "a cat sat", "cat on the mat", "the cat."], ["a dog", "the dog sat", "dog on the mat", "a dog."]
PAIRS = [Row(tiny.pair(f"q{i}", "a", "b").prompt, (GOOD[i % 4], BAD[(i // 4) % 4])) for i in range(32)]
BASE: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "warmup_share": 0.0}


def begun(method: AvaD) -> Believer:
    return believing(tiny.policy(scale=2.0), tiny.policy(scale=2.0), method, seed=0)


def rows_of(method: AvaD) -> list[Row]:
    return PAIRS if isinstance(method, AvaP) else [Row(row.prompt, row.answers[:1]) for row in PAIRS]


def trained(
    partial: Path, method: AvaD, die_at: int = -1, checkpoint_seconds: float = 3600.0, given: Believer | None = None
) -> Believer:
    partial.mkdir(exist_ok=True)
    given, report = given or begun(method), MortalReport(partial / "metrics.jsonl")
    report.die_at = die_at
    chosen = arguments(
        partial=partial,
        device="cpu",
        seed=0,
        epochs=method.epochs,
        learning_rate=method.learning_rate,
        batch_size=method.batch_size,
        warmup_share=method.warmup_share,
    )
    ids = encoded(tiny.tokenizer(), rows_of(method), 48)
    fit(given, tiny.tokenizer(), ids, chosen, method, partial, report, checkpoint_seconds)
    return given


def batch_of(method: AvaD, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    return TqrCollator(0, isinstance(method, AvaP))(belief_rows(encoded(tiny.tokenizer(), rows, 48)))


def moved(given: Believer) -> torch.Tensor:
    """(2, n) how much likelier than under the SFT policy the chosen and the rejected answers are, nats."""
    batch = batch_of(AvaP(), PAIRS)
    now, then = (_log_probs(model, batch["input_ids"], batch["counts"]) for model in (given.policy, given.sft))
    return (now - then).reshape(2, -1)


def test_without_the_reward_it_is_fine_tuning_on_every_token_and_the_end() -> None:
    """`-β Σ log π(y_t) / n` over all tokens of answers, n of which another one follows."""
    method = AvaD(inverse=0.0, beta=2.0)
    given, batch = begun(method), batch_of(method, rows_of(method)[:5])
    loss, measured = ava_loss(given, objective_of(method))(given.model, batch, 0)
    logits = given.policy(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    chosen = logits[:, :-1].gather(-1, batch["input_ids"][:, 1:].unsqueeze(-1)).squeeze(-1)[batch["counts"][:, 1:]]
    torch.testing.assert_close(loss, -2.0 * chosen.sum() / (len(chosen) - 5))
    assert list(measured) == ["good_log_ratio"] and abs(float(measured["good_log_ratio"])) < 1e-4


def test_answers_of_one_token_teach_that_token_alone() -> None:
    method = AvaD(beta=2.0)
    given, batch = begun(method), batch_of(method, [Row(row.prompt, ("",)) for row in PAIRS[:3]])
    assert (batch["counts"].sum(-1) == 1).all()
    loss, _ = ava_loss(given, objective_of(method))(given.model, batch, 0)
    torch.testing.assert_close(loss, -2.0 * _log_probs(given.policy, batch["input_ids"], batch["counts"]).mean())


def test_rejected_answers_do_not_teach_it_never_to_end(tmp_path: Path) -> None:
    """Where all answers differ in one word, how likely the end is after a chosen one does not fall."""
    given = trained(tmp_path, AvaP(**BASE))
    rows = belief_rows(encoded(tiny.tokenizer(), PAIRS, 48))
    ends = [row["chosen_ids"] for row in rows]
    batch = batch_of(AvaP(), PAIRS)
    ids, counts = batch["input_ids"][: len(ends)], batch["counts"][: len(ends)]
    last = counts & (torch.arange(ids.shape[1]) == batch["attention_mask"][: len(ends)].sum(-1, keepdim=True) - 1)
    now, then = (_log_probs(model, ids, last).mean() for model in (given.policy, given.sft))
    assert (ids[last] == 1).all() and now > then


@pytest.mark.parametrize("method", [AvaD(), AvaP()], ids=["ava_d", "ava_p"])
def test_it_does_not_depend_on_padding_and_soft_labels_are_an_expectation(method: AvaD) -> None:
    given, rows = begun(method), rows_of(method)[:3]
    loss = ava_loss(given, objective_of(method))
    batch = batch_of(method, rows)
    padded = {name: torch.nn.functional.pad(values, (0, 7 * (values.ndim > 1))) for name, values in batch.items()}
    torch.testing.assert_close(loss(given.model, padded, 0)[0], loss(given.model, batch, 0)[0])
    if isinstance(method, AvaP):
        soft = belief_rows(encoded(tiny.tokenizer(), [Row(rows[0].prompt, rows[0].answers, 2.0, 0.75)], 48))
        assert [row["weight"] for row in soft] == [1.5, 0.5]
        assert soft[0]["chosen_ids"] == soft[1]["rejected_ids"] != soft[0]["rejected_ids"]


def test_pairs_move_the_policy_towards_chosen_answers_and_flipped_ones_away(tmp_path: Path) -> None:
    good, bad = moved(trained(tmp_path / "p", AvaP(**BASE))).mean(-1)
    assert good > bad + 1.0
    only = moved(trained(tmp_path / "d", AvaD(**BASE))).mean(-1)
    assert only[0] > 1.0 and float(bad) < float(only[1])  # nobody told AVA-d of the rejected answers
    rows = [Row(row.prompt, row.answers[::-1]) for row in PAIRS]
    method, given = AvaP(**BASE), begun(AvaP(**BASE))
    chosen = arguments(
        partial=tmp_path, device="cpu", seed=0, epochs=1, learning_rate=1e-2, batch_size=4, warmup_share=0.0
    )
    report = MortalReport(tmp_path / "metrics.jsonl")
    fit(given, tiny.tokenizer(), encoded(tiny.tokenizer(), rows, 48), chosen, method, tmp_path, report, 3600.0)
    good, bad = moved(given).mean(-1)
    assert good < bad - 1.0
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["sft_margin"] > 0 and last["sft_accuracy"] > 0.5 and "reward_margin" in last


@pytest.mark.parametrize("method", [AvaD(**BASE), AvaP(**BASE, lora=Lora(rank=2, alpha=4.0))], ids=["d", "p, adapters"])
def test_a_killed_training_ends_where_it_would_have(tmp_path: Path, method: AvaD) -> None:
    whole = trained(tmp_path / "whole", method)
    with pytest.raises(Killed):
        trained(tmp_path / "cut", method, die_at=6, checkpoint_seconds=0.0)
    going = trained(tmp_path / "cut", method, checkpoint_seconds=0.0)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(going.model.state_dict()[name], weight), name


def test_with_adapters_the_policy_comes_out_plain_and_has_moved(tmp_path: Path) -> None:
    method = AvaP(**BASE, lora=Lora(rank=2, alpha=4.0))
    given = trained(tmp_path, method)
    good, bad = moved(given).mean(-1)
    whole = plain(given.policy, method, lambda: tiny.policy(scale=2.0))
    assert whole.state_dict().keys() == tiny.policy().state_dict().keys() and good > bad
    batch = batch_of(AvaP(), PAIRS)
    now, merged = (_log_probs(model.eval(), batch["input_ids"], batch["counts"]) for model in (given.policy, whole))
    torch.testing.assert_close(now, merged, rtol=1e-4, atol=1e-4)


def test_what_is_believed_goes_on_in_the_next_round(tmp_path: Path) -> None:
    given = trained(tmp_path, AvaP(**BASE))
    save_heads(given.model, tmp_path / "heads.safetensors")
    fresh = begun(AvaP(**BASE))
    before = fresh.policy.state_dict()
    load_heads(fresh.model, tmp_path / "heads.safetensors")
    assert torch.equal(fresh.model.reward_head.weight, given.model.reward_head.weight)
    assert fresh.model.reward_head.weight.abs().max() > 0
    assert all(torch.equal(before[name], weight) for name, weight in fresh.policy.state_dict().items())


class _Untied(torch.nn.Linear):
    pass


def test_the_head_that_learns_is_the_policys_own() -> None:
    policy = tiny.policy()
    policy.lm_head = _Untied(16, policy.config.vocab_size, bias=False)
    given = believing(policy, tiny.policy(), AvaD(), 0)
    assert given.model.q_head is policy.lm_head
    tied = tiny.policy()
    bias = _Untied(16, tied.config.vocab_size, bias=True)
    bias.weight = tied.get_input_embeddings().weight
    tied.lm_head = bias
    with pytest.raises(UserError, match="has a bias beside a matrix that is its table of embeddings"):
        believing(tied, tiny.policy(), AvaD(), 0)
