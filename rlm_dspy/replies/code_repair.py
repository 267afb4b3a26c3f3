"""Repairs code that fails to parse only because of its form: prompts, indentation, typographic characters.

Code that parses is unchanged, and a repair counts only if the result parses.
"""

from __future__ import annotations

import ast
import html
import re
import textwrap

from rlm_dspy.replies.code_blocks import PYTHON, outside_functions, parse
from rlm_dspy.replies.literals import is_call

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
        **dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", None),
        **dict.fromkeys("\u2010\u2011\u2212", "-"),
    }
)
"""Typographic quotes, spaces and hyphens, and zero-width characters."""
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""The forms of ASCII characters that Chinese and Japanese keyboards write."""
_IN_QUOTES = re.compile(r"(\"[^\"\n]*\"|'[^'\n]*')")
_SPACES = {code: new for code, new in _CHARACTERS.items() if new in (" ", None)}
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\.\.\.|In \[\d+\]:|\.{3,}:)(?: |$)")
_ANNOTATED_PROMPT = re.compile(r"\s*In \[\d+\]:")
_FIRST_PROMPT = re.compile(r"^[ \t]*(?:>>>|In \[\d+\]:) ", re.MULTILINE)
_CONTINUES = re.compile(r"[\s#\\]|$|(?:else|elif|except|finally)\b")
"""Begins a line that does not begin a statement at the top level."""
_MAY_CONTINUE = re.compile(r"e|el|els|eli|ex|exc|exce|excep|f|fi|fin|fina|final|finall")
"""A last line that was cut inside of such a word."""
_MOST_LINES_CUT_OFF = 200


def repaired(code: str) -> str:
    """Repair code that does not parse, without changing its words; return it unchanged if impossible.

    Line ends are those that Python reads: a carriage return ends a line too, also in a string.
    """
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    first, _, rest = code.lstrip("\n").partition("\n")
    if first.strip().lower() in PYTHON and rest.strip():
        code = rest  # the mark of the fence, on a line of its own
    if _ANNOTATED_PROMPT.match(code):
        code = without_prompts(code)  # `In [1]: x = 1` is Python: an annotated assignment
    if parse(code) is not None:
        return _without_returns(code)
    for step in (
        _as_is,
        _without_fence,
        _without_prompts,
        _with_plain_spaces,
        _with_plain_characters,
        _with_half_width,
        _with_line_ends,
        html.unescape,
    ):
        candidate = textwrap.dedent(step(code)).strip("\n")
        if candidate.strip() and parse(candidate) is not None:
            return candidate
    return code


def _without_returns(code: str) -> str:
    """Return code whose `return SUBMIT(...)` outside of functions is `SUBMIT(...)`, which ends the run as well."""
    if "return SUBMIT(" not in code or (tree := parse(code)) is None:
        return code
    lines = code.split("\n")
    for node in outside_functions(tree):
        if isinstance(node, ast.Return) and is_call(node.value, "SUBMIT"):
            at = len(lines[node.lineno - 1].encode()[: node.col_offset].decode())
            lines[node.lineno - 1] = lines[node.lineno - 1][:at] + lines[node.lineno - 1][at:].removeprefix(
                "return "
            )
    return "\n".join(lines)


def complete_statements(code: str) -> str:
    """Return the top-level statements of code that was cut off which are certainly complete; empty if none is.

    A statement is complete if another one begins after it. The last one may go on: `n = 12` of `n = 128`.
    """
    lines = code.split("\n")
    starts = [at for at, line in enumerate(lines) if at and not _CONTINUES.match(line)]
    if starts and starts[-1] == len(lines) - 1 and _MAY_CONTINUE.fullmatch(lines[-1]):
        starts.pop()
    for start in starts[:-_MOST_LINES_CUT_OFF:-1]:
        if (tree := parse(kept := "\n".join(lines[:start]).rstrip())) is not None:
            return kept if tree.body else ""
    return ""


def without_prompts(text: str) -> str:
    """Return the input at the prompts of a session; empty without prompts."""
    if not _FIRST_PROMPT.search(text):
        return ""
    typed = (line for line in text.split("\n") if _PROMPT.match(line))
    return "\n".join(_PROMPT.sub("", line) for line in typed)


def _as_is(text: str) -> str:
    return text


def _without_fence(text: str) -> str:
    return text.rstrip().rstrip("`~")


def _without_prompts(text: str) -> str:
    return without_prompts(text) or text


def _with_plain_spaces(text: str) -> str:
    return text.translate(_SPACES)


def _with_plain_characters(text: str) -> str:
    return text.translate(_CHARACTERS)


def _with_line_ends(text: str) -> str:
    """Return code that was escaped twice, as in JSON in JSON, with its line ends."""
    return text if "\n" in text.strip() else text.replace("\\n", "\n").replace('\\"', '"')


def _with_half_width(text: str) -> str:
    parts = _IN_QUOTES.split(_with_plain_characters(text))
    return "".join(part if at % 2 else part.translate(_FULL_WIDTH) for at, part in enumerate(parts))
