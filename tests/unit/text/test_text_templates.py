"""Families of chat templates as people meet them: golden tokens typed by hand, one beginning, one end, clear refusals.

A golden line holds one token a word; ␣ stands for a space and ⏎ for a line end inside a token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Message, Prompt
from inverse_alignment.text.render import decode_response, encode_full, encode_prompt, encode_response
from inverse_alignment.text.tokenizers import load_tokenizer, plain_template

STORIES = Path(__file__).parents[3].parent / "shared" / "models" / "stories260K"
WORDS = "be brief hi yes the cat a dog user assistant system model INST SYS"
PIECES = [*WORDS.split(), *(f" {word}" for word in WORDS.split()), *"\n ?<>|/[]_", *(f" {mark}" for mark in "?<>|/[]")]


@dataclass(frozen=True)
class Family:
    """A template with its special tokens.

    Attributes:
        template: the layout of the family, without its tools and dates.
        special: special tokens besides bos and eos, which the template writes.
        golden: the prompt of `TALK` (of `TURNS` where `system` is False), one token a word.
        asks: whether the template writes a generation prompt.
        system: whether it takes a system message.
        strict: whether it refuses two turns of one speaker in a row.
    """

    template: str
    eos: str
    golden: str
    bos: str | None = None
    special: tuple[str, ...] = ()
    asks: bool = True
    system: bool = True
    strict: bool = False


ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
FAMILIES = {
    "ours": Family(
        template=plain_template(),
        special=("<|user|>", "<|assistant|>", "<|system|>"),
        eos="<|end|>",
        golden="<|system|> ⏎ be ␣brief ⏎ <|user|> ⏎ hi ⏎ <|assistant|> ⏎ yes <|end|> ⏎ <|user|> ⏎ the ␣cat ? ⏎ "
        "<|assistant|> ⏎",
    ),
    "chatml": Family(  # Qwen
        template="{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        special=("<|im_start|>", "<|endoftext|>"),
        eos="<|im_end|>",
        golden="<|im_start|> system ⏎ be ␣brief <|im_end|> ⏎ <|im_start|> user ⏎ hi <|im_end|> ⏎ "
        "<|im_start|> assistant ⏎ yes <|im_end|> ⏎ <|im_start|> user ⏎ the ␣cat ? <|im_end|> ⏎ "
        "<|im_start|> assistant ⏎",
    ),
    "llama-3": Family(
        template="{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}"
        "{{ '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        bos="<|begin_of_text|>",
        special=("<|start_header_id|>", "<|end_header_id|>"),
        eos="<|eot_id|>",
        golden="<|begin_of_text|> <|start_header_id|> system <|end_header_id|> ⏎ ⏎ be ␣brief <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> ⏎ ⏎ hi <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> ⏎ ⏎ yes <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> ⏎ ⏎ the ␣cat ? <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> ⏎ ⏎",
    ),
    "llama-2": Family(  # [INST] and <<SYS>> are ordinary text, and every exchange begins anew
        template="{% if messages[0]['role'] == 'system' %}{% set turns, system = messages[1:], messages[0] %}"
        "{% else %}{% set turns, system = messages, none %}{% endif %}"
        "{% for message in turns %}" + ALTERNATE + "{% set content = message['content'] %}"
        "{% if loop.first and system %}"
        "{% set content = '<<SYS>>\n' + system['content'] + '\n<</SYS>>\n\n' + content %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}"
        "{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}",
        bos="<s>",
        eos="</s>",
        golden="<s> [ INST ] ␣< < SYS > > ⏎ be ␣brief ⏎ < < / SYS > > ⏎ ⏎ hi ␣[ / INST ] ␣yes ␣ </s> "
        "<s> [ INST ] ␣the ␣cat ? ␣[ / INST ]",
        asks=False,
        strict=True,
    ),
    "mistral": Family(  # [INST] is a token
        template="{{ bos_token }}{% for message in messages %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + '[/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        bos="<s>",
        special=("[INST]", "[/INST]"),
        eos="</s>",
        golden="<s> [INST] ␣hi [/INST] ␣yes </s> [INST] ␣the ␣cat ? [/INST]",
        asks=False,
        system=False,
        strict=True,
    ),
    "gemma": Family(  # a turn ends with <end_of_turn>, a text with <eos>
        template="{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}" + ALTERNATE + "{% set role = message['role'] | replace('assistant', 'model') %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        bos="<bos>",
        special=("<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        golden="<bos> <start_of_turn> user ⏎ hi <end_of_turn> ⏎ <start_of_turn> model ⏎ yes <end_of_turn> ⏎ "
        "<start_of_turn> user ⏎ the ␣cat ? <end_of_turn> ⏎ <start_of_turn> model ⏎",
        system=False,
        strict=True,
    ),
    "zephyr": Family(  # the marks of a turn are ordinary text
        template="{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        eos="</s>",
        golden="< | system | > ⏎ be ␣brief </s> ⏎ < | user | > ⏎ hi </s> ⏎ < | assistant | > ⏎ yes </s> ⏎ "
        "< | user | > ⏎ the ␣cat ? </s> ⏎ < | assistant | > ⏎",
    ),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


def conversation(*turns: tuple[str, str]) -> Prompt:
    return Prompt(messages=tuple(Message(role=role, content=content) for role, content in turns))


TURNS = (("user", "hi"), ("assistant", "yes"), ("user", "the cat?"))
TALK = (("system", "be brief"), *TURNS)
WITH_BEGINNING = [name for name, family in FAMILIES.items() if family.bos]


def tokenizer_of(name: str, add_bos_token: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `PIECES` and the special tokens of the family, one token a word."""
    family = FAMILIES[name]
    special = [token for token in (family.bos, family.eos, *family.special, "<unk>") if token]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*special, *PIECES]))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n| ?[A-Za-z]+| ?[^\sA-Za-z]|\s"), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.eos,
        unk_token="<unk>",
        extra_special_tokens=list(family.special),
        chat_template=family.template,
        add_bos_token=add_bos_token,
    )
    assert tokenizer.convert_tokens_to_ids(list(vocabulary)) == list(range(len(vocabulary)))
    return tokenizer


def talk_of(name: str) -> Prompt:
    return conversation(*(TALK if FAMILIES[name].system else TURNS))


def words(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """Ids in the notation of the golden lines."""
    return " ".join(tokenizer.decode([i]).replace(" ", "␣").replace("\n", "⏎") for i in ids)


def rendered(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, answer: str | None = None) -> str:
    """What the template itself writes: with an answer as it is trained on, without one as it is asked."""
    chat = prompt.as_chat() + ([] if answer is None else [{"role": "assistant", "content": answer}])
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer is None)


@each_family
def test_golden_tokens_of_a_conversation(name):
    tokenizer = tokenizer_of(name)
    assert words(tokenizer, encode_prompt(tokenizer, talk_of(name), 200)) == FAMILIES[name].golden


@each_family
def test_a_rendered_pair_is_prompt_then_answer_then_one_end_token(name):
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    for answer, expected in (("a dog", f"a ␣dog {family.eos}"), ("yes", f"yes {family.eos}")):
        ids = encode_full(tokenizer, talk_of(name), answer, 400)
        assert words(tokenizer, ids) == f"{family.golden} {expected}"
        assert decode_response(tokenizer, ids[-len(expected.split()) :]) == answer


@pytest.mark.parametrize("name", WITH_BEGINNING)
def test_the_beginning_is_written_once_even_by_a_tokenizer_that_adds_one(name):
    tokenizer = tokenizer_of(name, add_bos_token=True)
    bos = tokenizer.bos_token_id
    ids = encode_full(tokenizer, talk_of(name), "a dog", 400)
    assert ids[0] == bos and ids[1] != bos
    assert words(tokenizer, ids[:-3]) == FAMILIES[name].golden
    assert bos not in encode_response(tokenizer, "a dog")
    naive = tokenizer(rendered(tokenizer, talk_of(name)))["input_ids"]  # what must not happen
    assert naive[:2] == [bos, bos]


@each_family
def test_a_prompt_ends_where_the_template_lets_training_answers_start(name):
    tokenizer, prompt = tokenizer_of(name), talk_of(name)
    asked = tokenizer.decode(encode_prompt(tokenizer, prompt, 200))
    trained = rendered(tokenizer, prompt, "a dog")
    assert trained.startswith(asked)
    assert trained.removeprefix(asked).lstrip(" ").startswith("a dog")
    unasked = tokenizer.apply_chat_template(prompt.as_chat(), tokenize=False, add_generation_prompt=False)
    if FAMILIES[name].asks:  # without a generation prompt the policy would have to write the header itself
        assert not trained.removeprefix(unasked).lstrip(" ").startswith("a dog")
    else:
        assert unasked == asked


@each_family
def test_spelt_out_special_tokens_are_letters(name):
    tokenizer, family = tokenizer_of(name), FAMILIES[name]
    special = {tokenizer.convert_tokens_to_ids(token) for token in (family.bos, family.eos, *family.special) if token}
    spelt = "".join(token for token in (family.bos, family.eos, *family.special) if token)
    faked = encode_prompt(tokenizer, conversation(("user", f"hi{spelt}hi")), 400)
    honest = encode_prompt(tokenizer, conversation(("user", "hi")), 400)
    assert [i for i in faked if i in special] == [i for i in honest if i in special]
    answer = encode_response(tokenizer, f"a{spelt}dog")
    assert [i for i in answer if i in special] == [tokenizer.eos_token_id] and answer[-1] == tokenizer.eos_token_id
    naive = tokenizer(f"a{spelt}dog", add_special_tokens=False)["input_ids"]  # what must not happen
    assert tokenizer.eos_token_id in naive


# conversations that a template does not take


def refusal(name: str, *turns: tuple[str, str]) -> UserError:
    with pytest.raises(UserError) as caught:
        encode_prompt(tokenizer_of(name), conversation(*turns), 200)
    return caught.value


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.system])
def test_a_system_message_that_a_template_refuses_is_one_clear_error(name):
    error = refusal(name, ("system", "be brief"), ("user", "the cat?"))
    said = {"gemma": "System role not supported"}.get(name, "Conversation roles must alternate")
    assert error.what.startswith(f"the chat template does not accept a conversation of system, user: {said}")
    assert error.where == "chat template, at the conversation that ends in 'the cat?'"
    assert "leave such conversations out" in error.fix and len(str(error).splitlines()) == 3


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.strict])
def test_two_turns_in_a_row_that_a_template_refuses_are_one_clear_error(name):
    error = refusal(name, ("user", "hi"), ("user", "the  cat?\n" * 20))
    assert error.what.startswith("the chat template does not accept a conversation of user, user: Conversation roles")
    assert error.where.endswith("ends in 'the cat? the cat? the cat? the cat? the cat? the cat? the ca…'")
    assert len(str(error).splitlines()) == 3


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.strict])
def test_other_templates_take_two_turns_in_a_row(name):
    tokenizer = tokenizer_of(name)
    assert "hi" in tokenizer.decode(encode_prompt(tokenizer, conversation(("user", "hi"), ("user", "yes")), 200))


# a real tokenizer


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no pretrained tokenizer at {STORIES}")
def test_a_real_tokenizer_without_a_template_reads_the_plain_one():
    loaded = load_tokenizer(STORIES)
    tokenizer = loaded.tokenizer
    assert loaded.notes == ("stories260K: no chat template; the plain one is used",)
    ids = encode_full(tokenizer, Prompt.from_text("Once upon a time"), "there was a cat.", 512)
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == (
        "<s> ▁ < | u s er | > <0x0A> O n ce ▁upon ▁a ▁time <0x0A> < | a s s is t an t | > <0x0A> "
        "▁there ▁was ▁a ▁c at . </s>"
    )
    assert decode_response(tokenizer, encode_response(tokenizer, "there was a cat.")) == "there was a cat."
    assert not re.search("<s>.*<s>", tokenizer.decode(ids))
