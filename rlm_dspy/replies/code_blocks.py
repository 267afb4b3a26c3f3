"""Finds fenced code blocks in a text, and tells whether a text is Python."""

from __future__ import annotations

import ast
import contextlib
import re
import warnings
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


PYTHON = {"python", "py", "python3", "py3", "repl", "ipython", "pycon", "tool_code"}


_PYTHON_MARK = re.compile(
    r"(?:(?:run|execute)[-_])?(?:i?python|py)[\d.]*(?:[-_]?(?:repl|code|exec|execute|interpreter))?|[\w-]+\.py"
)
"""Also a tool's name, and the name of a file."""


_FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,}|(?:'{3}|\"{3})(?=(?:python|py|repl)[ \t]*$))"
    r"[ \t]*\{?(?P<language>[\w+.-]*)[^`]*$"
)


_INLINE = re.compile(
    r"^(?P<before>.*?)(?P<fence>`{3,})(?P<language>[\w+.-]*)(?:[ \t]+|(?<=`))(?P<code>\S.*?)(?P=fence)"
    r"(?P<after>[^`]*)$"
)
"""A block on one line."""


_QUOTED = re.compile(r"^[ \t]*>[ \t]?")
_QUOTED_FENCE = re.compile(r"^[ \t]*>[ \t]*(?P<fence>`{3,}|~{3,})[\w+.-]*[ \t]*$")


_BEHIND_WORDS = re.compile(r"^(?P<before>.*\S[ \t]*)(?P<fence>`{3,})(?P<language>\w+)[ \t]*$")


FIELD_MARK = re.compile(r"^\[\[ ## \w+ ## \]\][ \t]*$", re.MULTILINE)  # of DSPy's ChatAdapter


_TOKEN_BEHIND = re.compile(r"(?<=[`~'])(?:(?:</?[|\w]+>|\[\|\w+\|\]|<\uff5c[^<>\uff5c]*\uff5c>)\s*)+$")
"""Tokens after a closing fence: ```` ```<end_code> ````, of smolagents' prompts, or the end of a turn."""


_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad"))
"""Characters without a width, and marks of the direction of writing."""


_OUTPUT_TITLE = re.compile(
    r"\W*(?:(?:(?:the|expected|example|sample|program)\s+)?(?:output|result|stdout)s?"
    r"|this (?:prints|outputs|gives))\W*",
    re.IGNORECASE,
)


_PARSE_ATTEMPTS = 20


_MAX_CLOSINGS_TRIED = 50


_FILE = "<reply>"
_IN_FILE = re.compile(_FILE)


_KEPT_TREES = 8
"""A turn asks for the tree of its code about ten times."""


class CodeBlock(NamedTuple):
    """A fenced block: its language in lower case, its code, and its first and end line."""

    language: str
    code: str
    start: int
    end: int
    is_output: bool


def code_blocks(lines: list[str]) -> Iterator[CodeBlock]:
    """Yield the fenced blocks. An unclosed one ends at the next field mark or at the last line."""
    position, above = 0, ""
    while position < len(lines):
        opening = _FENCE.match(lines[position])
        if opening is None:
            above = lines[position] if lines[position].strip() else above
            position += 1
            continue
        end = _end_of_block(lines, position + 1, opening["fence"])
        code = "\n".join(lines[position + 1 : end]).strip("\n")
        yield CodeBlock(
            language_of(opening["language"]), code, position, end, bool(_OUTPUT_TITLE.fullmatch(above))
        )
        position, above = end + 1, ""


def language_of(mark: str) -> str:
    """Return the language of a fence in lower case: `python` for `{.python}`, `python3.11` and `python_code`."""
    mark = mark.lower().lstrip(".")
    return "python" if _PYTHON_MARK.fullmatch(mark) else mark


def with_fences_on_lines(lines: list[str]) -> list[str]:
    """Return the lines, with inline blocks moved to their own lines.

    A block inside of a Markdown quotation loses its language: it is code only if none is marked as Python.
    """
    lines, position = list(lines), 0
    while position < len(lines):
        line = lines[position]
        if opening := _FENCE.match(line):
            position = _end_of_block(lines, position + 1, opening["fence"])
        elif found := _QUOTED_FENCE.match(line):
            end = _end_of_quotation(lines, position + 1, found["fence"])
            inside = [_QUOTED.sub("", each, count=1) for each in lines[position + 1 : end]]
            lines[position : end + 1] = [found["fence"], *inside, found["fence"]]
            position += len(inside) + 1
        elif (found := _INLINE.match(line)) and _is_code(found["language"], found["code"]):
            fence = found["fence"]
            parts = [found["before"], fence + found["language"], found["code"], fence, found["after"]]
            lines[position : position + 1] = parts
            position += 3
        elif (found := _BEHIND_WORDS.match(line)) and language_of(found["language"]) in PYTHON:
            lines[position : position + 1] = [found["before"], found["fence"] + found["language"]]
        position += 1
    return lines


def _end_of_quotation(lines: list[str], start: int, fence: str) -> int:
    """Return the line of the closing fence of a quoted block, or the last quoted line."""
    for at in range(start, len(lines)):
        if not _QUOTED.match(lines[at]):
            return at - 1
        if closes(_QUOTED.sub("", lines[at], count=1), fence):
            return at
    return len(lines) - 1


def _is_code(language: str, code: str) -> bool:
    tree = parse(code)
    return language_of(language) in PYTHON if language else tree is not None and does_something(tree)


def does_something(tree: ast.Module) -> bool:
    """Whether unmarked text is code: it calls, binds or imports something."""
    acts = (ast.Call, ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.For)
    return any(isinstance(node, acts) for node in ast.walk(tree))


def does_nothing(code: str) -> bool:
    """Whether code is empty, or comments alone."""
    tree = parse(code)
    return tree is not None and not tree.body


def _end_of_block(lines: list[str], start: int, fence: str) -> int:
    """Return the line of the closing fence: the first one outside strings of the code.

    An unclosed block ends at the next field mark, or with the reply.
    """
    closing = islice((at for at in range(start, len(lines)) if closes(lines[at], fence)), _MAX_CLOSINGS_TRIED)
    first = next(closing, None)
    if first is None:
        return next((at for at in range(start, len(lines)) if FIELD_MARK.match(lines[at])), len(lines))
    if ends_inside_string("\n".join(lines[start:first])):
        for at in (*closing, len(lines)):
            if parse("\n".join(lines[start:at])) is not None:
                return at
    return first


def opening_of(line: str) -> tuple[str, str, str] | None:
    """Return the words before an opening fence, the fence and its language; None if the line opens no block."""
    if found := _FENCE.match(line):
        return "", found["fence"], found["language"]
    if (found := _BEHIND_WORDS.match(line)) and language_of(found["language"]) in PYTHON:
        return found["before"], found["fence"], found["language"]
    return None


def closes(line: str, fence: str) -> bool:
    """Whether a line is the closing fence of a block."""
    line = _TOKEN_BEHIND.sub("", line.translate(_INVISIBLE)).strip()
    return len(line) >= len(fence) and set(line) == {fence[0]}


def may_close(begun: str, fence: str) -> bool:
    """Whether the beginning of a line may become the closing fence of a block."""
    return begun.translate(_INVISIBLE).lstrip()[:1] in ("", fence[0])


@lru_cache(maxsize=_KEPT_TREES)
def tree_of(code: str) -> ast.Module:
    """Return the syntax tree of code, which callers share and do not change.

    It retries if CPython 3.11 confused two parsing threads (gh-106905).

    Raises:
        SyntaxError: If it is not Python.
        ValueError: If it contains invalid characters, e.g. a null character.
    """
    _ignore_warnings()
    for _ in range(_PARSE_ATTEMPTS - 1):
        with contextlib.suppress(SystemError):
            return ast.parse(code, _FILE)
    return ast.parse(code, _FILE)


def _ignore_warnings() -> None:
    """Ignore what Python warns of in a model's code: the REPL tells the model, not the user.

    `warnings.catch_warnings` would also change the filters of other threads; this filter is for `_FILE` alone.
    """
    for category in (SyntaxWarning, DeprecationWarning):
        if ("ignore", None, category, _IN_FILE, 0) not in warnings.filters:
            warnings.filterwarnings("ignore", category=category, module=_FILE)


def parse(code: str) -> ast.Module | None:
    """Return the syntax tree of code; None if it is not Python."""
    try:
        return tree_of(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def bound_names(trees: Iterable[ast.AST]) -> set[str]:
    """Return the names that code binds anywhere, arguments of functions included."""
    names = set[str]()
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.ExceptHandler(name=str(name)):
                names.add(name)
            case ast.alias(name=name, asname=other):
                names.add(other or name.partition(".")[0])
    return names


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of code that are not inside a function or a class."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield node
            yield from outside_functions(node)


def ends_inside_string(code: str) -> bool:
    """Whether code ends inside a triple-quoted string."""
    try:
        tree_of(code)
    except SyntaxError as error:
        return error.msg.startswith("unterminated triple-quoted")
    except (ValueError, RecursionError, MemoryError):
        pass
    return False
