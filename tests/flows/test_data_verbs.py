"""The verbs that look at data and write the data card, as a person meets them: what is printed, exit codes, pages."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from inverse_alignment.config import load
from inverse_alignment.data.read import read

PAIRS = [{"question": f"question {i}?", "better": f"yes, {i} times", "worse": "no", "model": "m"} for i in range(60)]
SHARES = {"train": 0.4, "validation": 0.2, "gate": 0.2, "test": 0.2, "audit": 0.0}


def call(*arguments: str | Path) -> Any:
    own = (
        ("--set", "sft={type: train, sources: []}", "--set", "evaluation.gold={type: none}")
        if arguments[0] == "card"
        else ()
    )
    return CliRunner().invoke(app, ["data", *map(str, (*arguments, *own))])


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration whose source is what `data inspect` suggests for a file of unknown columns."""
    write(tmp_path / "data" / "pairs.jsonl", PAIRS)
    monkeypatch.chdir(tmp_path)
    (found,) = json.loads(call("inspect", "data/pairs.jsonl", "--json").stdout)["files"]
    data = {"sources": yaml.safe_load(found["snippet"]), "aggregate": {"shares": SHARES}}
    arms = {"none": {"selection": {"type": "none"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": data, "arms": arms}))
    return tmp_path


# inspect


def test_the_printed_source_can_be_pasted(project: Path) -> None:
    printed = call("inspect", "data/pairs.jsonl")
    assert printed.exit_code == 0, printed.stdout
    lines = printed.stdout.splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("  - format: "))
    (source,) = yaml.safe_load("\n".join(lines[begin:]))
    assert source["columns"] == {"prompt": "question", "chosen": "better", "rejected": "worse"}
    config = load(Path("params.yaml"), None, (f"data.sources=[{json.dumps(source)}]",))
    assert len(list(read(config.data.sources[0]))) == 60


def test_what_is_printed_is_plain_and_says_what_was_found(tmp_path: Path) -> None:
    rows: list[Any] = [{**PAIRS[0], "question": f"{i}?"} for i in range(50)]
    rows += [{**PAIRS[0], "worse": PAIRS[0]["better"]}, {"question": "x", "better": "a"}]
    path = write(tmp_path / "some.jsonl", rows)
    out = call("inspect", path).stdout
    assert "\x1b" not in out and all(line == line.rstrip() for line in out.splitlines())
    assert "all 52 rows read" in out and "50 can be used, 2 cannot be used" in out
    assert "longer wins  100.0 % of 50 pairs" in out
    assert "chosen equals rejected" in out and "no such column" in out
    assert "on_bad_row: drop" in out
    assert "a sample: the first 20 of about 52 rows" in call("inspect", path, "--rows", "20").stdout


def test_a_broken_file_does_not_stop_the_others_and_is_code_2(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", PAIRS)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(good.read_bytes())[:-20])
    strange = write(tmp_path / "strange.jsonl", [{"id": 1}])
    result = call("inspect", torn, tmp_path / "gone.jsonl", good, strange)
    assert result.exit_code == 2 and "Traceback" not in result.output
    for said in ("end early", "no such file", "60 can be used", "nothing reads these rows"):
        assert said in result.stdout
    assert call("inspect", good, strange).exit_code == 0  # strange, but it can be read
    assert call("inspect").exit_code == 2


def test_json_holds_the_same_facts(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", PAIRS)
    (found,) = json.loads(call("inspect", path, "--json").stdout)["files"]
    assert (found["path"], found["rows"], found["total"], found["complete"]) == (str(path), 60, 60, True)
    assert found["statistics"]["pairs"] == 60 and found["statistics"]["longer_wins"] == 1.0
    assert found["source"]["format"] == "jsonl" and found["snippet"].startswith("- format: jsonl")
    assert len(found["examples"]) == 3 and found["problems"] == [] and found["fault"] is None


def test_a_folder_is_looked_through(tmp_path: Path) -> None:
    for shard in range(3):
        write(tmp_path / "shards" / f"{shard}.jsonl", PAIRS[shard * 20 : shard * 20 + 20])
    (tmp_path / "notes.txt").write_text("nothing")
    result = call("inspect", tmp_path)
    assert result.exit_code == 0
    assert result.stdout.count("longer wins  100.0 %") == 3 and "one source reads them all" in result.stdout
    assert f"path: {tmp_path / 'shards'}\n" in result.stdout and "not looked at" in result.stdout


def test_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07[bold red]\x9b31m\u202e"
    half = "half of a pair: \ud800"
    pair = {"prompt": evil, "chosen": f"{evil}a", "rejected": "b", "source_chosen": evil, "annotator": evil}
    for name, rows in (
        ("pairs.jsonl", [pair, {evil: evil}, {**pair, "chosen": half}, {"prompt": evil}]),
        ("strange.jsonl", [{evil: f"{evil}{half}"}]),
    ):
        result = call("inspect", write(tmp_path / name, rows))
        assert result.exit_code == 0, result.exception
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(result.stdout)
        assert "[bold red]" in result.stdout
        json.loads(call("inspect", tmp_path / name, "--json").stdout)


# card


def test_the_card_is_of_the_pooled_data_and_pooling_is_reused(project: Path) -> None:
    first = call("card")
    assert first.exit_code == 0, first.output
    assert "data card reports/data-card.html" in first.stdout and "aggregate: built" in first.stdout
    page = (project / "reports" / "data-card.html").read_text()
    assert "60 preference pairs on 60 prompts, from 1 dataset" in page
    made = [path.name for path in (project / "artifacts").iterdir() if path.is_dir() and path.name[0] != "."]
    assert sorted(made) == ["aggregate", "tokenizers"]  # nothing that trains
    second = call("card", "--out", "elsewhere/card.html")
    assert second.exit_code == 0 and "2 stages reused" in second.stdout
    assert (project / "elsewhere" / "card.html").read_text() == page


def test_the_card_is_of_the_configuration_asked_for(project: Path) -> None:
    (source,) = yaml.safe_load((project / "params.yaml").read_text())["data"]["sources"]
    limited = json.dumps([{**source, "limit": 50, "licence": "CC BY-NC 4.0"}])
    assert call("card", "--set", f"data.sources={limited}").exit_code == 0
    page = (project / "reports" / "data-card.html").read_text()
    assert "50 preference pairs" in page and "Not for commercial use" in page


def test_a_card_that_cannot_be_written_is_refused_before_pooling(project: Path) -> None:
    (project / "file").write_text("")
    for out in ("data", "file/card.html"):
        result = call("card", "--out", out)
        assert result.exit_code == 2 and "--out" in result.output
    assert not (project / "artifacts").exists()


def test_the_card_bears_no_identity(project: Path) -> None:
    """Its look may change without a stage being run again: no page lies in the preference set's artifact."""
    call("card")
    folders = [path for path in (project / "artifacts" / "aggregate").iterdir() if path.is_dir()]
    assert len(folders) == 1 and not list(folders[0].glob("*.html"))


def test_looking_at_files_loads_no_training_library(tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", PAIRS)
    code = (
        "import sys; from pathlib import Path; from flows.data import inspect;"
        f"inspect([Path({str(path)!r})], 100, 1.0, True);"
        "print([m for m in ('torch', 'transformers', 'datasets', 'matplotlib', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
