"""HTML that cannot be broken by what is put into it: text is escaped unless it was made here."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers.python import PythonLexer

from rlm_dspy.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_HIGHLIGHTED_CHARS = 20_000
_LEXER = PythonLexer(stripnl=False, ensurenl=False)
_FORMATTER = HtmlFormatter(nowrap=True, classprefix="p-")
_VOID = {"meta", "br"}

Value = str | float | bool | None
"""Of an attribute: True for one without a value, None or False for one that is left out."""


class Html(str):
    """Text that is HTML already. Made by `tag` and by the functions below; all other text is escaped."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: Value) -> Html:
    """Return an element.

    Args:
        name: Of the element, e.g. `div`.
        children: Their text is escaped unless it is `Html`; None is left out.
        attributes: `class_` is written `class`, other `_` are written `-`.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(clean(str(value)))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{joined(children)}</{name}>")


def joined(parts: Iterable[str | None], between: str = "") -> Html:
    """Return the parts one after another, escaped unless they are `Html`."""
    return Html(_html(between).join(_html(part) for part in parts if part is not None))


def highlighted(code: str) -> Html:
    """Return Python in colours: spans whose classes `highlight_style` gives colours to; no tag spans two lines."""
    if len(code) > _MAX_HIGHLIGHTED_CHARS:
        return _html(code)
    return Html(highlight(clean(code), _LEXER, _FORMATTER).removesuffix("\n"))


def highlight_style(selector: str, style: str) -> str:
    """Return CSS that colours what `highlighted` returns.

    Args:
        selector: Of the elements that hold code.
        style: The name of one of Pygments' styles.
    """
    formatter = HtmlFormatter(style=style, classprefix="p-")
    rules = formatter.get_token_style_defs(selector)
    return "\n".join(rule.partition(" /*")[0] for rule in rules)


def clean(text: str) -> str:
    """Return the text without what no HTML file may hold: control characters and halves of surrogate pairs."""
    return printable(text).encode("utf-8", "replace").decode("utf-8")


def _html(text: str) -> Html:
    return text if isinstance(text, Html) else Html(escape(clean(text)))
