"""Defines `Variables`: what a saved session keeps of the REPL. Values are pickled and unpickled there alone."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import dspy
from pydantic import BaseModel, ConfigDict

from rlm_dspy.interpreters.base import TakesObjects
from rlm_dspy.interpreters.worker.cell import SETUP
from rlm_dspy.repl import in_repl
from rlm_dspy.replies.code_blocks import parse
from rlm_dspy.replies.statements import lines_of
from rlm_dspy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_VARIABLE_BYTES = 32 << 20
"""Of one pickled variable that is kept."""
MAX_BYTES = 128 << 20
"""Of all of them together."""
_REPORT = "_rlm_tell"
_WHY_CHARS = 200
_SOURCE = Path(in_repl.__path__[0], "variables.py").read_text(encoding="utf-8")
ALL = "all variables"
"""What is lost where single variables cannot be told apart."""


class Variables(BaseModel):
    """What it takes to have the variables of a REPL again, each by its name."""

    model_config = ConfigDict(frozen=True)

    values: dict[str, str] = {}
    """Pickles in base64."""
    modules: dict[str, str] = {}
    """Imported modules."""
    sources: dict[str, str] = {}
    """Code that defines functions and classes, in the order in which it ran."""
    inputs: dict[str, str] = {}
    """Variables that are an input: the name of the input."""
    lost: dict[str, str] = {}
    """Why a variable is not kept."""

    @property
    def names(self) -> list[str]:
        """The variables that are kept."""
        return [*self.modules, *self.sources, *self.inputs, *self.values]


def variables_of(interpreter: dspy.CodeInterpreter, codes: Iterable[str]) -> Variables:
    """Return the variables of a REPL.

    Args:
        interpreter: Runs no cell.
        codes: The code blocks that it ran, for the sources of functions and classes.
    """
    sources = _definitions(codes)
    found: dict[str, dict[str, str]] = {kind: {} for kind in Variables.model_fields}
    left = MAX_BYTES

    def report(name: object, kind: str, part: object) -> None:
        nonlocal left
        name, part = str(name), str(part)  # from code that nobody has checked
        if kind == "sources" and not (part := sources.get(name, "")):
            kind, part = "lost", "its source is not known"
        left -= len(name) + len(part)
        if left < 0:
            kind, part = "lost", f"all variables together may have {MAX_BYTES:,} bytes"
        found[kind][name] = part

    why = _run(interpreter, f"pack({MAX_VARIABLE_BYTES})", report)
    if why:
        return Variables(lost={ALL: why})
    found["sources"] = {name: code for name, code in sources.items() if name in found["sources"]}
    return Variables.model_validate(found)


def restore(interpreter: dspy.CodeInterpreter, variables: Variables) -> dict[str, str]:
    """Bind variables in a REPL that has the inputs; return why some are lost, by name."""
    lost: dict[str, str] = {}

    def report(name: object, kind: object, part: object) -> None:  # noqa: ARG001 (always `lost`)
        lost[str(name)] = str(part)

    why = _run(interpreter, "unpack(saved)", report, variables) if variables.names else ""
    return {ALL: why} if why else lost


def _run(
    interpreter: dspy.CodeInterpreter, call: str, report: Callable[..., None], saved: Variables | None = None
) -> str:
    """Run a function of `in_repl/variables.py`; return why that was not possible, else an empty text."""
    if not isinstance(interpreter, TakesObjects):
        return f"{type(interpreter).__name__} does not give or take Python objects"
    given = {} if saved is None else {"_rlm_saved": saved.model_dump()}
    assert isinstance(interpreter, dspy.CodeInterpreter)
    inside = f"{{'names': globals(), 'report': {_REPORT}, 'saved': globals().pop('_rlm_saved', None)}}"
    interpreter.tools[_REPORT] = report
    try:
        interpreter.execute(f"{SETUP}exec({f'{_SOURCE}{call}'!r}, {inside})", variables=given)
    except dspy.CodeInterpreterError as error:
        return one_line(str(error), _WHY_CHARS)
    finally:
        del interpreter.tools[_REPORT]
    return ""


def _definitions(codes: Iterable[str]) -> dict[str, str]:
    """Return the last source of each function and class that code defined at its top level."""
    found: dict[str, str] = {}
    for code in codes:
        tree = parse(code)
        for node in tree.body if tree else ():
            name = _defined(node)
            if name and (source := _source(code, node)):
                found.pop(name, None)  # so that the order is that of the last definitions
                found[name] = source
    return found


def _defined(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda) and len(node.targets) == 1:
        return node.targets[0].id if isinstance(node.targets[0], ast.Name) else ""
    return ""


def _source(code: str, node: ast.stmt) -> str:
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    return "\n".join(lines_of(code)[first - 1 : node.end_lineno])
