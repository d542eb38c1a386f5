"""Sources as configuration: which file, in which native format, and what to assume where its rows are silent.

Light: reading is `data.read`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from inverse_alignment.core.configuration import NOT_IDENTITY, Section
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import MOST_WEIGHT, Split

_NAME = r"^[A-Za-z0-9._-]+$"
Kind = Literal["preference", "prompt", "demonstration", "judgement"]

_EVERY_KIND = ("prompt", "messages", "id", "licence", "split")
_OF_ANSWER = (*_EVERY_KIND, "response", "source", "annotator", "weight")
COLUMNS_OF: dict[Kind, tuple[str, ...]] = {
    "preference": (
        *_EVERY_KIND,
        *("chosen", "rejected", "source_chosen", "source_rejected", "annotator", "weight"),
        *("margin", "soft_label", "votes_chosen", "votes_rejected"),
    ),
    "prompt": _EVERY_KIND,
    "demonstration": _OF_ANSWER,
    "judgement": (*_OF_ANSWER, "label"),
}
"""Which columns mean something for which kind of row."""
DEFAULTS_OF: dict[Kind, tuple[str, ...]] = {
    "preference": ("source_chosen", "source_rejected", "annotator", "margin", "strength", "least_margin", "weight"),
    "prompt": (),
    "demonstration": ("source", "annotator", "weight"),
    "judgement": ("source", "annotator", "weight"),
}
"""Which of a table's defaults mean something for which kind of row."""


class ColumnMap(Section):
    """Which column of the file holds which field. A dot reaches into nested objects: `meta.judge`.

    The answers must exist, and so must the prompt unless it is `null` or in `messages`. The others may be missing as
    long as they keep their default name; a column that was named here on purpose must exist.
    """

    prompt: str | None = Field(
        "prompt",
        description="the prompt: plain text, or a list of {role, content}; null: what both answers begin with",
    )
    chosen: str = Field("chosen", description="the better answer: plain text, or a list of {role, content}")
    rejected: str = Field("rejected", description="the worse answer: plain text, or a list of {role, content}")
    response: str = Field(
        "completion", description="the answer of a demonstration or judgement: plain text, or a list of {role, content}"
    )
    label: str = Field("label", description="whether a judged answer is good: true or false, 1 or 0")
    messages: str | None = Field(
        "messages",
        description="the prompt as a list of {role, content}, wins over `prompt` where it is not null; "
        "may end in the chosen or only answer",
    )
    id: str | None = Field("id", description="name of the row, unique in the source; null: made of its content")
    source_chosen: str | None = Field("source_chosen", description="policy that wrote the chosen answer; null: ignored")
    source_rejected: str | None = Field(
        "source_rejected", description="policy that wrote the rejected answer; null: ignored"
    )
    source: str | None = Field("source", description="who wrote a single answer; null: ignored")
    annotator: str | None = Field("annotator", description="who preferred or judged; null: ignored")
    margin: str | None = Field("margin", description="strength of the preference in (0, 1]; null: ignored")
    soft_label: str | None = Field(
        "soft_label", description="probability that `chosen` is better, in [0, 1]; below 0.5 the answers change places"
    )
    votes_chosen: str | None = Field(
        None, description="votes for `chosen`; with `votes_rejected` they decide which answer is the better one"
    )
    votes_rejected: str | None = Field(None, description="votes for `rejected`")
    weight: str | None = Field("weight", description="weight of the row in a loss, above 0; null: ignored")
    licence: str | None = Field("licence", description="licence of the row; null: ignored")
    split: str | None = Field(
        "split", description="the file's own train/validation/gate/test/audit column; null: ignored"
    )


class DatasetRef(Section):
    """Which part of a dataset that the `datasets` library reads: from the hub, or from a local folder."""

    revision: str | None = Field(
        None,
        description="commit of a hub id; required for one, so that a run can be repeated",
        pattern=r"^[0-9a-f]{40}$",
        json_schema_extra=NOT_IDENTITY,
    )
    subset: str | None = Field(None, description="configuration of a dataset that has several")
    data_dir: str | None = Field(None, description="subfolder of the dataset to read, such as helpful-base")
    split: str = Field("train", min_length=1, description="the dataset's own split to read")


class FileSource(Section):
    """What all sources have in common: where the file lies, and how much of it counts."""

    path: str = Field(
        description="file, or folder of files of one kind, to read", json_schema_extra=NOT_IDENTITY, min_length=1
    )
    name: str = Field(pattern=_NAME, description="name of the dataset in provenance: letters, digits, . _ -")
    licence: str = Field("unknown", min_length=1, description="licence where rows state none")
    weight: float = Field(1.0, gt=0, le=MOST_WEIGHT, description="multiplies the weight of every row in a loss")
    limit: int | None = Field(None, ge=1, description="use the first n rows that `splits` lets pass; null: all")
    cap: int | None = Field(
        None,
        ge=1,
        description="keep at most n rows after duplicates are gone, the same whatever their order; null: all",
    )
    on_bad_row: Literal["error", "drop"] = Field(
        "error",
        description="a row that cannot be read or holds no preference (equal answers, an empty one): "
        "refuse the file, or drop the row and count it",
    )


class PairSource(FileSource):
    """A source of preferences."""

    source_chosen: str = Field("unnamed", min_length=1, description="policy of chosen answers where rows name none")
    source_rejected: str = Field("unnamed", min_length=1, description="policy of rejected answers where rows name none")
    annotator: str = Field("unnamed", min_length=1, description="annotator where rows name none")
    margin: float | None = Field(None, gt=0, le=1, description="strength where rows state none; null: unknown")


class StrengthSource(PairSource):
    """A source of preferences whose rows may say how strong they are."""

    strength: Literal["margin", "soft_label"] = Field(
        "margin",
        description="what votes or a graded preference become: a margin, or the probability that the label is right",
    )
    least_margin: float = Field(0.0, ge=0, lt=1, description="weaker preferences are dropped and counted as ties")


class TableSource(StrengthSource):
    """A file with one example a row, in columns: TRL's formats, or any other with a column map."""

    kind: Kind = Field(
        "preference",
        description="what a row holds: a preference, a prompt alone, a demonstration (prompt and completion), "
        "or a judgement (prompt, completion and label)",
    )
    source: str = Field("unnamed", min_length=1, description="who wrote a single answer where rows name nobody")
    columns: ColumnMap = Field(ColumnMap(), description="which column holds which field")
    splits: tuple[Split, ...] | None = Field(
        None, min_length=1, description="keep only rows whose own split column is one of these; null: all rows"
    )

    @model_validator(mode="after")
    def _settings_mean_something(self) -> TableSource:
        """A column or a default that this kind of row never reads is a mistake, not a wish.

        What differs from its default counts, so that a configuration that was written out whole can be read again.
        """
        for given, of, prefix in (
            (_changed(self.columns), COLUMNS_OF, "columns."),
            (_changed(self) & set(_KIND_DEPENDENT), DEFAULTS_OF, ""),
        ):
            for name in sorted(given - set(of[self.kind])):
                kinds = " or ".join(kind for kind in of if name in of[kind])
                own = f"; kind: {self.kind} has {', '.join(of[self.kind])}" if of[self.kind] else ""
                raise UserError(
                    f"means nothing for kind: {self.kind}",
                    where=f"data.sources, source '{self.name}', {prefix}{name}",
                    fix=f"remove it, or set kind: {kinds}{own}",
                )
        if (self.columns.votes_chosen is None) != (self.columns.votes_rejected is None):
            raise UserError(
                "votes for one answer only",
                where=f"data.sources, source '{self.name}', columns.votes_chosen and columns.votes_rejected",
                fix="name both columns, or neither",
            )
        return self


def _changed(section: Section) -> set[str]:
    fields = type(section).model_fields
    return {name for name in section.model_fields_set if getattr(section, name) != fields[name].default}


_KIND_DEPENDENT = tuple(dict.fromkeys(name for names in DEFAULTS_OF.values() for name in names))


class JsonlSource(TableSource):
    """One JSON object a line, `.jsonl` or `.jsonl.gz`."""

    format: Literal["jsonl"] = "jsonl"


class JsonSource(TableSource):
    """One JSON array of objects, `.json` or `.json.gz`."""

    format: Literal["json"] = "json"


class ParquetSource(TableSource):
    """A Parquet file."""

    format: Literal["parquet"] = "parquet"


class DatasetSource(TableSource):
    """A dataset of the Hugging Face hub at a pinned revision, or a local dataset folder, through `datasets`."""

    format: Literal["dataset"] = "dataset"
    dataset: DatasetRef = Field(DatasetRef(), description="which part of the dataset")


class NativeSource(PairSource):
    """A format with its own layout: the file may be JSONL, a JSON array or Parquet, or come through `datasets`."""

    dataset: DatasetRef | None = Field(
        None, description="read `path` through `datasets`, as a hub id at a pinned revision or a dataset folder"
    )


class HhSource(NativeSource):
    r"""Anthropic's HH transcripts: `{"chosen": "\n\nHuman: …\n\nAssistant: …", "rejected": …}` a row."""

    format: Literal["hh"] = "hh"
    name: str = Field("hh-rlhf", pattern=_NAME, description="name of the dataset")
    annotator: str = Field("human:crowd", min_length=1, description="who labelled the file")
    licence: str = Field("MIT", min_length=1, description="licence of the file")


class ShareGptSource(NativeSource):
    """ShareGPT preferences: `conversations` of {from, value}, `chosen` and `rejected` of {from, value}."""

    format: Literal["sharegpt"] = "sharegpt"


class AlpacaEvalSource(NativeSource, StrengthSource):
    """AlpacaEval's `annotations.json`: two outputs, who generated them, and a preference in [1, 2]."""

    format: Literal["alpaca_eval"] = "alpaca_eval"
    licence: str = Field("CC BY-NC 4.0", min_length=1, description="licence of the file")


SourceConfig = Annotated[
    JsonlSource | JsonSource | ParquetSource | DatasetSource | HhSource | ShareGptSource | AlpacaEvalSource,
    Field(discriminator="format"),
]


def reference(source: SourceConfig) -> DatasetRef | None:
    """Which part of a dataset a source reads through `datasets`; None for plain files."""
    return source.dataset if isinstance(source, (DatasetSource, NativeSource)) else None
