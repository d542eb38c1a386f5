"""`inverse-alignment evaluate-rm`: table, JSON and page on tiny models, and what is refused before one is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli import app
from inverse_alignment.core.errors import UserError
from inverse_alignment.models.ensembles import EnsembleScorer, headed_members, save_ensemble
from inverse_alignment.models.loading import new_reward_model
from tests.unit.models import tiny

ROOT = Path(__file__).parents[2]
PAIRS = [
    {"prompt": prompt, "chosen": f"the cat {i}", "rejected": f"a dog sat {i}"}
    for i, prompt in enumerate(("hi", "why does the cat sit", "a dog?", "the end"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("evaluate-rm")
    tiny.saved(tiny.reward_model(), made / "artifact" / "model")
    (made / "bare").mkdir()
    tiny.saved(tiny.policy(0, 3.0), made / "policy")
    tiny.saved(tiny.policy(1, 3.0), made / "reference")
    (made / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (made / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return made


def call(folder, *words):
    return CliRunner().invoke(app, ["evaluate-rm", *map(str, words), "--params", str(folder / "params.yaml")])


def test_a_reward_model_gives_table_numbers_and_page(folder):
    out, pages = folder / "scores.json", folder / "pages"
    run = call(folder, folder / "artifact", folder / "pairs.jsonl", "--json", out, "--report-dir", pages)
    assert run.exit_code == 0, run.output
    found = json.loads(out.read_text())
    (section,) = found["benchmarks"][0]["sections"]
    assert found["max_tokens"] == tiny.SPEC.context and section["items"] == 4
    assert f"{100 * section['score']['mean']:.1f} [" in run.output and "swapped prompt" in run.output
    assert json.loads((pages / "evaluate-rm.json").read_text()) == found
    page = (pages / "evaluate-rm.html").read_text()
    assert f"{100 * section['probes']['swapped_prompt']:.1f}" in page and "<script" not in page
    sure = section["calibration"]
    assert f"{100 * sure['ece']:.1f}" in page and "tempered" in run.output and sure["pairs"] == 4
    names = {*found, *found["benchmarks"][0], *section, *section["score"], *section["probes"], *sure, *sure["bins"][0]}
    text = (ROOT / "docs/metrics.md").read_text()
    defined = re.search(r"^## evaluate-rm$(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert defined is not None and set(re.findall(r"^\| `([^`]+)` \|", defined[1], re.MULTILINE)) == names


def test_an_ensemble_is_a_reward_model_too(folder, tmp_path):
    heads = new_reward_model(tiny.SPEC, tiny.tokenizer(), 0, outputs=2)
    scorer = EnsembleScorer(headed_members(heads, tiny.tokenizer(), 48, 8), np.zeros(2))
    save_ensemble(scorer, heads, tiny.tokenizer(), [], {"type": "shared"}, tmp_path / "model")
    run = call(folder, tmp_path, folder / "pairs.jsonl", "--json", tmp_path / "scores.json", "--no-probes")
    assert run.exit_code == 0, run.output
    assert json.loads((tmp_path / "scores.json").read_text())["benchmarks"][0]["sections"][0]["items"] == 4
    again = call(folder, tmp_path, folder / "pairs.jsonl", "--policy-reference", folder / "reference")
    assert again.exit_code == 2 and "causal" in again.output


def test_a_policy_is_scored_beside_its_reference(folder):
    run = call(
        folder, folder / "policy", folder / "pairs.jsonl", "--policy-reference", folder / "reference", "--no-probes"
    )
    assert run.exit_code == 0, run.output
    assert "implicit reward of" in run.output and "swapped prompt" not in run.output


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        ("policy", (), "no score head"),
        ("artifact", ("--policy-reference", "reference"), "causal"),
        ("nowhere", (), "no node of the plan has that name"),
        ("reward-s0", (), "is not built yet"),
        ("bare", (), "no checkpoint"),
        ("artifact", ("--max-tokens", "2000"), "positions"),
    ],
)
def test_what_is_refused(folder, monkeypatch, model, more, says):
    from flows import cli

    monkeypatch.chdir(folder)
    command = next(each.callback for each in cli.app.registered_commands if each.name == "evaluate-rm")
    options = {"reference": None, "max_tokens": None}
    if more:
        name = {"--policy-reference": "reference", "--max-tokens": "max_tokens"}[more[0]]
        options[name] = int(more[1]) if more[1].isdigit() else more[1]
    store = [f"store={folder / 'store'}"]
    sources = ["data.sources=[{format: jsonl, name: a, path: pairs.jsonl}]"]
    with pytest.raises(UserError) as found:
        command(model, [Path("pairs.jsonl")], **options, probes=False, out=None, report_dir=None,
                params=Path("params.yaml"), preset=None, overrides=[*store, *sources])  # fmt: skip
    assert says in found.value.what
