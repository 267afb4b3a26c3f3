"""Finds habits of other engines and notebooks in a cell, and tells the model what to do instead.

It inspects the syntax tree of the code, never the text of an error, which depends on the interpreter.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlm_dspy.replies.code_blocks import parse
from rlm_dspy.replies.reply_parser import read_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from rlm_dspy.trajectory import Step

_ENDINGS = {"FINAL", "FINAL_VAR", "final_answer", "submit", "Submit", "FINISH", "finish"}
"""Functions that end a run in other engines: rlms, smolagents and others."""
_READY = "ready"
"""The key of minrlm's `answer` that ends a run."""
NO_OUTPUT = "(no output; use print to see values)"
"""What the model is told of code that printed nothing."""
_NOTEBOOK = re.compile(r"^[ \t]*(?:(?:!|%%?|\?\??)[ \t]*[A-Za-z]|[\w.()]+\?\??[ \t]*$)", re.MULTILINE)
_INSTALL = re.compile(r"^[ \t]*[!%]?[ \t]*(?:pip3?|uv|conda|apt(?:-get)?) (?:pip )?install\b", re.MULTILINE)
_NO_SHELL = "Only Python runs here: no `!ls`, `%time` or `?`. Use os.listdir, time.perf_counter, dir(name)."
_NO_INSTALL = "Nothing can be installed here. Use the standard library and what can be imported."
_CHANCE_AND_TIME = {"random", "secrets", "uuid", "time", "datetime", "sleep"}
_CHANGES = {
    "append",
    "appendleft",
    "extend",
    "insert",
    "pop",
    "popleft",
    "popitem",
    "remove",
    "clear",
    "add",
    "discard",
}
_CHANGES |= {
    "update",
    "setdefault",
    "sort",
    "reverse",
    "read",
    "readline",
    "readlines",
    "write",
    "writelines",
    "send",
}
"""Methods that change what they are called on."""
_BATCHES = {"llm_query_batched", "rlm_query_batched", "map", "batch", "amap"}
_PROCESSES = {"multiprocessing", "subprocess"}
_NETWORK = {"requests", "urllib", "http", "httpx", "aiohttp", "socket", "ftplib", "selenium"}
_READERS = {"open", "read_text", "read_bytes", "read_csv", "read_json", "read_excel", "listdir", "glob", "scandir"}


@dataclass(frozen=True)
class _Cell:
    """A cell that did not end the run.

    Attributes:
        step: Its turn.
        tree: Its syntax tree.
        calls: The names of the called functions, without their owners: `join` for `", ".join(...)`.
        imports: The modules that it imports.
        inputs: The names of the run's inputs.
    """

    step: Step
    tree: ast.Module
    calls: set[str]
    imports: set[str]
    inputs: Collection[str]

    @property
    def overwritten(self) -> str:
        """An input that the code replaces by something that is not made from it; empty if there is none."""
        nodes = [*_outside_functions(self.tree)]
        return next((name for name in self.inputs if any(_replaces(node, name) for node in nodes)), "")


_IN_ANY_CELL: tuple[tuple[Callable[[_Cell], Any], str], ...] = (
    (
        lambda cell: cell.overwritten,
        "This code replaced the input {overwritten}. Do not assign it; INPUTS[{overwritten!r}] is the original.",
    ),
    (
        lambda cell: "system" in cell.calls and "os" in cell.imports,
        "The output of os.system is not shown. Only Python runs here: use os.listdir, open and the like.",
    ),
)
_IN_A_FAILED_CELL: tuple[tuple[Callable[[_Cell], Any], str], ...] = (
    (
        lambda cell: cell.calls & _BATCHES and any(call.error for call in cell.step.calls),
        "A failed item is false and no str. Leave it out: [reply for reply in replies if reply].",
    ),
    (
        lambda cell: "input" in cell.calls,
        "No user answers input(). Use the variables and functions listed in the first message.",
    ),
    (
        lambda cell: cell.calls & {"ProcessPoolExecutor", "Popen", "system", "fork"} or cell.imports & _PROCESSES,
        "Processes cannot be started here. Use threads or a batch of sub-calls.",
    ),
    (
        lambda cell: (
            cell.calls & {"get_event_loop", "run_until_complete"}
            or ("asyncio" in cell.imports and "run" in cell.calls)
        ),
        "`await` works at the top level of a cell; no event loop and no asyncio.run are needed.",
    ),
    (
        lambda cell: cell.imports & _NETWORK,
        "Code here has no network access. Use the variables and functions listed in the first message.",
    ),
    (
        lambda cell: cell.calls & _READERS,
        "The inputs are variables, not files: use them ({inputs}) directly.",
    ),
)


def advice_for(step: Step, submit_call: str, earlier: Sequence[Step], inputs: Collection[str]) -> str:
    """Return advice to the model after a turn that did not end the run; empty if there is none.

    Args:
        step: The turn: its code, how it ended, and its sub-calls.
        submit_call: How SUBMIT is called in this run.
        earlier: The steps before it.
        inputs: The names of the run's inputs.
    """
    hint = hint_for(step, submit_call, inputs)
    if step.repeats:
        again = (
            f"Your next reply repeated turn {step.repeats}, with the same outcome. Write other code: look at "
            f"another part, ask a model about one, or call {submit_call} with what you know."
        )
        return "\n".join(filter(None, [hint, again]))
    if not hint and (turn := _same_output(step, earlier)):
        return f"Turn {turn} had the same output. If it is the answer, call {submit_call} as code."
    return hint


def repeated_turn(step: Step, earlier: Iterable[Step]) -> int:
    """Return the number of an earlier turn with the same code (or reply without code) and outcome, else 0.

    Comments and the layout of code do not count. Code repeats nothing if it may do something else each time: if it
    calls a tool, as in a poll, changes what a variable holds, draws at random or reads the clock.
    """
    tree = parse(step.code) if step.code.strip() else None
    if step.tool_calls or not _written(step) or (step.kind == "output" and tree is not None and _goes_on(tree)):
        return 0
    turns = enumerate((turn for turn in earlier if turn.kind != "folded"), 1)
    alike = [(number, turn) for number, turn in turns if _outcome(turn) == _outcome(step)]
    return next((number for number, turn in alike if _written(turn) == _written(step)), 0)


def _goes_on(tree: ast.Module) -> bool:
    """Whether code changes what a variable of an earlier turn holds, or depends on chance or time."""
    updates = [node for node in ast.walk(tree) if _updated(node)]
    inside = {id(each) for node in updates for each in ast.walk(node)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {name.id for name in names if isinstance(name.ctx, ast.Store) and id(name) not in inside}
    named = {name.id for name in names} | set(_imported(tree))
    if any(_updated(node) - made for node in updates) or named & _CHANCE_AND_TIME:
        return True
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)) if name in _CHANGES:
                pass
            case ast.Call(func=ast.Name(id="next" | "anext"), args=[ast.Name(id=owner), *_]):
                pass
            case _:
                continue
        if owner not in made:
            return True
    return False


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


def _same_output(step: Step, earlier: Iterable[Step]) -> int:
    """Return the number of the last turn, if other code had the same output in it; 0 if not."""
    turns = [turn for turn in earlier if turn.kind != "folded"]
    same = step.kind == "output" and turns and turns[-1].output == step.output != NO_OUTPUT
    return len(turns) if same else 0


def names_any(code: str, names: Collection[str]) -> bool:
    """Whether code uses a variable with one of these names, or mentions one without being valid Python."""
    tree = parse(code)
    if tree is None:
        return any(name in code for name in names)
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(tree))


def is_another_turn(reply: str, earlier: Iterable[Step], inputs: Collection[str]) -> bool:
    """Whether a reply that should be an answer is a block: the code of an earlier turn, or code over an input."""
    code = read_reply(reply).code
    return bool(code) and (names_any(code, inputs) or any(turn.code == code for turn in earlier))


def hint_for(step: Step, submit_call: str, inputs: Collection[str] = ()) -> str:
    """Return a line of advice after a cell that did not end the run; empty if there is none.

    Args:
        step: The turn: its code, how it ended, and its sub-calls.
        submit_call: How SUBMIT is called in this run.
        inputs: The names of the run's inputs.
    """
    tree, failed = parse(step.code), step.kind == "error"
    if tree is None:
        if not failed:
            return ""
        install, notebook = _INSTALL.search(step.code), _NOTEBOOK.search(step.code)
        return _NO_INSTALL if install else _NO_SHELL if notebook else ""
    cell = _Cell(step, tree, set(_called(tree)), set(_imported(tree)), inputs)
    if _ends_otherwise(tree, cell.calls, failed=failed):
        return f"To end the run, call {submit_call} as code."
    hints = [*_IN_ANY_CELL, *(_IN_A_FAILED_CELL if failed else ())]
    hint = next((hint for fits, hint in hints if fits(cell)), "")
    return hint.format(overwritten=cell.overwritten, inputs=", ".join(inputs))


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


def _replaces(node: ast.AST, name: str) -> bool:
    """Whether a statement binds a name to something that is made neither from it nor from INPUTS."""
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, ast.For | ast.AsyncFor):
        targets, value = [node.target], node.iter
    else:
        return False
    names = [each for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    bound = {each.id for each in names if isinstance(each.ctx, ast.Store)}
    used = {each.id for each in ast.walk(value) if isinstance(each, ast.Name)}
    return name in bound and not used & {name, "INPUTS"}


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
