"""The command line. Light at module level: a verb imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console

    from inverse_alignment.config import PipelineConfig
    from inverse_alignment.core.artifact import Artifact
    from tasks.run_stage import Flow, Plan

DIVERGED, DIFFERS, USER_ERROR, INTERRUPTED = 1, 1, 2, 130
PUBLISHED = Path("data/advice")
CARD = Path("reports/data-card.html")
SELECTIONS, EXTRAPOLATED = Path("reports/selection"), Path("reports/extrapolated")
REPORT = Path("reports/report")


class Verbs(TyperGroup):
    """The verbs: a mistake ends in three lines and exit code 2, an interruption in one line and 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        from inverse_alignment.core.errors import UserError, no_room

        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(USER_ERROR) from error
        except OSError as error:  # outside of the store, which knows more: a report, a database, a cache
            if no_room(error) is None:
                raise
            where = error.filename or Path.cwd()
            fix = "free space there; what is finished stays, and the same command goes on"
            typer.echo(f"error: no room left on the device\n  where: {where}\n  fix:   {fix}", err=True)
            raise typer.Exit(USER_ERROR) from error
        except FloatingPointError as error:
            typer.echo(f"error: training diverged: {error}\n  fix:   lower the learning rate of that stage", err=True)
            raise typer.Exit(DIVERGED) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("\nstopped; continue with the same command", err=True)
            raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    name="inverse-alignment",
    cls=Verbs,
    help="RLHF that refreshes its reward model where the policy now is.\n\nExample: inverse-alignment run",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data = typer.Typer(
    help="Files of data, and the published dataset.\n\nExample: inverse-alignment data inspect my/pairs.jsonl",
    no_args_is_help=True,
    rich_markup_mode=None,
)
server = typer.Typer(
    help="The project's Prefect server.\n\nExample: inverse-alignment server start",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data, name="data")
app.add_typer(server, name="server")

Params = Annotated[Path, typer.Option("--params", help="configuration file", metavar="FILE")]
Preset = Annotated[
    list[str] | None, typer.Option("--preset", help="name of a file in presets/, or a path; once", metavar="NAME")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="override; may be repeated", metavar="KEY=VALUE")]
ReportDir = Annotated[Path, typer.Option("--report-dir", help="where the pages and summary.json go", metavar="DIR")]
PARAMS, REPORTS = Path("params.yaml"), Path("reports/latest")


@app.command()
def run(
    params: Params = PARAMS, preset: Preset = None, overrides: Overrides = None, report_dir: ReportDir = REPORTS
) -> None:
    """Run every arm and seed, tracked by Prefect and MLflow; what is there already is reused.

    Example: inverse-alignment run --set rounds=2 --report-dir reports/two-rounds
    """
    run_job(_load(params, preset, overrides), report_dir)


def run_job(config: PipelineConfig, report_dir: Path) -> None:
    """The main job for a configuration: plan, run what is missing, then table, report and where to look."""
    from inverse_alignment.core.store import open_store
    from tasks import run_stage

    began = time.monotonic()
    console = _console()
    _require_writable(report_dir)
    _require_device(config)
    plan = run_stage.plan(_flow(config), open_store(config.store))
    _require_vllm(config, plan)
    counts = plan.counts()
    console.print(f"{len(plan.nodes)} stages: {counts['reuse']} reused, {len(plan.missing)} to run", highlight=False)
    comparison = _run_tracked(config, plan, console)
    _conclude(config, Path(comparison.uri), report_dir, time.monotonic() - began, console)


def _require_writable(folder: Path, option: str = "--report-dir") -> None:
    """Refuse a folder for results that cannot be made now, not after the run."""
    from inverse_alignment.core.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the report cannot go there: {error.strerror}", where=f"{option} {folder}", fix="name another folder"
        ) from error


def _require_device(config: PipelineConfig) -> None:
    """Refuse a GPU that is not there before anything runs; without a wish for one torch is not asked."""
    if config.runtime.device == "cuda":
        from inverse_alignment.models.loading import pick_device

        pick_device("cuda")


def _require_vllm(config: PipelineConfig, plan: Plan) -> None:
    """Refuse a vLLM that is not there before anything runs, if a stage that has to run samples by it."""
    from inverse_alignment.generation.settings import VllmGeneration
    from inverse_alignment.generation.vllm import find_program
    from inverse_alignment.stages.evaluate import EvaluateStage
    from inverse_alignment.stages.rollout import RolloutStage

    for item in plan.missing:
        match item.node.config:
            case RolloutStage(rollout=sampled) | EvaluateStage(evaluation=sampled):
                if isinstance(sampled.generation, VllmGeneration):
                    find_program(config.runtime.vllm)


@app.command()
def plan(
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="say instead what each stage needs on its device, and what would help")
    ] = False,
    device_memory: Annotated[
        str | None, typer.Option("--device-memory", help="the same for a device that is not here", metavar="SIZE")
    ] = None,
) -> None:
    """Say what a run would reuse, run and why, before anything is paid for; or what it needs in memory.

    Example: inverse-alignment plan --set ppo.kl.coefficient=0.1

    Example: inverse-alignment plan --memory --device-memory 24GiB
    """
    if memory or device_memory is not None:
        from flows.memory import show

        if not show(lambda more: _load(params, preset, [*(overrides or ()), *more]), _console(), device_memory):
            raise typer.Exit(USER_ERROR)
        return
    from rich import box
    from rich.table import Table

    from inverse_alignment.core.store import open_store
    from tasks import run_stage

    config, console = _load(params, preset, overrides), _console()
    planned = run_stage.plan(_flow(config), open_store(config.store))
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("node", "stage", "status", "why"):
        table.add_column(column, overflow="fold", no_wrap=column == "node")
    colours = {"reuse": "green", "run": "yellow", "depends": "dim"}
    for item in planned.planned.values():
        status = f"[{colours[item.status]}]{item.status}[/]"
        table.add_row(item.node.name, item.node.stage, status, _plain(item.why))
    console.print(table)
    counts = planned.counts()
    console.print(
        f"{len(planned.nodes)} stages: {counts['reuse']} reuse, {counts['run']} run, {counts['depends']} after them",
        highlight=False,
    )


@app.command()
def stage(node: Annotated[str, typer.Argument(help="a node of the plan", metavar="NODE")]) -> None:
    """Run one node of params.yaml and what it needs, and write its record to pipeline/: what dvc.yaml calls.

    Example: inverse-alignment stage sft-s0
    """
    from inverse_alignment.core.store import open_store
    from tasks import dvc_file, run_stage
    from tasks.display import Display
    from tasks.slots import HoldsSlots, Slots

    config, console = _load(PARAMS, None, None), _console()
    flow = _flow(config)
    nodes = run_stage.draw(flow)
    needed = run_stage.ancestors(nodes, node)
    dvc_file.require_same_graph(nodes, Path(dvc_file.DVC_FILE))
    execute = run_stage.Execute(open_store(config.store), config.runtime)
    slots = HoldsSlots(Slots(config.runtime))
    with Display(len(needed) + 1, console) as display, run_stage.observing(display, slots):
        ran, entry = run_stage.run_up_to(flow, node, execute)
    path = dvc_file.write_record(ran, entry, Path())
    console.print(f"{node}: {'reused' if entry.reused else 'built'}, {path}", highlight=False, markup=False)


@app.command()
def dvc(check: Annotated[bool, typer.Option("--check", help="write nothing; fail if it is stale")] = False) -> None:
    """Render dvc.yaml from params.yaml.

    Example: inverse-alignment dvc --check
    """
    from tasks import dvc_file, run_stage

    text = dvc_file.render(run_stage.draw(_flow(_load(PARAMS, None, None))), Path())
    path = Path(dvc_file.DVC_FILE)
    if check:
        dvc_file.check(text, path)
    else:
        path.write_text(text, encoding="utf-8")
    _console().print(f"{path} is {'up to date' if check else 'rendered'}", highlight=False)


@app.command()
def verify(
    nodes: Annotated[
        list[str] | None, typer.Argument(help="nodes to rebuild with what they need; all without", metavar="[NODE...]")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="an empty folder that keeps what is built", metavar="DIR")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="write the verdicts there too", metavar="FILE")] = None,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Build the recorded pipeline anew in an empty store, and say metric by metric what came out again.

    Example: inverse-alignment verify sft-s0 reward-s0 --json verdicts.json
    """
    from flows.verify import verify as rebuild

    config = _load(params, preset, overrides)
    if not rebuild(_flow(config), config, nodes or (), store, out, _console()):
        raise typer.Exit(DIFFERS)


@app.command("config")
def show_config(
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
    keys: Annotated[bool, typer.Option("--keys", help="list every key with its default and meaning instead")] = False,
) -> None:
    """Print the configuration as a run would see it, or every key there is.

    Example: inverse-alignment config --preset smoke
    """
    import yaml

    if keys:
        from flows.keys import keys as list_keys
        from inverse_alignment.config import PipelineConfig

        for path, default, description in list_keys(PipelineConfig):
            typer.echo(f"{path}: {description} [{default}]")
        return
    config = _load(params, preset, overrides)
    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def tokens(
    file: Annotated[
        Path | None, typer.Argument(help="JSONL of prompt, chosen, rejected, instead of a source", metavar="FILE")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="source to read instead of the first", metavar="NAME")
    ] = None,
    row: Annotated[int, typer.Option("--row", min=1, help="which of the examples it keeps, from 1", metavar="N")] = 1,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="checkpoint to read with, instead of the run's", metavar="FOLDER")
    ] = None,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Show an example as the models read it: its tokens, which of them count, and what is cut.

    Example: inverse-alignment tokens --source advice --row 3
    """
    from flows.tokens import show

    show(_load(params, preset, overrides), _console(), file, source, row, tokenizer)


@app.command()
def publish(
    name: Annotated[str, typer.Argument(help="what to call the dataset", metavar="NAME")],
    node: Annotated[
        str | None, typer.Option("--node", help="a node of the stage aggregate or select", metavar="NODE")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", help="an arm and seed, as random-s0; with --round", metavar="RUN")
    ] = None,
    round_: Annotated[
        int | None, typer.Option("--round", min=1, help="the round whose subset it is; with --run", metavar="R")
    ] = None,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Make a dataset that DVC tracks from the pooled set, or from the pairs that a round has selected.

    Example: inverse-alignment publish near-the-policy --run similarity-s0 --round 3
    """
    from flows.publish import lines, node_of
    from flows.publish import publish as make_dataset

    config, console = _load(params, preset, overrides), _console()
    for line in lines(name, make_dataset(name, node_of(node, run, round_), _flow(config), config)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def select(
    node: Annotated[
        str | None, typer.Argument(help="a selection of the plan, or ARM/SEED/ROUND; not needed for the only one")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="show why: telling pairs, their nearest policy answers, and a picture")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="folder for page and picture", metavar="DIR")] = SELECTIONS,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Say which pairs a round has chosen, and with --explain why, in a table and a picture.

    Example: inverse-alignment select similarity/0/1 --explain
    """
    from flows.explain import show as show_selection

    config = _load(params, preset, overrides)
    show_selection(node, _flow(config), config, out, explain, _console())


@app.command()
def extrapolate(
    node: Annotated[str, typer.Argument(help="a policy of the plan, for example none-s0-r3-ppo", metavar="NODE")],
    alphas: Annotated[
        list[float] | None,
        typer.Option(
            "--alpha", help="a value to try; may be repeated; 0 is the policy as it is (0, 0.1, 0.2, 0.3, 0.5, 1)"
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="folder for the policy", metavar="DIR")] = EXTRAPOLATED,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Go on from the SFT policy past a trained one, of PPO or a direct method, without training (ExPO).

    Every α is tried on validation prompts, and the one with the highest score is written: by the audit model, or else
    by the first reward model, which a policy of PPO was optimised against. Gold stands beside it and decides nothing; a
    warning is given where the largest α is the best: far out a score may rise while answers get worse.

    Example: inverse-alignment extrapolate none-s0-r3-ppo --alpha 0 --alpha 0.3 --alpha 0.5
    """
    from flows.extrapolate import show as show_extrapolated

    _require_writable(out, "--out")
    config = _load(params, preset, overrides)
    show_extrapolated(node, _flow(config), config, alphas or [0.0, 0.1, 0.2, 0.3, 0.5, 1.0], out, _console())


@app.command("evaluate-rm")
def evaluate_rm(
    model: Annotated[
        str, typer.Argument(help="folder of a reward model or policy, or a node of the plan", metavar="MODEL")
    ],
    data_files: Annotated[
        list[Path], typer.Argument(help="files or folders of RewardBench 1 or 2, or of pairs", metavar="DATA...")
    ],
    reference: Annotated[
        str | None,
        typer.Option("--policy-reference", help="score by how much MODEL, a policy, departs from it", metavar="REF"),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=16, help="most tokens of prompt and answer", metavar="N")
    ] = None,
    probes: Annotated[bool, typer.Option(help="try shortcuts too: over twice as many texts to score")] = True,
    out: Annotated[Path | None, typer.Option("--json", help="write all numbers there too", metavar="FILE")] = None,
    report_dir: Annotated[Path | None, typer.Option("--report-dir", help="write a page there", metavar="DIR")] = None,
    track: Annotated[bool, typer.Option("--track", help="record it as a run in MLflow (tracking.mlflow_uri)")] = False,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Score a reward model, or a policy's implicit reward, on RewardBench and on any pairs, and try shortcuts.

    Example: inverse-alignment evaluate-rm reward-s0 data/advice/pairs.jsonl --json scores.json
    """
    from flows.evaluate_rm import evaluate, write
    from flows.evaluate_rm import track as record

    if report_dir is not None:
        _require_writable(report_dir)
    if out is not None:
        _require_writable(out.parent, "--json")
    config, console = _load(params, preset, overrides), _console()
    found = evaluate((model, reference), data_files, config, _flow(config), max_tokens, probes, console)
    written = write(found, out, report_dir)
    if track:
        record(found, config, written)
    for path in written:
        console.print(path, markup=False, highlight=False, soft_wrap=True)


@app.command()
def recover(
    policy: Annotated[str, typer.Argument(help="folder of an aligned policy, or a node of the plan", metavar="POLICY")],
    reference: Annotated[str, typer.Argument(help="what it was aligned from", metavar="REFERENCE")],
    data_files: Annotated[
        list[Path], typer.Argument(help="files or folders of pairs, or of RewardBench", metavar="DATA...")
    ],
    reward: Annotated[
        str | None, typer.Option("--reward", help="reward model that it was aligned with", metavar="MODEL")
    ] = None,
    loss: Annotated[
        Literal["logistic", "hinge"], typer.Option(help="logistic finds the reward, hinge an order")
    ] = "logistic",
    prompts: Annotated[int, typer.Option(min=0, help="prompts of the data that are answered; 0 for all")] = 600,
    samples: Annotated[int, typer.Option(min=1, help="answers of each policy to each of them")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer in tokens")] = 64,
    epochs: Annotated[float, typer.Option(min=0.01, help="passes over the answers")] = 2.0,
    learning_rate: Annotated[float, typer.Option(min=1e-9, help="peak learning rate")] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="pairs of answers per step")] = 32,
    seed: Annotated[int, typer.Option(help="of samples and training")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="write all numbers there too", metavar="FILE")] = None,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Fit the reward that a policy's own answers imply, and compare it with the reward model and with pairs.

    Example: inverse-alignment recover none-s0-r3-ppo sft-s0 data/advice/pairs.jsonl --reward reward-s0
    """
    from flows import recover as verb

    if out is not None:
        _require_writable(out.parent, "--json")
    config, console = _load(params, preset, overrides), _console()
    folders = verb.resolved(policy, reference, reward, config, _flow(config))
    asked = verb.Asked(*folders, loss, prompts, samples, max_new_tokens, epochs, learning_rate, batch_size, seed)
    found = verb.recover(asked, data_files, config, console)
    if out is not None:
        verb.write(found, out)
        console.print(out, markup=False, highlight=False, soft_wrap=True)


@app.command()
def lineage(
    artifact: Annotated[
        str, typer.Argument(help="a node of the plan, an artifact's folder, or its fingerprint", metavar="POLICY")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="draw it too: a file .svg, .html or .mmd", metavar="FILE")
    ] = None,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Walk from a policy back to its reward model, the subset, the answers and the bytes of the data.

    Example: inverse-alignment lineage similarity-s0-r3-ppo --out reports/lineage.html
    """
    from flows.lineage import show, write
    from inverse_alignment.core.store import open_store
    from tasks import run_stage
    from tasks.ancestry import Records

    config, console = _load(params, preset, overrides), _console()
    store = open_store(config.store)
    records = Records(store.root)
    node = run_stage.plan(_flow(config), store).planned.get(artifact) if not Path(artifact).exists() else None
    start = records.named(node.entry.artifact.uri if node and node.entry else artifact)
    show(records, start, config, console)
    if out:
        write(records, start, out)
        console.print(out, markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="each a folder that --report-dir named, or the fingerprint of the stage compare, or its beginning",
            metavar="[NAME=]RUN...",
        ),
    ],
    report_dir: Annotated[Path, typer.Option("--report-dir", help="where the page goes", metavar="DIR")] = REPORT,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Build the page of one run, or of several side by side.

    It says first whether the policy is better, how sure that is, whether it is over-optimised, and what a refresh did.

    Example: inverse-alignment report plain=reports/latest cheap=reports/cheap-kl --report-dir reports/both
    """
    from flows.report import report as build_report
    from inverse_alignment.core.store import open_store

    _require_writable(report_dir)
    build_report(runs, open_store(_load(params, preset, overrides).store), report_dir, _console())


@app.command()
def watch(
    run: Annotated[str, typer.Argument(help="an arm and seed, or a node of the plan", metavar="RUN")],
    once: Annotated[bool, typer.Option("--once", help="show the curves a single time")] = False,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Show the curves of a run while it goes on, or as it ended, from another terminal.

    Give the same --params, --preset and --set as the run; `inverse-alignment plan` lists the names.

    Example: inverse-alignment watch none-s0
    """
    from flows.watch import watch as show_curves
    from inverse_alignment.core.store import open_store
    from tasks import run_stage

    config = _load(params, preset, overrides)
    show_curves(run, lambda: run_stage.plan(_flow(config), open_store(config.store)), _console(), once)


@app.command()
def mirror(params: Params = PARAMS, preset: Preset = None, overrides: Overrides = None) -> None:
    """Write into MLflow what it lacks of past runs: after its server was away or slow, or to fill another one.

    Example: inverse-alignment mirror --set tracking.mlflow_uri=http://127.0.0.1:5000
    """
    from inverse_alignment.core.errors import UserError
    from tasks.journal import read_journals
    from tasks.lineage import journals_of
    from tasks.mirror import mirror as write_missing

    config = _load(params, preset, overrides)
    if not config.tracking.mlflow_uri:
        raise UserError("there is no MLflow to write to", where="tracking.mlflow_uri", fix="name one with --set")
    done = write_missing(read_journals(journals_of(config)), config.tracking.mlflow_uri)
    left = f"; {done.running} runs go on and write themselves" if done.running else ""
    typer.echo(f"{done.journals} journals read, {done.runs} MLflow runs written{left}")


@app.command("open")
def show_commands(params: Params = PARAMS, preset: Preset = None, overrides: Overrides = None) -> None:
    """Print the commands that open MLflow and Prefect.

    Example: inverse-alignment open
    """
    for line in _viewers(_load(params, preset, overrides)):
        typer.echo(line)


@data.command()
def make(
    out: Annotated[Path, typer.Option("--out", help="folder to write", metavar="DIR")] = PUBLISHED,
    heterogeneity: Annotated[float | None, typer.Option(help="how far annotators disagree, 0 to 1")] = None,
    pairs: Annotated[int | None, typer.Option(help="labelled pairs")] = None,
    topics: Annotated[int | None, typer.Option(help="topics people ask about")] = None,
    prompts: Annotated[int | None, typer.Option(help="distinct prompts")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of every choice")] = None,
) -> None:
    """Write the default world's preferences; without options the published bytes, verified against data.dvc.

    Example: inverse-alignment data make --out my-data --heterogeneity 0.5
    """
    from pydantic import ValidationError

    from inverse_alignment.core.errors import UserError
    from inverse_alignment.world.text import WorldConfig, write_dataset
    from tasks.dataset import require_published, take_into_cache

    given = {"heterogeneity": heterogeneity, "pairs": pairs, "topics": topics, "prompts": prompts, "seed": seed}
    changed = {name: value for name, value in given.items() if value is not None}
    published = out.resolve() == PUBLISHED.resolve()
    if changed and published:
        raise UserError(f"{PUBLISHED}/ holds the published dataset only", where="--out", fix="name another folder")
    try:
        world = WorldConfig(**changed)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            first["msg"].removeprefix("Value error, "),
            where=f"--{first['loc'][0] if first['loc'] else 'prompts'}",
            fix="see inverse-alignment data make --help",
        ) from error
    write_dataset(out, world)
    verified = published and require_published(Path("data.dvc"))
    if verified:
        take_into_cache(Path("data.dvc"))
    typer.echo(f"{out}: {world.pairs} pairs{', as data.dvc records them' if verified else ''}")


@data.command()
def inspect(
    paths: Annotated[list[Path], typer.Argument(help="files, or folders of files", metavar="FILE...")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="most rows to read of a file", metavar="N")] = 20_000,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="most time to read a file", metavar="S")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="print the same facts as JSON")] = False,
) -> None:
    """Say what files of data hold, what is wrong with them, and how to write them under data.sources.

    Example: inverse-alignment data inspect my/pairs.jsonl.gz --rows 1000
    """
    from flows.data import inspect as look_at

    if not look_at(paths, rows, seconds, as_json):
        raise typer.Exit(USER_ERROR)


@data.command()
def card(
    out: Annotated[Path, typer.Option("--out", help="page to write", metavar="FILE")] = CARD,
    params: Params = PARAMS,
    preset: Preset = None,
    overrides: Overrides = None,
) -> None:
    """Pool the data of a configuration, if that is not done yet, and write what it is made of as a page.

    Example: inverse-alignment data card --out reports/my-card.html
    """
    from flows.data import write_card

    config = _load(params, preset, overrides)
    write_card(config, _flow(config), out, _console())


@app.command()
def up(
    host: Annotated[str, typer.Option("--host", help="address to listen on", metavar="ADDRESS")] = "127.0.0.1",
    params: Params = PARAMS,
) -> None:
    """Start a Prefect server, an MLflow server and a worker for each work pool, and keep them until `down`.

    Example: inverse-alignment up
    """
    from tasks.services import up as start_all

    started = start_all(Path(), _load(params, None, None).tracking.mlflow_uri, host)
    typer.echo(f"Prefect   {_dashboard(started.prefect)}")
    typer.echo(f"MLflow    {started.mlflow or 'switched off (tracking.mlflow_uri is empty)'}")
    typer.echo(f"workers   {', '.join(started.workers)}")
    typer.echo(f"deploy    PREFECT_API_URL={started.prefect} prefect deploy --all --no-prompt")


@app.command()
def down() -> None:
    """End what `up` has started, and nothing else.

    Example: inverse-alignment down
    """
    from tasks.services import down as end_all

    ended = end_all(Path())
    typer.echo(f"ended: {', '.join(ended)}" if ended else "nothing runs here")


@server.command()
def start() -> None:
    """Start the project's Prefect server, and keep it until `stop`.

    Example: inverse-alignment server start
    """
    from tasks.server import start as start_server

    typer.echo(f"Prefect answers at {_dashboard(start_server(Path()))}")


@server.command()
def stop() -> None:
    """End the project's Prefect server.

    Example: inverse-alignment server stop
    """
    from tasks.server import stop as stop_server

    typer.echo("the Prefect server has ended" if stop_server(Path()) else "there was no Prefect server")


@server.command()
def status() -> None:
    """Say whether the project's Prefect server runs, and how many runs use it.

    Example: inverse-alignment server status
    """
    from tasks.server import status as status_of

    found = status_of(Path())
    if found.url is None:
        typer.echo("no Prefect server runs; `inverse-alignment server start` starts one")
        return
    kept = ", kept until `inverse-alignment server stop`" if found.pinned else ""
    state = "answers" if found.healthy else "does not answer yet"
    typer.echo(f"Prefect {state} at {_dashboard(found.url)}, process {found.pid}, used by {found.users} runs{kept}")


def main() -> None:
    """Entry point of the console script. Libraries that report their use to somebody are asked not to."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    app()


def _load(params: Path, preset: list[str] | None, overrides: list[str] | None) -> PipelineConfig:
    from inverse_alignment.config import load
    from inverse_alignment.core.errors import UserError

    if preset is not None and len(preset) > 1:
        raise UserError(
            f"--preset is given {len(preset)} times",
            where=f"--preset {' --preset '.join(preset)}",
            fix="name one, and add what you need of the other with --set",
        )
    return load(params, preset[0] if preset else None, overrides or ())


def _flow(config: PipelineConfig) -> Flow:
    from flows.compare import compare

    return lambda: compare(config)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _run_tracked(config: PipelineConfig, planned: Plan, console: Console) -> Artifact:
    """Run the flow under Prefect; a server that has to start does so while modules load.

    Light stages come before all of that: what they refuse is said within seconds, and nothing was started for it.
    """
    from inverse_alignment.core.store import open_store
    from tasks.display import Display
    from tasks.run_stage import Ahead, Execute
    from tasks.server import SharedServer

    with Display(len(planned.nodes), console) as display:
        ahead = Ahead(Execute(open_store(config.store), config.runtime, (display,))).walk(_flow(config))
        server = SharedServer(Path()).begin()
        try:
            from flows.scheduled import run_compare

            return run_compare(config, (display,), server, ahead)
        finally:
            server.release()


def _conclude(config: PipelineConfig, comparison: Path, report_dir: Path, seconds: float, console: Console) -> None:
    from inverse_alignment.core.store import open_store
    from inverse_alignment.report.summary import write_outputs
    from inverse_alignment.report.table import print_tables

    store = open_store(config.store).root
    write_outputs(comparison, report_dir, seconds, config.digest(), store)
    print_tables(comparison, store, console)
    pages = {"report": "report.html", "data card": "data-card.html", "summary": "summary.json"}
    lines = [*(f"{label:<9} {report_dir / name}" for label, name in pages.items()), *_viewers(config)]
    for line in (*lines, f"done in {seconds:.0f} s"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _viewers(config: PipelineConfig) -> list[str]:
    """The commands that open MLflow and Prefect."""
    uri = config.tracking.mlflow_uri
    if uri.startswith("http"):
        mlflow = f"open {uri}"
    elif uri:
        mlflow = f"mlflow ui --backend-store-uri {uri}   # then open http://127.0.0.1:5000"
    else:
        mlflow = "switched off (tracking.mlflow_uri is empty)"
    return [f"MLflow    {mlflow}", "Prefect   inverse-alignment server start   # prints the address"]


def _dashboard(api_url: str) -> str:
    return api_url.removesuffix("/api")


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
