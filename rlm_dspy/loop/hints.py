"""Finds habits of other engines and notebooks in a cell, and says what to do here in their place.

What is looked at is the code as Python reads it, never the text of an error: a foreign interpreter words it in its
own way.
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
"""The functions with which other engines end a run: rlms, smolagents and others."""
_READY = "ready"
"""The key by which minrlm's `answer` ends a run."""
_MAGIC = re.compile(r"^[ \t]*(?:!|%%?)[ \t]*[A-Za-z]", re.MULTILINE)
_NO_SHELL = "Only Python runs here: no `!ls` and no `%time`. Use os.listdir, time.perf_counter and the like."


@dataclass(frozen=True)
class _Cell:
    """A cell that raised.

    Attributes:
        step: Its turn.
        calls: The last names of the functions that it calls: `join` of `", ".join(...)`.
        imports: The modules that it imports.
    """

    step: Step
    calls: set[str]
    imports: set[str]


_HINTS: tuple[tuple[Callable[[_Cell], Any], str], ...] = (
    (
        lambda cell: "join" in cell.calls and any(call.error for call in cell.step.calls),
        "A sub-call failed, so one item is no text. Leave such items out: [reply for reply in replies if reply].",
    ),
    (
        lambda cell: "input" in cell.calls,
        "Nobody answers input(). Work with the variables and functions that were listed at the start.",
    ),
    (
        lambda cell: (
            cell.calls & {"ProcessPoolExecutor", "Popen", "system"}
            or cell.imports & {"multiprocessing", "subprocess"}
        ),
        "No other process can be started here. Use threads, or a batch of sub-calls.",
    ),
    (
        lambda cell: cell.calls & {"get_event_loop", "run_until_complete"},
        "`await` works at the top level of a cell; no event loop is needed.",
    ),
)


def advice_for(step: Step, submit_call: str) -> str:
    """Return what to tell the model of a turn that did not end the run; empty if there is nothing to say."""
    if not step.repeats:
        return hint_for(step, submit_call)
    return (
        f"Turn {step.repeats} had this same code and this same outcome: to run it again changes nothing. Look at "
        f"another part, ask a model about one, or call {submit_call} with what you know."
    )


def repeated_turn(step: Step, earlier: Iterable[Step]) -> int:
    """Return the number of the earlier turn with the same code and the same outcome; 0 if there is none."""
    turns = (turn for turn in earlier if turn.kind != "folded")
    same = (n for n, turn in enumerate(turns, 1) if _outcome(turn) == _outcome(step))
    return next(same, 0) if step.code.strip() else 0


def _outcome(step: Step) -> tuple[str, str, str]:
    return step.code.strip(), step.kind, step.output


def names_any(code: str, names: Collection[str]) -> bool:
    """Whether code reads a variable of one of these names; also if it is no Python and only mentions one."""
    tree = parse(code)
    if tree is None:
        return any(name in code for name in names)
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(tree))


def hint_for(step: Step, submit_call: str) -> str:
    """Return what to tell the model of a cell that did not end the run: a line; empty if there is nothing to say.

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
    """Whether a cell tries to end the run in another way than by SUBMIT."""
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
    """Yield the last name of every function that is called: `join` of `", ".join(...)`."""
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
