"""Tells whether a turn repeats an earlier one: the same code, or reply without code, with the same outcome."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from rlm_dspy.replies.code_blocks import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm_dspy.trajectory import Step

NO_OUTPUT = "(no output; use print to see values)"
"""What the model is told of code that printed nothing."""
_CHANCE_AND_TIME = {"random", "secrets", "uuid", "time", "sleep"}
_OF_CLOCKS = {"now", "today", "utcnow"}
"""Methods of `datetime` that read the clock; its others do not."""
_OF_CONTAINERS = {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "sort", "reverse"}
_OF_CONTAINERS |= {"pop", "popleft", "popitem", "remove", "clear", "discard"}
_OF_STREAMS = {"read", "readline", "readlines", "write", "writelines", "send", "get_nowait"}
_CHANGES = _OF_CONTAINERS | _OF_STREAMS
"""Methods that change what they are called on."""


def repeated_turn(step: Step, earlier: Iterable[Step]) -> int:
    """Return the number of an earlier turn with the same code (or reply without code) and outcome, else 0.

    Comments and the layout of code do not count. Code repeats nothing if it may do something else each time: if it
    calls a tool, as in a poll, changes what a variable holds, draws at random or reads the clock.
    """
    outcome = _outcome(step)
    turns = enumerate((turn for turn in earlier if turn.kind != "folded"), 1)
    alike = [(number, turn) for number, turn in turns if _outcome(turn) == outcome]
    written = _written(step)
    if step.tool_calls or not (written or step.kind == "no_code"):
        return 0
    number = next((number for number, turn in alike if _written(turn) == written), 0)
    tree = parse(step.code) if number and step.kind == "output" and step.code.strip() else None
    return 0 if tree is not None and _goes_on(tree) else number


def _goes_on(tree: ast.Module) -> bool:
    """Whether code changes what a variable of an earlier turn holds, or depends on chance or time."""
    nodes = [*ast.walk(tree)]
    updates = [node for node in nodes if _updated(node)]
    inside = {id(each) for node in updates for each in ast.walk(node)}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {name.id for name in names if isinstance(name.ctx, ast.Store) and id(name) not in inside}
    named = {name.id for name in names} | set(imported(nodes))
    if any(isinstance(node, ast.Attribute) and node.attr in _OF_CLOCKS for node in nodes):
        return True
    if any(_updated(node) - made for node in updates) or named & _CHANCE_AND_TIME:
        return True
    return any(owner not in made for node in nodes if (owner := _advanced(node)))


def _advanced(node: ast.AST) -> str:
    """Return the variable that a call such as `next(lines)` or `todo.pop()` changes; empty for other nodes."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=method)) if method in _CHANGES:
            return owner
        case ast.Call(func=ast.Name(id="next" | "anext"), args=[ast.Name(id=owner), *_]):
            return owner
    return ""


def _updated(node: ast.AST) -> set[str]:
    """Return the variables that a statement binds to something made from themselves."""
    if isinstance(node, ast.AugAssign):
        return {each.id for each in ast.walk(node.target) if isinstance(each, ast.Name)}
    if not isinstance(node, ast.Assign):
        return set()
    bound = {each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return bound & {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}


def _outcome(step: Step) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """Return how a turn ended, by the last line of an error, and what its sub-calls were asked."""
    asked = tuple((call.name, repr(call.inputs)) for call in step.calls)
    return step.kind, step.problem if step.kind == "error" else step.output, asked


def _written(step: Step) -> str:
    """Return the code of a turn without comments and layout, if it is Python; without code the reply."""
    tree = parse(step.code) if step.code.strip() else None
    return (step.code or step.reasoning).strip() if tree is None else ast.dump(tree)


def same_output(step: Step, earlier: Iterable[Step]) -> int:
    """Return the number of the last turn, if other code had the same output in it; 0 if not."""
    turns = [turn for turn in earlier if turn.kind != "folded"]
    same = step.kind == "output" and turns and turns[-1].output == step.output != NO_OUTPUT
    return len(turns) if same else 0


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names of the modules that code of these nodes imports, without their submodules."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
