"""Finds habits of other engines and notebooks in a cell, and tells the model what to do instead.

It inspects the syntax tree of the code, never the text of an error, which depends on the interpreter.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rlm_dspy.loop.repetition import imported, same_output
from rlm_dspy.repl.tools import RESERVED, SUB_CALLS
from rlm_dspy.replies.code_blocks import bound_names, outside_functions, parse
from rlm_dspy.replies.literals import NO_LITERAL, Literals, is_call

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from rlm_dspy.trajectory import Step

_ENDINGS = {"FINAL", "FINAL_VAR", "final_answer", "submit", "Submit", "FINISH", "finish"}
"""Functions that end a run in other engines: rlms, smolagents and others."""
_ENDS_IN_WORDS = re.compile(r"^[ \t]*(?:FINAL|FINAL_VAR|final_answer)\(", re.MULTILINE)
_READY = "ready"
"""The key of minrlm's `answer` that ends a run."""
_NOTEBOOK = re.compile(
    r"^[ \t]*(?:(?:(?:[\w, ]+=[ \t]*)?(?:!|%%?)|\?\??)[ \t]*[A-Za-z]|[\w.()]+\?\??[ \t]*$)", re.MULTILINE
)
_INSTALL = re.compile(r"^[ \t]*[!%]?[ \t]*(?:pip3?|uv|conda|apt(?:-get)?) (?:pip )?install\b", re.MULTILINE)
_NO_SHELL = "Only Python runs here: no `!ls`, `%time` or `?`. Use os.listdir, time.perf_counter, dir(name)."
_NO_INSTALL = "Nothing can be installed here. Use the standard library and what can be imported."
_BATCHES = {"llm_query_batched", "rlm_query_batched", "map", "batch", "amap"}
_PROCESSES = {"multiprocessing", "subprocess"}
_NETWORK = {"requests", "httpx", "aiohttp", "socket", "ftplib", "selenium"}
_OF_ADDRESSES = {"urlopen", "urlretrieve", "build_opener", "HTTPConnection", "HTTPSConnection"}
"""The functions of `urllib` and `http` that use the network."""
_READERS = {"open", "read_text", "read_bytes", "read_csv", "read_json", "read_excel", "listdir", "glob", "scandir"}
_BUFFERS = {"StringIO", "BytesIO"}


@dataclass(frozen=True)
class _Cell:
    """A cell that did not end the run.

    Attributes:
        step: Its turn.
        tree: Its syntax tree; `nodes`: all nodes of it.
        calls: The names of the called functions, without their owners: `join` for `", ".join(...)`.
        imports: The modules that it imports.
        inputs: The names of the run's inputs.
    """

    step: Step
    tree: ast.Module
    nodes: list[ast.AST]
    calls: set[str]
    imports: set[str]
    inputs: Collection[str]

    @cached_property
    def overwritten(self) -> str:
        """An input that the code replaces by something that is not made from it; empty if there is none."""
        bound = {each.id for each in self.nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        names = [name for name in self.inputs if name in bound]
        nodes = [*outside_functions(self.tree)] if names else []
        return next((name for name in names if any(_replaces(node, name) for node in nodes)), "")

    @cached_property
    def not_awaited(self) -> str:
        """An `async` function of the cell that a statement calls without `await`; empty if there is none."""
        functions = {each.name for each in self.nodes if isinstance(each, ast.AsyncFunctionDef)}
        lines = (each.value for each in self.nodes if isinstance(each, ast.Expr))
        return next((name for line in lines for name in functions if is_call(line, name)), "")

    @cached_property
    def awaited_sub_call(self) -> str:
        """A function that asks a model, called where code awaits; empty if there is none."""
        awaits = self.calls & {"gather", "wait", "create_task", "as_completed"} or any(
            isinstance(each, ast.Await) for each in self.nodes
        )
        return next((name for name in sorted(SUB_CALLS) if awaits and name in self.calls), "")

    @cached_property
    def imported_here(self) -> str:
        """An input or function of the REPL that the code imports; empty if there is none."""
        froms = {alias.name for node in self.nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        return next(
            (name for name in (*self.inputs, *sorted(RESERVED - {"dspy"})) if name in self.imports | froms), ""
        )


_IN_ANY_CELL: tuple[tuple[Callable[[_Cell], Any], str], ...] = (
    (
        lambda cell: cell.overwritten,
        "This code replaced the input {overwritten}. Do not assign it; INPUTS[{overwritten!r}] is the original.",
    ),
    (
        lambda cell: "system" in cell.calls and "os" in cell.imports,
        "The output of os.system is not shown. Only Python runs here: use os.listdir, open and the like.",
    ),
    (
        lambda cell: cell.not_awaited,
        "{not_awaited}() was not awaited, so it did not run. Write `await {not_awaited}()`.",
    ),
)
_IN_A_FAILED_CELL: tuple[tuple[Callable[[_Cell], Any], str], ...] = (
    (
        lambda cell: "SUBMIT" in cell.calls and _has_dots(cell.nodes),
        "Replace the dots in SUBMIT(...) by the answer itself.",
    ),
    (
        lambda cell: cell.calls & _BATCHES and any(call.error for call in cell.step.calls),
        "A failed item is false and no str. Leave it out: [reply for reply in replies if reply].",
    ),
    (
        lambda cell: cell.awaited_sub_call,
        "{awaited_sub_call}(...) returns the reply: leave out `await`, or await {awaited_sub_call}.acall(...).",
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
        lambda cell: cell.imported_here,
        "{imported_here} is there already: use it without an import.",
    ),
    (
        lambda cell: cell.imports & _NETWORK or cell.calls & _OF_ADDRESSES,
        "Code here has no network access. Use the variables and functions listed in the first message.",
    ),
    (
        lambda cell: cell.calls & _READERS and not cell.calls & _BUFFERS,
        "The inputs are variables, not files: use them ({inputs}) directly.",
    ),
)


def _has_dots(nodes: list[ast.AST]) -> bool:
    return any(isinstance(node, ast.Constant) and node.value is ... for node in nodes)


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
    if not hint and (turn := same_output(step, earlier)):
        return f"Turn {turn} had the same output. If it is the answer, call {submit_call} as code."
    return hint


def names_any(code: str, names: Collection[str]) -> bool:
    """Whether code uses a variable with one of these names, or mentions one without being valid Python."""
    tree = parse(code)
    if tree is None:
        return any(name in code for name in names)
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(tree))


def submits_literals(code: str) -> bool:
    """Whether what code submits is written out in it, and submitted whatever the code finds.

    Names that are assigned once to a literal count, a SUBMIT within a condition or a loop does not.
    """
    tree = parse(code)
    nodes = ast.walk(tree) if tree else ()
    calls = [node for node in nodes if isinstance(node, ast.Call) and is_call(node, "SUBMIT")]
    lines = [line.value for line in tree.body if isinstance(line, ast.Expr)] if tree else []
    if not tree or not calls or any(call not in lines for call in calls):
        return False
    literals = Literals(tree)
    try:
        for call in calls:
            for value in (*call.args, *(keyword.value for keyword in call.keywords)):
                literals.of(value)
    except NO_LITERAL:
        return False
    return True


def blind_submit(
    code: str, earlier: Collection[str], inputs: Collection[str], unseen: Sequence[str], *, asked: bool
) -> str:
    """Return why a SUBMIT is refused that no look at an input is behind; empty if one is.

    Args:
        code: The code that submits.
        earlier: The codes of the turns before it that showed something.
        inputs: The names of the run's inputs.
        unseen: The inputs that the prompt does not show whole.
        asked: Whether the code asked a model: what that answered has not been seen yet.
    """
    is_written, looks_now = submits_literals(code), names_any(code, inputs)
    if looks_now and not is_written:
        return ""
    if any(names_any(each, inputs) for each in earlier) and not (is_written and asked):
        return ""
    if looks_now or asked:
        return "You wrote the answer before you saw what this code found. Read that above, or print it."
    shown = f"Your code has shown nothing of {', '.join(unseen)} yet."
    return f"{shown} Print a part or search it first, then answer from it."


def is_another_turn(code: str, earlier: Iterable[Step], inputs: Collection[str]) -> bool:
    """Whether the code of a reply that should be an answer is that of an earlier turn, or is for this REPL.

    That is code over an input, a variable of an earlier turn or a function of the REPL.
    """
    codes = [turn.code for turn in earlier]
    return bool(code) and (names_any(code, inputs) or code in codes or _needs_repl(code, codes))


def prints(code: str) -> bool:
    """Whether code prints at its top level, as that of a turn does."""
    tree = parse(code)
    return tree is not None and any(
        is_call(line.value, "print") for line in tree.body if isinstance(line, ast.Expr)
    )


def _needs_repl(code: str, codes: Iterable[str]) -> bool:
    """Whether code uses a name that only the REPL has: one that it does not bind, but an earlier turn did."""
    tree = parse(code)
    if tree is None:
        return False
    earlier = filter(None, map(parse, codes))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - bound_names([tree])
    return bool(used & (bound_names(earlier) | RESERVED - {"SUBMIT", "print", "dspy"}))


def hint_for(step: Step, submit_call: str, inputs: Collection[str] = ()) -> str:
    """Return a line of advice after a cell that did not end the run; empty if there is none.

    Args:
        step: The turn: its code, how it ended, and its sub-calls.
        submit_call: How SUBMIT is called in this run.
        inputs: The names of the run's inputs.
    """
    tree, failed = parse(step.code), step.kind == "error"
    if step.kind == "denied":
        return ""
    if tree is None:
        if not failed:
            return ""
        install, notebook = _INSTALL.search(step.code), _NOTEBOOK.search(step.code)
        return _NO_INSTALL if install else _NO_SHELL if notebook else ""
    nodes = [*ast.walk(tree)]
    cell = _Cell(step, tree, nodes, set(_called(nodes)), set(imported(nodes)), inputs)
    in_words = bool(step.code) and step.kind == "output" and _ENDS_IN_WORDS.search(step.reasoning)
    if in_words or _ends_otherwise(cell, failed=failed):
        return f"To end the run, call {submit_call} as code."
    hints = [*_IN_ANY_CELL, *(_IN_A_FAILED_CELL if failed else ())]
    hint = next((hint for fits, hint in hints if fits(cell)), "")
    return hint.format(
        overwritten=cell.overwritten,
        not_awaited=cell.not_awaited,
        awaited_sub_call=cell.awaited_sub_call,
        imported_here=cell.imported_here,
        inputs=", ".join(inputs),
    )


def _ends_otherwise(cell: _Cell, *, failed: bool) -> bool:
    """Whether a cell tries to end the run without SUBMIT."""
    if "SUBMIT" in cell.calls:
        return False
    if failed:
        defined = {node.name for node in cell.nodes if isinstance(node, ast.FunctionDef)}
        returns = any(isinstance(node, ast.Return) for node in outside_functions(cell.tree))
        if returns or (cell.calls & _ENDINGS) - defined:
            return True
    return any(map(_sets_ready, cell.nodes))


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


def _called(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names of all called functions, without their owners: `join` for `", ".join(...)`."""
    for node in nodes:
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr
