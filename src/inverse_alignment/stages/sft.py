"""preferences + tokenizer (+ checkpoint) -> the SFT policy, also the frozen reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from inverse_alignment.core.configuration import Section
from inverse_alignment.core.context import StageContext
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.specs import ModelSpec


class TrainSft(Section):
    """Supervised fine-tuning on answers of the train split."""

    type: Literal["train"] = "train"
    sources: tuple[str, ...] = Field((), description="source policies whose answers are imitated; empty for all")
    learn_from: tuple[Literal["pairs", "demonstrations", "judgements"], ...] = Field(
        ("pairs", "demonstrations"),
        min_length=1,
        description="rows whose answers are imitated: of pairs, of demonstrations, of judgements that call them good",
    )
    answers: Literal["chosen", "both"] = Field(
        "chosen", description="of a pair the chosen answer, or both (a source policy as it is, good and bad days)"
    )
    demonstrations: int = Field(0, ge=0, description="most demonstrations to use; 0 for all")
    epochs: float = Field(3, gt=0, description="passes over the demonstrations")
    learning_rate: float = Field(8e-3, gt=0, description="peak learning rate of AdamW, linear decay")
    batch_size: int = Field(16, ge=1, description="demonstrations per optimiser step")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")


class CheckpointSft(Section):
    """The policy's checkpoint is an SFT model already; it is used as it is."""

    type: Literal["checkpoint"] = "checkpoint"


SftConfig = Annotated[TrainSft | CheckpointSft, Field(discriminator="type")]


class SftStage(Section):
    """Identity of the stage: how to train, and which model."""

    sft: SftConfig
    model: ModelSpec


def build(inputs: Mapping[str, Path], config: SftStage, context: StageContext) -> dict[str, Any]:
    """Write `policy/`: a folder that plain transformers loads."""
    from inverse_alignment.core.parallel import group
    from inverse_alignment.models.loading import load_policy, new_policy, pick_device, place, save_model
    from inverse_alignment.models.specs import InitialisedModel
    from inverse_alignment.text.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(inputs["tokenizers"] / "policy").tokenizer
    spec = config.model
    if isinstance(spec, InitialisedModel):
        model = new_policy(spec, tokenizer, context.seed)
    else:
        model = load_policy(inputs["policy_model"], spec.dtype)
    device = pick_device(context.runtime.device)
    metrics: dict[str, Any] = {}
    if isinstance(config.sft, TrainSft):
        metrics = _train(place(model, device), tokenizer, inputs["preferences"], config.sft, spec.context, context)
    if group().rank:
        return {}  # the first process has the same weights
    save_model(place(model, "cpu"), tokenizer, context.out / "policy")
    return {**metrics, "parameters": model.num_parameters()}


def _train(
    model: Any, tokenizer: Any, preferences: Path, config: TrainSft, context_tokens: int, context: StageContext
) -> dict[str, Any]:
    from inverse_alignment.models.trl_training import scheduled
    from inverse_alignment.optimise.supervised import demonstrations, fine_tune

    kept = _distinct(_written(preferences, config), config.sources)
    rows = demonstrations(tokenizer, kept[: config.demonstrations or None], context_tokens)
    trained = fine_tune(
        model,
        tokenizer,
        rows,
        scheduled(config, model.device, context),
        context.partial,
        context.report,
        context.runtime.checkpoint_seconds,
    )
    return {**trained, "demonstrations": len(rows)}


def _written(preferences: Path, config: TrainSft) -> list[tuple[Prompt, str, str]]:
    """Prompt, answer and writer of every row of the train split that may be imitated, in the order of the data."""
    from inverse_alignment.core.records import Demonstration, Judgement
    from inverse_alignment.data.aggregate import read_others, read_split

    written: list[tuple[Prompt, str, str]] = []
    if "pairs" in config.learn_from:
        pairs = read_split(preferences, "train")
        written += [(pair.prompt, pair.chosen, pair.provenance.source_chosen) for pair in pairs]
        if config.answers == "both":
            written += [(pair.prompt, pair.rejected, pair.provenance.source_rejected) for pair in pairs]
    if "demonstrations" in config.learn_from:
        shown = read_others(preferences, Demonstration, "train")
        written += [(row.prompt, row.response, row.provenance.source) for row in shown]
    if "judgements" in config.learn_from:
        judged = read_others(preferences, Judgement, "train")
        written += [(row.prompt, row.response, row.provenance.source) for row in judged if row.label]
    return written


def _distinct(written: Sequence[tuple[Prompt, str, str]], sources: Sequence[str]) -> list[tuple[Prompt, str]]:
    """Distinct answers of the wanted source policies, in the order given.

    Raises:
        UserError: a source policy is named that wrote no answer, or nobody wrote any.
    """
    from inverse_alignment.core.errors import UserError, nearest

    known = sorted({source for _, _, source in written})
    if not known:
        raise UserError(
            "there is no answer to imitate", where="sft.learn_from", fix="name the kind of rows that the sources hold"
        )
    for name in sources:
        if name not in known:
            raise UserError(f"no source policy '{name}'", where="sft.sources", fix=nearest(name, known))
    kept = {
        (prompt.key, answer): (prompt, answer) for prompt, answer, source in written if not sources or source in sources
    }
    return list(kept.values())
