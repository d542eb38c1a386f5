"""A reward model's scores on benchmarks as a page: the numbers of the JSON file beside it, with what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE, DATA = "evaluate-rm.html", "evaluate-rm.json"
TEMPLATES = Path(__file__).parent / "templates"


def render(found: Mapping[str, Any]) -> str:
    """The page as HTML, from what `evaluate-rm` writes as JSON."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    style = (TEMPLATES / "style.css.jinja").read_text(encoding="utf-8")
    return environment.get_template("judged.html.jinja").render(
        style=Markup(style),  # noqa: S704 - package data
        found=found,
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
