"""Reading a model's reply: which part is Python to run, and which part is talk.

Nothing a model writes is an error here. A reply without code gives empty code; the loop tells the model.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from dataclasses import dataclass
from itertools import islice

_PYTHON = {"", "python", "py", "python3", "py3", "repl", "ipython", "pycon", "tool_code"}
_FENCE = re.compile(r"^[ \t]{0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+.-]*)[^`]*$")
_FIELD_MARK = re.compile(r"^\[\[ ## \w+ ## \]\][ \t]*$", re.MULTILINE)  # of DSPy's ChatAdapter
_PARSE_ATTEMPTS = 20
_MAX_UNFENCED_LINES = 200
_MAX_CLOSINGS_TRIED = 50


@dataclass(frozen=True)
class Reply:
    """A reply that has been read.

    Attributes:
        reasoning: The words around the code.
        code: The Python of all its blocks, in order; empty if there is none.
        other_language: The language of a fence that is not Python, if that is all the reply had.
    """

    reasoning: str
    code: str
    other_language: str = ""


def read_reply(text: str | None) -> Reply:
    """Read a reply of any shape.

    Taken as code: fenced blocks marked as Python, as `repl`, or not marked (several are run as one); a block
    whose fence is never closed; a JSON object with a `code` field; without any fence, what stands in DSPy's
    field `code`, else the longest end of the reply that parses as Python and does something.

    Args:
        text: The model's reply; None counts as empty.
    """
    text = (text or "").replace("\r\n", "\n").strip()
    if as_object := _read_object(text):
        return as_object
    blocks, talk = _split_fences(text.split("\n"))  # splitlines would also cut strings at a form feed or U+2028
    python = [code for language, code in blocks if language in _PYTHON and code.strip()]
    if python:
        return Reply(reasoning=_without_marks(talk), code="\n".join(python))
    if blocks:
        language = next((name for name, _ in blocks if name not in _PYTHON), "")
        return Reply(reasoning=_without_marks(text), code="", other_language=language)
    return _read_unfenced(text)


def _read_object(text: str) -> Reply | None:
    if not text.startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("code"), str):
        return None
    inner = read_reply(value["code"])
    return Reply(reasoning=str(value.get("reasoning") or ""), code=inner.code or value["code"])


def _split_fences(lines: list[str]) -> tuple[list[tuple[str, str]], str]:
    """Return the fenced blocks as (language, code), and the rest of the lines as one text."""
    blocks: list[tuple[str, str]] = []
    talk: list[str] = []
    position = 0
    while position < len(lines):
        opening = _FENCE.match(lines[position])
        if opening is None:
            talk.append(lines[position])
            position += 1
            continue
        end = _end_of_block(lines, position + 1, opening["fence"])
        language = opening["language"].lower()
        blocks.append((language, "\n".join(lines[position + 1 : end]).strip("\n")))
        position = end + 1
    return blocks, "\n".join(talk)


def _end_of_block(lines: list[str], start: int, fence: str) -> int:
    """Return the line of the closing fence: the first, unless it stands in a string of the code.

    A block that is never closed ends at the next field mark, or with the reply.
    """
    closing = islice((at for at in range(start, len(lines)) if _closes(lines[at], fence)), _MAX_CLOSINGS_TRIED)
    first = next(closing, None)
    if first is None:
        return next((at for at in range(start, len(lines)) if _FIELD_MARK.match(lines[at])), len(lines))
    if _ends_inside_string("\n".join(lines[start:first])):
        for at in closing:
            if _parse("\n".join(lines[start:at])) is not None:
                return at
    return first


def _closes(line: str, fence: str) -> bool:
    line = line.strip()
    return len(line) >= len(fence) and set(line) == {fence[0]}


def _without_marks(text: str) -> str:
    return _FIELD_MARK.sub("", text).strip()


def _read_unfenced(text: str) -> Reply:
    if mark := re.search(r"^\[\[ ## code ## \]\][ \t]*$", text, re.MULTILINE):
        code = _FIELD_MARK.split(text[mark.end() :], maxsplit=1)[0]
        return Reply(reasoning=_without_marks(text[: mark.start()]), code=code.strip("\n").rstrip())
    lines = _without_marks(text).split("\n")
    for start in range(min(len(lines), _MAX_UNFENCED_LINES)):
        code = "\n".join(lines[start:])
        tree = _parse(code)
        if tree is not None and _does_something(tree):
            return Reply(reasoning="\n".join(lines[:start]).strip(), code=code)
        if tree is not None:
            break  # no later line does more; a reply that repeats one word would be parsed 200 times
    return Reply(reasoning="\n".join(lines), code="")


def tree_of(code: str) -> ast.Module:
    """Return the tree of code; parse again if CPython 3.11 mixed up two threads that parse at once (gh-106905).

    Raises:
        SyntaxError: If it is no Python.
        ValueError: If it holds what no Python can, e.g. a null character.
    """
    for _ in range(_PARSE_ATTEMPTS - 1):
        with contextlib.suppress(SystemError):
            return ast.parse(code)
    return ast.parse(code)


def _parse(code: str) -> ast.Module | None:
    try:
        return tree_of(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _ends_inside_string(code: str) -> bool:
    try:
        tree_of(code)
    except SyntaxError as error:
        return error.msg.startswith("unterminated triple-quoted")
    except (ValueError, RecursionError, MemoryError):
        pass
    return False


def _does_something(tree: ast.Module) -> bool:
    """Whether text that was not marked as code is code: it calls, binds or imports something."""
    acts = (ast.Call, ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.For)
    return any(isinstance(node, acts) for node in ast.walk(tree))
