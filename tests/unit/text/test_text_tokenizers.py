"""Making and loading tokenizers: same bytes twice, safe special tokens, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inverse_alignment.core.errors import UserError
from inverse_alignment.core.records import Prompt
from inverse_alignment.text.render import encode_full
from inverse_alignment.text.tokenizers import SPECIAL_TOKENS, load_tokenizer, plain_template, train_tokenizer

TEXTS = ["the cat sat on the mat. ", "a dog and a cat.\n\nthe end"] * 20


def edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_training_twice_gives_the_same_bytes(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "a")
    train_tokenizer(iter(TEXTS), 300).save_pretrained(tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_special_tokens(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == 1
    assert tokenizer.bos_token_id is None
    assert tokenizer.padding_side == "left"
    assert len(tokenizer) <= 300


def test_more_vocabulary_means_shorter_text():
    few, many = train_tokenizer(TEXTS, 261), train_tokenizer(TEXTS, 300)
    assert len(many("the cat sat")["input_ids"]) < len(few("the cat sat")["input_ids"]) == 11


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(UserError, match="set it to 261 or more"):
        train_tokenizer(TEXTS, 260)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_refused(texts):
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        train_tokenizer(texts, 300)


def test_loading_gives_back_the_same_tokenizer(tokenizer, folder):
    loaded = load_tokenizer(folder)
    assert loaded.notes == ()
    prompt = Prompt.from_text("the cat?")
    assert encode_full(loaded.tokenizer, prompt, "a dog", 40) == encode_full(tokenizer, prompt, "a dog", 40)


def test_a_missing_pad_becomes_the_end_token_and_is_said(folder):
    edit(folder / "tokenizer_config.json", pad_token=None)
    loaded = load_tokenizer(folder)
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id
    assert len(loaded.notes) == 1 and "no pad token" in loaded.notes[0]


def test_a_missing_template_becomes_the_plain_one_and_is_said(folder):
    (folder / "chat_template.jinja").unlink()
    loaded = load_tokenizer(folder)
    assert loaded.tokenizer.chat_template == plain_template()
    assert len(loaded.notes) == 1 and "no chat template" in loaded.notes[0]


def test_a_missing_end_token_is_refused(folder):
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        load_tokenizer(folder)


def test_a_template_with_todays_date_is_refused(folder):
    template = "Today is {{ strftime_now('%d %b %Y') }}. {{ messages[0]['content'] }}"
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="inserts today's date"):
        load_tokenizer(folder)


def test_a_template_with_a_fixed_date_is_accepted(folder):
    (folder / "chat_template.jinja").write_text("Today is 26 Jul 2024. {{ messages[0]['content'] }}")
    assert load_tokenizer(folder).notes == ()


@pytest.mark.parametrize(
    ("template", "says", "where"),
    [
        ("a\n{% if %}", "the chat template is not valid Jinja: Expected an expression", "line 2"),
        ("{{ messages | shout }}", "the chat template is not valid Jinja: No filter named 'shout'", "line 1"),
        (
            "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}",  # takes lists of parts only
            "the chat template leaves out what the user says when it is plain text",
            "chat template",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_at_once(folder, template, says, where):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError) as caught:
        load_tokenizer(folder)
    assert caught.value.what.startswith(says) and where in caught.value.where and str(folder) in caught.value.where


def test_a_template_may_want_another_conversation_than_the_trial_one(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('a system message, please') }}")
    tokenizer = load_tokenizer(folder).tokenizer
    with pytest.raises(UserError, match="a system message, please"):
        encode_full(tokenizer, Prompt.from_text("hi"), "a dog", 40)


def test_several_templates_need_a_default(folder, tokenizer):
    several = load_tokenizer(folder).tokenizer
    several.chat_template = {"tool_use": plain_template(), "default": plain_template()}
    several.save_pretrained(folder)
    assert encode_full(load_tokenizer(folder).tokenizer, Prompt.from_text("hi"), "a", 40) == encode_full(
        tokenizer, Prompt.from_text("hi"), "a", 40
    )
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="none of the chat templates is called 'default', only tool_use"):
        load_tokenizer(folder)


def test_our_template_knows_no_date():
    assert "strftime" not in plain_template() and "date_string" not in plain_template()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder to load a tokenizer from"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot load a tokenizer|no end-of-sequence token"):
        load_tokenizer(tmp_path)


def test_code_in_the_folder_is_not_run(folder):
    (folder / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass T: ...\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]}, tokenizer_class="T")
    try:
        load_tokenizer(folder)
    except UserError as error:
        assert "cannot load" in error.what
    assert not (folder / "ran").exists()
