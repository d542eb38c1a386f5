"""RewardBench's formats and files of pairs as sections: from every container, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.evaluation.rewardbench import DOMAINS, SECTIONS, read_benchmarks


def first(subset, number, **fields):
    """A row of RewardBench 1."""
    row = {"prompt": f"{subset} {number}", "chosen": "a good answer", "rejected": "a bad one"}
    return {**row, "chosen_model": "human", "rejected_model": "m", "subset": subset, "id": number, **fields}


def second(subset, name, right=1, **fields):
    """A row of RewardBench 2."""
    answers = {"chosen": [f"good {i}" for i in range(right)], "rejected": ["bad", "worse", "worst"]}
    counts = {"num_correct": right, "total_completions": right + 3}
    return {"id": name, "prompt": f"{subset} {name}", **answers, **counts, "subset": subset, **fields}


FIRST = [first(subset, number) for subsets in SECTIONS.values() for number, subset in enumerate(subsets)]
SECOND = [
    *(second(domain, f"{domain}-1") for domain in DOMAINS[:-1]),
    second("Ties", "ref:7"),
    second("Ties", "tied:7", right=2),
]


def written(rows, path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_json(rows, folder):
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def as_parquet(rows, folder):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_dataset(rows, folder):
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


CONTAINERS = [lambda rows, folder: written(rows, folder / "rows.jsonl"), as_json, as_parquet, as_dataset]


@pytest.mark.parametrize("container", CONTAINERS)
def test_both_formats_from_every_container(tmp_path, container):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, two = read_benchmarks([container(FIRST, tmp_path / "1"), container(SECOND, tmp_path / "2")])
    assert (one.layout, two.layout) == ("RewardBench", "RewardBench 2")
    assert {name: [item.subset for item in items] for name, items in one.sections.items()} == {
        name: list(subsets) for name, subsets in SECTIONS.items()
    }
    assert one.lacking == two.lacking == []
    maths = {item.subset: item.weight for item in one.sections["Reasoning"]}
    assert maths["math-prm"] == pytest.approx(984 / 447) and maths["hep-go"] == 1
    assert list(two.sections) == list(DOMAINS)
    (item,) = two.sections["Focus"]
    assert item.answers == ("good 0", "bad", "worse", "worst") and item.right == 1
    assert [(item.kind, item.unit, item.right) for item in two.sections["Ties"]] == [
        ("reference", "7", 1),
        ("tied", "7", 2),
    ]


def test_pairs_become_a_section_of_their_own(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(3)]
    rows.append({"prompt": "q", "chosen": "same", "rejected": "same"})
    (tmp_path / "other").mkdir()
    one, two = read_benchmarks([written(rows, tmp_path / "mine.jsonl"), written(rows, tmp_path / "other/mine.jsonl")])
    assert (one.layout, one.name, two.name) == ("pairs", "mine", "other/mine")
    assert [item.answers for item in one.sections["mine"]] == [("yes", "no")] * 3
    assert dict(one.dropped) == {"chosen equals rejected": 1}


def test_prior_sets_join_rewardbench_and_count_alike(tmp_path):
    prior = [{**first("shp", 0), "subset": None}, *(first("summarize", i) for i in range(3))]
    (one,) = read_benchmarks(
        [
            written(FIRST, tmp_path / "filtered.jsonl"),
            written(prior[:1], tmp_path / "shp.jsonl"),
            written(prior[1:], tmp_path / "rest.jsonl"),
        ]
    )
    assert [*one.sections] == [*SECTIONS, "Prior Sets"]
    assert [item.weight for item in one.sections["Prior Sets"]] == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


def test_a_folder_is_read_at_the_split_that_is_the_benchmark(tmp_path):
    import datasets

    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    written(FIRST, data / "filtered-00000-of-00001.jsonl")
    written([first("hep-go", 9)], data / "raw-00000-of-00001.jsonl")
    saved = {"raw": datasets.Dataset.from_list(FIRST[:1]), "filtered": datasets.Dataset.from_list(FIRST)}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    for folder in (tmp_path / "hub", tmp_path / "saved"):
        (one,) = read_benchmarks([folder])
        assert sum(map(len, one.sections.values())) == len(FIRST)
    sets = {name: datasets.Dataset.from_list([first(name, 0)]).remove_columns("subset") for name in ("shp", "other")}
    datasets.DatasetDict(sets).save_to_disk(str(tmp_path / "prior"))
    (one,) = read_benchmarks([tmp_path / "prior"])
    assert [item.subset for item in one.sections["Prior Sets"]] == ["shp"]
    assert one.lacking == list(SECTIONS)


@pytest.mark.parametrize(
    ("rows", "what", "fix"),
    [
        ([*FIRST, first("hep-gow", 1)], "no subset 'hep-gow'", "did you mean 'hep-go'"),
        ([*SECOND, second("Sefety", "1")], "no subset 'Sefety'", "did you mean 'Safety'"),
        ([second("Math", "1", chosen="text")], "is no list of texts", "lists of texts"),
        ([second("Math", "1", chosen=[])], "is no list of texts", "lists of texts"),
        ([second("Math", "1", prompt="")], "is no text", "prompt"),
        ([second("Math", "1", num_correct=2)], "says 2, but there are 1", "again"),
        ([second("Math", "1", total_completions=5)], "says 5, but there are 4", "again"),
        ([second("Ties", "7")], "'7' is neither ref:N nor tied:N", "ids"),
        ([second("Ties", "ref:7")], "only as ref", "both"),
        ([second("Ties", "ref:7"), second("Ties", "ref:7")], "twice as ref", "once"),
        ([{"prompt": "q", "chosen": "a", "rejected": "a"}], "chosen equals rejected", "remove"),
        ([{"prompt": "q", "completion": "a"}], "no row is a pair", "chosen and rejected"),
        ([{"colour": 3}], "no known layout", "columns"),
    ],
)
def test_what_is_refused(tmp_path, rows, what, fix):
    with pytest.raises(UserError) as found:
        read_benchmarks([written(rows, tmp_path / "rows.jsonl")])
    assert what in found.value.what and fix in found.value.fix and "rows.jsonl" in found.value.where


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_benchmarks([tmp_path / "gone.jsonl"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file of rows"):
        read_benchmarks([tmp_path / "empty"])
