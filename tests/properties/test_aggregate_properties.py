"""Any shuffled, repeated, re-split input gives the same preference set, to the byte, whatever the settings."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inverse_alignment.core.records import SPLITS
from inverse_alignment.data.aggregate import AggregateSettings, aggregate
from inverse_alignment.data.sources import JsonlSource
from inverse_alignment.data.splits import SplitShares
from inverse_alignment.text.render import PairEncoder
from inverse_alignment.text.tokenizers import train_tokenizer
from tests.unit.data.pooled import Pooled, opened

CONTEXT = 64
SHARES = SplitShares(train=0.4, validation=0.15, gate=0.15, test=0.15, audit=0.15)

# texts that are often equal, nearly equal, contaminated or too long


def _sentence(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices([f"word{n}" for n in range(200)], k=words))


def _nearly(text: str) -> str:
    words = text.split()
    return " ".join([*words[:20], "changed", *words[21:]])


LONG = [_sentence(seed) for seed in range(2)]
PROMPTS: list[Any] = [
    *("Why?", "why", "Who is it", "so"),
    *(
        text
        for long in LONG
        for text in (long, long.upper() + "!", _nearly(long), " ".join(long.split()[:13]) + " end")
    ),
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
    [
        {"role": "user", "content": LONG[0]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "so"},
    ],
]
ANSWERS = ["x", "y", "X!", "", *(text for seed in (2, 3) for text in (_sentence(seed), _nearly(_sentence(seed))))]
ANNOTATORS = (None, "ann", "bob", "cy")
KINDS = {
    "mine": "preference",
    "yours": "preference",
    "asked": "prompt",
    "shown": "demonstration",
    "judged": "judgement",
}
FILLER = [{"prompt": f"filler number {n}", "chosen": "good", "rejected": "bad"} for n in range(60)]
EVALUATION = [
    {"prompt": "WHY", "completion": "?"},
    {"prompt": " ".join(LONG[1].split()[10:30]), "completion": "?"},
]

# drawn inputs


@st.composite
def a_row(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    often = draw(st.booleans())  # few questions and answers, so that many rows are about the same ones
    row: dict[str, Any] = {"prompt": draw(st.sampled_from(PROMPTS[2:6] if often else PROMPTS))}
    if kind == "preference":
        answers = st.sampled_from(ANSWERS[:2] if often else ANSWERS)
        row["chosen"], row["rejected"] = draw(answers), draw(answers)
        row["soft_label"] = draw(st.sampled_from([None, None, 0.3, 0.5, 0.8]))  # 0.5 is a tie
        row["source_chosen"] = draw(st.sampled_from(["m", "n"]))
    elif kind != "prompt":
        row["completion"] = draw(st.sampled_from(ANSWERS[:3]))
    if kind == "judgement":
        row["label"] = draw(st.booleans())
    if kind != "prompt":
        row["annotator"] = draw(st.sampled_from(ANNOTATORS))
        row["weight"] = draw(st.sampled_from([None, 2.0]))
    row["split"] = draw(st.sampled_from([None, None, *SPLITS]))
    return {name: value for name, value in row.items() if value is not None}


def sound(row: dict[str, Any]) -> bool:
    """Whether a row is used at all: neither broken nor a tie."""
    answers = [row[name] for name in ("chosen", "rejected", "completion") if name in row]
    return "" not in answers and len(set(answers)) == len(answers) and row.get("soft_label") != 0.5


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, list[dict[str, Any]]]:
    """Rows of every source; each source has a row that can be used, and names all rows or some or none."""
    found: dict[str, list[dict[str, Any]]] = {"filler": FILLER}
    for name, kind in KINDS.items():
        many = kind == "preference"
        rows = draw(st.lists(a_row(kind), min_size=6 if many else 0, max_size=14 if many else 4))
        named = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
        if any(map(sound, rows)):
            found[name] = [
                {"id": f"{name}-{place}", **row} if has_name else row
                for place, (row, has_name) in enumerate(zip(rows, named, strict=True))
            ]
    return found


choices = st.fixed_dictionaries(
    {
        "duplicates": st.sampled_from(["pair", "label"]),
        "contradictions": st.sampled_from(["keep", "drop", "majority", "soft_label"]),
        "near_duplicates": st.sampled_from([{"type": "off"}, {"type": "minhash", "threshold": 0.7}]),
        "respect_source_splits": st.booleans(),
        "too_long": st.sampled_from(["truncate", "drop"]),
        "contamination_words": st.sampled_from([0, 5, 13]),
        "seed": st.integers(0, 3),
    }
)
caps = st.dictionaries(st.sampled_from(sorted(KINDS)), st.integers(1, 4))


@dataclass(frozen=True)
class Shuffle:
    """How rows reach the files: their order, which come again, and in how many files."""

    seed: int
    again: int
    shards: int

    def write(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """Write a source; a broken row or a tie is not repeated, because it counts each time it is read."""
        chance = random.Random(self.seed)
        good = [row for row in rows if sound(row)]
        rows = [*rows, *chance.choices(good, k=self.again)]
        chance.shuffle(rows)
        shards = [rows[place :: self.shards] for place in range(self.shards)]
        folder.mkdir(parents=True)
        for place, shard in enumerate(shard for shard in shards if shard):
            text = "".join(json.dumps(row) + "\n" for row in shard)
            if chance.random() < 0.5:
                (folder / f"{chance.random()}-{place}.jsonl").write_text(text)
            else:
                with gzip.open(folder / f"{chance.random()}-{place}.jsonl.gz", "wt") as file:
                    file.write(text)


AS_DRAWN = Shuffle(0, 0, 1)
shuffles = st.builds(Shuffle, st.integers(0, 2**31), st.integers(0, 6), st.integers(1, 4))


@cache
def encoder(too_long: str) -> PairEncoder:
    texts = [str(text) for text in (*PROMPTS, *ANSWERS, *(row["prompt"] for row in FILLER))]
    return PairEncoder(train_tokenizer(texts, 400), CONTEXT, too_long)  # type: ignore[arg-type]


def aggregated(folder: Path, rows, options, most, shuffle: Shuffle) -> Pooled:
    """Write the rows as files, in the order and split that `shuffle` says, and aggregate them."""
    for name, those in rows.items():
        shuffle.write(folder / name, those)
    AS_DRAWN.write(folder / "evaluation", EVALUATION)
    sources = [
        JsonlSource(
            name=name,
            path=str(folder / name),
            kind=KINDS.get(name, "preference"),
            cap=most.get(name),
            on_bad_row="drop",
            licence=f"licence of {name}",
        )
        for name in rows
    ]
    evaluation = [JsonlSource(name="evaluation", path=str(folder / "evaluation"), kind="demonstration")]
    chosen = AggregateSettings.model_validate({"shares": SHARES, "max_dropped_share": 1.0, **options})
    aggregate(folder / "out", sources, chosen, [encoder(chosen.too_long)], evaluation)
    return opened(folder / "out")


def without_counts_of_copies(statistics: Any) -> Any:
    """Statistics without how often rows were read, and how many were copies."""
    if isinstance(statistics, dict):
        return {
            name: without_counts_of_copies(value)
            for name, value in statistics.items()
            if name not in ("rows", "duplicate") or isinstance(value, dict)
        }
    if isinstance(statistics, list):
        return [without_counts_of_copies(value) for value in statistics]
    return statistics


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows=inputs(), options=choices, most=caps, shuffle=shuffles)
def test_no_order_repetition_or_split_over_files_changes_a_byte(rows, options, most, shuffle):
    with tempfile.TemporaryDirectory() as folder:
        once = aggregated(Path(folder) / "once", rows, options, most, AS_DRAWN)
        again = aggregated(Path(folder) / "again", rows, options, most, shuffle)
    once.files.pop("statistics.json"), again.files.pop("statistics.json")
    assert again.files == once.files
    assert without_counts_of_copies(again.statistics) == without_counts_of_copies(once.statistics)
    if not shuffle.again:
        assert again.statistics == once.statistics


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows=inputs(), options=choices, most=caps)
def test_what_is_left_is_clean_whatever_came_in(rows, options, most):
    with tempfile.TemporaryDirectory() as folder:
        result = aggregated(Path(folder), rows, options, most, AS_DRAWN)
    assert len(result.ids) == len(set(result.ids))
    by_prompt: dict[str, set[Any]] = {}
    for row in result.rows:
        by_prompt.setdefault(row.prompt.id, set()).add(row.provenance.split)
    assert all(len(splits) == 1 for splits in by_prompt.values())
    kept = [row.provenance.dataset for row in result.rows]
    assert all(kept.count(name) <= cap for name, cap in most.items())
    labels = [
        (row.prompt.key, row.chosen, row.rejected, row.provenance.annotator if options["duplicates"] == "label" else "")
        for row in result.comparisons
    ]
    assert len(labels) == len(set(labels))
    if options["contradictions"] != "keep":
        assert not {(key, b, a) for key, a, b, _ in labels} & {label[:3] for label in labels}
    assert not any(row.prompt.text().lower().strip("?!") == "why" for row in result.rows)  # in the evaluation set
    assert {row.provenance.dataset for row in result.rows} <= {*rows}
    counted = result.statistics
    others = counted["others"].values()
    assert counted["pairs"] == len(result.comparisons) == counted["rows"] - sum(counted["dropped"].values())
    assert sum(each["kept"] for each in others) == len(result.rows) - len(result.comparisons)
    assert sum(each["pairs"] for each in counted["datasets"].values()) == counted["pairs"]


@pytest.mark.slow
def test_the_drawn_inputs_meet_every_reason_to_drop_a_row():
    """Otherwise the properties above would hold of nothing."""
    met: set[str] = set()

    @settings(max_examples=160, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(rows=inputs(), options=choices, most=caps)
    def collect(rows, options, most):
        with tempfile.TemporaryDirectory() as folder:
            result = aggregated(Path(folder), rows, options, most, AS_DRAWN)
        met.update(result.statistics["dropped"])
        met.update(reason for each in result.statistics["others"].values() for reason in each["dropped"])
        met.update({"torn"} if result.statistics["contradictions"]["questions"] else ())
        met.update({"truncated"} if result.statistics["truncated"] else ())
        met.update({"soft label"} if any(c.soft_label == 0.5 for c in result.comparisons) else ())

    collect()
    assert met >= {
        "duplicate",
        "near duplicate",
        "contradicted",
        "contaminated",
        "over the cap",
        "tie",
        "empty chosen",
        "chosen equals rejected",
        "longer than the context",
        "torn",
        "truncated",
        "soft label",
    }


_IN_A_PROCESS = """
import random, sys
from pathlib import Path
from tests.properties import test_aggregate_properties as those

chance = random.Random(0)
pairs = [{"prompt": chance.choice(those.PROMPTS), "chosen": a, "rejected": b, "annotator": chance.choice("pqr")}
         for a in those.ANSWERS for b in those.ANSWERS for _ in range(3) if a and b and a != b]
options = {"near_duplicates": {"type": "minhash"}, "contradictions": "majority", "duplicates": "label"}
those.aggregated(Path(sys.argv[1]), {"filler": those.FILLER, "mine": pairs}, options, {"mine": 40}, those.AS_DRAWN)
"""


def test_another_process_writes_the_same_bytes(tmp_path):
    """Python's own hashes differ between processes: nothing that is written may depend on them."""
    for name, seed in (("first", "0"), ("other", "1")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", _IN_A_PROCESS, str(tmp_path / name)], env=environment, check=True)
    first, other = (opened(tmp_path / name / "out").files for name in ("first", "other"))
    assert first == other and len(first["train.jsonl"]) > 1000
