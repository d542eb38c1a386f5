"""The one place where tokenizers are made and loaded, so that nothing else decides about special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inverse_alignment.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT, SYSTEM)
_BYTES = 256


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


def load_tokenizer(path: Path) -> LoadedTokenizer:
    """Load a tokenizer from a folder, without running code from it and without the network.

    A missing pad token becomes the end token: padding is told from text by masks, never by its id. A missing chat
    template becomes the plain one.

    Raises:
        UserError: there is no folder, no tokenizer in it, no end token, or its template inserts today's date.
    """
    from transformers import AutoTokenizer

    if not path.is_dir():
        raise UserError("no folder to load a tokenizer from", where=str(path), fix="give the folder of a checkpoint")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
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
    refuse_dated_template(tokenizer, str(path))
    tokenizer.padding_side = "left"
    return LoadedTokenizer(tokenizer, tuple(notes))


def refuse_dated_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Refuse a chat template that writes today's date into prompts: tomorrow the same run would differ.

    Raises:
        UserError: the template calls `strftime_now`, the only clock that templates have.
    """
    template = tokenizer.chat_template
    texts = list(template.values()) if isinstance(template, dict) else [template or ""]
    if any("strftime_now" in text for text in texts):
        raise UserError(
            "the chat template inserts today's date, so the same run would differ tomorrow",
            where=f"{where}, chat template, strftime_now",
            fix='in a copy of the checkpoint replace strftime_now(...) by a fixed date such as "26 Jul 2024"',
        )
