"""Joins the blocks of a reply to the code that is run, without calls of SUBMIT that were not meant yet."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

from rlm_dspy.replies.code_blocks import parse
from rlm_dspy.replies.statements import has_own_lines, lines_of, without_statements

if TYPE_CHECKING:
    from collections.abc import Iterable

_SUBMIT = re.compile(r"^SUBMIT\(", re.MULTILINE)
_WAITS = "SUBMIT was not run: you wrote it before this output. If the answer still holds, call SUBMIT alone."


class Joined(NamedTuple):
    """The blocks of a reply as they are run.

    Attributes:
        code: The code.
        notice: What the model is told of a SUBMIT that was left out; else empty.
        left_out: A last block that waits for the output of those before it; else empty.
    """

    code: str
    notice: str = ""
    left_out: str = ""


def join_blocks(blocks: Iterable[str]) -> Joined:
    """Join the blocks of one reply.

    SUBMIT counts only in the last block: what is written behind it shows that it was not meant. A last block that
    submits what the model typed, behind one that shows something, is left out too: the output was not seen yet.
    """
    *earlier, last = blocks
    before = [kept for block in earlier if (kept := _without_submit(block, last))]
    if any(map(_shows, before)) and _submits_typed(last):
        return Joined("\n".join(before), _WAITS, last)
    submits = _SUBMIT.search(last) is not None
    return Joined("\n".join([*before, last]), "" if submits or before == earlier else _WAITS)


def _without_submit(block: str, last: str) -> str:
    """Return a block without its top-level calls of SUBMIT."""
    tree = parse(block)
    if tree is None:
        return "" if _SUBMIT.search(block) and _SUBMIT.search(last) else block
    lines = lines_of(block)
    return without_statements(
        block, [node for node in tree.body if _is_submit(node) and has_own_lines(node, lines)]
    )


def _is_submit(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(value=ast.Call(func=ast.Name(id="SUBMIT"))):
            return True
    return False


def _shows(block: str) -> bool:
    """Whether code prints, or has the value of an expression shown."""
    tree = parse(block)
    if tree is None:
        return False
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    prints = any(isinstance(function, ast.Name) and function.id == "print" for function in called)
    return prints or any(isinstance(node, ast.Expr) for node in tree.body)


def _submits_typed(block: str) -> bool:
    """Whether code submits literals and does nothing else."""
    tree = parse(block)
    if tree is None or not tree.body or not _is_submit(tree.body[-1]):
        return False
    typed = set[str]()
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_literal(value):
                typed.add(name)
            case ast.Expr(value=ast.Call(args=args, keywords=keywords)) if _is_submit(node):
                values = [*args, *(keyword.value for keyword in keywords)]
                if not all(
                    value.id in typed if isinstance(value, ast.Name) else _is_literal(value) for value in values
                ):
                    return False
            case _:
                return False
    return True


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
