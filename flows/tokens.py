"""One example as the models read it: its tokens, which of them count, and what is cut; the verb `tokens`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from inverse_alignment.core.artifact import external, pending
from inverse_alignment.core.errors import UserError, nearest
from inverse_alignment.core.records import Comparison, Demonstration, Example, Judgement
from inverse_alignment.data.read import read
from inverse_alignment.data.sources import JsonlSource, SourceConfig
from inverse_alignment.text.render import PairEncoder, encode_full, encode_prompt, encode_response, prompt_budget
from inverse_alignment.text.tokenizers import load_tokenizer
from inverse_alignment.text.view import COUNTS_MARK, IGNORED_MARK, SCORED_MARK, coloured_tokens, marked_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from inverse_alignment.config import PipelineConfig
    from inverse_alignment.core.store import Store

WIDTH = 100  # columns where there is no terminal
UNCUT = 2**31  # more tokens than any prompt has
Role = Literal["policy", "reward model"]


@dataclass(frozen=True)
class Reader:
    """A tokenizer with its limit, and whose it is.

    Attributes:
        roles: the models that read with it.
        name: what to call it.
        tokenizer: the tokenizer.
        context: most tokens of prompt and answer together.
        notes: what had to be added to it.
    """

    roles: tuple[Role, ...]
    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A prompt with one answer, or without, as ids.

    Attributes:
        ids: what the model is given.
        prompt: how many of them are the prompt.
        whole_prompt: how many the prompt would have without a limit.
        whole_answer: how many the answer would have, its end token included; 0 where there is none.
    """

    ids: list[int]
    prompt: int
    whole_prompt: int
    whole_answer: int

    @property
    def answer(self) -> int:
        """How many ids are the answer, its end token included."""
        return len(self.ids) - self.prompt

    @property
    def mask(self) -> list[bool]:
        """True at the answer and its end token."""
        return [place >= self.prompt for place in range(len(self.ids))]

    @property
    def scored(self) -> int | None:
        """The position that a reward model reads its number at: the end token."""
        return len(self.ids) - 1 if self.answer else None


def show(
    config: PipelineConfig,
    console: Console,
    file: Path | None = None,
    source_name: str | None = None,
    row: int = 1,
    tokenizer: Path | None = None,
) -> None:
    """Print one example under the run's tokenizers, or under one from a folder.

    Args:
        file: JSONL of prompt, chosen and rejected to read instead of a source of the configuration.
        source_name: the source to read; the first one if None.
        row: which of the examples that the source keeps, from 1.
        tokenizer: folder of a checkpoint whose tokenizer to use instead of the run's.

    Raises:
        UserError: there is no such source, row, file or tokenizer.
    """
    from inverse_alignment.core.store import open_store

    store = open_store(config.store)
    source = _source(config, file, source_name)
    example = _example(source, _path(config, store, source), row)
    readers = _of_folder(config, tokenizer) if tokenizer else _of_run(config, store)
    view = _View(console)
    view.heading(source, row, example)
    for reader in readers:
        view.reader(reader, example, config)
    view.legend()


# ------------------------------------------------------------------------------------------------- what is read


def _source(config: PipelineConfig, file: Path | None, name: str | None) -> SourceConfig:
    if file is not None:
        if name is not None:
            raise UserError(
                "a file and a source are given",
                where=f"{file} --source {name}",
                fix="name one of them",
            )
        return JsonlSource(name="file", path=str(file), on_bad_row="drop")
    sources = {source.name: source for source in config.data.sources}
    if name is None:
        return config.data.sources[0]
    if name not in sources:
        raise UserError(f"no source '{name}' in data.sources", where="--source", fix=nearest(name, list(sources)))
    return sources[name]


def _path(config: PipelineConfig, store: Store, source: SourceConfig) -> Path:
    """Where a source lies; one of the hub is fetched, as a run would."""
    from tasks import external as outside
    from tasks import stages
    from tasks.run_stage import Graph, driving

    if source not in config.data.sources:
        return Path(source.path)
    graph, nowhere = Graph(), pending("tokenizers", "tokenizers", ())
    with driving(graph), outside.local():
        stages.aggregate(config, nowhere)
    if graph.nodes[-1].inputs[f"source.{source.name}"].pending:
        with driving(graph):
            stages.aggregate(config, nowhere)
    return store.local(graph.nodes[-1].inputs[f"source.{source.name}"])


def _example(source: SourceConfig, path: Path, row: int) -> Example:
    kept: Iterator[Example] = (found for found in read(source, path) if isinstance(found, Example))
    seen = 0
    for seen, example in enumerate(islice(kept, row), start=1):  # noqa: B007
        pass
    if seen < row:
        raise UserError(
            f"the source holds {seen} usable rows, not {row}", where=f"--row {row}, {path}", fix=f"use 1 to {seen}"
        )
    return example


# ------------------------------------------------------------------------------------------------- who reads


def _of_folder(config: PipelineConfig, folder: Path) -> list[Reader]:
    loaded = load_tokenizer(folder)
    both: tuple[Role, ...] = ("policy", "reward model")
    return [Reader(both, f"tokenizer {folder}", loaded.tokenizer, config.models.policy.context, loaded.notes)]


def _of_run(config: PipelineConfig, store: Store) -> list[Reader]:
    """The run's tokenizers: one reader where policy and reward model read alike."""
    made = _made(config, store)
    folders = {"policy": made / "policy", "reward model": made / "reward"}
    contexts = {"policy": config.models.policy.context, "reward model": config.models.reward.context}
    digests = {role: (external("tokenizer", folder).digest, contexts[role]) for role, folder in folders.items()}
    policy, reward = (load_tokenizer(folder).tokenizer for folder in folders.values())
    if digests["policy"] == digests["reward model"]:
        return [Reader(("policy", "reward model"), "policy and reward model", policy, contexts["policy"])]
    return [
        Reader(("policy",), "policy", policy, contexts["policy"]),
        Reader(("reward model",), "reward model", reward, contexts["reward model"]),
    ]


def _made(config: PipelineConfig, store: Store) -> Path:
    """The folder of the run's tokenizers, built with progress on stderr if the store has none."""
    from tasks import stages
    from tasks.display import Display
    from tasks.run_stage import Execute, Plan, driving

    plan = Plan(store)
    with driving(plan):
        stages.tokenizers(config)
    entry = plan.planned["tokenizers"].entry
    if entry is not None:
        return store.local(entry.artifact)
    with Display(1, Console(stderr=True)) as display, driving(Execute(store, config.runtime, (display,))):
        return store.local(stages.tokenizers(config))


# ------------------------------------------------------------------------------------------------- what is shown


def _answers(example: Example) -> list[tuple[str, str | None]]:
    """The answers to show, each with what it is; a prompt alone has none."""
    match example:
        case Comparison():
            return [("chosen", example.chosen), ("rejected", example.rejected)]
        case Demonstration():
            return [("demonstration", example.response)]
        case Judgement():
            return [(f"judged {'good' if example.label else 'bad'}", example.response)]
        case _:
            return [("prompt", None)]


def _reading(reader: Reader, example: Example, answer: str | None) -> Reading:
    budget = prompt_budget(reader.context)
    prompt = encode_prompt(reader.tokenizer, example.prompt, budget)
    whole = len(encode_prompt(reader.tokenizer, example.prompt, UNCUT))
    if answer is None:
        return Reading(prompt, len(prompt), whole, 0)
    ids = encode_full(reader.tokenizer, example.prompt, answer, reader.context)
    return Reading(ids, len(prompt), whole, len(encode_response(reader.tokenizer, answer)))


class _View:
    """Prints to a console: in colours where it has them, with marks below the tokens elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.colours = console.color_system is not None and not console.no_color
        if self.colours:
            self.counts, self.grey, self.scored = "[green]green[/] and [blue]blue[/]", "grey", "[reverse]reversed[/]"
        else:
            self.counts, self.grey, self.scored = (f"'{mark}'" for mark in (COUNTS_MARK, IGNORED_MARK, SCORED_MARK))
        self.seen: set[str] = set()

    def heading(self, source: SourceConfig, row: int, example: Example) -> None:
        """Which example it is, and who wrote and judged it."""
        facts = " · ".join([f"id {example.provenance.original_id}", *_people(example)])
        self._print(f"[bold]{escape(source.name)}, row {row}[/]  [dim]{escape(facts)}[/]")

    def reader(self, reader: Reader, example: Example, config: PipelineConfig) -> None:
        """The example as one tokenizer gives it to its models, and in words what becomes of it."""
        size, end = f"{len(reader.tokenizer):,} entries", str(reader.tokenizer.eos_token)
        self._print()
        self._title(f"{reader.name} · {size} · context {reader.context:,} · end token {end}")
        for note in reader.notes:
            self._print(f"[dim]{escape(note)}[/]")
        readings = [(label, _reading(reader, example, answer)) for label, answer in _answers(example)]
        for label, reading in readings:
            self._print(f"\n[bold]{label}[/]")
            self._tokens(reader, reading)
            self._print(_sums(reading, reader.context))
        self._print()
        for line in self._words(reader, readings, example):
            self._print(line)
        if verdict := _verdict(reader, example, config):
            self._print(f"[yellow]{escape(verdict)}[/]")

    def legend(self) -> None:
        """What the signs mean."""
        meanings = {"⏎": "line end", "⇥": "tab", "\ufffd": "part of a character", "◌": "mark on the letter before"}
        signs = [f"{sign} {meaning}" for sign, meaning in meanings.items() if sign in self.seen]
        kind = ["every colour a token", "[bold]bold[/] a special token"] if self.colours else ["│ between tokens"]
        self._print(f"\n[dim]{' · '.join([*kind, *signs])}[/]")

    def _words(self, reader: Reader, readings: list[tuple[str, Reading]], example: Example) -> Iterator[str]:
        answered = [(label, reading) for label, reading in readings if reading.answer]
        if not answered:
            yield "No answer: the policy writes it from here on, and a reward model scores where it ends."
            return
        if isinstance(example, Judgement) and not example.label:
            yield "An answer that was judged bad is imitated by no policy, and reward models learn from pairs."
            return
        if "policy" in reader.roles:
            counted = " and ".join(f"{reading.answer:,} tokens of {label}" for label, reading in answered)
            last = f" and {self.scored}" if not self.colours and "reward model" in reader.roles else ""
            yield (
                f"[bold]Policy.[/] Its loss counts {self.counts}{last}: the answer and its end token, {counted}. "
                f"The prompt, {self.grey}, is read but not learned from."
            )
        if not isinstance(example, Comparison):
            yield "Only SFT learns from it, where sft.learn_from names its kind; reward models learn from pairs."
        elif "reward model" in reader.roles:
            where = " and ".join(f"position {len(reading.ids):,} of {label}" for label, reading in answered)
            alone = "policy" not in reader.roles
            names = f" The answer is {self.counts}, the prompt {self.grey}." if alone else ""
            yield (
                f"[bold]Reward model.[/] It reads everything and scores at one position, {self.scored}: "
                f"the end token, {where}.{names}"
            )

    def _tokens(self, reader: Reader, reading: Reading) -> None:
        scored = reading.scored if "reward model" in reader.roles else None
        if self.colours:
            lines = [coloured_tokens(reader.tokenizer, reading.ids, reading.mask, scored, self.console.width)]
        else:
            width = min(self.console.width, WIDTH)
            lines = marked_tokens(reader.tokenizer, reading.ids, reading.mask, scored, width)
        for line in lines:
            self.seen |= set(line)
            self.console.print(line, markup=self.colours, highlight=False, soft_wrap=True)

    def _title(self, text: str) -> None:
        if self.colours:
            self.console.rule(Text(text, style="bold"), align="left", style="dim")
        else:
            self._print(f"== {escape(text)}")

    def _print(self, markup: str = "") -> None:
        self.console.print(markup, highlight=False, soft_wrap=not self.console.is_terminal)


def _people(example: Example) -> list[str]:
    """Who wrote and judged the answers, as far as the source says."""
    match example:
        case Comparison(provenance=origin):
            named = {"chosen by": origin.source_chosen, "rejected by": origin.source_rejected}
        case Demonstration(provenance=origin) | Judgement(provenance=origin):
            named = {"written by": origin.source}
        case _:
            return []
    named["judged by"] = origin.annotator
    return [f"{words} {name}" for words, name in named.items() if name != "unnamed"]


def _sums(reading: Reading, context: int) -> str:
    """How many tokens the parts have, and what was cut."""
    total = len(reading.ids)
    parts = f"{reading.prompt:,} prompt + {reading.answer:,} answer = {total:,}" if reading.answer else f"{total:,}"
    wholes = [("prompt", reading.prompt, reading.whole_prompt), ("answer", reading.answer, reading.whole_answer)]
    cut = [f"the {part} from {whole:,} to {kept:,}" for part, kept, whole in wholes if kept < whole]
    state = f"[yellow]cut: {' and '.join(cut)}[/]" if cut else "nothing cut"
    return f"[dim]{parts} of {context:,} tokens, {state}[/]"


def _verdict(reader: Reader, example: Example, config: PipelineConfig) -> str | None:
    """Why aggregation would drop the example because of this tokenizer; None if it would not."""
    too_long = config.data.aggregate.too_long
    encoder = PairEncoder(reader.tokenizer, reader.context, too_long)
    found: object = None
    match example:
        case Comparison():
            found = encoder.encode_pair(example)
        case Demonstration() | Judgement():
            found = encoder.encode_texts([(example.prompt, example.response)])[0]
    if not isinstance(found, str):
        return None
    because = " (data.aggregate.too_long: drop)" if found == "longer than the context" else ""
    return f"Aggregation drops this row: {found}{because}."
