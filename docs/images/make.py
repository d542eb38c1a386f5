"""`make screenshots`: pictures of the report, MLflow and Prefect after a small run, for the pages on operating it.

Starts the servers of `make up` in this project, registers the deployments, runs the preset `smoke`, photographs, and
ends what it started. Needs a Chromium or Chrome on the path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import typer
from playwright.sync_api import Browser, sync_playwright

from inverse_alignment.core.errors import UserError
from tasks import services

ROOT = Path(__file__).parents[2]
IMAGES = Path(__file__).parent
REPORT = Path("reports") / "screenshots"
BIN = Path(sys.executable).parent
SETTLE_MS = 4000
"""Until a page's own requests are answered and its charts drawn."""
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]


def main() -> int:
    """Start, run, photograph, end."""
    try:
        chromium = _chromium()
        up = services.up(ROOT, "sqlite:///mlflow.db")
        try:
            _call("prefect", "deploy", "--all", "--no-prompt", api=up.prefect)
            _call("inverse-alignment", "run", "--preset", "smoke", "--report-dir", str(REPORT), api=up.prefect)
            _photograph(chromium, pictures(up.prefect.removesuffix("/api"), up.mlflow))
        finally:
            services.down(ROOT)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        return 2
    return 0


@dataclass(frozen=True)
class Picture:
    """A page, and what is typed into its search for charts before it is photographed."""

    name: str
    address: str
    charts: str = ""


def pictures(prefect: str, mlflow: str) -> list[Picture]:
    """What is photographed."""
    runs = f"{mlflow}/#/experiments/{_experiment(mlflow)}/runs?workflowType=machine_learning"
    arms = f"{runs}&compareRunsMode=CHART&searchFilter=" + quote("tags.arm LIKE '%'")
    return [
        Picture("report", (ROOT / REPORT / "report.html").as_uri()),
        Picture("prefect-runs", f"{prefect}/runs"),
        Picture(
            "prefect-picture", f"{prefect}/artifacts/artifact/{_artifact(prefect, 'inverse-alignment-rewards-by-kl')}"
        ),
        Picture("prefect-deployments", f"{prefect}/deployments"),
        Picture("mlflow-runs", runs),
        Picture("mlflow-arms", arms, charts="evaluate/(gold|rm_score|kl)"),
    ]


def _artifact(prefect: str, key: str) -> str:
    """The newest of a key. The address of the key itself answers with the id of all of them."""
    asked = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
    request = urllib.request.Request(  # noqa: S310 (a server of ours)
        f"{prefect}/api/artifacts/filter", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return str(json.load(answer)[0]["id"])


def _experiment(mlflow: str) -> str:
    address = f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name=inverse-alignment"
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 (a server of ours)
        return str(json.load(answer)["experiment"]["experiment_id"])


def _photograph(chromium: str, wanted: list[Picture]) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for picture in wanted:
            _take(browser, picture)
        browser.close()


def _take(browser: Browser, picture: Picture) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(picture.address)
    page.wait_for_timeout(SETTLE_MS)
    for panel in page.get_by_role("button", name="Close", exact=True).all():  # MLflow's assistant
        panel.click()
    if picture.charts:
        page.get_by_placeholder("Search metric charts").fill(picture.charts)
    page.wait_for_timeout(SETTLE_MS / 2)
    page.screenshot(path=str(IMAGES / f"{picture.name}.png"))
    typer.echo(IMAGES / f"{picture.name}.png")
    page.close()


def _chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise UserError("no Chromium or Chrome is on the path", where="PATH", fix="install one")
    return found


def _call(program: str, *arguments: str, api: str) -> None:
    subprocess.run([str(BIN / program), *arguments], cwd=ROOT, env={**os.environ, "PREFECT_API_URL": api}, check=True)


if __name__ == "__main__":
    sys.exit(main())
