"""Tells whether a turn repeats an earlier one: the same code, or reply without code, with the same outcome."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from rlm_dspy.replies.code_blocks import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm_dspy.trajectory import Step

NO_OUTPUT = "(no output; use print to see values)"
"""What the model is told of code that printed nothing."""
_COMMENT = re.compile(r"[ \t]*#.*")
_CHANCE_AND_TIME = {"random", "secrets", "uuid", "time", "sleep"}
_OF_CLOCKS = {"now", "today", "utcnow"}
"""Methods of `datetime` that read the clock; its others do not."""
_OF_CONTAINERS = {"append", "appendleft", "extend", "insert", "add", "update", "setdefault", "sort", "reverse"}
_OF_CONTAINERS |= {"pop", "popleft", "popitem", "remove", "clear", "discard"}
_OF_STREAMS = {"read", "readline", "readlines", "write", "writelines", "send", "get_nowait"}
_OF_THREADS = {"put", "wait", "is_set", "is_alive", "acquire", "release", "locked"}
_OF_THREADS |= {"poll", "done", "result", "notify"}
_CHANGES = _OF_CONTAINERS | _OF_STREAMS | _OF_THREADS
"""Methods that change what they are called on, or tell what another thread changed."""
_ITERATORS = {"reader", "DictReader", "finditer", "iterdir", "scandir", "walk", "iglob"}
_ITERATORS |= {"chain", "cycle", "islice", "batched", "pairwise", "takewhile", "dropwhile", "accumulate"}
_BUILTIN_ITERATORS = {"iter", "map", "filter", "zip", "enumerate", "reversed", "open"}
"""Functions whose value is used up."""
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def repeated_turn(step: Step, earlier: Iterable[Step]) -> int:
    """Return the number of an earlier turn with the same code (or reply without code) and outcome, else 0.

    Comments and the layout of code do not count. Code repeats nothing if it may do something else each time: if it
    calls a tool, as in a poll, changes what a variable holds, draws at random or reads the clock.
    """
    outcome = _outcome(step)
    turns = [turn for turn in earlier if turn.kind != "folded"]
    alike = [(number, turn) for number, turn in enumerate(turns, 1) if _outcome(turn) == outcome]
    written = _written(step)
    if step.tool_calls or not (written or step.kind == "no_code"):
        return 0
    number = next((number for number, turn in alike if _written(turn) == written), 0)
    ran = number and step.kind in ("output", "error") and step.code.strip()
    tree = parse(step.code) if ran else None
    if tree is None:
        return number
    before = [node for turn in turns if (cell := parse(turn.code)) is not None for node in ast.walk(cell)]
    again = _goes_on(tree, failed=step.kind == "error")
    return 0 if again or _uses_up(tree, before) else number


def _uses_up(tree: ast.Module, before: list[ast.AST]) -> bool:
    """Whether code uses an iterator of an earlier turn, or a function of one that changes something.

    Args:
        tree: The code.
        before: The nodes of the code of the earlier turns.
    """
    nodes = [*ast.walk(tree)]
    made = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - made
    used |= {
        node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    functions = [node for node in before if isinstance(node, _Function)]
    yields = {each.name for each in functions if any(isinstance(node, ast.Yield) for node in ast.walk(each))}
    iterators = {name for node in before if (name := _bound_iterator(node, yields))}
    return bool(used & (iterators | {each.name for each in functions if _changes_more(each)}))


def _bound_iterator(node: ast.AST, yields: set[str]) -> str:
    """Return the variable that a statement binds to an iterator; empty for other nodes."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.GeneratorExp()):
            return name
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id=maker))):
            return name if maker in _ITERATORS | _BUILTIN_ITERATORS | yields else ""
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Attribute(attr=maker))):
            return name if maker in _ITERATORS | yields else ""
    return ""


def _changes_more(function: _Function) -> bool:
    """Whether a function changes more than its own variables."""
    nodes = [*ast.walk(function)]
    if any(isinstance(node, ast.Global | ast.Nonlocal) for node in nodes):
        return True
    own = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if any(_stored_in(node) not in {"", *own} for node in nodes):
        return True
    return _goes_on(ast.Module(function.body, []))


def _stored_in(node: ast.AST) -> str:
    """Return the variable in whose value a statement such as `self.count = 1` stores; empty for other nodes."""
    if not isinstance(node, ast.Attribute | ast.Subscript) or not isinstance(node.ctx, ast.Store):
        return ""
    owner: ast.expr = node
    while isinstance(owner, ast.Attribute | ast.Subscript):
        owner = owner.value
    return owner.id if isinstance(owner, ast.Name) else ""


def _goes_on(tree: ast.Module, *, failed: bool = False) -> bool:
    """Whether code changes what a variable of an earlier turn holds, or depends on chance or time.

    Code that failed may not have reached `total += 1`, or may have failed there.
    """
    nodes = [*ast.walk(tree)]
    updates = [node for node in nodes if _updated(node)]
    inside = {id(each) for node in updates for each in ast.walk(node)}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {name.id for name in names if isinstance(name.ctx, ast.Store) and id(name) not in inside}
    named = {name.id for name in names} | set(imported(nodes))
    if any(isinstance(node, ast.Attribute) and node.attr in _OF_CLOCKS for node in nodes):
        return True
    if named & _CHANCE_AND_TIME or (not failed and any(_updated(node) - made for node in updates)):
        return True
    return any(owner not in made for node in nodes if (owner := _advanced(node)))


def _advanced(node: ast.AST) -> str:
    """Return the variable that a call such as `next(lines)` or `todo.pop()` changes; empty for other nodes."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=method)) if method in _CHANGES:
            return owner
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="get"), args=[]):  # of a queue
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
    if not step.code.strip():
        return step.reasoning.strip()
    tree = parse(step.code)
    return _COMMENT.sub("", step.code).strip() if tree is None else ast.dump(tree)


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
