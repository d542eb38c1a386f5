"""The compare stage from artifact folders to files, and its page in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.stages.compare import CompareStage, build
from tests.unit.report import synthetic

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


MANY = tuple(f"a source policy with a name of some length, number {number}" for number in range(59))


def run(root: Path, arms=synthetic.ARMS, rounds=3, seeds=(0,), **made) -> tuple[Path, dict]:
    out = root / "out"
    out.mkdir(parents=True)
    inputs = synthetic.make(root / "in", arms=arms, rounds=rounds, seeds=seeds, **made)
    config = CompareStage(title="A comparison", arms=arms, seeds=seeds, rounds=rounds, config_digest="c" * 64)
    context = StageContext(out, root, FileReport(root / "metrics.jsonl"), RuntimeConfig())
    return out, build(inputs, config, context)


def test_it_writes_three_files_and_returns_headline_metrics(tmp_path):
    out, metrics = run(tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["comparison.json", "data-card.html", "report.html"]
    assert set(metrics) == {f"{a}.{m}" for a in synthetic.ARMS for m in ("gold_reward", "rm_score", "kl_to_sft")}
    assert all(isinstance(value, float) for value in metrics.values())


def test_without_gold_the_metric_is_null(tmp_path):
    _, metrics = run(tmp_path, arms=("none", "similarity"), rounds=1, gold=False)
    assert metrics["none.gold_reward"] is None and metrics["similarity.kl_to_sft"] > 0


def test_same_artifacts_same_bytes(tmp_path):
    first, _ = run(tmp_path / "a")
    second, _ = run(tmp_path / "b")
    for name in ("comparison.json", "report.html", "data-card.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"arms": ("none", "similarity"), "rounds": 1, "gold": False},
        {"arms": ("none", "similarity"), "gold": False, "audit": True, "sources": MANY},
        {"audit": True, "seeds": (0, 1)},
    ],
    ids=["gold", "no gold", "audit", "gold and audit"],
)
def test_page_in_a_browser(tmp_path, case):
    sync_api = pytest.importorskip("playwright.sync_api")
    out, _ = run(tmp_path, **case)
    said: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
            page.on("request", lambda request: asked.append(request.url))
            page.goto((out / "report.html").as_uri())
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(overflow) == 0, width
            assert page.locator(".prompt:not(.off)").count() == 1
            page.locator(".prompts button").nth(3).click()
            assert "alert('policy')" in page.locator(".prompt:not(.off) .text").first.inner_text()
            small = page.evaluate(
                "[...document.querySelectorAll('figure svg')].filter(s => s.clientWidth < 200).length"
            )
            assert small == 0, width
            page.close()
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
