"""`evaluate-rm --track`: the numbers of a reward model as a run in MLflow, by way of the journal like all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows.cli import app
from tasks.journal import read_journals
from tests.ops.mlflow_view import runs_of
from tests.unit.models import tiny

ROOT = Path(__file__).parents[2]


def test_what_evaluate_rm_found_is_a_run_with_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.saved(tiny.reward_model(), tmp_path / "model")
    rows = [{"prompt": f"q{i}", "chosen": f"the cat {i}", "rejected": f"a dog sat {i}"} for i in range(4)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = ["evaluate-rm", "model", "pairs.jsonl", "--report-dir", "pages", "--json", "apart/scores.json"]

    def call(*more: str) -> str:
        Path("apart").mkdir(exist_ok=True)
        run = CliRunner().invoke(app, [*words, "--params", "params.yaml", *more])
        return f"{run.exit_code} {run.output} {run.exception}"

    assert "nowhere to record it" in call("--track", "--set", "tracking.mlflow_uri=")
    assert not Path("mlflow.db").exists()
    settings = ("--set", f"tracking.mlflow_uri={uri}", "--set", "tracking.experiment=toys")
    assert call("--track", *settings).startswith("0 ")
    (run,) = runs_of(uri)
    (benchmark,) = json.loads(Path("apart/scores.json").read_text())["benchmarks"]
    (section,) = benchmark["sections"]
    where = f"{benchmark['name']}/{section['name']}"
    assert run.info.run_name == "evaluate-rm" and run.info.status == "FINISHED"
    assert run.data.metrics[f"{where}/score"] == section["score"]["mean"]
    assert run.data.metrics[f"{where}/swapped_prompt"] == section["probes"]["swapped_prompt"]
    assert run.data.metrics[f"{where}/null_wins"] == max(section["probes"]["null_wins"].values())
    assert run.data.params["model"] == "model" and run.data.tags["ia.kind"] == "judged"
    kept = {each.path for each in MlflowClient(uri).list_artifacts(run.info.run_id)}
    assert {"evaluate-rm.html", "evaluate-rm.json"} <= kept
    (journal,) = read_journals(Path("artifacts/.journal"))
    assert [event.do for event in journal.events] == ["open", "note", "close"]
