"""Finds habits of other engines and notebooks in a cell, and tells the model what to do instead.

It inspects the syntax tree of the code, never the text of an error, which depends on the interpreter.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlm_dspy.replies.code_blocks import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from rlm_dspy.trajectory import Step

_ENDINGS = {"FINAL", "FINAL_VAR", "final_answer", "submit", "Submit", "FINISH", "finish"}
"""Functions that end a run in other engines: rlms, smolagents and others."""
_READY = "ready"
"""The key of minrlm's `answer` that ends a run."""
_MAGIC = re.compile(r"^[ \t]*(?:!|%%?)[ \t]*[A-Za-z]", re.MULTILINE)
_NO_SHELL = "Only Python runs here: no `!ls` and no `%time`. Use os.listdir, time.perf_counter and the like."


@dataclass(frozen=True)
class _Cell:
    """A cell that raised.

    Attributes:
        step: Its turn.
        calls: The names of the called functions, without their owners: `join` for `", ".join(...)`.
        imports: The modules that it imports.
    """

    step: Step
    calls: set[str]
    imports: set[str]


_HINTS: tuple[tuple[Callable[[_Cell], Any], str], ...] = (
    (
        lambda cell: "join" in cell.calls and any(call.error for call in cell.step.calls),
        "A sub-call failed, so one item is not a str. Leave it out: [reply for reply in replies if reply].",
    ),
    (
        lambda cell: "input" in cell.calls,
        "No user answers input(). Use the variables and functions listed in the first message.",
    ),
    (
        lambda cell: (
            cell.calls & {"ProcessPoolExecutor", "Popen", "system"}
            or cell.imports & {"multiprocessing", "subprocess"}
        ),
        "Processes cannot be started here. Use threads or a batch of sub-calls.",
    ),
    (
        lambda cell: cell.calls & {"get_event_loop", "run_until_complete"},
        "`await` works at the top level of a cell; no event loop is needed.",
    ),
)


def advice_for(step: Step, submit_call: str) -> str:
    """Return advice to the model after a turn that did not end the run; empty if there is none."""
    if not step.repeats:
        return hint_for(step, submit_call)
    return (
        f"Turn {step.repeats} had the same code and outcome; repeating it changes nothing. Look at "
        f"another part, ask a model about one, or call {submit_call} with what you know."
    )


def repeated_turn(step: Step, earlier: Iterable[Step]) -> int:
    """Return the number of an earlier turn with the same code and outcome; 0 if there is none.

    Code that calls a tool repeats nothing: what the tool returns may change, as in a poll.
    """
    turns = (turn for turn in earlier if turn.kind != "folded")
    same = (n for n, turn in enumerate(turns, 1) if _outcome(turn) == _outcome(step))
    return next(same, 0) if step.code.strip() and not step.tool_calls else 0


def _outcome(step: Step) -> tuple[str, str, str]:
    return step.code.strip(), step.kind, step.output


def names_any(code: str, names: Collection[str]) -> bool:
    """Whether code uses a variable with one of these names, or mentions one without being valid Python."""
    tree = parse(code)
    if tree is None:
        return any(name in code for name in names)
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(tree))


def hint_for(step: Step, submit_call: str) -> str:
    """Return a line of advice after a cell that did not end the run; empty if there is none.

    Args:
        step: The turn: its code, how it ended, and its sub-calls.
        submit_call: How SUBMIT is called in this run.
    """
    tree, failed = parse(step.code), step.kind == "error"
    if tree is None:
        return _NO_SHELL if failed and _MAGIC.search(step.code) else ""
    cell = _Cell(step, set(_called(tree)), set(_imported(tree)))
    if _ends_otherwise(tree, cell.calls, failed=failed):
        return f"To end the run, call {submit_call} as code."
    return next((hint for fits, hint in _HINTS if fits(cell)), "") if failed else ""


def _ends_otherwise(tree: ast.Module, calls: set[str], *, failed: bool) -> bool:
    """Whether a cell tries to end the run without SUBMIT."""
    if "SUBMIT" in calls:
        return False
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    returns = any(isinstance(node, ast.Return) for node in _outside_functions(tree))
    return (failed and (returns or bool((calls & _ENDINGS) - defined))) or any(map(_sets_ready, ast.walk(tree)))


def _sets_ready(node: ast.AST) -> bool:
    """Whether a statement is `answer["ready"] = True` or `answer = {"ready": True, ...}`."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return False
    target, value = node.targets[0], node.value
    keys = value.keys if isinstance(value, ast.Dict) and isinstance(target, ast.Name) else []
    keys += [target.slice] if isinstance(target, ast.Subscript) else []
    name = target.value if isinstance(target, ast.Subscript) else target
    is_answer = isinstance(name, ast.Name) and name.id == "answer"
    return is_answer and any(isinstance(key, ast.Constant) and key.value == _READY for key in keys)


def _called(tree: ast.Module) -> Iterator[str]:
    """Yield the names of all called functions, without their owners: `join` for `", ".join(...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield node
            yield from _outside_functions(node)
