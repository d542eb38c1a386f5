"""The documentation says what is so: every emitted metric is defined, and what pages name exists."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
import yaml

from flows.cli import app
from flows.keys import keys
from inverse_alignment.config import PipelineConfig, load
from inverse_alignment.core.records import SPLITS
from inverse_alignment.data.aggregate import FILES
from inverse_alignment.optimise.direct_settings import AvaP, Dpo, Kto
from inverse_alignment.report.comparison import load as read_comparison
from inverse_alignment.report.costs import spent
from inverse_alignment.report.summary import summarise
from tests.stages import chain as stages
from tests.stages.test_compare import run as compare

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs/log.md"  # tells what was; its names may be gone
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = TOP + sorted({*ROOT.glob("docs/**/*.md")} - {LOG})
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SUFFIXES = {"dvc", "html", "json", "jsonl", "lock", "md", "py", "toml", "txt", "yaml", "safetensors", "gz", "parquet"}
OPTIONAL = {
    "notes",  # only where a checkpoint lacks something
    "stopped_early",  # only where a bound is set
    "look_disagreement",  # only where a reward model says how sure it is
    "reward_disagreement",
    "judge_win_rate",  # only where there is a judge
    "judge_consistent_share",
    "on_policy_temperature",  # only where labels run with the scores
    "offline_temperature",
    "length_correlation",  # only where answers differ in length
}
OPTIONAL |= {"corr_return_length", "corr_return_log_prob"}  # of some families of reward models: see test_tqr_reward.py
OPTIONAL |= {"held_out_loss", "held_out_accuracy", "best_step"}  # of an early stop: see test_held_out.py
OPTIONAL |= {"strength_mean", "strength_below_zero", "flipped_pairs"}  # see test_reward_training_stage.py
OPTIONAL |= {"prior", "quality_length_correlation", "dropped_length_correlation", "outlier_share"}  # likewise
CHILD = {"datasets", "policies", "annotators"}


def fences(text: str, *languages: str) -> Iterator[str]:
    """The fenced blocks of these languages."""
    yield from (body for language, body in FENCE.findall(text) if language in languages)


def spans(text: str) -> list[str]:
    """What stands in backticks, outside fenced blocks."""
    return SPAN.findall(FENCE.sub("", text))


# ------------------------------------------------------------------------------------------------- metrics


def defined() -> dict[str, set[str]]:
    """The names in the first column of each section of metrics.md, by heading."""
    sections = re.split(r"^## ", TEXTS["docs/metrics.md"], flags=re.MULTILINE)[1:]
    return {s.splitlines()[0]: set(re.findall(r"^\| `([^`]+)` \|", s, re.MULTILINE)) for s in sections}


def names_of(path: Path) -> set[str]:
    """The field names in a JSON or JSONL file."""
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return {name for row in rows for name in row}


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a real round of every stage wrote, under the headings of metrics.md."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = stages.whole_round(stages.Chain(tmp_path_factory.mktemp("docs")))
        stages.token_reward(run)
        stages.direct(run, "direct", Kto(batch_size=8))
        stages.direct(run, "of_pairs", Dpo(batch_size=8))
        stages.direct(run, "believing", AvaP(batch_size=8))
    finally:
        torch.set_num_threads(threads)
    nodes = {
        "tokenizers": "tokenizers",
        "preferences": "aggregate",
        "sft": "sft",
        "reward": "reward_model",
        "token_reward": "token_reward",
        "reference_rollouts": "rollout",
        "selection": "select",
        "refreshed": "refresh",
        "ppo": "ppo",
        "direct": "direct",
        "evaluation": "evaluate",
    }
    found = {f"{stage}: headline": set(run.metrics[node]) for node, stage in nodes.items()}
    for node in ("sft", "reward", "token_reward", "refreshed", "ppo", "direct"):
        found[f"{nodes[node]}: metrics.jsonl"] = names_of(run.partial(node) / "metrics.jsonl")
    for node in ("of_pairs", "believing"):
        found["direct: headline"] |= set(run.metrics[node])
        found["direct: metrics.jsonl"] |= names_of(run.partial(node) / "metrics.jsonl")
    written = [
        (node, path) for node in nodes for path in run.made[node].glob("*.json*") if path.name != "metrics.jsonl"
    ]
    records = {f"{split}.jsonl" for split in SPLITS} | set(FILES.values())
    for node, path in written:
        if path.name not in records:
            found[f"{nodes[node]}: {path.name}"] = names_of(path)
    found["reward_model: calibration.json"] = names_of(run.made["reward"] / "model" / "calibration.json")
    statistics = json.loads((run.made["preferences"] / "statistics.json").read_text())
    for kind in CHILD:
        found["aggregate: statistics.json"] |= {name for summary in statistics[kind].values() for name in summary}
    return found


def test_every_emitted_metric_is_defined_and_nothing_else_is(emitted: dict[str, set[str]]) -> None:
    sections = defined()
    elsewhere = {"compare: headline", "summary.json", "evaluate-rm", "recover"}  # below, and in tests of these verbs
    elsewhere |= {"reward_model: strata.json", "reward_model: strengths.jsonl"}  # in test_reward_training_stage.py
    assert set(emitted) == set(sections) - elsewhere
    for heading, names in emitted.items():
        assert names - sections[heading] == set(), f"not defined in '{heading}' of docs/metrics.md"
        assert sections[heading] - names - OPTIONAL == set(), f"defined in '{heading}' of docs/metrics.md, not emitted"


def test_the_names_of_comparison_and_summary_are_defined(tmp_path: Path) -> None:
    out, headline = compare(tmp_path)
    assert {re.sub(r"^[^.]+", "ARM", name) for name in headline} == defined()["compare: headline"]
    comparison = read_comparison(out)
    summary = summarise(comparison, 1.0, "c" * 64, spent(comparison, tmp_path))
    arms = [part for arm in summary["arms"].values() for part in (arm, arm["cost"])]
    rounds = [round_ for arm in summary["arms"].values() for round_ in arm["rounds"]]
    seeds = [seed for round_ in rounds for seed in round_["per_seed"]]
    assert {name for part in (summary, *summary["gains"], *arms, *rounds, *seeds) for name in part} == defined()[
        "summary.json"
    ]


def test_a_metric_without_a_definition_is_noticed(emitted: dict[str, set[str]]) -> None:
    assert "kl" in emitted["ppo: metrics.jsonl"] and "policy_loss" in emitted["ppo: metrics.jsonl"]
    assert {"gate_pairs", "kl_of_nothing"} - defined()["aggregate: headline"] == {"kl_of_nothing"}


# ------------------------------------------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall(FENCE.sub("", TEXTS[page])):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page} links to {target}"


def test_every_page_can_be_found_from_the_index() -> None:
    linked = {
        (ROOT / page).parent.joinpath(target.partition("#")[0]).resolve()
        for page in ("README.md", "docs/index.md", "docs/decisions/README.md")
        for target in LINK.findall(TEXTS[page])
        if not target.startswith("http")
    }
    assert {page.resolve() for page in PAGES} - linked == set()


# ------------------------------------------------------------------------------------------------- commands


def commands(text: str) -> Iterator[list[str]]:
    """Every command of ours in spans and shell blocks, as words."""
    lines = [line.strip() for block in fences(text, "sh") for line in block.splitlines()]
    for line in [*spans(text), *lines]:
        if line.startswith("inverse-alignment "):
            yield shlex.split(line, comments=True)[1:]


def verb_of(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that words name, and what follows it."""
    command, rest = typer.main.get_command(app), words
    while rest and hasattr(command, "commands"):
        if rest[0].startswith("-"):
            break
        assert rest[0] in command.commands, f"no verb '{' '.join(words)}'"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("page", TEXTS)
def test_commands_that_are_printed_exist(page: str) -> None:
    for words in commands(TEXTS[page]):
        command, rest = verb_of(words)
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= known, words
        settings = [rest[i + 1] for i, word in enumerate(rest) if word == "--set"]
        presets = [rest[i + 1] for i, word in enumerate(rest) if word == "--preset"]
        shipped = [name for name in presets if not name.endswith(".yaml") and name != "NAME"]
        if "KEY=VALUE" not in settings:
            load(ROOT / "params.yaml", shipped[0] if shipped else None, settings, root=ROOT)


@pytest.mark.parametrize("page", TEXTS)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [*spans(TEXTS[page]), *(line for block in fences(TEXTS[page], "sh") for line in block.splitlines())]
    named = {match[1] for text in code if (match := re.match(r"make ([a-z-]+)", text.strip()))}
    assert named <= targets


def test_a_verb_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no verb"):
        verb_of(["fly"])


# ------------------------------------------------------------------------------------------------- keys


def key_paths() -> set[str]:
    """Every configuration key, without the names of variants."""
    listed = {re.sub(r"\(\w+\)", "", path) for path, _, _ in keys(PipelineConfig)}
    typed = {re.sub(r"\(\w+\)\..*", "", path) for path, _, _ in keys(PipelineConfig) if "(" in path}
    return listed | {f"{path}.type" for path in typed}


def is_key(text: str) -> bool:
    """Whether a span is meant as the path of a key."""
    parts = text.split(".")
    return (
        len(parts) > 1
        and re.fullmatch(r"[a-z_.]+", text) is not None
        and parts[0] in PipelineConfig.model_fields
        and parts[-1] not in SUFFIXES
    )


@pytest.mark.parametrize("page", TEXTS)
def test_configuration_keys_exist(page: str) -> None:
    named = {text for text in spans(TEXTS[page]) if is_key(text)}
    assert named - key_paths() == set()


def test_the_look_at_keys_can_fail() -> None:
    assert is_key("ppo.kl_coef") and "ppo.kl_coef" not in key_paths()
    assert "ppo.kl.coefficient" in key_paths() and not is_key("data.dvc")


@pytest.mark.parametrize("page", TEXTS)
def test_yaml_examples_are_valid_presets(page: str, tmp_path: Path) -> None:
    for number, block in enumerate(fences(TEXTS[page], "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        assert isinstance(yaml.safe_load(block), dict)
        load(ROOT / "params.yaml", str(path), root=ROOT)


# ------------------------------------------------------------------------------------------------- files and functions


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_functions_that_are_named_exist(page: str) -> None:
    source = ROOT / "src/inverse_alignment"
    for text in spans(TEXTS[page]):
        name, _, symbol = text.partition("::")
        if (
            not re.fullmatch(r"[\w./-]+\.(py|yaml|jinja)", name)
            or "/" not in name
            or name.startswith(("my", "pipeline/"))
        ):
            continue
        if name.rpartition("/")[2].startswith(("NAME", "test_NAME")):
            continue
        path = next((root / name for root in (ROOT, source) if (root / name).is_file()), None)
        assert path is not None, f"{page} names {text}"
        if symbol:
            code = path.read_text(encoding="utf-8")
            assert re.search(rf"^(def|class) {re.escape(symbol)}\b", code, re.MULTILINE), f"{page} names {text}"
