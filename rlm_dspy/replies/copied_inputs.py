"""Leaves out what small models write before their code: the inputs, typed in again from the first message.

Such a copy holds a few hundred characters of a long text. Code that goes on with it finds nothing.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Protocol

from rlm_dspy.replies.code_blocks import bound_names, parse
from rlm_dspy.replies.statements import has_own_lines, lines_of, without_statements

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WORD = re.compile(r"\w+")
_ESCAPE = re.compile(r"\\[nrt]")
_FEWEST_WORDS = 8
"""A shorter text may well be new."""
_RUN = 3
"""Words in a row that are compared."""
_LEAST_SHARE = 1 / 2
"""How many of the runs of words of a copy are among those of the first message."""


class ShownInput(Protocol):
    """An input as the model sees it; `rlm_dspy.inputs.Variable` is one."""

    @property
    def name(self) -> str:
        """The name in the REPL."""

    @property
    def type(self) -> str:
        """Its type, as code would write it."""

    @property
    def value(self) -> str:
        """The value, or the parts of it that are shown."""

    @property
    def long(self) -> bool:
        """Whether only parts of the value are shown."""


def without_copied_inputs(
    code: str, variables: Iterable[ShownInput], earlier: Iterable[str] = ()
) -> tuple[str, list[str]]:
    """Return code without the statements that bind an input to a copy of what the model was shown of it.

    A copy is a literal: the value of an input that is shown whole, or mostly the words that are shown of a long
    text. Any other assignment to an input stays, and so does one to an input that code bound to something before.

    Args:
        code: A block; returned as it is if it is not Python.
        variables: The inputs as they are shown.
        earlier: The code of earlier turns.

    Returns:
        The code, and the names of the inputs.
    """
    shown = {variable.name: variable for variable in variables}
    tree = parse(code)
    if tree is None or not shown.keys() & bound_names([tree]):
        return code, []
    changed = bound_names(filter(None, map(parse, earlier)))
    found = list(
        _copies(tree, lines_of(code), {name: each for name, each in shown.items() if name not in changed})
    )
    return without_statements(code, [node for _, node in found]), [name for name, _ in found]


def _copies(tree: ast.Module, lines: list[str], shown: dict[str, ShownInput]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the statements to leave out, each with the name of the input."""
    changed = set[str]()
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ) if name in shown and name not in changed and has_own_lines(node, lines):
                if _is_copy(value, shown[name]):
                    yield name, node
                    continue
        changed |= bound_names([node])


def _is_copy(value: ast.expr, variable: ShownInput) -> bool:
    """Whether an expression is a literal that repeats what is shown of a variable."""
    try:
        literal = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    if not variable.long:
        return repr(literal) == variable.value
    if not isinstance(literal, str) or variable.type != "str":
        return False
    words, shown = _words(literal), _words(variable.value)
    runs, known = _runs(words), set(_runs(shown))
    return len(words) >= _FEWEST_WORDS and sum(run in known for run in runs) >= _LEAST_SHARE * len(runs)


def _words(text: str) -> list[str]:
    return _WORD.findall(_ESCAPE.sub(" ", text).casefold())


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)]
