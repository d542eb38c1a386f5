"""Direct training: TRL's losses where TRL has them, the limits of a moving reference, and resuming to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from inverse_alignment.models import loss_trainer
from inverse_alignment.models.adapters import POLICY, REFERENCE, adapter_weights
from inverse_alignment.models.trl_training import arguments, configure
from inverse_alignment.optimise import direct
from inverse_alignment.optimise.direct import Answers, Learning, Row, RowCollator, encoded, fit, learning, with_others
from inverse_alignment.optimise.direct_settings import (
    Direct,
    Dpo,
    FixedAnchor,
    HardAnchor,
    Ipo,
    Irft,
    Kto,
    RoundAnchor,
    Selm,
    SoftAnchor,
    TrDpo,
    TrKto,
)
from inverse_alignment.optimise.settings import Lora
from tests.unit.killed import Killed, MortalReport
from tests.unit.models import tiny

GOOD, BAD = ["the cat", "a cat sat", "cat on the mat", "the cat."], ["a dog", "the dog sat", "dog on the mat", "a dog."]
PAIRS = [tiny.pair(f"q{i}", GOOD[i % 4], BAD[(i // 4) % 4], i) for i in range(32)]
BASE = {"batch_size": 4, "learning_rate": 1e-2, "warmup_share": 0.0}
LORA = Lora(rank=2, alpha=4.0)


def rows_of(method: Direct) -> list[Row]:
    if isinstance(method, Kto):
        return [
            Row(pair.prompt, (answer,), good=good)
            for pair in PAIRS
            for answer, good in ((pair.chosen, True), (pair.rejected, False))
        ]
    own = ("on the end",) if isinstance(method, Selm) else ()
    return [Row(pair.prompt, (pair.chosen, pair.rejected, *own)) for pair in PAIRS]


def begun(method: Direct) -> Learning:
    sft = tiny.policy(scale=2.0)
    return learning(tiny.policy(scale=2.0), sft, sft, method, seed=0)


def trained(
    partial: Path,
    method: Direct,
    die_at: int = -1,
    checkpoint_seconds: float = 3600.0,
    rows: Sequence[Row] = (),
) -> Learning:
    partial.mkdir(exist_ok=True)
    given, report = begun(method), MortalReport(partial / "metrics.jsonl")
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
    ids = encoded(tiny.tokenizer(), rows or rows_of(method), 48)
    fit(given, tiny.tokenizer(), ids, chosen, method, partial, report, checkpoint_seconds)
    return given


def gaps(given: Learning) -> torch.Tensor:
    """How much more than the SFT policy the policy prefers each chosen answer, nats."""
    rows = encoded(tiny.tokenizer(), rows_of(Dpo()), 48)
    sequences = direct.Sequences.of(direct.TokenBatch(*list(RowCollator(0)(rows).values())[:4]))
    with torch.no_grad():
        mine, sft = (
            direct.answer_log_probs(head, sequences) for head in (direct.Head(given.policy), direct.Head(*given.sft))
        )
    good, bad = (mine - sft).chunk(2)
    return good - bad


# the losses


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_that_of_trl(tmp_path: Path, smoothing: float) -> None:
    from trl import DPOConfig, DPOTrainer

    policy, sft = tiny.policy(1, 2.0), tiny.policy(scale=2.0)
    rows = encoded(tiny.tokenizer(), rows_of(Dpo()), 48)[:6]
    ours, _ = _loss(Dpo(beta=0.3, label_smoothing=smoothing), policy, sft, rows)
    given = {"output_dir": str(tmp_path), "beta": 0.3, "label_smoothing": smoothing, "report_to": [], "use_cpu": True}
    kind = "robust" if smoothing else "sigmoid"
    texts = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    trainer = DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(sft),
        args=configure(DPOConfig, {**given, "loss_type": kind, "bf16": False, "gradient_checkpointing": False}),
        train_dataset=Dataset.from_list(texts),
        processing_class=tiny.tokenizer(),
    )
    sides = [
        {"prompt_ids": row["prompt"], "chosen_ids": a, "rejected_ids": b} for row in rows for a, b in [row["answers"]]
    ]
    theirs = float(trainer.compute_loss(trainer.model, trainer.data_collator(sides)).detach())
    if smoothing:  # cDPO's, which TRL calls robust once it is debiased
        plain, _ = _loss(Dpo(beta=0.3), policy, sft, rows)
        turned = [{**row, "answers": row["answers"][::-1]} for row in rows]
        flipped, _ = _loss(Dpo(beta=0.3), policy, sft, turned)
        assert ours == pytest.approx((1 - smoothing) * plain + smoothing * flipped, abs=1e-5)
        assert theirs == pytest.approx(((1 - smoothing) * plain - smoothing * flipped) / (1 - 2 * smoothing), abs=1e-5)
    else:
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_kto_is_that_of_trl(tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    policy, sft = tiny.policy(1, 2.0), tiny.policy(scale=2.0)
    rows = with_others(encoded(tiny.tokenizer(), rows_of(Kto()), 48)[:8], 8)
    ours, _ = _loss(Kto(beta=0.3, undesirable_weight=1.5), policy, sft, rows)
    given = {"output_dir": str(tmp_path), "beta": 0.3, "undesirable_weight": 1.5, "report_to": [], "use_cpu": True}
    texts = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    trainer = KTOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(sft),
        args=configure(KTOConfig, {**given, "bf16": False, "gradient_checkpointing": False}),
        train_dataset=Dataset.from_list(texts),
        processing_class=tiny.tokenizer(),
    )
    batch = trainer.data_collator(
        [
            {
                "prompt_ids": row["prompt"],
                "completion_ids": row["answers"][0],
                "KL_completion_ids": row["answers"][1],
                "label": row["good"],
            }
            for row in rows
        ]
    )
    theirs = float(trainer.compute_loss(trainer.model, batch).detach())
    weights = torch.where(torch.tensor([row["good"] for row in rows]), 1.0, 1.5)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert weights.sum() == 10.0


def _loss(method: Direct, policy: Any, sft: Any, rows: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    batch = RowCollator(0)(rows)
    sequences = direct.Sequences.of(direct.TokenBatch(*list(batch.values())[:4]))
    with torch.no_grad():
        mine, reference = (direct.answer_log_probs(direct.Head(model), sequences) for model in (policy, sft))
        loss, seen = direct.loss_of(method, Answers(mine, reference, reference, len(rows[0]["answers"])), batch)
    return float(loss), {name: float(value) for name, value in seen.items()}


def test_padding_and_company_change_no_row() -> None:
    policy, sft = tiny.policy(1, 2.0), tiny.policy(scale=2.0)
    long = Row(tiny.PROMPTS[1], ("the cat sat on the mat. a dog and a cat", "a"))
    rows = encoded(tiny.tokenizer(), [*rows_of(Dpo())[:3], long], 48)
    alone = [_loss(Dpo(), policy, sft, [row])[0] for row in rows]
    together, seen = _loss(Dpo(), policy, sft, rows)
    assert together == pytest.approx(sum(alone) / 4, abs=1e-5) and 0 <= seen["sft_accuracy"] <= 1


METHODS = [Dpo(**BASE), Ipo(**BASE), Kto(**BASE), Selm(**BASE), Irft(**BASE, loss="hinge"), Irft(**BASE, loss="linear")]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.type}-{getattr(m, 'loss', '')}")
def test_each_method_comes_to_prefer_what_is_chosen(tmp_path: Path, method: Direct) -> None:
    given = trained(tmp_path, method)
    assert gaps(given).mean() > 0.5 and tiny.same(tiny.weights(given.sft.model), tiny.weights(tiny.policy(scale=2.0)))


# the reference


@pytest.mark.parametrize(("base", "moving"), [(Dpo, TrDpo), (Kto, TrKto)])
def test_a_reference_that_does_not_move_is_a_frozen_one_to_the_bit(
    tmp_path: Path, base: Callable[..., Direct], moving: Callable[..., Direct]
) -> None:
    frozen = tiny.weights(trained(tmp_path / "frozen", base(**BASE)).policy)
    never = (SoftAnchor(alpha=0.0), HardAnchor(every=10_000)) if base is Dpo else (SoftAnchor(alpha=0.0),)
    for number, still in enumerate(never):
        found = trained(tmp_path / str(number), moving(**BASE, reference=still))
        assert tiny.same(tiny.weights(found.policy), frozen)
    other = trained(tmp_path / "moved", moving(**BASE))
    assert not tiny.same(tiny.weights(other.policy), frozen)


def test_all_of_the_policy_after_every_step_is_a_copy_after_every_step(tmp_path: Path) -> None:
    soft = trained(tmp_path / "soft", TrDpo(**BASE, reference=SoftAnchor(alpha=1.0)))
    hard = trained(tmp_path / "hard", TrDpo(**BASE, reference=HardAnchor(every=1)))
    assert tiny.same(tiny.weights(soft.policy), tiny.weights(hard.policy))
    assert tiny.same(tiny.weights(hard.reference.model), tiny.weights(hard.policy))


class Watching(TrainerCallback):
    """Keeps the weights of policy and reference after every optimiser step."""

    def __init__(self, given: Learning) -> None:
        self.given, self.policy, self.reference = given, [], []

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        lora = self.given.reference.borrows
        sides = (
            [adapter_weights(self.given.policy, name) for name in (POLICY, REFERENCE)]
            if lora
            else [tiny.weights(model) for model in (self.given.policy, self.given.reference.model)]
        )
        self.policy.append({name: weight.clone() for name, weight in sides[0].items()})
        self.reference.append({name.replace(REFERENCE, POLICY): weight.clone() for name, weight in sides[1].items()})


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "adapters"])
def test_it_moves_after_optimiser_steps_and_not_after_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Lora | None
) -> None:
    """By α towards the policy of that moment: the same of adapters as of all weights."""
    watched: list[Watching] = []
    follows = direct.Following

    def both(given: Learning, config: Any) -> Any:
        watched.append(Watching(given))
        return follows(given, config)

    class WithWatching(loss_trainer.LossTrainer):
        def __init__(self, *, callbacks: list[Any], **kwargs: Any) -> None:
            super().__init__(callbacks=[*callbacks, watched[-1]], **kwargs)

    monkeypatch.setattr(direct, "Following", both)
    monkeypatch.setattr(loss_trainer, "LossTrainer", WithWatching)
    trained(tmp_path, TrDpo(**BASE, accumulation=2, reference=SoftAnchor(alpha=0.25), lora=lora))
    (seen,) = watched
    assert len(seen.policy) == 4  # 32 pairs, in passes of 4, two of them a step
    last = seen.reference[0]
    for policy, reference in zip(seen.policy[1:], seen.reference[1:], strict=True):
        expected = {name: old.lerp(policy[name], 0.25) for name, old in last.items()}
        assert all(torch.equal(reference[name], weight) for name, weight in expected.items())
        assert any(not torch.equal(reference[name], old) for name, old in last.items())
        last = reference


def test_passes_of_one_step_are_one_batch(tmp_path: Path) -> None:
    few = rows_of(Dpo())[:8]
    whole = trained(tmp_path / "a", Dpo(**{**BASE, "batch_size": 8}), rows=few)
    parts = trained(tmp_path / "b", Dpo(**BASE, accumulation=2), rows=few)
    torch.testing.assert_close(gaps(whole), gaps(parts), rtol=1e-3, atol=1e-3)
    assert gaps(whole).abs().max() > 0.01


# resuming


@pytest.mark.parametrize(
    ("reference", "lora"),
    [(SoftAnchor(), None), (HardAnchor(every=3), LORA), (FixedAnchor(), LORA), (RoundAnchor(), None)],
    ids=["soft", "hard-adapters", "frozen-adapters", "round"],
)
def test_a_killed_fit_ends_with_the_same_bytes(tmp_path: Path, reference: Any, lora: Lora | None) -> None:
    method = Dpo(**BASE, epochs=2, reference=reference, lora=lora)
    straight = trained(tmp_path / "straight", method)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", method, die_at=13, checkpoint_seconds=1e-9)
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-10"]
    torch.manual_seed(123)
    resumed = trained(tmp_path / "killed", method)
    assert tiny.same(tiny.weights(resumed.policy), tiny.weights(straight.policy))
    assert tiny.same(tiny.weights(resumed.reference.model), tiny.weights(straight.reference.model))
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("killed", "straight")]
    assert rows[0] == rows[1] and "sft_margin" in rows[0]


def test_a_policy_with_adapters_ends_as_a_plain_one(tmp_path: Path) -> None:
    method = TrDpo(**BASE, lora=LORA)
    given = trained(tmp_path, method)
    plain = direct.plain(given.policy, method, lambda: tiny.policy(scale=2.0))
    ids = torch.tensor([[5, 9, 20, 33]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, given.policy(ids).logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(plain(ids).logits, given.sft.model(ids).logits, atol=1e-3)
