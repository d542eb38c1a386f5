"""`inverse-alignment tokens`: what a person sees of an example's tokens, and what is said when there is nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from flows.cli import app
from flows.tokens import show
from inverse_alignment.config import load
from inverse_alignment.models.loading import new_policy, save_model
from inverse_alignment.models.specs import InitialisedModel
from inverse_alignment.text.tokenizers import load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
PAIR = {"prompt": "the cat?", "chosen": "a dog", "rejected": "the mat", "source_chosen": "ann", "annotator": "eve"}
DEMONSTRATION = {"prompt": "the cat?", "completion": "a dog"}
GOLDEN = """\
== tokenizer reader · 281 entries · context 128 · end token <|end|>

chosen
│<|user|>│⏎│
│........│.│
│the│ cat│?│⏎│
│...│....│.│.│
│<|assistant|>│⏎│
│.............│.│
│a│ dog│<|end|>│
│=│====│^^^^^^^│
8 prompt + 3 answer = 11 of 128 tokens, nothing cut

rejected
│<|user|>│⏎│
│........│.│
│the│ cat│?│⏎│
│...│....│.│.│
│<|assistant|>│⏎│
│.............│.│
│the│ mat│<|end|>│
│===│====│^^^^^^^│
8 prompt + 3 answer = 11 of 128 tokens, nothing cut

Policy. Its loss counts '=' and '^': the answer and its end token, 3 tokens of chosen and 3 tokens of rejected. \
The prompt, '.', is read but not learned from.
Reward model. It reads everything and scores at one position, '^': the end token, position 11 of chosen and \
position 11 of rejected.

│ between tokens · ⏎ line end
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two sources, and a tokenizer whose tokens are known by hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    rows = [PAIR, *({**PAIR, "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(9))]
    write(tmp_path / "pairs.jsonl", *rows)
    write(tmp_path / "shown.jsonl", DEMONSTRATION)
    sources = [
        {"format": "jsonl", "name": "pairs", "path": "pairs.jsonl"},
        {"format": "jsonl", "name": "shown", "path": "shown.jsonl", "kind": "demonstration"},
    ]
    params = {"data": {"sources": sources}, "models": {"reward": {"type": "initialise"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    texts = ["the cat sat on the mat. ", "a dog and a cat.\n\nthe end"] * 20
    train_tokenizer(texts, 300).save_pretrained("reader")
    return tmp_path


def write(path: Path, *rows: dict[str, object]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def seen(*arguments: str) -> str:
    """What is printed, without progress."""
    result = CliRunner().invoke(app, ["tokens", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> list[str]:
    """The three lines of an error."""
    result = CliRunner().invoke(app, ["tokens", *arguments])
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    return lines


# what is shown


def test_a_pair_token_by_token(project: Path) -> None:
    text = seen("--tokenizer", "reader")
    heading, _, rest = text.partition("\n\n")
    assert heading.startswith("pairs, row 1  id ") and heading.endswith(" · chosen by ann · judged by eve")
    assert rest == GOLDEN


def test_colours_say_the_same_as_marks(project: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=30, no_color=False)
    show(load(Path("params.yaml")), console, tokenizer=Path("reader"))
    text = out.getvalue()
    grey, white, green, blue = "\x1b[90m", "\x1b[37m", "\x1b[32m", "\x1b[34m"
    assert f"{grey}the\x1b[0m{white} cat\x1b[0m{grey}?\x1b[0m{white}⏎\x1b[0m" in text
    assert f"{green}a\x1b[0m{blue} dog\x1b[0m\x1b[1;7;32m<|end|>\x1b[0m" in text  # bold, and reversed where it scores
    plain = Text.from_ansi(text).plain
    assert "a dog<|end|>" in plain and "'='" not in plain and "│" not in plain
    assert max(map(len, plain.splitlines())) <= 30


def test_without_colours_on_a_terminal_there_are_marks(project: Path) -> None:
    out = io.StringIO()
    show(load(Path("params.yaml")), Console(file=out, force_terminal=True, no_color=True, width=200))
    assert "│" in out.getvalue() and "^^^" in out.getvalue()


def test_a_source_and_a_row_are_chosen(project: Path) -> None:
    assert "│ dog│" in seen("--tokenizer", "reader") and "│ dog│" not in seen("--tokenizer", "reader", "--row", "2")
    text = seen("--source", "shown", "--tokenizer", "reader")
    assert text.startswith("shown, row 1") and "\ndemonstration\n" in text and "\nrejected\n" not in text
    assert "3 tokens of demonstration" in text
    assert "reward models learn from pairs" in text and "scores at one position" not in text


def test_a_file_of_ones_own_takes_the_place_of_a_source(project: Path) -> None:
    same = {**PAIR, "rejected": PAIR["chosen"]}  # no preference: not counted among the rows
    write(project / "mine.jsonl", same, {**PAIR, "chosen": "on the mat"})
    text = seen("mine.jsonl", "--tokenizer", "reader")
    assert text.startswith("file, row 1") and "│on│ the│ mat│<|end|>│" in text


@pytest.mark.parametrize(
    ("kind", "row", "label"),
    [
        ("judgement", {**DEMONSTRATION, "label": False}, "judged bad"),
        ("judgement", {**DEMONSTRATION, "label": True}, "judged good"),
        ("prompt", {"prompt": "the cat?"}, "prompt"),
    ],
)
def test_other_kinds_of_examples(project: Path, kind: str, row: dict[str, object], label: str) -> None:
    write(project / "others.jsonl", row)
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"]["sources"].append({"format": "jsonl", "name": "others", "path": "others.jsonl", "kind": kind})
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    text = seen("--source", "others", "--tokenizer", "reader")
    assert f"\n{label}\n" in text
    assert ("No answer: the policy writes it from here on" in text) == (kind == "prompt")
    assert ("│ dog│" in text) == (kind == "judgement")
    assert ("judged bad is imitated by no policy" in text) == (label == "judged bad")


def test_what_is_cut_is_said_and_dropped_where_the_run_drops_it(project: Path) -> None:
    long = {"prompt": "b" * 100, "chosen": "x" * 100, "rejected": "the mat"}
    write(project / "long.jsonl", long)
    text = seen("long.jsonl", "--tokenizer", "reader")
    assert (
        "64 prompt + 64 answer = 128 of 128 tokens, cut: the prompt from 105 to 64 and the answer from 101 to 64"
        in text
    )
    assert "64 prompt + 3 answer = 67 of 128 tokens, cut: the prompt from 105 to 64" in text
    assert "Aggregation drops this row" not in text
    dropped = seen("long.jsonl", "--tokenizer", "reader", "--set", "data.aggregate.too_long=drop")
    assert "Aggregation drops this row: longer than the context (data.aggregate.too_long: drop)." in dropped
    write(project / "alike.jsonl", {**long, "chosen": "x" * 100 + "y", "rejected": "x" * 100 + "z"})
    assert "drops this row: identical after tokenisation." in seen("alike.jsonl", "--tokenizer", "reader")


def test_a_text_cannot_give_commands_to_the_terminal(project: Path) -> None:
    write(project / "rude.jsonl", {**PAIR, "prompt": "\x1b[2J[bold]\tthe cat\x07", "chosen": "[/]a"})
    text = seen("rude.jsonl", "--tokenizer", "reader")
    assert "\x1b" not in text and "\x07" not in text
    assert "│\\x1b│[│2│" in text and "│⇥│" in text and "⇥ tab" in text


# whose tokenizers


def test_the_tokenizers_of_the_run_are_built_once(project: Path) -> None:
    first = CliRunner().invoke(app, ["tokens"])
    assert "tokenizers: built in" in first.stderr and "tokenizers:" not in first.stdout
    assert len(list((project / "artifacts" / "tokenizers").glob("*/artifact.json"))) == 1
    again = CliRunner().invoke(app, ["tokens"])
    assert again.stdout == first.stdout and again.stderr == ""
    assert "== policy and reward model · " in again.stdout


def test_tokenizers_that_differ_are_shown_one_after_the_other(project: Path) -> None:
    text = seen("--set", "models.reward.vocab_size=270")
    policy, _, reward = text.partition("== reward model · 270 entries")
    assert "== policy · " in policy and "Policy." in policy and "^" not in policy
    assert "Reward model." in reward and "^" in reward and "Policy." not in reward
    longer = seen("--set", "models.reward.context=160")  # one tokenizer, two limits
    assert "== policy · " in longer and " · context 160 · " in longer


def test_a_checkpoints_tokenizer_is_that_of_the_run(project: Path) -> None:
    tokenizer = load_tokenizer(project / "reader").tokenizer
    spec = InitialisedModel(vocab_size=len(tokenizer), hidden_size=16, layers=1, heads=2, context=64)
    save_model(new_policy(spec, tokenizer, 0), tokenizer, project / "reader")
    checkpoint = "{type: checkpoint, path: reader, context: 64}"
    text = seen(
        *("--set", f"models.policy={checkpoint}", "--set", f"models.reward={checkpoint}"),
        *("--set", "sft={type: checkpoint}", "--set", "reward={type: train}"),
        *(f"--set={section}.max_new_tokens=16" for section in ("reference_sample", "rollout", "ppo", "evaluation")),
    )
    assert "== policy and reward model · 281 entries · context 64 · end token <|end|>" in text
    assert "│a│ dog│<|end|>│" in text


def test_what_a_tokenizer_lacks_is_said(project: Path) -> None:
    (project / "reader" / "chat_template.jinja").unlink()
    assert "reader: no chat template; the plain one is used" in seen("--tokenizer", "reader")


# mistakes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--source", "pears"), ("no source 'pears' in data.sources", "--source", "did you mean 'pairs'?")),
        (
            ("--row", "11", "--tokenizer", "reader"),
            ("the source holds 10 usable rows, not 11", "--row 11", "use 1 to 10"),
        ),
        (("--tokenizer", "nowhere"), ("no folder to load a tokenizer from", "nowhere", "the folder of a checkpoint")),
        (("--tokenizer", "."), ("transformers cannot load a tokenizer", ".", "tokenizer.json")),
        (("pairs.jsonl", "--source", "pairs"), ("a file and a source are given", "pairs.jsonl", "name one of them")),
        (("gone.jsonl", "--tokenizer", "reader"), ("", "gone.jsonl", "")),
        (("--params", "gone.yaml"), ("configuration file not found", "gone.yaml", "")),
    ],
)
def test_a_mistake_is_three_lines(project: Path, arguments: tuple[str, ...], says: tuple[str, str, str]) -> None:
    lines = refused(*arguments)
    assert all(part in line for part, line in zip(says, lines, strict=True)), lines
    assert not (project / "artifacts" / "tokenizers").exists()


def test_a_row_below_one_is_refused() -> None:
    assert CliRunner().invoke(app, ["tokens", "--row", "0"]).exit_code == 2


# the verb itself


def test_help_has_an_example_that_parses() -> None:
    text = CliRunner().invoke(app, ["tokens", "--help"]).stdout
    example = next(line for line in text.splitlines() if "Example: inverse-alignment tokens" in line)
    assert all(word in text for word in example.split() if word.startswith("--"))


def test_the_command_line_stays_light() -> None:
    """The verb's modules are imported when it runs."""
    code = "import sys, flows.cli; print(sorted({'torch', 'transformers', 'flows.tokens'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
