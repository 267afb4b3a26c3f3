"""Splits a model's reply into Python to run, prose and thinking.

Nothing a model writes is an error here. A reply without code gives empty code; the loop tells the model.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, replace

from rlm_dspy.replies.code_blocks import FIELD_MARK, PYTHON, CodeBlock, code_blocks, parse
from rlm_dspy.replies.thinking import split_thinking

_MAX_UNFENCED_LINES = 200


@dataclass(frozen=True)
class Reply:
    """A parsed reply.

    Attributes:
        reasoning: The words around the code.
        code: The Python of all its blocks, in order; empty if there is none.
        other_language: The language of a fence that is not Python, if that is all the reply had.
        thinking: What the model thought before it replied, if its reply holds that.
        cut: What the model is told if its reply was cut short; empty if it was not.
    """

    reasoning: str
    code: str
    other_language: str = ""
    thinking: str = ""
    cut: str = ""


def read_reply(text: str | None, *, cut: bool = False) -> Reply:
    """Parse a reply of any shape.

    Taken as code, outside of thinking (see `split_thinking`): fenced blocks marked as Python or as `repl` (several
    are run as one); if there are none, blocks without a mark, but for those that a line calls an output; a block
    whose fence is never closed; a JSON object with a `code` field; without any fence, what stands in DSPy's field
    `code`, else the longest end of the reply that parses as Python and does something.

    Args:
        text: The model's reply; None counts as empty.
        cut: Whether the reply ends before the model had ended it. Only blocks whose fence is closed are code then.
    """
    thinking, text = split_thinking((text or "").replace("\r\n", "\n").strip(), in_turn=True)
    return replace(_read(text.strip(), cut=cut), thinking=thinking)


def _read(text: str, *, cut: bool) -> Reply:
    if as_object := _read_object(text):
        return as_object
    lines = text.split("\n")  # splitlines would also cut strings at a form feed or U+2028
    blocks = list(code_blocks(lines))
    closed = [block for block in blocks if block.end < len(lines)]
    filled = [block for block in (closed if cut else blocks) if block.code.strip()]
    code = [block.code for block in filled if block.language in PYTHON]
    if not any(block.language in PYTHON and block.code.strip() for block in blocks):
        unmarked = [block for block in filled if not block.language]
        code = [block.code for block in unmarked if block is unmarked[0] or not block.is_output]
    if code:
        return Reply(reasoning=_without_marks(_without_blocks(lines, blocks)), code="\n".join(code))
    if blocks or cut:
        others = (block.language for block in blocks if block.language and block.language not in PYTHON)
        return Reply(reasoning=_without_marks(text), code="", other_language=next(others, ""))
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
    inner = _read(value["code"], cut=False)
    return Reply(reasoning=str(value.get("reasoning") or ""), code=inner.code or value["code"])


def _without_blocks(lines: list[str], blocks: list[CodeBlock]) -> str:
    inside = {at for block in blocks for at in range(block.start, block.end + 1)}
    return "\n".join(line for at, line in enumerate(lines) if at not in inside)


def _without_marks(text: str) -> str:
    return FIELD_MARK.sub("", text).strip()


def _read_unfenced(text: str) -> Reply:
    if mark := re.search(r"^\[\[ ## code ## \]\][ \t]*$", text, re.MULTILINE):
        code = FIELD_MARK.split(text[mark.end() :], maxsplit=1)[0]
        return Reply(reasoning=_without_marks(text[: mark.start()]), code=code.strip("\n").rstrip())
    lines = _without_marks(text).split("\n")
    for start in range(min(len(lines), _MAX_UNFENCED_LINES)):
        code = "\n".join(lines[start:])
        tree = parse(code)
        if tree is not None and _does_something(tree):
            return Reply(reasoning="\n".join(lines[:start]).strip(), code=code)
        if tree is not None:
            break  # no later line does more; a reply that repeats one word would be parsed 200 times
    return Reply(reasoning="\n".join(lines), code="")


def _does_something(tree: ast.Module) -> bool:
    """Whether text that was not marked as code is code: it calls, binds or imports something."""
    acts = (ast.Call, ast.Assign, ast.AugAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.For)
    return any(isinstance(node, acts) for node in ast.walk(tree))
