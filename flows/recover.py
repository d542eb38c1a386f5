"""What reward an aligned policy's own answers say it was aligned with; the verb `recover`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.evaluate_rm import Watching, checkpoint_folder, positions_of, require_policies
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.seeding import derive_seed
from inverse_alignment.evaluation.rewardbench import read_benchmarks
from tasks.run_stage import Flow

if TYPE_CHECKING:
    from inverse_alignment.config import PipelineConfig
    from inverse_alignment.core.records import Comparison, Prompt
    from inverse_alignment.evaluation.recovered import Audit

FITTED = 2 / 3  # share of the prompts whose answers the reward is fitted to; the others judge it


@dataclass(frozen=True)
class Asked:
    """What is to be recovered, and how.

    Attributes:
        policy, reference: folders of checkpoints.
        reward: folder of the reward model that the policy was aligned with; None if nobody knows it.
        loss: of `reward.recover.RecoverObjective`.
        prompts: how many of the data's prompts are answered; 0 for all.
        samples: answers of each policy to each of them.
        max_new_tokens: longest answer.
        batch_size: pairs per optimiser step.
    """

    policy: Path
    reference: Path
    reward: Path | None
    loss: Literal["logistic", "hinge"]
    prompts: int
    samples: int
    max_new_tokens: int
    epochs: float
    learning_rate: float
    batch_size: int
    seed: int


def resolved(
    policy: str, reference: str, reward: str | None, config: PipelineConfig, flow: Flow
) -> tuple[Path, Path, Path | None]:
    """Folders of checkpoints that are given by folder or by node of the plan."""
    known = None if reward is None else checkpoint_folder(reward, config, flow)
    return checkpoint_folder(policy, config, flow), checkpoint_folder(reference, config, flow), known


def recover(asked: Asked, data: Sequence[Path], config: PipelineConfig, console: Console) -> dict[str, Any]:
    """Fit the implicit reward, compare it, print how it compares, and return that as plain values.

    Raises:
        UserError: a folder or the data are not what they should be, or the policies answer alike.
    """
    from inverse_alignment.core.metrics import FileReport
    from inverse_alignment.evaluation.recovered import audit, labelled_pairs
    from inverse_alignment.generation.answers import Sampling, choose_prompts
    from inverse_alignment.models.loading import pick_device
    from inverse_alignment.models.tqr_scores import TqrScorer
    from inverse_alignment.reward.recover import RecoverObjective, fit_recovered

    context = positions_of([asked.policy, asked.reference])
    require_policies((asked.policy, asked.reference), context, "give a reward model as --reward")
    device, rows = pick_device(config.runtime.device), config.runtime.scoring_rows
    labelled = labelled_pairs(read_benchmarks(data))
    prompts = choose_prompts([pair.prompt for pair in labelled], asked.prompts, asked.seed)
    _require_prompts(prompts)
    fitted = round(FITTED * len(prompts))
    sampling = Sampling(asked.max_new_tokens, 1.0, context, config.runtime.generation_rows)
    with Watching(Console(stderr=True)) as progress, TemporaryDirectory() as partial:
        others = _others(asked, context, rows, device)  # refused before anything is paid for
        pairs = _opposed(asked, prompts[:fitted], sampling, device, progress)
        held_out = _opposed(asked, prompts[fitted:], sampling, device, progress)
        report = FileReport(Path(partial) / "metrics.jsonl", lambda done, total, unit, _: progress(done, total, unit))
        model, tokenizer, trained = fit_recovered(
            asked.reference,
            pairs,
            RecoverObjective(asked.loss),
            context,
            Path(partial),
            report,
            device,
            asked.seed,
            asked.epochs,
            asked.learning_rate,
            asked.batch_size,
        )
        keys = {prompt.key for prompt in prompts[fitted:]}
        judged = [pair for pair in labelled if pair.prompt.key in keys]
        found = audit(TqrScorer(model, tokenizer, context, rows), others, held_out, judged, asked.seed)
    show(found, asked, console)
    return _values(found, asked, len(prompts), len(pairs), trained["train_loss"])


def write(found: dict[str, Any], out: Path) -> None:
    """Write the numbers to a file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(out), fix="name another file") from error


def _require_prompts(prompts: Sequence[Prompt]) -> None:
    if len(prompts) < 6:
        raise UserError(
            f"{len(prompts)} prompts are too few to fit at some and to judge at others",
            where="DATA, --prompts",
            fix="give at least 6; some hundreds say more",
        )


def _others(asked: Asked, context: int, rows: int, device: Any) -> dict[str, Any]:
    """The exact implicit reward, and the reward model if it is known."""
    from inverse_alignment.models.implicit_rewards import load_implicit_reward
    from inverse_alignment.models.reward_scores import load_scorer

    others: dict[str, Any] = {
        "implicit": load_implicit_reward(asked.policy, asked.reference, device, context, rows * context)
    }
    if asked.reward is not None:
        others["reward_model"] = load_scorer(asked.reward, device, positions_of([asked.reward]), rows)
    return others


def _opposed(asked: Asked, prompts: Sequence[Prompt], sampling: Any, device: Any, progress: Any) -> list[Comparison]:
    """Answers of both policies, drawn independently, as pairs."""
    from inverse_alignment.reward.recover import opposed, sampled

    sides = [
        sampled(folder, prompts, asked.samples, sampling, derive_seed("recover", side, asked.seed), device, progress)
        for side, folder in (("aligned", asked.policy), ("reference", asked.reference))
    ]
    pairs = opposed([prompt for prompt in prompts for _ in range(asked.samples)], *sides)
    if not pairs:
        raise UserError(
            "both policies gave the same answers to all prompts: there is nothing to recover",
            where=f"{asked.policy}, {asked.reference}",
            fix="give a policy that was aligned, and the one that it was aligned from",
        )
    return pairs


# ---------------------------------------------------------------------------------------------- what is shown


def _values(found: Audit, asked: Asked, prompts: int, pairs: int, train_loss: float) -> dict[str, Any]:
    agreement = {name: each._asdict() for name, each in found.agreement.items()}
    return {
        "policy": str(asked.policy),
        "reference": str(asked.reference),
        "reward": None if asked.reward is None else str(asked.reward),
        "loss": asked.loss,
        "prompts": prompts,
        "fitted_pairs": pairs,
        "train_loss": train_loss,
        "told_apart": found.told_apart._asdict(),
        "agreement": agreement,
        "held_out_pairs": found.pairs,
        "accuracy": {name: each._asdict() for name, each in found.accuracy.items()},
        "gap": gap(found),
    }


def gap(found: Audit) -> float | None:
    """How much better the recovered reward agrees with the reward model than with labelled pairs: a sign of hacking."""
    known = found.agreement.get("reward_model")
    if known is None or known.order is None or "recovered" not in found.accuracy:
        return None
    return known.order - found.accuracy["recovered"].mean


def show(found: Audit, asked: Asked, console: Console) -> None:
    """Print the recovered reward beside the others."""
    table = Table(box=box.SIMPLE_HEAD, title=f"reward recovered from {escape(str(asked.policy))}", title_justify="left")
    for column in ("", "orders answers alike", "correlation", "labelled pairs, 95 %"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("recovered", *found.agreement, "longer_wins"):
        each, score = found.agreement.get(name), found.accuracy.get(name)
        table.add_row(
            name.replace("_", " "),
            *(("", "") if each is None else (_percent(each.order), _number(each.correlation))),
            "" if score is None else f"{100 * score.mean:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]",
        )
    console.print(table)
    told = found.told_apart
    console.print(
        f"it tells the policy's answers from the reference's in {100 * told.mean:.1f} % "
        f"[{100 * told.low:.1f}, {100 * told.high:.1f}] of held-out pairs",
        highlight=False,
    )
    if (between := gap(found)) is not None:
        console.print(
            f"agreement with the reward model less accuracy on labelled pairs: {100 * between:+.1f} points; "
            "the larger, the likelier that the reward model was exploited",
            highlight=False,
        )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
