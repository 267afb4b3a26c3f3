"""Sets code aside that a reply marks as a whole: a tool call, DSPy's field `code`, a reply that is all Python.

Its strings may hold what would otherwise be read as a part of the reply: a tag of thinking, a fence, a turn token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlm_dspy.replies.code_blocks import FIELD_MARK, code_blocks, does_something, parse
from rlm_dspy.replies.tool_calls import FORMS, is_bare_call

if TYPE_CHECKING:
    from collections.abc import Callable

_FIELD = re.compile(
    r"^\[\[ ## code ## \]\][ \t]*\n(?P<body>.*?)(?=^\[\[ ## \w+ ## \]\]|\Z)", re.DOTALL | re.MULTILINE
)
_NAME = "_code_set_aside"
_MAY_BE_MISREAD = re.compile(r"[<\u25c1\uff1c&`~\[]")
"""Stands in every piece of code that something else could be read in."""


class CodeSetAside:
    """Replaces pieces of code in a reply by names that stand for them, and puts them back.

    Only valid Python is set aside, so that a call which swallowed other parts of the reply is not.

    Args:
        text: The reply.

    Attributes:
        text: The reply with names in the place of the code.
    """

    def __init__(self, text: str) -> None:
        name = _NAME
        while name in text:
            name += "_"
        self._name = name
        self._codes: list[str] = []
        self._originals: list[str] = []
        self._named = re.compile(rf"{name}_(\d+)_")
        self.text = self._without_code(text)

    def blocks(self, text: str) -> str:
        """Return a text with a block in the place of each name.

        In blocks, and behind one that is not closed, it has the original text.
        """
        if not self._codes:
            return text
        lines = text.split("\n")
        inside = set[int]()
        for block in code_blocks(lines):
            is_open = block.end == len(lines) or FIELD_MARK.match(lines[block.end])
            inside.update(range(block.start, len(lines) if is_open else block.end + 1))
        return "\n".join(
            self.original(line) if at in inside else self._named.sub(r"\n```python\n\g<0>\n```\n", line)
            for at, line in enumerate(lines)
        )

    def original(self, text: str) -> str:
        """Return a text with what the reply said in the place of each name."""
        return self._named.sub(lambda found: self._originals[int(found[1])], text) if self._codes else text

    def code(self, text: str) -> str:
        """Return the code that a name stands for; any other text as it is."""
        found = self._named.fullmatch(text.strip()) if self._codes else None
        return self._codes[int(found[1])] if found else text

    def _without_code(self, text: str) -> str:
        if not _MAY_BE_MISREAD.search(text):
            return text
        if _is_code(text) and not is_bare_call(text):
            return self._set_aside(text, text)
        text = _FIELD.sub(self._replace(lambda found: found["body"]), text)
        for pattern, read in FORMS:
            text = pattern.sub(self._replace(read), text)
        return text

    def _replace(self, read: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
        def replace(found: re.Match[str]) -> str:
            code = self.original(read(found)).strip("\n")
            return self._set_aside(found[0], code) if _is_code(code) else found[0]

        return replace

    def _set_aside(self, original: str, code: str) -> str:
        self._originals.append(self.original(original))
        self._codes.append(code)
        return f"{self._name}_{len(self._codes) - 1}_"


def _is_code(text: str) -> bool:
    tree = parse(text)
    return tree is not None and does_something(tree)
