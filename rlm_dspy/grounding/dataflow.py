"""Tells from the source of a run's code what the submitted value of a field was made of.

Scopes are ignored: a name stands for everything that any cell bound to it. So the flow holds more than what
happened, never less.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlm_dspy.repl.tools import SUB_CALLS
from rlm_dspy.replies.code_blocks import parse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_COPYING = frozenset(
    re.findall(
        r"\w+",
        """
        search match fullmatch findall finditer compile group groups groupdict split splitlines rsplit
        partition rpartition strip lstrip rstrip removeprefix removesuffix find rfind index rindex
        startswith endswith isdigit isalpha next iter list tuple set dict sorted reversed enumerate zip
        range filter len min max print str any all append extend insert add update setdefault get items
        values keys pop sort grep read open find_passages find_records
        """,
    )
)
"""Functions and methods whose texts are parts of their arguments, or that give no text of their own."""
_KEEPING = {"append", "extend", "insert", "add", "update", "setdefault"}


@dataclass
class Flow:
    """What a submitted value was made of.

    Attributes:
        literals: The texts and numbers in the code that made it, as text.
        typed: Those that are an argument of SUBMIT itself.
        inputs: Whether inputs are used, other than as arguments of sub-calls.
        sub_calls: Whether answers of sub-calls are used.
        others: Whether anything else is: a tool, formatted or joined text, a name that no code binds.
    """

    literals: set[str] = field(default_factory=set)
    typed: set[str] = field(default_factory=set)
    inputs: bool = False
    sub_calls: bool = False
    others: bool = False


def flow_of(codes: Iterable[str], field_name: str, inputs: Collection[str], subs: Collection[str]) -> Flow | None:
    """Return what the value of an output field was made of; None if that cannot be told.

    Args:
        codes: The code blocks of the run in order; SUBMIT is called in the last.
        field_name: The output field.
        inputs: The names of the run's inputs.
        subs: The names of its declared subs.
    """
    trees = [tree for code in codes if (tree := parse(code)) is not None]
    submitted = list(_submitted(trees[-1], field_name)) if trees else []
    if not submitted:
        return None
    reader = _Reader(trees, {*inputs, "INPUTS"}, {*subs, *SUB_CALLS, "dspy"})
    for expression in submitted:
        reader.read(expression)
    reader.flow.typed = {
        str(node.value) for each in submitted for node in _literal_parts(each) if isinstance(node, ast.Constant)
    }
    return reader.flow


def _submitted(tree: ast.Module, name: str) -> Iterator[ast.expr]:
    """Yield the arguments of all calls of SUBMIT that may hold a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SUBMIT":
            named = [keyword.value for keyword in node.keywords if keyword.arg == name]
            yield from named or [*node.args, *(k.value for k in node.keywords if k.arg is None)]


def _literal_parts(node: ast.expr) -> Iterator[ast.expr]:
    """Yield an expression, and those in a list, tuple, set or dict that is written out."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        for item in node.elts:
            yield from _literal_parts(item)
    elif isinstance(node, ast.Dict):
        for item in node.values:
            yield from _literal_parts(item)
    else:
        yield node


class _Reader:
    """Follows names from an expression to what was bound to them.

    Args:
        trees: The code of the run.
        inputs: The names of the inputs.
        sub_calls: The names of functions that ask models.
    """

    def __init__(self, trees: Iterable[ast.Module], inputs: set[str], sub_calls: set[str]) -> None:
        self.flow = Flow()
        self._inputs, self._sub_calls = inputs, sub_calls
        self._bound: dict[str, list[ast.AST]] = defaultdict(list)
        self._functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self._seen: set[str] = set()
        self._imported: set[str] = set()
        for node in (node for tree in trees for node in ast.walk(tree)):
            self._bind(node)
        for node in (node for tree in trees for node in ast.walk(tree)):
            self._bind_parameters(node)

    def _bind(self, node: ast.AST) -> None:
        match node:
            case ast.Assign():
                self._bind_targets(node.targets, node.value)
            case ast.AnnAssign(value=ast.expr() as value) | ast.NamedExpr(value=value):
                self._bind_targets([node.target], value)
            case ast.AugAssign():
                is_list = isinstance(node.value, ast.List | ast.ListComp)
                made = node.value if is_list else ast.JoinedStr(values=[node.value])  # a sum, or a joined text
                self._bind_targets([node.target], made)
            case ast.For() | ast.AsyncFor() | ast.comprehension():
                self._bind_targets([node.target], node.iter)
            case ast.withitem(optional_vars=ast.expr() as target):
                self._bind_targets([target], node.context_expr)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._functions[node.name] = node
            case ast.Import() | ast.ImportFrom():
                self._imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if method in _KEEPING:
                self._bound[name] += [*node.args, *(keyword.value for keyword in node.keywords)]

    def _bind_targets(self, targets: Iterable[ast.expr], value: ast.AST) -> None:
        for target in targets:
            for node in ast.walk(target):
                if isinstance(node, ast.Name):
                    self._bound[node.id].append(value)

    def _bind_parameters(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self._functions:
            given = self._functions[node.func.id].args
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            for parameter in [*given.posonlyargs, *given.args, *given.kwonlyargs]:
                self._bound[parameter.arg] += values

    def read(self, node: ast.AST) -> None:
        """Add what an expression is made of to the flow."""
        match node:
            case ast.Constant(value=str() | int() | float()):
                self.flow.literals.add(str(node.value))
            case ast.Name():
                self._read_name(node.id)
            case ast.Call() if self._asks_a_model(node.func):
                self.flow.sub_calls = True
            case ast.Call():
                self._read_call(node)
            case ast.BinOp(op=ast.Add()) if _are_lists(node):
                self._read_parts(node)
            case ast.BinOp() | ast.JoinedStr() | ast.UnaryOp():
                self.flow.others = True
                self._read_parts(node)
            case _:
                self._read_parts(node)

    def _read_parts(self, node: ast.AST) -> None:
        for part in ast.iter_child_nodes(node):
            self.read(part)

    def _read_name(self, name: str) -> None:
        if name in self._inputs:
            self.flow.inputs = True
        if name in self._seen:
            return
        self._seen.add(name)
        for value in self._bound[name]:
            self.read(value)
        if name in self._functions:
            for statement in self._functions[name].body:
                self.read(statement)
        known = self._functions.keys() | self._imported | self._inputs | self._sub_calls | sys.stdlib_module_names
        if not self._bound[name] and name not in known and not hasattr(builtins, name):
            self.flow.others = True

    def _read_call(self, node: ast.Call) -> None:
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if name not in _COPYING and name not in self._functions:
            self.flow.others = True
        self._read_parts(node)

    def _asks_a_model(self, function: ast.expr) -> bool:
        """Whether a function is `llm_query`, a sub, its `map`, or an object of `dspy`, by whatever name."""
        while isinstance(function, ast.Attribute | ast.Call):
            function = function.value if isinstance(function, ast.Attribute) else function.func
        if not isinstance(function, ast.Name):
            return False
        if function.id in self._sub_calls:
            return True
        made = self._bound[function.id]
        return bool(made) and all(isinstance(each, ast.Call) and _of_dspy(each.func) for each in made)


def _of_dspy(function: ast.expr) -> bool:
    owner = function.value if isinstance(function, ast.Attribute) else None
    return isinstance(owner, ast.Name) and owner.id == "dspy"


def _are_lists(node: ast.BinOp) -> bool:
    return any(isinstance(side, ast.List | ast.ListComp) for side in (node.left, node.right))
