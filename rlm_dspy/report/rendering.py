"""Renders the templates of the reports: all content is escaped, and characters that HTML forbids are replaced."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from inspect import isfunction
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers.python import PythonLexer

from rlm_dspy import text
from rlm_dspy.report import charts, coverage_data, formatting, turns_data
from rlm_dspy.report.record import STOPS, describe_stop
from rlm_dspy.text import printable
from rlm_dspy.trajectory import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import JsonValue

    from rlm_dspy.trajectory import SubCall

_MAX_HIGHLIGHTED_CHARS = 20_000
_LEXER = PythonLexer(stripnl=False, ensurenl=False)
_FORMATTER = HtmlFormatter(nowrap=True, classprefix="p-")


def template(name: str) -> Template:
    """Return a template of this package, e.g. `report.html`; values in HTML are escaped.

    Raises:
        jinja2.TemplateNotFound: If there is no such template.
    """
    return _environment().get_template(name)


def highlighted(code: str) -> Markup:
    """Return Python with a `span` around each token that has a colour; no `span` runs over a line end."""
    if len(code) > _MAX_HIGHLIGHTED_CHARS:
        return Markup(escape(clean(code)))  # noqa: S704 (escaped)
    return Markup(highlight(clean(code), _LEXER, _FORMATTER).removesuffix("\n"))  # noqa: S704 (Pygments escapes)


def clean(text: str) -> str:
    """Replace the characters that HTML forbids: control characters and lone surrogates."""
    return printable(text).encode("utf-8", "replace").decode("utf-8")


def _finalize(value: str | float) -> str | float:
    """Clean a value of a template; markup is already clean."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for module in (charts, coverage_data, formatting, text, turns_data):
        environment.filters |= {name: found for name, found in vars(module).items() if isfunction(found)}
    environment.filters |= {"describe_stop": describe_stop, "highlighted": highlighted, "number": "{:,}".format}
    environment.filters |= {"numbered": _numbered, "svg_number": svg_number, "to_json": to_json}
    environment.globals |= {"KINDS": KINDS, "STOPS": STOPS, "highlight_style": highlight_style}
    return environment


def _numbered(items: Iterable[SubCall]) -> list[tuple[int, SubCall]]:
    """Return items with their numbers; the first is 1."""
    return list(enumerate(items, 1))


def to_json(value: JsonValue) -> str:
    """Return a text unchanged, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def svg_number(value: float) -> str:
    """Return a length in an SVG with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def highlight_style(name: str) -> Markup:
    """Return the CSS for highlighted code in elements of the class `code`, in one of the styles of Pygments."""
    formatter = HtmlFormatter(style=name, classprefix="p-")
    rules = formatter.get_token_style_defs(".code")
    return Markup("\n".join(rule.partition(" /*")[0] for rule in rules))  # noqa: S704 (colours)
