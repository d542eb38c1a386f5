"""Text to token ids and back: the only functions that training, selection, PPO and evaluation may use for it.

A reward model that is trained on one rendering and asked about another scores noise. Hence one rule for all:
`encode_full` is the ids of the prompt, then the ids of the answer, then the end token once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Degenerate = Literal["empty after tokenisation", "identical after tokenisation"]


@dataclass(frozen=True)
class EncodedPair:
    """Both answers to one prompt as the reward model will see them.

    Attributes:
        chosen: ids of prompt and chosen answer.
        rejected: ids of prompt and rejected answer.
        truncated: whether the prompt or an answer lost tokens to the limit.
    """

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class PairEncoder:
    """Encodes pairs for one tokenizer and one limit, and says when that leaves no preference to learn."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    def encode_pair(self, comparison: Comparison) -> EncodedPair | Degenerate:
        """Ids of both answers, or why they make no pair.

        Raises:
            UserError: see `encode_prompt`.
        """
        prompt, cut = _fit_prompt(self.tokenizer, comparison.prompt, prompt_budget(self.max_tokens))
        answers = [encode_response(self.tokenizer, text) for text in (comparison.chosen, comparison.rejected)]
        if any(len(answer) == 1 for answer in answers):  # the end token alone
            return "empty after tokenisation"
        chosen, rejected = (_fit_response(answer, self.max_tokens - len(prompt)) for answer in answers)
        if chosen == rejected:
            return "identical after tokenisation"
        cut = cut or [chosen, rejected] != answers
        return EncodedPair((*prompt, *chosen), (*prompt, *rejected), truncated=cut)


def prompt_budget(max_tokens: int) -> int:
    """Most prompt tokens when prompt and answer share `max_tokens`: half of them.

    The budget does not look at the answer. Otherwise chosen and rejected would see prompts that were cut differently,
    and a reward model could tell them apart by the cut.
    """
    return max_tokens // 2


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int) -> list[int]:
    """Ids of a prompt in the tokenizer's chat template, up to where the answer begins.

    A prompt that is too long loses its oldest turns first (a system message is kept as long as it fits), then the
    beginning of its last turn. What the template puts before that turn stays.

    Raises:
        UserError: the template does not fit into `max_tokens` even without content, does not accept the roles, or
            begins with two beginning-of-sequence tokens.
    """
    return _fit_prompt(tokenizer, prompt, max_tokens)[0]


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of an answer, with the end token once, at the end.

    Special tokens spelt out in the text are encoded as the letters they are, so that no text can end an answer.
    """
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [token for token in ids if token != tokenizer.eos_token_id] + [_end(tokenizer)]


def encode_full(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, max_tokens: int) -> list[int]:
    """Ids of a prompt and one answer: what every reward model is trained on and asked about.

    Equal to `encode_prompt(…, prompt_budget(max_tokens))` followed by `encode_response`, cut on the right to
    `max_tokens` with the end token kept: the position that scores is an end token, in training as in use.

    Raises:
        UserError: see `encode_prompt`.
    """
    ids = encode_prompt(tokenizer, prompt, prompt_budget(max_tokens))
    return ids + _fit_response(encode_response(tokenizer, response), max_tokens - len(ids))


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of an answer: up to the first end token, special tokens left out."""
    tokens = list(ids)
    if tokenizer.eos_token_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # a list of ids gives one text
    return text


def _fit_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, max_tokens: int) -> tuple[list[int], bool]:
    """Ids of the prompt, and whether something had to go."""
    messages = prompt.messages
    ids = _render(tokenizer, messages)
    if len(ids) <= max_tokens:
        return ids, False
    while len(ids) > max_tokens and len(messages) > 1:
        messages = _without_oldest(messages)
        ids = _render(tokenizer, messages)
    if len(ids) <= max_tokens:
        return ids, True
    bare = _render(tokenizer, (messages[0].model_copy(update={"content": ""}),))
    if len(bare) >= max_tokens:
        raise UserError(
            f"the chat template alone takes {len(bare)} tokens of the {max_tokens} that a prompt may have",
            where="chat template",
            fix="raise the model's context, or use a shorter template",
        )
    head = next((i for i, (a, b) in enumerate(zip(ids, bare, strict=False)) if a != b), len(bare))
    return ids[:head] + ids[len(ids) - (max_tokens - head) :], True


def _fit_response(ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.eos_token_id, int)  # load_tokenizer refuses a tokenizer without one
    return tokenizer.eos_token_id


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    from jinja2.exceptions import TemplateError

    chat = [{"role": m.role, "content": _defused(tokenizer, m.content)} for m in messages]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(m.role for m in messages)
        raise UserError(
            f"the chat template does not accept a conversation of {roles}: {error}",
            where="chat template",
            fix="leave such conversations out of the data, or give the checkpoint another template",
        ) from error
    # The template writes what belongs at the beginning; the tokenizer must not write it again.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise UserError(
            f"a rendered prompt begins with two {tokenizer.bos_token} tokens",
            where="chat template",
            fix="let the template write the beginning-of-sequence token once",
        )
    return ids


def _defused(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Content whose spelt-out special tokens are broken by a space, so that nobody can fake a turn."""
    return _special_pattern(tokenizer).sub(lambda match: f"{match[0][:1]} {match[0][1:]}", text)


@lru_cache(maxsize=8)  # by object: building the list of added tokens costs more than rendering a prompt
def _special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _without_oldest(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation without its oldest turns, beginning with a user turn again; the system message goes last."""
    system = messages[:1] if messages[0].role == "system" else ()
    turns = messages[len(system) :]
    if len(turns) == 1:
        return turns
    later = [i for i, m in enumerate(turns) if i and m.role == "user"]
    return (*system, *(turns[later[0] :] if later else turns[-1:]))
