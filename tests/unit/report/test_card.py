"""The data card: every number of the statistics is on the page, what they lack is unknown, and nobody is trusted."""

from __future__ import annotations

import copy
import json
import re
import shutil
from html import unescape
from typing import Any

import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Demonstration, Prompt
from inverse_alignment.data.aggregate import STATISTICS, AggregateSettings, pool
from inverse_alignment.data.read import Dropped
from inverse_alignment.data.splits import SplitShares
from inverse_alignment.report import card_figures
from inverse_alignment.report.card import render
from inverse_alignment.report.card_statistics import Policy, Statistics
from tests.stages.test_compare import CHROMIUM, FLAGS

ATTACK = "<script>alert('card')</script> & a $very$ long name that nobody would give to a policy of theirs"


def words(mean: float, median: float, p95: float) -> dict[str, float]:
    return {"mean": mean, "median": median, "p95": p95}


def group(**changes: Any) -> dict[str, Any]:
    return {
        "rows": 1200,
        "pairs": 1100,
        "prompts": 400,
        "dropped": {"duplicate": 60, "tie": 30, "empty chosen": 10},
        "ties": 30,
        "kept_after_tokenisation": 0.9873,
        "truncated": 17,
        "splits": {"train": {"pairs": 900, "prompts": 330}, "test": {"pairs": 200, "prompts": 70}},
        "chosen_words": words(41.4, 39, 90),
        "rejected_words": words(28.6, 27, 71),
        "longer_wins": 0.6234,
        "licences": {"MIT": 1100},
        **changes,
    }


STATISTICS_OF_TWO: dict[str, Any] = {
    **group(rows=2400, pairs=2000, prompts=777, licences={"MIT": 1100, "CC BY-NC 4.0": 900}),
    "contradictions": {
        "questions": 37,
        "within_annotator": 5,
        "across_datasets": 21,
        "agreement": [
            {"one": "anna", "other": "bo", "agree": 75, "disagree": 25},
            {"one": "anna", "other": "cai", "agree": 3, "disagree": 1},
        ],
    },
    "datasets": {
        "alpha": group(),
        "beta": group(rows=1200, pairs=900, dropped={"duplicate": 300}, licences={"CC BY-NC 4.0": 900}),
    },
    "policies": {
        "strong": {**group(pairs=900), "wins": 800, "losses": 200},
        ATTACK: {**group(pairs=300), "wins": 60, "losses": 240},
    },
    "annotators": {name: group(pairs=pairs) for name, pairs in (("anna", 1500), ("bo", 400), ("cai", 100))},
    "others": {
        "asks": {
            "kind": "prompt",
            "rows": 50,
            "kept": 44,
            "prompts": 44,
            "dropped": {"contaminated": 6},
            "splits": {"train": {"rows": 40, "prompts": 40}, "test": {"rows": 4, "prompts": 4}},
            "response_words": words(0, 0, 0),
            "licences": {"unknown": 44},
        }
    },
}


def text_of(page: str) -> str:
    """What a person reads, pictures apart."""
    body = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", body).split())).replace("\N{NO-BREAK SPACE}", " ")


def row_of(page: str, header: str) -> list[list[str]]:
    """The values of every table's row with this header."""
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page, flags=re.DOTALL)
    found = [cells for name, cells in rows if unescape(name) == header]
    return [[text_of(cell) for cell in re.findall(r"<td>(.*?)</td>", cells)] for cells in found]


@pytest.fixture(scope="module")
def page() -> str:
    return render(STATISTICS_OF_TWO)


def test_the_headline_and_what_stands_out(page):
    text = text_of(page)
    assert "2,000 preference pairs on 777 prompts, from 2 datasets" in text
    assert "Of 2,400 pairs that were read, 100 (4.2 %) were dropped: duplicate 60, tie 30, empty chosen 10." in text
    assert "The longer answer is the chosen one in 62.3 % of the pairs" in text
    assert "agree in 75.0 % of 104 cases" in text  # 78 of 104


def test_a_set_that_lost_nothing_says_so():
    whole = {**STATISTICS_OF_TWO, "dropped": {}, "datasets": {"alpha": group(dropped={})}}
    text = text_of(render(whole))
    assert "All 2,400 pairs that were read were kept." in text and "were dropped:" not in text


def test_tables_hold_the_numbers(page):
    alpha, reasons = row_of(page, "alpha")
    assert alpha == ["1,200", "1,100", "91.7 %", "400", "30", "98.7 %", "17", "41", "29", "62.3 %", "MIT"]
    assert reasons == ["60", "30", "10"]  # duplicate, tie, empty chosen
    assert row_of(page, "beta")[1] == ["300", "", ""]
    assert row_of(page, "strong") == [["900", "800", "200", "80.0 %", "41", "29", "62.3 %"]]
    assert row_of(page, "anna") == [["1,500", "400", "30", "62.3 %"]]
    assert row_of(page, "anna and bo") == [["75", "25", "75.0 %"]]
    assert row_of(page, "anna and cai") == [["3", "1", "75.0 % *"]]  # of four questions: too few
    assert row_of(page, "train") == [["900", "81.8 %", "330"]]
    assert row_of(page, "asks") == [
        ["prompt", "50", "44", "44", "none", "contaminated 6", "train 40, test 4", "unknown"]
    ]


def test_contradictions_and_cleaning(page):
    text = text_of(page)
    assert "questions labelled both ways 37 of these by one annotator alone 5 of these between datasets only 21" in text
    assert "near duplicates none found, or not looked for" in text
    cleaned = copy.deepcopy(STATISTICS_OF_TWO)
    cleaned["dropped"]["near duplicate"] = 12
    assert "near duplicates 12" in text_of(render(cleaned))


def test_a_licence_for_no_commercial_use_is_a_visible_warning(page):
    warned = "Not for commercial use: beta (900 rows) is under CC BY-NC 4.0."
    assert warned in text_of(page)
    assert row_of(page, "CC BY-NC 4.0") == [["900", "no", "beta"]] and row_of(page, "MIT")[0][1] != "no"
    free = copy.deepcopy(STATISTICS_OF_TWO)
    free["datasets"]["beta"]["licences"] = {"CC BY 4.0": 900}
    assert "Not for commercial use" not in text_of(render(free))


def test_what_the_statistics_lack_is_unknown():
    text = text_of(render({"pairs": 10, "prompts": 5, "datasets": {"alpha": {"pairs": 10}}}))
    assert "10 preference pairs on 5 prompts, from 1 dataset" in text
    assert "questions labelled both ways unknown" in text and "truncated to the context unknown" in text
    assert "the statistics name no annotator" in text and "the statistics name no source policy" in text
    assert "alpha unknown 10 unknown" in text
    assert "nan" not in text.lower().split() and "None" not in text


def test_statistics_of_another_kind_are_refused():
    with pytest.raises(UserError, match="pairs"):
        render({"pairs": "many"})


def test_a_dataset_without_a_pair_says_so(page):
    empty = copy.deepcopy(STATISTICS_OF_TWO)
    empty["datasets"]["gone"] = group(
        rows=3, pairs=0, dropped={"duplicate": 3}, licences={}, longer_wins=None, kept_after_tokenisation=None
    )
    assert row_of(render(empty), "gone")[0] == ["3", "0", "0.0 %", "400", "30", *["–"] * 6]


def test_the_page_asks_nobody_and_trusts_no_name(page):
    assert re.findall(r"""(?:src|href|action)\s*=\s*["']?(?!#|data:)([^"'\s>]+)""", page) == []
    assert "<script" not in page and "@import" not in page and "url(http" not in page
    assert "alert('card')" in text_of(page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert re.findall(r"#[0-9a-f]{6}\b", "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))) == []


def test_the_same_statistics_give_the_same_bytes(page):
    shuffled = dict(reversed(list(json.loads(json.dumps(STATISTICS_OF_TWO)).items())))
    assert render(shuffled) == page


def test_pictures_say_in_words_what_they_show():
    pictures = card_figures.pictures(Statistics.model_validate(STATISTICS_OF_TWO))
    assert {name: picture is not None for name, picture in pictures.items()} == dict.fromkeys(pictures, True)
    said = {name: picture.description for name, picture in pictures.items() if picture}
    assert said["splits"] == "train 900, test 200"
    assert said["dropped"] == "beta loses most: 25.0\N{NO-BREAK SPACE}% of its rows"
    assert "longer than the median rejected one in 2 of 2" in said["lengths"]
    assert "anna and bo 75" in said["agreement"]


def test_nothing_to_draw_is_no_picture():
    pictures = card_figures.pictures(Statistics.model_validate({"pairs": 0}))
    assert all(picture is None for picture in pictures.values())


def test_rare_reasons_share_a_colour():
    many = {f"reason {number}": 10 + number for number in range(12)}
    statistics = Statistics.model_validate({"datasets": {"alpha": group(dropped=many)}})
    reasons = card_figures.reasons_of(statistics)
    assert len(reasons) == 8 and reasons[0] == "reason 11" and reasons[-1] == "other"
    assert card_figures.dropped(statistics) is not None
    few = Statistics.model_validate({"datasets": {"alpha": group(dropped=dict(list(many.items())[:8]))}})
    assert "other" not in card_figures.reasons_of(few)


def test_the_share_of_a_policy_without_answers_is_unknown():
    assert Policy(wins=0, losses=0).win_share is None and Policy(wins=1, losses=3).win_share == 0.25


def test_it_reads_what_aggregation_writes(tmp_path):
    """A preference set that is pooled here, not typed: its statistics have the fields that the card knows."""
    origin = {"dataset": "d", "licence": "CC-BY-NC-4.0"}
    pairs: list[Any] = [
        Comparison(
            prompt=Prompt.from_text(f"question {i // 2}"),
            chosen="a b c",
            rejected="a" if i % 3 else "a b c d",
            provenance={
                **origin,
                "original_id": str(i),
                "source_chosen": "m",
                "source_rejected": "n",
                "annotator": "x",
            },
        )
        for i in range(40)
    ]
    told = Demonstration(
        prompt=Prompt.from_text("tell"), response="a b", provenance={"dataset": "e", "original_id": "1", "source": "m"}
    )
    lost = Dropped(pairs[0].provenance, "tie", "here")
    shares = SplitShares(train=1.0, validation=0.0, gate=0.0, test=0.0, audit=0.0)
    pool(tmp_path, [*pairs, told, lost], AggregateSettings(shares=shares))
    statistics = json.loads((tmp_path / STATISTICS).read_text())
    card = Statistics.model_validate(statistics)
    known = {"splits", "contradictions", *Statistics.model_fields}
    assert set(statistics) <= known
    assert set(statistics["datasets"]["d"]) <= set(Statistics.model_fields)
    assert set(statistics["policies"]["m"]) <= set(Policy.model_fields)
    assert set(statistics["others"]["e"]) <= set(type(card.others["e"]).model_fields)
    text = text_of(render(statistics))
    assert "Not for commercial use: d (20 rows)" not in text and "Not for commercial use: d" in text
    assert "preference pairs on 20 prompts, from 1 dataset" in text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_fits_in_a_browser(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    wide = copy.deepcopy(STATISTICS_OF_TWO)
    wide["policies"] |= {f"{ATTACK} {i}": {**group(), "wins": i, "losses": 9} for i in range(60)}
    wide["datasets"] |= {f"a-rather-long-name-of-a-dataset-{i}-that-goes-on": group(pairs=i) for i in range(30)}
    (tmp_path / "card.html").write_text(render(wide), encoding="utf-8")
    said: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(str(CHROMIUM)), args=FLAGS)
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda message: said.append(message.text))
            page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
            page.on("request", lambda request: asked.append(request.url))
            page.goto((tmp_path / "card.html").as_uri())
            overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert page.evaluate(overflow) == 0, width
            assert page.evaluate("[...document.querySelectorAll('figure svg')].every(s => s.clientWidth >= 200)"), width
            assert page.locator(".warnings li").count() == 1
            page.close()
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
