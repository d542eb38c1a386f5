"""A chat template that asks for today's date is given a fixed one, or refused; nothing of a clock is left."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from inverse_alignment.config import load
from inverse_alignment.core.artifact import canonical_json, digest_of, list_files, sha256_file
from inverse_alignment.core.configuration import identity_of
from inverse_alignment.core.context import RuntimeConfig, StageContext
from inverse_alignment.core.errors import UserError
from inverse_alignment.core.metrics import FileReport
from inverse_alignment.core.records import Prompt
from inverse_alignment.models.loading import new_policy, save_model
from inverse_alignment.models.specs import CheckpointModel, InitialisedModel
from inverse_alignment.stages.tokenizers import TokenizersConfig, build
from inverse_alignment.text.render import encode_prompt
from inverse_alignment.text.tokenizers import date_pinned, load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[3]
DAY = datetime.date(2024, 7, 6)
TURN = "{{- messages[0]['content'] + '\n' }}"
LLAMA_3_1 = (  # how Llama 3.1 asks
    """{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Today Date: " + date_string + "\n" }}"""
    + TURN
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = train_tokenizer(["Today Date: 06 Jul 2024, hi"] * 5, 300)
    spec = InitialisedModel(vocab_size=300, hidden_size=16, layers=1, heads=2, context=64)
    save_model(new_policy(spec, tokenizer, 0), tokenizer, folder)
    return folder


@pytest.fixture
def dated(plain: Path) -> Path:
    """A folder whose template asks for today's date."""
    return with_template(plain, LLAMA_3_1)


def with_template(folder: Path, template: str) -> Path:
    (folder / "chat_template.jinja").write_text(template)
    return folder


def asked(folder: Path, date: datetime.date | None = None) -> str:
    tokenizer = load_tokenizer(folder, date).tokenizer
    text = tokenizer.decode(encode_prompt(tokenizer, Prompt.from_text("hi"), 200))
    assert isinstance(text, str)
    return text


# the text of a template


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ('{{ strftime_now("%d %b %Y") }}', '{{ "06 Jul 2024" }}'),
        ("{{ strftime_now('%d %b %Y') }}", '{{ "06 Jul 2024" }}'),
        ("{{strftime_now ( format = '%Y-%m-%d' )|trim}}", '{{"2024-07-06"|trim}}'),
        (r"""{{ strftime_now('the day\'s \"%j\"') }}""", r"""{{ "the day's \"188\"" }}"""),
        (r"""{{ strftime_now("%y\n\\%m é") }}""", r"""{{ "24\n\\07 é" }}"""),
        ("{% if strftime_now is defined %}a{% endif %}", "{% if true %}a{% endif %}"),
        ("{% if strftime_now is  not defined %}a{% endif %}", "{% if false %}a{% endif %}"),
        ('{{ strftime_now("%Y") + strftime_now("%m") }}', '{{ "2024" + "07" }}'),
        ("{{ strftime_now(form) }}", "{{ strftime_now(form) }}"),
        ('{{ strftime_now("%Y" ~ sep) }}', '{{ strftime_now("%Y" ~ sep) }}'),
        ("no date", "no date"),
    ],
)
def test_a_date_takes_the_place_of_the_clock(template: str, expected: str) -> None:
    assert date_pinned(template, DAY) == expected


@pytest.mark.parametrize("form", [r"the day\'s \"%j\"", r"%y\n\\%m é", "%d/%m — 😀", r"\u00e9 %Y"])
def test_the_literal_says_what_the_clock_would_have_said(form: str) -> None:
    from jinja2 import Environment

    def now(form: str) -> str:
        return DAY.strftime(form)

    template = "{{ strftime_now('" + form + "') }}"
    expected = Environment().from_string(template).render(strftime_now=now)
    assert Environment().from_string(date_pinned(template, DAY)).render() == expected


# loading


def test_llama_3_1_is_given_the_date(dated: Path) -> None:
    assert asked(dated, DAY) == "Today Date: 06 Jul 2024\nhi\n"
    assert asked(dated, datetime.date(2025, 12, 24)) == "Today Date: 24 Dec 2025\nhi\n"


def test_without_a_date_it_is_refused_and_the_way_out_is_named(dated: Path) -> None:
    with pytest.raises(UserError, match="inserts today's date") as caught:
        load_tokenizer(dated)
    assert "template_date" in caught.value.fix and str(dated) in caught.value.where


@pytest.mark.parametrize("call", ["strftime_now(form)", 'strftime_now("%Y" ~ "-%m")', "f('%Y')"])
def test_a_format_that_is_not_written_out_is_refused(plain: Path, call: str) -> None:
    template = "{% set form = '%Y' %}{% set f = strftime_now %}{{ " + call + " }}" + TURN
    with pytest.raises(UserError, match="in a format that is not written out") as caught:
        load_tokenizer(with_template(plain, template), DAY)
    assert "strftime_now" in caught.value.where and "06 Jul 2024" in caught.value.fix


def test_a_date_that_nobody_asks_for_is_said(plain: Path) -> None:
    folder = with_template(plain, TURN)
    assert asked(folder, DAY) == asked(folder) == "hi\n"
    note = f"{folder.name}: the chat template asks for no date, so template_date 2024-07-06 changes nothing"
    assert load_tokenizer(folder, DAY).notes == (note,)
    assert load_tokenizer(with_template(plain, LLAMA_3_1), DAY).notes == (
        f"{folder.name}: the chat template is given the date 2024-07-06",
    )


# the stage


def tokenizers(folder: Path, out: Path, **fields: object) -> tuple[str, dict[str, object]]:
    """The digest of what the stage writes for a checkpoint, and its headline."""
    spec = CheckpointModel(path=str(folder), **fields)
    config = TokenizersConfig(policy=spec, reward=spec)
    out.mkdir()
    context = StageContext(out, out, FileReport(out / "metrics.jsonl"), RuntimeConfig(), 0)
    headline = build({"policy_model": folder, "reward_model": folder}, config, context)
    return digest_of({name: sha256_file(out / "policy" / name) for name in list_files(out / "policy")}), headline


def test_the_stage_writes_tokenizers_that_hold_no_clock(dated: Path, tmp_path: Path) -> None:
    monday, headline = tokenizers(dated, tmp_path / "a", template_date="2024-07-06")
    tuesday, _ = tokenizers(dated, tmp_path / "b", template_date="2024-07-07")
    again, _ = tokenizers(dated, tmp_path / "c", template_date=DAY)
    assert monday == again != tuesday
    for role in ("policy", "reward"):
        folder = tmp_path / "a" / role
        assert all("strftime_now" not in (folder / name).read_text() for name in list_files(folder))
        assert asked(folder) == "Today Date: 06 Jul 2024\nhi\n"  # no date is needed from here on
    assert headline["notes"] == [f"{dated.name}: the chat template is given the date 2024-07-06"] * 2
    with pytest.raises(UserError, match="inserts today's date"):
        tokenizers(dated, tmp_path / "d")


# the configuration


def test_a_date_is_iso_text_and_bears_identity() -> None:
    spec = CheckpointModel(path="x", template_date="2024-07-06")
    assert spec == CheckpointModel(path="x", template_date=DAY)
    assert identity_of(spec)["template_date"] == "2024-07-06"
    none = canonical_json(identity_of(CheckpointModel(path="x")))
    assert canonical_json(identity_of(spec)) != none == canonical_json(identity_of(CheckpointModel(path="elsewhere")))


@pytest.mark.parametrize("text", ["2024-07-06", "'2024-07-06'"])
def test_yaml_may_quote_the_date(text: str) -> None:
    override = f"models.policy={{type: checkpoint, path: x, template_date: {text}}}"
    assert load(ROOT / "params.yaml", overrides=[override, "sft={type: checkpoint}"]).models.policy == CheckpointModel(
        path="x", template_date="2024-07-06"
    )


@pytest.mark.parametrize("value", ["yesterday", "2024-7-6", 3, True, datetime.datetime(2024, 7, 6, 10)])
def test_other_dates_are_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="should be a date such as 2024-07-26"):
        CheckpointModel(path="x", template_date=value)


def test_the_key_is_named_where_the_date_is_none() -> None:
    override = "models.policy={type: checkpoint, path: x, template_date: yesterday}"
    with pytest.raises(UserError, match="should be a date such as 2024-07-26, got 'yesterday'") as caught:
        load(ROOT / "params.yaml", overrides=[override])
    assert caught.value.where.startswith("models.policy.template_date")
