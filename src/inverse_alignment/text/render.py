"""Text to token ids and back: the only functions that training, selection, PPO and evaluation may use for it.

A reward model that is trained on one rendering and asked about another scores noise. Hence one rule for all:
`encode_full` is the ids of the prompt, then the ids of the answer, then the end token once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Comparison, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Degenerate = Literal[
    "empty after tokenisation",
    "identical after tokenisation",
    "longer than the context",
    "refused by the chat template",
]
DEGENERATE: tuple[Degenerate, ...] = get_args(Degenerate)
TooLong = Literal["truncate", "drop"]
_QUOTED = 60  # most characters of a prompt that an error repeats


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
class EncodedText:
    """A prompt and one answer as a model will see them: the ids of `encode_full`.

    Attributes:
        ids: ids of prompt and answer.
        truncated: whether the prompt or the answer lost tokens to the limit.
    """

    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class PairEncoder:
    """Encodes many examples for one tokenizer and one limit, and says which of them hold nothing to learn.

    Attributes:
        tokenizer: the tokenizer of the model that will read the examples.
        max_tokens: most tokens of prompt and answer together.
        too_long: what becomes of an example that does not fit: it loses tokens as `encode_full` says, or it is
            "longer than the context".
    """

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    too_long: TooLong = "truncate"

    def encode_pair(self, comparison: Comparison) -> EncodedPair | Degenerate:
        """Ids of both answers, or why they make no pair; see `encode_pairs`."""
        return self.encode_pairs([comparison])[0]

    def encode_pairs(self, comparisons: Sequence[Comparison]) -> list[EncodedPair | Degenerate]:
        """Ids of both answers of every pair, or why they make none, in the order given.

        A prompt or an answer that several pairs share is encoded once.

        Raises:
            UserError: see `encode_prompt`.
        """
        prompts = self._prompts([comparison.prompt for comparison in comparisons])
        answers = _responses(self.tokenizer, [text for each in comparisons for text in (each.chosen, each.rejected)])
        return [self._pair(*both) for both in zip(prompts, answers[::2], answers[1::2], strict=True)]

    def encode_texts(self, prompts_and_responses: Sequence[tuple[Prompt, str]]) -> list[EncodedText | Degenerate]:
        """Ids of every prompt with its one answer, or why there is nothing to learn from it, in the order given.

        Raises:
            UserError: see `encode_prompt`.
        """
        prompts = self._prompts([prompt for prompt, _ in prompts_and_responses])
        answers = _responses(self.tokenizer, [response for _, response in prompts_and_responses])
        return [self._text(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def _prompts(self, prompts: Sequence[Prompt]) -> list[_Fitted]:
        """Every prompt cut to its budget; one that will be dropped is left as it is."""
        budget = prompt_budget(self.max_tokens)
        conversations = list(dict.fromkeys(prompt.messages for prompt in prompts))
        whole = dict(zip(conversations, _render_all(self.tokenizer, conversations), strict=True))
        if self.too_long == "drop":
            fitted = {messages: _Fitted(ids, len(ids) > budget) for messages, ids in whole.items()}
        else:
            fitted = {messages: _cut_prompt(self.tokenizer, messages, ids, budget) for messages, ids in whole.items()}
        return [fitted[prompt.messages] for prompt in prompts]

    def _pair(self, prompt: _Fitted, *answers: list[int]) -> EncodedPair | Degenerate:
        if any(len(answer) == 1 for answer in answers):  # the end token alone
            return "empty after tokenisation"
        if self._too_long(prompt, *answers):
            return "longer than the context"
        chosen, rejected = (_fit_response(answer, self.max_tokens - len(prompt.ids)) for answer in answers)
        if chosen == rejected:
            return "identical after tokenisation"
        cut = prompt.cut or len(chosen) < len(answers[0]) or len(rejected) < len(answers[1])
        return EncodedPair((*prompt.ids, *chosen), (*prompt.ids, *rejected), truncated=cut)

    def _text(self, prompt: _Fitted, answer: list[int]) -> EncodedText | Degenerate:
        if len(answer) == 1:
            return "empty after tokenisation"
        if self._too_long(prompt, answer):
            return "longer than the context"
        fitted = _fit_response(answer, self.max_tokens - len(prompt.ids))
        return EncodedText((*prompt.ids, *fitted), truncated=prompt.cut or len(fitted) < len(answer))

    def _too_long(self, prompt: _Fitted, *answers: list[int]) -> bool:
        room = self.max_tokens - len(prompt.ids)
        return self.too_long == "drop" and (prompt.cut or any(len(answer) > room for answer in answers))


@dataclass(frozen=True)
class _Fitted:
    """Ids of a prompt, and whether something had to go."""

    ids: list[int]
    cut: bool


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
    return encode_prompts(tokenizer, [prompt], max_tokens)[0]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], max_tokens: int) -> list[list[int]]:
    """`encode_prompt` of many, in order; prompts that are there several times are rendered and encoded once.

    Raises:
        UserError: see `encode_prompt`.
    """
    conversations = list(dict.fromkeys(prompt.messages for prompt in prompts))
    whole = zip(conversations, _render_all(tokenizer, conversations), strict=True)
    fitted = {messages: _cut_prompt(tokenizer, messages, ids, max_tokens).ids for messages, ids in whole}
    return [fitted[prompt.messages] for prompt in prompts]


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of an answer, with the end token once, at the end.

    Special tokens spelt out in the text are encoded as the letters they are, so that no text can end an answer.
    """
    return _responses(tokenizer, [text])[0]


def encode_full(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, max_tokens: int) -> list[int]:
    """Ids of a prompt and one answer: what every reward model is trained on and asked about.

    Equal to `encode_prompt(…, prompt_budget(max_tokens))` followed by `encode_response`, cut on the right to
    `max_tokens` with the end token kept: the position that scores is an end token, in training as in use.

    Raises:
        UserError: see `encode_prompt`.
    """
    return encode_answers(tokenizer, [prompt], [response], max_tokens)[0]


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], responses: Sequence[str], max_tokens: int
) -> list[list[int]]:
    """`encode_full` of many prompts, each with one answer, in order.

    Raises:
        UserError: see `encode_prompt`.
    """
    begun = encode_prompts(tokenizer, prompts, prompt_budget(max_tokens))
    answers = _responses(tokenizer, responses)
    return [ids + _fit_response(own, max_tokens - len(ids)) for ids, own in zip(begun, answers, strict=True)]


def encode_written(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], responses: Sequence[str], max_tokens: int
) -> list[tuple[list[int], list[int]]]:
    """The same in two parts, prompt and answer, and only what the author of the answer wrote.

    An answer that had to be cut has no end token here: nobody ended it there, as nobody ends a sampled answer that
    reaches its longest length.

    Raises:
        UserError: see `encode_prompt`.
    """
    begun = encode_prompts(tokenizer, prompts, prompt_budget(max_tokens))
    answers = _responses(tokenizer, responses)
    return [(ids, own[: max_tokens - len(ids)]) for ids, own in zip(begun, answers, strict=True)]


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of an answer: up to the first end token, special tokens left out."""
    tokens = list(ids)
    if tokenizer.eos_token_id in tokens:
        tokens = tokens[: tokens.index(tokenizer.eos_token_id)]
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)  # a list of ids gives one text
    return text


def _cut_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...], ids: list[int], max_tokens: int
) -> _Fitted:
    """The prompt cut to the limit; `ids` are those of the whole conversation."""
    if len(ids) <= max_tokens:
        return _Fitted(ids, cut=False)
    while len(ids) > max_tokens and len(messages) > 1:
        messages = _without_oldest(messages)
        ids = _render(tokenizer, messages)
    if len(ids) <= max_tokens:
        return _Fitted(ids, cut=True)
    bare = _render(tokenizer, (messages[0].model_copy(update={"content": ""}),))
    if len(bare) >= max_tokens:
        raise UserError(
            f"the chat template alone takes {len(bare)} tokens of the {max_tokens} that a prompt may have",
            where="chat template",
            fix="raise the model's context, or use a shorter template",
        )
    head = next((i for i, (a, b) in enumerate(zip(ids, bare, strict=False)) if a != b), len(bare))
    return _Fitted(ids[:head] + ids[len(ids) - (max_tokens - head) :], cut=True)


def _fit_response(ids: list[int], limit: int) -> list[int]:
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def _responses(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of every answer, with the end token once, at the end."""
    end = tokenizer.eos_token_id  # once: the property looks the token up every time
    assert isinstance(end, int)  # load_tokenizer refuses a tokenizer without one
    encoded = {}
    distinct = list(dict.fromkeys(texts))
    for text, ids in zip(distinct, _encode(tokenizer, distinct, as_letters=True), strict=True):
        encoded[text] = [*(token for token in ids if token != end), end] if end in ids else [*ids, end]
    return [encoded[text] for text in texts]


def _render(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> list[int]:
    return _render_all(tokenizer, [messages])[0]


def _render_all(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[tuple[Message, ...]]) -> list[list[int]]:
    """Ids of every conversation in the chat template, up to where the answer begins, uncut."""
    # The template writes what belongs at the beginning; the tokenizer must not write it again.
    rendered = _encode(tokenizer, [_written(tokenizer, each) for each in conversations], as_letters=False)
    bos = tokenizer.bos_token_id
    if bos is not None and any(ids[:2] == [bos, bos] for ids in rendered):
        raise UserError(
            f"a rendered prompt begins with two {tokenizer.bos_token} tokens",
            where="chat template",
            fix="let the template write the beginning-of-sequence token once",
        )
    return rendered


def _written(tokenizer: PreTrainedTokenizerBase, messages: tuple[Message, ...]) -> str:
    """A conversation as the chat template writes it."""
    from jinja2.exceptions import TemplateError

    chat = [{"role": m.role, "content": _defused(tokenizer, m.content)} for m in messages]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(m.role for m in messages)
        raise RefusedConversation(
            f"the chat template does not accept a conversation of {roles}: {error}",
            where=f"chat template, at the conversation that ends in {_beginning(messages[-1].content)!r}",
            fix="leave such conversations out of the data, or give the checkpoint another template",
        ) from error
    assert isinstance(text, str)  # one conversation gives one text
    return text


class RefusedConversation(UserError):
    """A chat template does not accept the roles of a conversation, or their order."""


def _beginning(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _QUOTED else f"{words[:_QUOTED]}…"


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, as_letters: bool) -> list[list[int]]:
    """Ids of every text, with nothing added.

    Args:
        as_letters: encode special tokens that are spelt out as the letters they are.
    """
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerFast.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    ):  # then it only hands over to Rust; asked directly, that leaves out offsets and masks, a third of the time
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = as_letters
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=as_letters, return_attention_mask=False, verbose=False
    )["input_ids"]
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
