"""The one place where tokenizers are made and loaded, so that nothing else decides about special tokens."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inverse_alignment.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT, SYSTEM)
_BYTES = 256
_CLOCK = "strftime_now"  # the only clock that transformers gives to chat templates
_CLOCK_CALL = re.compile(rf"""{_CLOCK}\s*\(\s*(?:format\s*=\s*)?("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*\)""")
_CLOCK_TEST = re.compile(rf"{_CLOCK}\s+is\s+(not\s+)?defined")


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that is ready for use, and what had to be added to make it so.

    Attributes:
        tokenizer: has an end token, a pad token and a chat template.
        notes: one sentence per thing that was missing, for the log.
    """

    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...]


def plain_template() -> str:
    """The chat template of models made here: one line of role, then the content, then the end token of answers."""
    return (Path(__file__).parent / "templates" / "plain.jinja").read_text(encoding="utf-8")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text can be encoded and comes back to the letter.

    Pad and end differ, and there is no token at the beginning. Equal texts give an equal tokenizer.

    Args:
        texts: what to learn merges from, read once.
        vocab_size: most entries, special tokens and the 256 bytes included.

    Raises:
        UserError: the vocabulary has no room for the bytes, or there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    least = _BYTES + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise UserError(
            f"a vocabulary of {vocab_size} cannot hold every byte and {len(SPECIAL_TOKENS)} special tokens",
            where="vocab_size",
            fix=f"set it to {least} or more",
        )
    seen = 0

    def counted() -> Iterable[str]:
        nonlocal seen
        for text in texts:
            seen += bool(text)
            yield text

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # a set: its order changes from run to run
        show_progress=False,
    )
    bpe.train_from_iterator(counted(), trainer)
    if not seen:
        raise UserError("no text to train a tokenizer on", where="data sources", fix="name a source that holds pairs")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=plain_template(),
    )


def load_tokenizer(path: Path, template_date: datetime.date | None = None) -> LoadedTokenizer:
    """Load a tokenizer from a folder, without running code from it and without the network.

    A missing pad token becomes the end token: padding is told from text by masks, never by its id. A missing chat
    template becomes the plain one.

    Args:
        template_date: what a chat template that asks for today's date is given, from now on and when it is saved.

    Raises:
        UserError: there is no folder, no tokenizer in it, no end token, no template that can be used, or its template
            inserts today's date and `template_date` is None or cannot take its place.
    """
    if not path.is_dir():
        raise UserError("no folder to load a tokenizer from", where=str(path), fix="give the folder of a checkpoint")
    try:
        tokenizer = _class_for(path).from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers, tokenizers and json each raise types of their own, some bare Exception
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"transformers cannot load a tokenizer: {why}",
            where=str(path),
            fix="the folder must hold tokenizer.json, as `tokenizer.save_pretrained(folder)` writes it",
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, so no answer could ever end",
            where=f"{path}/tokenizer_config.json, eos_token",
            fix="name one there",
        )
    notes: list[str] = []
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes.append(f"{path.name}: no pad token; the end token {tokenizer.eos_token} pads, told apart by masks")
    if not tokenizer.chat_template:
        tokenizer.chat_template = plain_template()
        notes.append(f"{path.name}: no chat template; the plain one is used")
    if template_date is not None:
        notes.append(f"{path.name}: {_pin_date(tokenizer, template_date, str(path))}")
    refuse_dated_template(tokenizer, str(path))
    _require_usable_template(tokenizer, str(path))
    tokenizer.padding_side = "left"
    return LoadedTokenizer(tokenizer, tuple(notes))


def _class_for(path: Path) -> Any:
    """What `AutoTokenizer` would choose for a tokenizer of one file and no model beside it; else `AutoTokenizer`.

    It needs all model configurations and torch, seconds of imports, which a plain fast tokenizer does without.
    """
    settings = path / "tokenizer_config.json"
    if not (path / "config.json").exists() and (path / "tokenizer.json").is_file() and settings.is_file():
        named = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
        if named in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def refuse_dated_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a chat template that writes today's date into prompts: tomorrow the same run would differ.

    Raises:
        UserError: the template mentions `strftime_now`, the only clock that templates have.
    """
    if any(_CLOCK in text for text in _templates(tokenizer).values()):
        raise UserError(
            "the chat template inserts today's date, so the same run would differ tomorrow",
            where=f"{where}, chat template, {_CLOCK}",
            fix="set template_date of this model (models.policy or models.reward) to a date such as 2024-07-26",
        )


def date_pinned(template: str, date: datetime.date) -> str:
    """The chat template with `date` written in wherever it asks for today's, so that nothing of a clock is left.

    `strftime_now("%d %b %Y")` becomes the literal "26 Jul 2024", and the test whether there is a clock becomes its
    answer. Where the format is no literal, the call stays.
    """

    def literal(call: re.Match[str]) -> str:
        # Jinja reads its literals like this too
        form = call[1][1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")
        shown = date.strftime(form).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{shown}"'

    return _CLOCK_TEST.sub(lambda test: "false" if test[1] else "true", _CLOCK_CALL.sub(literal, template))


def _pin_date(tokenizer: PreTrainedTokenizerBase, date: datetime.date, where: str) -> str:
    """Write a date into the tokenizer's templates; returns what there was to do, for the log."""
    before = _templates(tokenizer)
    after = {name: date_pinned(text, date) for name, text in before.items()}
    if left := next((text for text in after.values() if _CLOCK in text), None):
        line = next(line for line in left.splitlines() if _CLOCK in line).strip()
        raise UserError(
            "the chat template asks for today's date in a format that is not written out",
            where=f"{where}, chat template: {line[:100]}",
            fix=f'in a copy of the checkpoint replace {_CLOCK}(...) by a fixed date such as "{date:%d %b %Y}"',
        )
    if after == before:
        return f"the chat template asks for no date, so template_date {date} changes nothing"
    tokenizer.chat_template = after if isinstance(tokenizer.chat_template, dict) else after["default"]
    return f"the chat template is given the date {date}"


def _require_usable_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Find out now, not in the middle of a data set, that a template is broken or forgets what it is given."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    templates = _templates(tokenizer)
    if "default" not in templates:
        raise UserError(
            f"none of the chat templates is called 'default', only {', '.join(sorted(templates))}",
            where=f"{where}, chat templates",
            fix="in a copy of the checkpoint give the one for conversations that name",
        )
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is not valid Jinja: {error.message}",
            where=f"{where}, chat template, line {error.lineno}",
            fix="correct it in a copy of the checkpoint, or remove it there: then the plain one is used",
        ) from error
    except TemplateError:
        return  # it may ask for another kind of conversation, and says so when it is given one that it refuses
    if "hello" not in str(text):
        raise UserError(
            "the chat template leaves out what the user says when it is plain text",
            where=f"{where}, chat template",
            fix="in a copy of the checkpoint replace it by one for text conversations, or remove it: "
            "then the plain one is used",
        )


def _templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    template = tokenizer.chat_template
    return dict(template) if isinstance(template, dict) else {"default": template or ""}
