"""Cases of preference files: broken files, broken rows, formats that are something else, pools with nothing in them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

from benchmarks.bad_input.case import Case, Control
from benchmarks.bad_input.project import PAIRS, Project, lines

ROW = 7
AT_ROW = (PAIRS, f"row {ROW}")
MINE = "data/mine"
HH = {"format": "hh", "name": "mine", "path": f"{MINE}.jsonl"}
JSONL = {"format": "jsonl", "name": "mine", "path": f"{MINE}.jsonl"}


def row(number: int) -> dict[str, Any]:
    """A sound pair of plain text."""
    return {
        "prompt": f"How do I repair chair {number}?",
        "chosen": f"Glue leg {number}.",
        "rejected": f"Burn {number}.",
    }


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Sound pairs of plain text."""
    return [row(number) for number in range(count)]


def transcript(number: int, answer: str) -> str:
    """A sound HH transcript."""
    return f"\n\nHuman: Where is chair {number}?\n\nAssistant: Which one?\n\nHuman: Mine.\n\nAssistant: {answer}"


def hh_rows(count: int = 12) -> list[dict[str, Any]]:
    """Sound pairs of HH transcripts."""
    return [
        {"chosen": transcript(number, "In the hall."), "rejected": transcript(number, "Who cares?")}
        for number in range(count)
    ]


# --- spoiling the project's own file ------------------------------------------------------------------------------


def whole_file(change: Callable[[bytes], bytes]) -> Callable[[Project], object]:
    """Change the bytes of the project's own file."""
    return lambda project: project.write(PAIRS, change((project / PAIRS).read_bytes()))


def one_row(change: Callable[[dict[str, Any]], Any]) -> Callable[[Project], object]:
    """Change one row of the project's own file."""
    return lambda project: project.edit_row(ROW, change)


def with_fields(**fields: Any) -> Callable[[Project], object]:
    """Set fields of one row of the project's own file."""
    return one_row(lambda row: {**row, **fields})


def one_line(change: Callable[[bytes], bytes]) -> Callable[[Project], object]:
    """Change the bytes of one line of the project's own file."""
    return lambda project: project.edit_line(ROW, change)


# --- a file of one's own ------------------------------------------------------------------------------------------


def mine(source: dict[str, Any], content: str | bytes) -> Callable[[Project], object]:
    """Write a file and add it as a source."""

    def spoil(project: Project) -> None:
        project.write(source["path"], content)
        project.sources(source)

    return spoil


def my_rows(source: dict[str, Any], every: list[dict[str, Any]], **spoilt: Any) -> Callable[[Project], object]:
    """Write rows of which the third is spoilt, and add them as a source."""
    changed = [*every[:2], {**every[2], **spoilt}, *every[3:]]
    return mine(source, lines([{key: value for key, value in each.items() if value is not ...} for each in changed]))


def both(*changes: Callable[[Project], object]) -> Callable[[Project], object]:
    """Several changes, one after the other."""

    def spoil(project: Project) -> None:
        for change in changes:
            change(project)

    return spoil


def without(project: Project, name: str) -> None:
    """Remove a file."""
    (project / name).unlink()


def _gzipped_source(name: str, content: Callable[[bytes], bytes]) -> Callable[[Project], object]:
    def spoil(project: Project) -> None:
        project.write(name, content((project / PAIRS).read_bytes()))
        project.sources({**JSONL, "path": name})

    return spoil


def _damaged_crc(data: bytes) -> bytes:
    packed = bytearray(gzip.compress(data))
    packed[-8] ^= 0xFF
    return bytes(packed)


def _parquet(project: Project, cut: bool) -> None:
    import pyarrow
    import pyarrow.parquet

    path = project / f"{MINE}.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows()), path)
    if cut:
        path.write_bytes(path.read_bytes()[:-30])
    else:
        path.write_text(lines(rows()))
    project.sources({"format": "parquet", "name": "mine", "path": f"{MINE}.parquet"})


def _all_equal(project: Project) -> None:
    same = [{**each, "rejected": each["chosen"]} for each in rows()]
    mine({**JSONL, "on_bad_row": "drop"}, lines(same))(project)


def _mostly_bad(project: Project) -> None:
    bad = [{**each, "rejected": each["chosen"]} if number % 4 else each for number, each in enumerate(rows(40))]
    mine({**JSONL, "on_bad_row": "drop"}, lines(bad))(project)


def _all_too_long(project: Project) -> None:
    long = "word " * 4000
    pairs = [{**each, "chosen": long + each["chosen"], "rejected": long + each["rejected"]} for each in rows()]
    mine(JSONL, lines(pairs))(project)


def _all_dropped_as_too_long(project: Project) -> None:
    long = "word " * 4000
    mine(JSONL, lines([{**each, "chosen": each["chosen"] + long} for each in rows()]))(project)
    project.edit_params(data={"aggregate": {"too_long": "drop"}})


def _three_prompts(project: Project) -> None:
    kept: dict[str, list[dict[str, Any]]] = {}
    for each in project.rows():
        kept.setdefault(each["prompt"], []).append(each)
    project.write(PAIRS, lines([each for group in list(kept.values())[:3] for each in group]))
    project.edit_params(arms={"random": {"selection": {"k": 1}}, "similarity": {"selection": {"keep": {"k": 1}}}})


def _share_gpt(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "conversations": [{"from": "human", "value": f"Where is chair {number}?"}],
            "chosen": {"from": "gpt", "value": "In the hall."},
            "rejected": {"from": "gpt", "value": "Who cares?"},
        }
        for number in range(count)
    ]


def _alpaca(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"Where is chair {number}?",
            "output_1": "In the hall.",
            "output_2": "Who cares?",
            "generator_1": "one",
            "generator_2": "two",
            "annotator": "judge",
            "preference": 1,
        }
        for number in range(count)
    ]


def _chats(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": f"Where is chair {number}?"}]}
        | {
            name: [{"role": "assistant", "content": answer}]
            for name, answer in (("chosen", "In the hall."), ("rejected", "Who cares?"))
        }
        for number in range(count)
    ]


def _judgements(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Where is chair {number}?", "completion": "In the hall.", "label": True} for number in range(count)
    ]


SHARE_GPT = {"format": "sharegpt", "name": "mine", "path": f"{MINE}.jsonl"}
ALPACA = {"format": "alpaca_eval", "name": "mine", "path": f"{MINE}.json"}
VOTES = {**JSONL, "columns": {"votes_chosen": "up", "votes_rejected": "down"}}
AT_THIRD = (f"{MINE}.jsonl", "row 3")

FILES = [
    Case(
        "missing-file",
        lambda project: without(project, PAIRS),
        (PAIRS,),
        ("data.sources[0].path",),
        ("inverse-alignment data make",),
    ),
    Case(
        "missing-file-to-show",
        lambda project: project.write("data/my-pairs.jsonl", lines(rows())),
        ("no such file",),
        ("data/my-pair.jsonl",),
        ("did you mean 'my-pairs.jsonl'?",),
        ("tokens", "data/my-pair.jsonl"),
    ),
    Case(
        "missing-folder",
        lambda project: project.sources({**JSONL, "path": "nowhere/pairs.jsonl"}),
        ("nowhere/pairs.jsonl",),
        ("data.sources[1].path",),
        ("correct data.sources[1].path",),
    ),
    Case(
        "folder-without-data",
        both(
            lambda project: project.write("data/mine/readme.txt", "x"),
            lambda project: project.sources({**JSONL, "path": "data/mine"}),
        ),
        ("folder holds no file named *.jsonl",),
        ("data/mine",),
        ("readme.txt",),
    ),
    Case("empty-file", whole_file(lambda data: b""), (PAIRS, "empty"), ("data.sources[0].path",), ("restore",)),
    Case("blank-lines", whole_file(lambda data: b"\n  \n\n"), ("holds no row",), (PAIRS,), ("fetch the file again",)),
    Case(
        "truncated-gzip",
        _gzipped_source("data/mine.jsonl.gz", lambda data: gzip.compress(data)[:-200]),
        ("gzip data end early",),
        ("data/mine.jsonl.gz", "after row "),
        ("gzip -t",),
    ),
    Case(
        "truncated-gzip-is-no-bad-row",
        both(
            lambda project: project.write(f"{MINE}.jsonl.gz", gzip.compress(lines(rows(200)).encode())[:-60]),
            lambda project: project.sources({**JSONL, "path": f"{MINE}.jsonl.gz", "on_bad_row": "drop"}),
        ),
        ("gzip data end early",),
        (f"{MINE}.jsonl.gz", "after row "),
        ("gzip -t",),
    ),
    Case(
        "damaged-gzip",
        _gzipped_source("data/mine.jsonl.gz", _damaged_crc),
        ("gzip data", "CRC"),
        ("data/mine.jsonl.gz",),
        ("gzip -t",),
    ),
    Case(
        "gzip-named-jsonl",
        _gzipped_source("data/mine.jsonl", gzip.compress),
        ("is gzip but not named .gz",),
        ("data/mine.jsonl",),
        ("rename it to mine.jsonl.gz",),
    ),
    Case(
        "plain-named-gz",
        _gzipped_source("data/mine.jsonl.gz", bytes),
        ("named .gz but is not gzip",),
        ("data/mine.jsonl.gz",),
        ("rename it without .gz",),
    ),
    Case(
        "parquet-is-text",
        lambda project: _parquet(project, cut=False),
        ("not a readable Parquet file",),
        (f"{MINE}.parquet",),
        ("format",),
    ),
    Case(
        "truncated-parquet",
        lambda project: _parquet(project, cut=True),
        ("not a readable Parquet file",),
        (f"{MINE}.parquet",),
        ("fetch the file again",),
    ),
    Case(
        "json-array-as-jsonl",
        mine(JSONL, json.dumps(rows(), indent=1)),
        ("not valid JSON",),
        (f"{MINE}.jsonl", "row 1"),
        ("format: json",),
    ),
    Case(
        "json-array-cut-short",
        mine({**JSONL, "format": "json", "path": f"{MINE}.json"}, json.dumps(rows())[:-40]),
        ("not valid JSON",),
        (f"{MINE}.json", "after row 1"),
        ("fetch the file again",),
    ),
    Case(
        "jsonl-as-json-array",
        mine({**JSONL, "format": "json"}, lines(rows())),
        ("does not hold a JSON array",),
        (f"{MINE}.jsonl",),
        ("format: jsonl",),
    ),
]

ROWS = [
    Case(
        "invalid-json-line", one_line(lambda line: line[:-20]), ("not valid JSON",), AT_ROW, ("one JSON object a line",)
    ),
    Case("line-is-a-list", one_line(lambda line: b'["a", "b"]'), ("not an object",), AT_ROW, ("one JSON object",)),
    Case(
        "invalid-utf8",
        one_line(lambda line: line.replace(b"?", b"\xe9", 1)),
        ("not UTF-8", "0xe9"),
        AT_ROW,
        ("iconv",),
    ),
    Case(
        "half-surrogate",
        one_line(lambda line: line.replace(b"?", b"\\ud83d", 1)),
        ("half of a surrogate pair",),
        (*AT_ROW, "field 'prompt'"),
        ("delete",),
    ),
    Case(
        "no-chosen-column",
        one_row(lambda row: {("chosn" if key == "chosen" else key): value for key, value in row.items()}),
        ("no such column",),
        (*AT_ROW, "field 'chosen'", "columns.chosen"),
        ("did you mean 'chosn'?",),
    ),
    Case("null-chosen", with_fields(chosen=None), ("is null",), (*AT_ROW, "field 'chosen'"), ("fill it in",)),
    Case("empty-chosen", with_fields(chosen=""), ("chosen is empty",), (*AT_ROW, "field 'chosen'"), ("fill it in",)),
    Case(
        "whitespace-chosen",
        with_fields(chosen=" \n\t "),
        ("chosen is empty",),
        (*AT_ROW, "field 'chosen'"),
        ("on_bad_row: drop",),
    ),
    Case("empty-prompt", with_fields(prompt=""), ("prompt is empty",), (*AT_ROW, "field 'prompt'"), ("fill it in",)),
    Case(
        "chosen-equals-rejected",
        one_row(lambda row: {**row, "rejected": row["chosen"]}),
        ("chosen equals rejected",),
        (*AT_ROW, "field 'rejected'"),
        ("remove the row", "on_bad_row: drop"),
    ),
    Case("number-as-content", with_fields(chosen=42), ("is a number, not a text",), (*AT_ROW, "'chosen'"), ("string",)),
    Case(
        "numbers-as-content",
        with_fields(chosen=[1, 2, 3]),
        ("is not a {role, content} object",),
        (*AT_ROW, "field 'chosen.0'"),
        ('{"role": "user", "content": "…"}',),
    ),
    Case(
        "margin-out-of-range",
        with_fields(margin=3),
        ("3 is outside (0, 1]",),
        (*AT_ROW, "field 'margin'"),
        ("rescale margins",),
    ),
    Case(
        "nan-margin",
        one_line(lambda line: line.replace(b'"margin": null', b'"margin": NaN')),
        ("nan is outside (0, 1]",),
        (*AT_ROW, "field 'margin'"),
        ("columns.margin: null",),
    ),
    Case(
        "unknown-split",
        with_fields(split="holdout"),
        ("unknown split 'holdout'",),
        (*AT_ROW, "field 'split'"),
        ("train", "columns.split: null"),
    ),
    Case(
        "repeated-id",
        lambda project: project.edit_row(ROW, lambda row: {**row, "id": project.rows()[2]["id"]}),
        ("two rows have the id 'desk-000002'",),
        ("source 'advice'", "desk-000002"),
        ("columns.id: null",),
    ),
    Case(
        "unknown-role",
        my_rows(JSONL, _chats(), prompt=[{"role": "human", "content": "Where?"}]),
        ("unknown role 'human'",),
        (*AT_THIRD, "field 'prompt.0.role'"),
        ("user",),
    ),
    Case(
        "no-assistant-turn-at-the-end",
        my_rows(JSONL, _chats(), chosen=[{"role": "user", "content": "Where?"}]),
        ("does not end in an assistant turn",),
        (*AT_THIRD, "field 'chosen'"),
        ("end it with the answer",),
    ),
    Case(
        "misspelt-mapped-column",
        mine({**JSONL, "columns": {"chosen": "choosen"}}, lines(rows())),
        ("no such column",),
        (f"{MINE}.jsonl", "row 1", "columns.chosen=choosen"),
        ("did you mean 'chosen'?",),
    ),
    Case(
        "hh-diverging-before-the-last-turn",
        my_rows(HH, hh_rows(), rejected=transcript(77, "Who cares?")),
        ("before the last turn",),
        (*AT_THIRD, "field 'rejected'"),
        ("one conversation",),
    ),
    Case(
        "no-hh-transcript",
        my_rows(HH, hh_rows(), chosen="In the hall."),
        ("not an HH transcript",),
        (*AT_THIRD, "field 'chosen'"),
        ("Human:", "format: jsonl"),
    ),
    Case(
        "judgement-without-a-verdict",
        my_rows({**JSONL, "kind": "judgement"}, _judgements(), label="good"),
        ("'good' is neither true nor false",),
        (*AT_THIRD, "field 'label'"),
        ("true or false",),
    ),
    Case(
        "votes-missing",
        my_rows(VOTES, [{**each, "up": 3, "down": 1} for each in rows()], down=...),
        ("no such column",),
        (*AT_THIRD, "field 'down'", "columns.votes_rejected"),
        ("valid names",),
    ),
    Case(
        "half-a-vote",
        my_rows(VOTES, [{**each, "up": 3, "down": 1} for each in rows()], up=2.5),
        ("2.5 is no number of votes",),
        (*AT_THIRD, "field 'up'"),
        ("whole number",),
    ),
    Case(
        "no-alpaca-eval-file",
        mine(ALPACA, json.dumps(rows())),
        ("no such column",),
        (f"{MINE}.json", "row 1", "field 'instruction'"),
        ("valid names",),
    ),
    Case(
        "alpaca-preference-out-of-range",
        mine(ALPACA, json.dumps([*_alpaca(2), {**_alpaca(1)[0], "preference": 5}])),
        ("5", "outside [1, 2]"),
        (f"{MINE}.json", "row 3", "field 'preference'"),
        ("1 for output_1",),
    ),
    Case(
        "sharegpt-without-conversations",
        my_rows(SHARE_GPT, _share_gpt(), conversations=...),
        ("no such column",),
        (*AT_THIRD, "field 'conversations'"),
        ("valid names",),
    ),
    Case(
        "sharegpt-unknown-speaker",
        my_rows(SHARE_GPT, _share_gpt(), chosen={"from": "bot", "value": "In the hall."}),
        ("unknown speaker 'bot'",),
        (*AT_THIRD, "field 'chosen.from'"),
        ("gpt",),
    ),
    Case(
        "dataset-without-such-split",
        both(
            lambda project: project.write("data/mine/train.jsonl", lines(rows())),
            lambda project: project.sources(
                {"format": "dataset", "name": "mine", "path": "data/mine", "dataset": {"split": "trian"}},
            ),
        ),
        ("trian",),
        ("data/mine", "dataset.split"),
        ("did you mean 'train'?",),
    ),
]

POOLS = [
    Case(
        "source-without-a-usable-pair",
        _all_equal,
        ("none of the 12 rows can be used", "chosen equals rejected"),
        (f"{MINE}.jsonl", "row 1"),
        ("columns",),
    ),
    Case(
        "source-that-loses-too-many-rows",
        _mostly_bad,
        ("30 of 40 rows (75%)", "chosen equals rejected: 30"),
        ("source 'mine'", "data.aggregate.max_dropped_share=0.5"),
        ("raise the limit",),
    ),
    Case(
        "all-pairs-too-long",
        _all_too_long,
        ("12 of 12 rows (100%)",),
        ("source 'mine'", "data.aggregate.max_dropped_share=0.5"),
        ("raise the models' context",),
    ),
    Case(
        "all-pairs-too-long-to-keep",
        _all_dropped_as_too_long,
        ("12 of 12 rows (100%)", "longer than the context: 12"),
        ("source 'mine'", "data.aggregate.max_dropped_share=0.5"),
        ("raise the models' context",),
    ),
    Case(
        "empty-split",
        _three_prompts,
        ("no prompt falls into",),
        ("data.aggregate.shares.",),
        ("add data",),
    ),
    Case(
        "k-beyond-the-pool",
        lambda project: project.edit_params(arms={"random": {"selection": {"k": 5000}}}),
        ("asks for 5000 pairs", "in the train split"),
        ("k of a selection", "arms"),
        ("set it to at most",),
    ),
    Case(
        "two-sources-of-one-name",
        both(
            lambda project: project.write(f"{MINE}.jsonl", lines(rows())),
            lambda project: project.sources({**JSONL, "name": "advice"}),
        ),
        ("'advice'",),
        ("data.sources",),
        ("name",),
    ),
    Case(
        "missing-evaluation-set",
        lambda project: project.edit_params(data={"evaluation_sets": [{**JSONL, "path": "data/held-out.jsonl"}]}),
        ("data/held-out.jsonl",),
        ("data.evaluation_sets[0].path",),
        ("correct data.evaluation_sets[0].path",),
    ),
    Case(
        "no-source",
        lambda project: project.edit_params(data={"sources": []}),
        ("at least one item",),
        ("data.sources", "params.yaml"),
        ("format",),
    ),
    Case(
        "no-row-in-the-splits-asked-for",
        mine({**JSONL, "splits": ["train"]}, lines([{**each, "split": "test"} for each in rows()])),
        ("no row is left",),
        (f"{MINE}.jsonl", "splits"),
        ("splits: null",),
    ),
    Case(
        "unknown-source-policy",
        lambda project: project.edit_params(sft={"sources": ["coach", "novise"]}),
        ("no source policy 'novise'",),
        ("sft.sources",),
        ("did you mean 'novice'?",),
    ),
    Case(
        "gold-of-another-world",
        both(
            mine(JSONL, lines(rows(60))),
            lambda project: project.edit_params(evaluation={"gold": {"type": "text_world"}}),
        ),
        ("gold",),
        ("evaluation.gold",),
        ("none",),
    ),
    Case(
        "a-column-that-means-nothing",
        mine({**JSONL, "columns": {"label": "good"}}, lines(rows())),
        ("means nothing for kind: preference",),
        ("source 'mine'", "columns.label"),
        ("kind",),
    ),
]

CONTROLS = [
    Control(
        "drops-bad-rows-of-every-kind",
        mine(
            {**JSONL, "on_bad_row": "drop"},
            lines(rows(24))
            + lines([{**row(30), "chosen": None}, {**row(31), "chosen": ""}, {**row(32), "chosen": 42}])
            + lines([{**row(33), "rejected": row(33)["chosen"]}, {**row(34), "margin": 3}])
            + '{"prompt": "cut\n["a list"]\n',
        ),
        "mine",
        {
            "missing field": 1,
            "empty chosen": 1,
            "wrong type": 1,
            "chosen equals rejected": 1,
            "wrong value": 1,
            "unreadable": 2,
        },
    ),
    Control(
        "drops-transcripts-that-diverge",
        mine(
            {**HH, "on_bad_row": "drop"},
            lines([*hh_rows(24), {"chosen": transcript(1, "Here."), "rejected": transcript(77, "There.")}, {}]),
        ),
        "mine",
        {"transcripts differ before the last turn": 1, "missing field": 1},
    ),
    Control(
        "drops-judgements-without-a-verdict",
        mine({**JSONL, "kind": "judgement", "on_bad_row": "drop"}, lines([*_judgements(24), {"label": "good"}])),
        "mine",
        {"missing field": 1},
    ),
]
