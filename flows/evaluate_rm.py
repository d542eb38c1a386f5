"""A reward model on RewardBench and on files of pairs, as a table, JSON and a page; the verb `evaluate-rm`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.protocols import Score
from inverse_alignment.core.store import open_store
from inverse_alignment.evaluation.judged import BenchmarkScore, SectionScore, judge
from inverse_alignment.evaluation.rewardbench import read_benchmarks
from inverse_alignment.models.checks import CONFIG, FAMILY, POSITIONS, SCORE_HEADS, require_policy, shapes
from inverse_alignment.report import judged_page
from tasks import run_stage
from tasks.recorder import key_of
from tasks.run_stage import Flow

if TYPE_CHECKING:
    from inverse_alignment.config import PipelineConfig
    from inverse_alignment.maths.bootstrap import Interval

MOST_TOKENS = 2048  # as in RewardBench 2; models with fewer positions read fewer
PARTS = ("model", "policy")  # where artifacts of stages keep theirs
LINE_SECONDS = 10.0
NOTHING = "–"


@dataclass(frozen=True)
class Judged:
    """Whose scores they are, and how they were got.

    Attributes:
        reference: of a policy's implicit reward; None for a reward model.
        max_tokens: most tokens of prompt and answer together.
    """

    model: Path
    reference: Path | None
    max_tokens: int

    @property
    def what(self) -> str:
        """In words."""
        if self.reference is None:
            return f"reward model {self.model}"
        return f"implicit reward of {self.model} with respect to {self.reference}"


def evaluate(
    named: tuple[str, str | None],
    data: Sequence[Path],
    config: PipelineConfig,
    flow: Flow,
    max_tokens: int | None,
    probing: bool,
    console: Console,
) -> dict[str, Any]:
    """Score a model on files, and print what it reaches.

    Args:
        named: the model, and the reference of a policy or None: folders, or nodes of the flow.
        data: files of RewardBench 1 or 2, or of pairs.
        max_tokens: most tokens of prompt and answer; as many as the model has positions, at most 2048, if None.
        probing: whether to try shortcuts too.

    Returns:
        What it prints, as plain values.

    Raises:
        UserError: the model, its reference or the data are not what they should be.
    """
    folders = [checkpoint_folder(name, config, flow) if name else None for name in named]
    assert folders[0] is not None
    judged = Judged(folders[0], folders[1], max_tokens or positions_of([each for each in folders if each]))
    _require(judged)
    benchmarks = read_benchmarks(data)
    score = _score(judged, config)
    with Watching(Console(stderr=True)) as progress:
        found = judge(benchmarks, score, 0, probing, progress)
    for each in found:
        show(each, judged, console)
    return {
        "model": str(judged.model),
        "policy_reference": None if judged.reference is None else str(judged.reference),
        "max_tokens": judged.max_tokens,
        "benchmarks": [each.as_json() for each in found],
    }


def write(found: dict[str, Any], out: Path | None, report_dir: Path | None) -> list[Path]:
    """Write the numbers to a file, and the page with the numbers beside it into a folder.

    Raises:
        UserError: a file cannot be written.
    """
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    files = {} if out is None else {out: text}
    if report_dir is not None:
        files |= {report_dir / judged_page.PAGE: judged_page.render(found), report_dir / judged_page.DATA: text}
    for path, content in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot be written: {error.strerror}", where=str(path), fix="name another file") from error
    return list(files)


def track(found: dict[str, Any], config: PipelineConfig, files: Sequence[Path]) -> None:
    """Record what was found as a run in MLflow, as stages are recorded: in the journal first.

    Args:
        files: what `write` wrote; those in the folder of the last are kept with the run.

    Raises:
        UserError: tracking is switched off.
    """
    from tasks.lineage import tracker

    lineage = tracker(config)
    if lineage is None:
        raise UserError(
            "there is nowhere to record it", where="tracking.mlflow_uri", fix="name a store, or leave out --track"
        )
    settings = {name: found[name] for name in ("model", "policy_reference", "max_tokens")}
    folder = files[-1].resolve().parent if files else Path()
    with lineage:
        lineage.judged(
            "evaluate-rm",
            {**settings, "files": [file for each in found["benchmarks"] for file in each["files"]]},
            points(found),
            str(folder) if files else "",
            tuple(path.name for path in files if path.resolve().parent == folder),
        )


def points(found: dict[str, Any]) -> tuple[tuple[str, float, int], ...]:
    """Every section's numbers as metrics `benchmark/section/name`, and the overall score of a benchmark."""
    values: dict[str, float | None] = {}
    for benchmark in found["benchmarks"]:
        if benchmark["overall"] is not None:
            values[f"{benchmark['name']}/overall"] = benchmark["overall"]["mean"]
        for section in benchmark["sections"]:
            numbers = {"score": section["score"]["mean"], **(section["probes"] or {}), **(section["calibration"] or {})}
            numbers |= {name: section[name] for name in ("items", "chance", "longer_wins")}
            nulls = numbers.pop("null_wins", {})
            numbers |= {"null_wins": max(nulls.values())} if nulls else {}
            values |= {f"{benchmark['name']}/{section['name']}/{name}": value for name, value in numbers.items()}
    return tuple((key_of(name), float(value), 0) for name, value in values.items() if isinstance(value, (int, float)))


# ---------------------------------------------------------------------------------------------- whose scores


def checkpoint_folder(name: str, config: PipelineConfig, flow: Flow) -> Path:
    """The folder of a checkpoint: given, or inside an artifact that is given or is a node's."""
    path = Path(name)
    if not path.exists():
        store = open_store(config.store)
        planned = run_stage.plan(flow, store).planned
        if name not in planned:
            raise UserError(
                "no such folder, and no node of the plan has that name",
                where=name,
                fix="give the folder of a checkpoint, or a node that `inverse-alignment plan` lists",
            )
        entry = planned[name].entry
        if entry is None:
            raise UserError(f"'{name}' is not built yet", where=name, fix=f"build it: inverse-alignment stage {name}")
        path = store.local(entry.artifact)
    found = [each for each in (path, *(path / part for part in PARTS)) if (each / CONFIG).is_file()]
    if not found:
        raise UserError(
            f"no checkpoint: neither it nor {' or '.join(PARTS)} inside it has a {CONFIG}",
            where=str(path),
            fix="give a folder that `save_pretrained` wrote",
        )
    return found[0]


def positions_of(folders: Sequence[Path], most: int = MOST_TOKENS) -> int:
    """Most tokens that all of them read."""
    configs = [json.loads((folder / CONFIG).read_bytes()) for folder in folders]
    return min([most, *(int(values[name]) for values in configs for name in POSITIONS if values.get(name))])


def _require(judged: Judged) -> None:
    """Refuse, without loading anything, what is no reward model, or no policy beside a reference."""
    for folder in (judged.model, judged.reference):
        if folder is not None and judged.max_tokens > (most := positions_of([folder], judged.max_tokens)):
            raise UserError(
                f"{judged.max_tokens} tokens are more than the {most} positions that the model has",
                where=f"--max-tokens, and {folder / CONFIG}",
                fix=f"set it to at most {most}, or leave it out",
            )
    if judged.reference is not None:
        require_policies((judged.model, judged.reference), judged.max_tokens, "leave out --policy-reference")
        return
    if (judged.model / FAMILY).is_file():
        return  # what it is made of is known to its family alone
    if not any(name.startswith(SCORE_HEADS) for name in shapes(judged.model, "MODEL")):
        raise UserError(
            "not a reward model: its weights have no score head",
            where=str(judged.model),
            fix="give a sequence classifier with one label; for a policy's implicit reward add --policy-reference",
        )


def require_policies(folders: Sequence[Path], max_tokens: int, otherwise: str) -> None:
    """Refuse, without loading anything, what is no causal language model.

    Args:
        otherwise: what else than giving two policies would help.

    Raises:
        UserError: see `models.checks.require_policy`; or a folder has a score head.
    """
    for folder in folders:
        require_policy(folder, "MODEL", max_tokens)
        if any(name.startswith(SCORE_HEADS) for name in shapes(folder, "MODEL")):
            raise UserError(
                "not a causal language model: it has a score head",
                where=str(folder),
                fix=f"give two policies, or {otherwise}",
            )


def _score(judged: Judged, config: PipelineConfig) -> Score:
    from inverse_alignment.models.implicit_rewards import load_implicit_reward
    from inverse_alignment.models.loading import pick_device
    from inverse_alignment.models.reward_scores import load_scorer

    device, rows = pick_device(config.runtime.device), config.runtime.scoring_rows
    if judged.reference is not None:
        tokens = rows * judged.max_tokens
        return load_implicit_reward(judged.model, judged.reference, device, judged.max_tokens, tokens)
    return load_scorer(judged.model, device, judged.max_tokens, rows)


# ---------------------------------------------------------------------------------------------- what is shown


class Watching:
    """How far work is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console, self._spoke = console, time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("", total=None) if self._bar else None

    def __enter__(self) -> Callable[[int, int, str], None]:
        if self._bar:
            self._bar.start()
        return self._told

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _told(self, done: int, total: int, unit: str) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=unit)
        elif time.monotonic() - self._spoke > LINE_SECONDS:
            self._spoke = time.monotonic()
            self._console.print(f"{done} of {total} {unit}", highlight=False)


def show(found: BenchmarkScore, judged: Judged, console: Console) -> None:
    """Print a benchmark's sections and subsets, with what shortcuts reach beside them."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{escape(found.name)}, {escape(judged.what)}", title_justify="left")
    for column, align in _columns(any(section.probes for section in found.sections)):
        table.add_column(column, justify="left" if align else "right", no_wrap=not align, overflow="fold")
    for section in found.sections:
        table.add_row(escape(section.name), *_cells(section))
        for subset, (items, score) in section.subsets.items():
            table.add_row(f"[dim]  {escape(subset)}[/]", f"[dim]{items}[/]", f"[dim]{_percent(score)}[/]")
    console.print(table)
    for line in _lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _columns(probed: bool) -> list[tuple[str, bool]]:
    names = ["prompts", "score, 95 %", "chance", "longer wins", "ECE", "tempered"]
    probes = ["swapped prompt", "own prompt wins", "beats empty", "prompt alone", "null answer wins"]
    return [("section", True), *((name, False) for name in (*names, *(probes if probed else ())))]


def _cells(section: SectionScore) -> list[str]:
    sure = section.calibration
    cells = [str(section.items), _with_interval(section.score), _percent(section.chance), _percent(section.longer_wins)]
    cells += [_percent(share) for share in ((None, None) if sure is None else (sure.ece, sure.ece_tempered))]
    if (probes := section.probes) is None:
        return cells
    worst = max(probes.null_wins, key=lambda name: probes.null_wins[name])
    shares = (probes.swapped_prompt, probes.own_prompt_wins, probes.beats_empty, probes.prompt_share)
    return [*cells, *map(_percent, shares), f"{_percent(probes.null_wins[worst])} {worst}"]


def _lines(found: BenchmarkScore) -> list[str]:
    lines = []
    if found.overall is not None:
        lines.append(f"{found.name}: {_with_interval(found.overall)}, the mean of its sections")
    if found.with_prior is not None:
        lines.append(f"{found.name} with prior sets at half weight: {_with_interval(found.with_prior)}")
    if found.lacking:
        lines.append(f"no score of {found.name} as a whole: the files lack {', '.join(found.lacking)}")
    if found.dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in found.dropped.items())
        lines.append(f"rows not used: {counts}")
    return lines


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}"


def _with_interval(score: Interval) -> str:
    return f"{_percent(score.mean)} [{_percent(score.low)}, {_percent(score.high)}]"
