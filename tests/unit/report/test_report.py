"""The report says what the artifacts say: reading, summary, table, pictures, page."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from inverse_alignment.core.errors import UserError
from inverse_alignment.report import analysis, canvas, figures, table
from inverse_alignment.report.card import PAGE as CARD
from inverse_alignment.report.collect import collect
from inverse_alignment.report.comparison import PAGE, Comparison, CurvePoint, load, save
from inverse_alignment.report.headline import ONE_SEED, headline
from inverse_alignment.report.page import render, statistics_tables
from inverse_alignment.report.summary import write_outputs
from tests.unit.report import synthetic

CASES = {
    "one": {"arms": synthetic.ARMS, "rounds": 3, "seeds": (0,), "gold": True},
    "three": {"arms": synthetic.ARMS, "rounds": 3, "seeds": (0, 1, 2), "gold": True},
    "no gold": {"arms": ("none", "similarity"), "rounds": 1, "seeds": (0,), "gold": False},
    "audit": {"arms": ("none", "similarity"), "rounds": 3, "seeds": (0,), "gold": False, "audit": True},
    "gold and audit": {"arms": synthetic.ARMS, "rounds": 2, "seeds": (0, 1), "gold": True, "audit": True},
}


def read(folders: dict[str, Path], case: dict) -> Comparison:
    shape = {name: case[name] for name in ("arms", "rounds", "seeds")}
    return collect(folders, title="A comparison", config_digest="c" * 64, **shape)


@pytest.fixture(scope="module", params=list(CASES))
def comparison(request, tmp_path_factory) -> Comparison:
    case = CASES[request.param]
    return read(synthetic.make(tmp_path_factory.mktemp("artifacts"), **case), case)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Comparison:
    return read(synthetic.make(tmp_path_factory.mktemp("artifacts"), **CASES["one"]), CASES["one"])


@pytest.fixture(scope="module")
def page(comparison) -> str:
    return render(comparison)


# reading


def test_it_survives_being_stored(comparison, tmp_path):
    save(comparison, tmp_path)
    assert load(tmp_path) == comparison


def test_an_arm_without_refresh_has_neither_selection_nor_gate(one):
    (run,) = one.of_arm("none")
    assert all(round_.selection is None and round_.gate is None for round_ in run.rounds)
    assert one.refreshes("similarity") and not one.refreshes("none")


@pytest.mark.parametrize(
    ("artifact", "file"),
    [
        ("preferences", "statistics.json"),
        ("start.s0", "evaluation.json"),
        ("evaluate.random.s0.r2", "curve.jsonl"),
        ("select.random.s0.r1", "audit.json"),
        ("refresh.similarity.s0.r3", "gate.json"),
        ("ppo.none.s0.r1", "metrics.jsonl"),
        ("sft.s0", "artifact.json"),
    ],
)
def test_a_missing_file_is_named(tmp_path, artifact, file):
    folders = synthetic.make(tmp_path, **CASES["one"])
    (folders[artifact] / file).unlink()
    with pytest.raises(UserError, match=re.escape(f"{artifact}/{file}")):
        read(folders, CASES["one"])


def test_a_missing_artifact_is_named(tmp_path):
    folders = synthetic.make(tmp_path, **CASES["one"])
    del folders["evaluate.none.s0.r3"]
    with pytest.raises(UserError, match=r"evaluate\.none\.s0\.r3"):
        read(folders, CASES["one"])


@pytest.mark.parametrize("line", ["not json", '{"step": 1, "kl": 0.1}', "[1]"])
def test_a_bad_line_is_named(tmp_path, line):
    folders = synthetic.make(tmp_path, **CASES["one"])
    with (folders["evaluate.none.s0.r1"] / "curve.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=r"curve\.jsonl, line 7"):
        read(folders, CASES["one"])


def test_a_comparison_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"comparison\.json"):
        load(tmp_path)


# summary


def test_summary_has_exactly_the_published_schema(comparison, tmp_path):
    save(comparison, tmp_path)
    (tmp_path / CARD).write_text("card")
    write_outputs(tmp_path, tmp_path / "a" / "report", 12, "d" * 64, tmp_path / "no store")
    page = (tmp_path / "a" / "report" / PAGE).read_text()
    assert "<h1>" in page and "What it cost" in page and "What it cost" not in render(comparison)
    assert (tmp_path / "a" / "report" / CARD).read_text() == "card"
    summary = json.loads((tmp_path / "a" / "report" / "summary.json").read_text())
    assert list(summary) == ["schema", "config_digest", "wall_seconds", "equal_kl", "gains", "arms"]
    assert summary["schema"] == 1 and summary["wall_seconds"] == 12.0 and summary["config_digest"] == "d" * 64
    assert list(summary["arms"]) == list(comparison.arms)
    seeds = len(comparison.seeds)
    for name, arm in summary["arms"].items():
        finals = ["gold_reward", "rm_score", "audit_score", "kl_to_sft", "on_policy_accuracy"]
        assert list(arm) == ["seeds", *finals, "gold_at_equal_kl", "cost", "rounds"]
        assert arm["cost"] == {unit: [None] * seeds for unit in ("seconds", "tokens", "peak_gib")}
        assert arm["seeds"] == list(comparison.seeds)
        for final in finals:
            assert len(arm[final]) == seeds
        known, audited = comparison.has_gold, comparison.has_audit
        assert all((value is not None) == audited for value in arm["audit_score"])
        assert all((value is not None) == known for value in (*arm["gold_reward"], *arm["on_policy_accuracy"]))
        assert [round_["round"] for round_ in arm["rounds"]] == list(range(1, comparison.rounds + 1))
        for round_ in arm["rounds"]:
            assert list(round_) == ["round", "per_seed"] and len(round_["per_seed"]) == seeds
            for entry in round_["per_seed"]:
                assert list(entry) == [
                    "gold_reward",
                    "audit_score",
                    "kl_to_sft",
                    "on_policy_accuracy_before",
                    "on_policy_accuracy_after",
                    "accepted",
                    "selected_by_source",
                ]
                refreshes = name != "none"
                assert (entry["audit_score"] is not None) == audited
                assert (entry["accepted"] is not None) == refreshes
                assert (entry["selected_by_source"] is not None) == refreshes
                assert (entry["on_policy_accuracy_after"] is not None) == (refreshes and known)


def test_a_picture_stands_alone_with_the_colours_of_the_page(comparison):
    for picture in figures.rewards_by_kl(comparison):
        svg = canvas.standalone(picture)
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root[0].tag.endswith("style")
        assert set(re.findall(r"var\((--[a-z0-9-]+)\)", svg)) <= set(re.findall(r"(--[a-z0-9-]+):", root[0].text))
        assert not re.search(r'href="(?!#)|url\((?!#)', svg)  # it asks nobody


# pairs by strength


def test_pairs_by_strength_have_a_table_where_they_were_measured(tmp_path):
    folders = synthetic.make(tmp_path, **CASES["three"])
    assert "Train pairs by the strength" not in render(read(folders, CASES["three"]))
    for seed, accuracy in ((0, 0.5), (2, 0.6)):
        rows = [
            {"stratum": 0, "pairs": 1000, "strength": -0.25, "std": 0.5, "accuracy": accuracy, "loss": 0.7},
            {"stratum": 9, "pairs": 1001, "strength": 2.0, "std": 0.25, "accuracy": 0.9, "loss": 0.1},
        ]
        (folders[f"reward.s{seed}"] / "strata.json").write_text(json.dumps(rows))
    found = read(folders, CASES["three"])
    assert [len(start.strata) for start in found.starts] == [2, 0, 2]
    cells = re.sub(r"(<[^>]+>)+", "|", render(found).split("Train pairs by the strength")[1])
    assert cells.split("\n")[2] == f"|0|2,000|−0.25 ± 0.00|0.50 ± 0.00|{analysis.percent(0.55, 1)}|0.70 ± 0.00|"


def test_a_damaged_table_of_strengths_is_named(tmp_path):
    folders = synthetic.make(tmp_path, **CASES["one"])
    path = folders["reward.s0"] / "strata.json"
    path.write_text('[{"stratum": 0, "pairs": 3}]')
    with pytest.raises(UserError, match=r"strata\.json cannot be read") as error:
        read(folders, CASES["one"])
    assert "field '0.strength'" in str(error.value)


# table


def shown(comparison: Comparison) -> str:
    out = io.StringIO()
    Console(file=out, width=140).print(table.table(comparison))
    return out.getvalue()


def test_table_has_the_start_and_every_arm_and_round(comparison):
    text = shown(comparison)
    rows = [line for line in text.splitlines() if re.search(r" [0-9] ", line)]
    assert "SFT start" in text and all(arm in text for arm in comparison.arms)
    assert len([line for line in rows if "seed" not in line]) == 1 + len(comparison.arms) * comparison.rounds


def test_table_has_an_audit_score_beside_gold_or_in_its_place(comparison):
    text = shown(comparison)
    assert ("audit score" in text) == comparison.has_audit
    assert ("gold reward" in text) == (comparison.has_gold or not comparison.has_audit)


def test_table_says_how_many_seeds(tmp_path):
    one = read(synthetic.make(tmp_path / "1", **CASES["one"]), CASES["one"])
    three = read(synthetic.make(tmp_path / "3", **CASES["three"]), CASES["three"])
    assert "1 seed" in shown(one) and "±" not in shown(one)
    assert "3 seeds, mean ± sd" in shown(three) and "of 3 accepted" in shown(three)


# what the numbers say


def test_mean_and_sample_deviation_by_hand():
    assert analysis.mean_of([1.0, None, 3.0]) == analysis.Mean(2.0, 2**0.5, 2)
    assert analysis.mean_of([1.0]) == analysis.Mean(1.0, None, 1)
    assert analysis.mean_of([None]) is None


def test_numbers_for_people():
    assert analysis.number(-0.004) == "0.00"
    assert analysis.number(-1.5, 1) == "\N{MINUS SIGN}1.5"
    assert analysis.number(0.25, sign=True) == "+0.25"
    assert analysis.number(None) == "–"


def path(gold: list[float], proxy: list[float]) -> list[CurvePoint]:
    return [CurvePoint(step=i, gold=g, rm_score=p, kl=i) for i, (g, p) in enumerate(zip(gold, proxy, strict=True))]


def test_overoptimisation_needs_a_fall_of_gold_and_a_rise_of_proxy():
    peaked, rising = [0, 1, 2, 3, 2, 1, 0.0], [0, 1, 2, 3, 4, 5, 6.0]
    assert analysis.overoptimised_from(path(peaked, rising), noise=0.1) == 3
    assert analysis.overoptimised_from(path(peaked, rising), noise=5.0) is None
    assert analysis.overoptimised_from(path(rising, rising), noise=0.1) is None
    assert analysis.overoptimised_from(path(peaked, peaked), noise=0.1) is None


def test_overoptimisation_by_an_audit_model():
    peaked, rising = [0, 1, 2, 3, 2, 1, 0.0], [0, 1, 2, 3, 4, 5, 6.0]
    audited = [point.model_copy(update={"gold": None, "audit_score": point.gold}) for point in path(peaked, rising)]
    assert analysis.overoptimised_from(audited, 0.1, analysis.AUDIT) == 3
    assert analysis.overoptimised_from(audited, 0.1, analysis.GOLD) is None


def test_gold_is_the_yardstick_where_there_is_gold_and_an_audit_model_where_there_is_none(comparison):
    expected = analysis.GOLD if comparison.has_gold else analysis.AUDIT if comparison.has_audit else None
    assert analysis.yardstick(comparison) is expected
    noise = [analysis.noise(comparison, "none", found) for found in (analysis.GOLD, analysis.AUDIT)]
    half_widths = 0.09 * comparison.has_gold, 0.1 * comparison.has_audit  # of the intervals in `synthetic`
    assert noise == pytest.approx(half_widths)


def test_sources_are_averaged_over_seeds_and_small_groups_are_known(tmp_path):
    case = {**CASES["no gold"], "seeds": (0, 1)}
    comparison = read(synthetic.make(tmp_path, **case), case)
    rows = analysis.by_source(comparison)
    # pairs are 20, 33, 46, 59, 72 and 85 in the order of synthetic.SOURCES
    assert [row.source for row in rows] == list(reversed(synthetic.SOURCES))
    assert [row.is_small for row in rows] == [False] * 3 + [True] * 3
    seeds = [run.final.offline_by_source["novice"].rm_accuracy for run in comparison.of_arm("similarity")]
    assert seeds[0] != seeds[1] and rows[0].arms[1] == pytest.approx(sum(seeds) / 2)
    assert rows[0].longer_wins == pytest.approx(0.62)
    said = [finding for finding in headline(comparison).findings if "beats" in finding]
    assert len(said) == 2 and all("of 3 source policies with 50 held-out pairs or more" in text for text in said)


def test_one_seed_is_called_one_seed(comparison):
    assert (headline(comparison).caveat == ONE_SEED) == (len(comparison.seeds) == 1)


def test_without_gold_no_arm_wins(tmp_path):
    case = CASES["no gold"]
    said = headline(read(synthetic.make(tmp_path, **case), case))
    assert "longer answer wins" in said.verdict
    assert any("no arm is called the winner" in finding for finding in said.findings)


def test_the_headline_says_by_which_model_the_score_rose(comparison):
    said = [text for text in headline(comparison).findings if "audit" in text]
    assert len(said) == comparison.has_audit
    if said:
        names = ("rm_score", "audit_score")
        finals = [analysis.finals(comparison, "none", attrgetter(name)) for name in names]
        shown = [analysis.number(final.mean, sign=True) for final in finals if final]  # the start is at 0
        assert f"“none” {shown[0]} by its own reward model and {shown[1]} by the audit model" in said[0]


def test_labels_keep_the_ends_by_which_names_differ():
    names = [f"a-policy-with-a-long-name-{number}" for number in (1, 2)]
    short = [canvas.shorten(name) for name in names]
    assert short == ["a-policy-with-a…name-1", "a-policy-with-a…name-2"] and canvas.shorten("short") == "short"


def test_labels_are_moved_apart_and_stay_inside():
    placed = canvas.spread([10, 50, 55, 60], gap=12, top=60)
    assert placed[0] == 10
    assert all(b - a >= 12 - 1e-9 for a, b in pairwise(placed))
    assert max(placed) <= 60


# pictures and page


def test_every_arm_is_in_every_picture(comparison):
    arms = set(comparison.arms)
    whole = [*figures.rewards_by_step(comparison), *figures.rewards_by_kl(comparison), *figures.training(comparison)]
    whole += [figures.gates(comparison), figures.variance_by_round(comparison)]
    source = figures.accuracy_by_source(comparison)
    assert source is not None
    for picture in [*whole, source]:
        assert all(arm in picture.description for arm in arms), picture.title
        if picture.title != "Gate decisions":
            for index in range(len(arms)):
                assert f"var(--arm-{index})" in picture.svg, picture.title
    assert [p.title.rpartition(" ")[2] for p in figures.accuracy_by_round(comparison)] == list(comparison.arms)
    picked = [p.title.rpartition(" ")[2] for p in figures.selection_by_source(comparison)]
    assert picked == [arm for arm in comparison.arms if comparison.refreshes(arm)]


def test_audit_scores_are_drawn_where_there_is_an_audit_model(comparison):
    for pictures in (figures.rewards_by_step(comparison), figures.rewards_by_kl(comparison)):
        assert len(pictures) == 1 + comparison.has_gold
        assert ("none audit ends at" in pictures[-1].description) == comparison.has_audit
        assert ("audit score" in pictures[-1].title) == comparison.has_audit
        assert ("stroke-dasharray: 5.4" in pictures[-1].svg) == comparison.has_audit  # 3 line widths of 1.8
        assert all("audit" not in picture.title for picture in pictures[:-1])


def test_pictures_leave_every_colour_to_the_page(comparison):
    for picture in figures.rewards_by_step(comparison):
        assert not re.search(r"#[0-9a-f]{6}\b", picture.svg), picture.title


def test_page_asks_nobody_and_trusts_no_text(comparison, page):
    outside = re.findall(r"""(?:src|href|action)\s*=\s*["']?(?!#|data:)([^"'\s>]+)""", page.replace("&#34;", '"'))
    assert [link for link in outside if not link.startswith("http://evil.example")] == ["data-card.html"]  # beside it
    assert "<img" not in page and "@import" not in page and "url(http" not in page
    assert synthetic.ATTACK not in page and "<script>alert" not in page
    assert "&lt;script&gt;alert(" in page
    assert page.count("<script>") == 1 and "script-src 'sha256-" in page
    assert len(page.encode()) < 3_000_000


def test_page_ids_are_unique(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_page_without_gold_leads_with_sources(tmp_path):
    case = CASES["no gold"]
    html = render(read(synthetic.make(tmp_path, **case), case))
    assert html.index('<section id="sources"') < html.index('<section id="rewards"')
    assert "Gold reward by step" not in html


def test_page_speaks_of_an_audit_model_only_where_there_is_one(comparison, page):
    for word in ("audit score", "audit model", "Ranked alike", "ranked alike", "<span>audit "):
        assert (word in page) == comparison.has_audit, word
    assert ("Without a gold reward a rising score is not evidence" in page) == (
        not comparison.has_gold and not comparison.has_audit
    )
    if comparison.has_audit and not comparison.has_gold:
        assert "as far as the audit model can tell" in page and "the audit score falls by more than" in page


def test_an_audit_that_sees_no_fall_is_no_all_clear(tmp_path):
    case = {**CASES["audit"], "arms": ("similarity",)}
    html = render(read(synthetic.make(tmp_path, **case), case))
    assert "Models that learned from like data may both be wrong" in html
    assert "No arm shows over-optimisation" not in html and "Over-optimised" not in html


def test_page_with_many_source_policies_shows_all_of_them_the_small_ones_last(tmp_path):
    names = tuple(f"policy-{number:02}" for number in range(59))
    case = {**CASES["no gold"], "sources": names}
    comparison = read(synthetic.make(tmp_path, **case), case)
    html = render(comparison)
    table = html[html.index('aria-label="Accuracy by source policy"') :].partition("</table>")[0]
    rows = re.findall(r'<th scope="row">([^<]+)</th><td>([\d,]+)</td>', table)
    assert rows[0] == ("all pairs", "1,234") and sorted(name for name, _ in rows[1:]) == sorted(names)
    pairs = [int(count) for _, count in rows[1:]]
    assert pairs == sorted(pairs, reverse=True)
    large, _, small = table.partition("Fewer than 50 pairs")
    few = sum(count < 50 for count in pairs)
    assert few == small.count("<tr class=few>") == small.count("<tr") and "class=few" not in large
    picture = figures.accuracy_by_source(comparison)
    assert picture is not None and picture.description.startswith("59 source policies")
    statistics = html[html.index('aria-label="Data: policies"') :].partition("</table>")[0]
    assert all(f'<th scope="row">{name}</th>' in statistics for name in names)


def test_same_comparison_same_bytes(comparison, page, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(comparison, tmp_path / name)
    assert (tmp_path / "a" / "comparison.json").read_bytes() == (tmp_path / "b" / "comparison.json").read_bytes()
    assert render(comparison) == page


def test_odd_names_and_empty_parts_render(one):
    renamed = one.model_dump()
    renamed["arms"] = ["a $ name & <b>", *renamed["arms"][1:]]
    for run in renamed["runs"]:
        run["arm"] = "a $ name & <b>" if run["arm"] == "none" else run["arm"]
        for round_ in run["rounds"]:
            round_["curve"], round_["training"], round_["samples"] = [], [], []
            round_["evaluation"]["offline_by_source"] = {}
            round_["evaluation"]["reward_variance"] = None
    for start in renamed["starts"]:
        start["samples"] = []
    renamed["lineage"] = {name.replace(".none.", ".a $ name & <b>."): node for name, node in renamed["lineage"].items()}
    html = render(Comparison.model_validate(renamed))
    assert "<b>." not in html and "a $ name &amp; &lt;b&gt;" in html


def test_statistics_of_any_shape_become_tables():
    tables = statistics_tables(
        {"pairs": 3, "by": {"a": {"n": 1}, "b": {"m": [1, 2]}}, "removed": {"x": 0.5}, "none": {}}
    )
    assert [(t.title, t.columns, t.rows) for t in tables] == [
        ("the whole set", ("", "value"), (("pairs", "3"),)),
        ("by", ("", "n", "m"), (("a", "1", "–"), ("b", "–", "1, 2"))),
        ("removed", ("", "value"), (("x", "0.5"),)),
    ]


def test_statistics_of_other_shapes_are_shown_and_not_spelt_as_code():
    tables = statistics_tables(
        {
            "chosen_words": {"mean": 3.0},
            "prompt_words": {"mean": 7.0},
            "found": {
                "n": 2,
                "ok": True,
                "pairs": [{"a": "x", "n": 1}, {"a": "y"}],
                "deep": {"er": {"most": {"k": 1}}},
            },
            "many": list(range(100)),
            "mixed": [{"k": 1}, 2],
            "empty": [],
            "nothing": None,
        }
    )
    assert [(t.title, t.columns, t.rows) for t in tables] == [
        (
            "the whole set",
            ("", "value"),
            (
                ("many", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (100)"),
                ("mixed", "k 1, 2"),
                ("empty", "–"),
                ("nothing", "–"),
            ),
        ),
        ("prompt words", ("", "value"), (("mean", "7"),)),
        ("found", ("", "value"), (("n", "2"), ("ok", "true"))),
        ("found: pairs", ("", "a", "n"), (("1", "x", "1"), ("2", "y", "–"))),
        ("found: deep: er", ("", "k"), (("most", "1"),)),
        ("words per answer", ("", "mean"), (("chosen", "3"),)),
    ]


def test_a_long_table_says_what_it_leaves_out():
    (table_,) = statistics_tables({"by": {f"name {number}": {"n": number} for number in range(230)}})
    assert len(table_.rows) == 200 and table_.left_out == 30


# weight


def test_summary_and_table_load_no_plotting_library():
    code = (
        "import sys, inverse_alignment.report.summary, inverse_alignment.report.table;"
        "print([m for m in ('matplotlib', 'torch', 'numpy', 'jinja2', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


def test_equal_arms_have_no_winner(one):
    assert "highest gold reward" in headline(one).verdict
    twin = one.runs[0]
    equal = one.model_copy(update={"runs": tuple(run.model_copy(update={"rounds": twin.rounds}) for run in one.runs)})
    said = headline(equal).verdict
    assert "All arms end with the same gold reward" in said and "highest" not in said


def test_more_arms_than_colours_are_drawn_with_other_markers(tmp_path):
    arms = tuple(f"arm-{number}" for number in range(12))
    root = synthetic.make(tmp_path / "in", arms=arms)
    many = collect(root, title="Many", config_digest="c" * 64, arms=arms, seeds=(0,), rounds=3)
    page = render(many)
    assert all(arm in page for arm in arms)
    looks = {(canvas.arm_marker(index), index % canvas.ARM_COLOURS) for index in range(24)}
    assert len(looks) == 24
