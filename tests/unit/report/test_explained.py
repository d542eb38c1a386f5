"""The explanation of a selection on cosines typed by hand: groups, reasons, neighbours, map, page."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest

from inverse_alignment.core.records import Rollout
from inverse_alignment.report import explained as explanations
from inverse_alignment.report import explained_page
from inverse_alignment.report.explained import Picked, explain, flat
from inverse_alignment.report.explained_page import Facts
from tests.unit.models import tiny

PROMPT = tiny.PROMPTS[0]
ANGLES = {"east": 0, "north": 90, "west": 180, "near": 30, "far": 150, "also": 33}


class Compass:
    """Unit vectors in the plane, and a third dimension that is always empty."""

    name = "compass"

    def __call__(self, texts):
        radians = np.deg2rad([ANGLES[text.split()[0]] for text in texts])
        return np.stack([np.cos(radians), np.sin(radians), np.zeros(len(texts))], 1).astype(np.float32)


def rollout(text, prompt=PROMPT):
    return Rollout(
        prompt=prompt, response=text, sample=0, log_prob=-1, ref_log_prob=-1, kl_estimate=0, tokens=3, ended=True
    )


ROLLOUTS = [rollout("east"), rollout("north"), rollout("west", tiny.PROMPTS[1])]
POOL = [tiny.pair("hi", "near", "far", i, source_chosen=f"writer {i}") for i in range(12)]


def shown(scores, rows, pool=POOL, same_prompt=True, weights=None, **more):
    rows = np.array(rows)
    picked = Picked(rows, np.ones(len(rows)) if weights is None else weights, scores, **more)
    return explain(pool, picked, ROLLOUTS, Compass(), same_prompt)


def rows_of(explained):
    return {group.title: [pair.row for pair in group.pairs] for group in explained.groups}


def whys(explained):
    return {pair.row: pair.why for group in explained.groups for pair in group.pairs}


def test_groups_by_score(monkeypatch):
    monkeypatch.setattr(explanations, "TOP", 2)
    monkeypatch.setattr(explanations, "BORDER", 1)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, np.nan, 0.0])
    found = shown(scores, [0, 1, 2, 3, 4])
    assert rows_of(found) == {
        "Chosen: the highest scores": [0, 1],
        "Chosen: the lowest scores that were kept": [4],
        "Left out although no chosen pair has a lower score": [5],
        "Left out: the highest scores below": [6],
        "Left out: the lowest scores": [11],
        "Left out: no candidates": [10],
    }
    why = whys(found)
    assert why[0] == "chosen: 0.9 reaches the least that was kept, 0.5"
    assert why[5] == "left out: of pairs with the score 0.5 others come first"
    assert why[6] == "left out: 0.4 is below the least that was kept, 0.5"
    assert why[10].startswith("no candidate: the policy has not answered its prompt")


def test_reasons_of_clusters_and_of_answers_that_are_alike():
    pool = [*POOL[:3], tiny.pair("hi", "near", "also", 3), tiny.pair("hi", "near", "near two", 4)]
    scores = np.array([0.9, 0.8, 0.2, np.nan, np.nan])
    why = whys(shown(scores, [0, 2], pool, per_cluster=True, most_alike=0.9))
    assert why[1] == "left out: its cluster of prompts has its share of better pairs (0.8)"
    assert why[3] == "no candidate: its answers are more alike (0.999) than 0.9"
    assert why[4] == "no candidate: its answers are more alike (1.000) than 0.9"


def test_neighbours_are_those_of_the_own_prompt_where_asked():
    """far lies at 150 degrees: of the own prompt's answers north is nearest, of all of them west."""
    own = shown(np.array([1.0, 0.0]), [0], POOL[:2]).groups[0].pairs[0]
    assert (own.near_chosen.text, own.near_rejected.text) == ("east", "north")
    assert own.near_chosen.cosine == pytest.approx(np.cos(np.deg2rad(30)), abs=1e-6)
    assert own.near_rejected.cosine == pytest.approx(0.5, abs=1e-6) and own.near_rejected.own_prompt
    every = shown(np.array([1.0, 0.0]), [0], POOL[:2], same_prompt=False).groups[0].pairs[0]
    assert every.near_rejected.text == "west" and not every.near_rejected.own_prompt
    assert own.alike == pytest.approx(np.cos(np.deg2rad(120)), abs=1e-6)


def test_without_scores_nearness_is_the_order():
    pool = [tiny.pair("hi", "far", "far", 0), tiny.pair("hi", "near", "near", 1), tiny.pair("hi", "west", "west", 2)]
    found = shown(None, [0, 1], pool)
    assert rows_of(found) == {
        "Chosen: nearest to the policy's answers": [1, 0],
        "Left out: nearest to the policy's answers": [2],
    }
    assert whys(found) == {1: "chosen without a score", 0: "chosen without a score", 2: "left out without a score"}


def test_where_all_are_kept_none_is_left_out():
    found = shown(np.linspace(0, 1, 12), range(12), weights=np.linspace(0.5, 1.5, 12))
    assert all(title.startswith("Chosen") for title in rows_of(found))
    assert found.groups[0].pairs[0].weight == 1.5
    assert found.map.left_out.shape == (0, 2) and found.map.chosen.shape == (12, 2)


def test_the_map_keeps_distances_of_points_in_a_plane():
    generator = np.random.default_rng(0)
    plane = np.linalg.qr(generator.normal(size=(5, 2)))[0]
    kinds = [generator.normal(size=(n, 2)) for n in (4, 7, 9)]
    found = flat(*(points @ plane.T for points in kinds))
    assert found.explained == pytest.approx(1.0)
    before, after = np.concatenate(kinds), np.concatenate([found.policy, found.chosen, found.left_out])
    distances = [np.linalg.norm(points[:, None] - points[None], axis=-1) for points in (before, after)]
    np.testing.assert_allclose(*distances, atol=1e-9)


def test_every_kind_of_point_counts_alike():
    """A thousand copies of one kind do not turn the axes; one kind alone would."""
    few, many, others = np.eye(3)[:1], np.repeat(np.eye(3)[1:2], 1000, 0), np.eye(3)[2:]
    assert flat(few, many, others).explained == pytest.approx(flat(few, many[:1], others).explained)


def test_of_many_pairs_some_are_drawn(monkeypatch):
    monkeypatch.setattr(explanations, "MOST_POINTS", 4)
    found = shown(np.linspace(1, 0, 12), range(6))
    assert len(found.map.chosen) == len(found.map.left_out) == 4
    assert len(rows_of(found)["Chosen: the highest scores"]) == 6


FACTS = Facts(
    "similarity-s0-r1-select",
    {"type": "similarity", "keep": {"type": "top_k", "k": 5}},
    "compass",
    True,
    {
        "selected": 5,
        "pool": 12,
        "mean_score": 0.7,
        "pool_by_source": {"a <b>": 3},
        "selected_by_source": {},
        "pool_by_annotator": {"ann": 12},
        "selected_by_annotator": {"ann": 5},
    },
)


def test_the_page_the_picture_and_the_data_say_the_same_twice(tmp_path):
    pool = [tiny.pair("<script>alert(1)</script>", "near <i>", "far", i) for i in range(12)]
    found = shown(np.linspace(1, 0, 12), range(5), pool)
    for folder in ("one", "two"):
        explained_page.write(found, FACTS, tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["map.png", "selection.html", "selection.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    page = (tmp_path / "one" / "selection.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &lt;b&gt;" in page
    assert "var(--arm-2)" in page and "5 of 12 pairs" in page
    opened = []
    parser = HTMLParser()
    void = {"meta", "link", "path", "use", "br"}
    parser.handle_starttag = lambda tag, attributes: tag in void or opened.append(tag)
    parser.handle_endtag = lambda tag: tag in void or (opened.pop() == tag or pytest.fail(f"</{tag}> closes nothing"))
    parser.handle_startendtag = lambda tag, attributes: None
    parser.feed(page)
    assert not opened
    data = json.loads((tmp_path / "one" / "selection.json").read_text())
    assert [row["row"] for row in data["pairs"][:5]] == [0, 1, 2, 3, 4]
    assert data["pairs"][0]["nearest_to_chosen"]["text"] == "east"
    assert (tmp_path / "one" / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_terminal_table_holds_every_pair():
    from rich.console import Console

    found = shown(np.linspace(1, 0, 12), range(5))
    console = Console(width=200, record=True, file=StringIO())
    console.print(explained_page.table(found))
    said = console.export_text()
    for group in found.groups:
        assert group.title in said
    assert "writer 0: near" in said and "0.866 east" in said
