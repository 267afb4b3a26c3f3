"""Evaluates the literals of code without running it."""

from __future__ import annotations

import ast
import contextlib
import copy
from collections import Counter
from typing import Any

from rlm_dspy.replies.code_blocks import tree_of

NO_LITERAL = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)
"""What `ast.literal_eval` raises."""


def literal_of(text: str) -> Any:
    """Return the value of a literal that a model wrote.

    Raises:
        ValueError: If it is none, as the other errors of `NO_LITERAL`.
    """
    match tree_of(text.strip()).body:
        case [ast.Expr(value=value)]:
            return ast.literal_eval(value)
    raise ValueError("This is no literal.")


def is_call(node: ast.AST | None, name: str) -> bool:
    """Whether a node calls a function by this name."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


class Literals(ast.NodeTransformer):
    """The values of code: literals, and names that are assigned once, at the top level, to such a value.

    Attributes:
        known: The literal of each of these names.
    """

    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self.known: dict[str, ast.expr] = {}
        names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
        bound = Counter(node.id for node in names if isinstance(node.ctx, ast.Store))
        for line in tree.body:
            match line:
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if bound[name] == 1:
                    with contextlib.suppress(*NO_LITERAL):
                        self.of(value)
                        self.known[name] = self._resolved(value)

    def of(self, node: ast.expr) -> Any:
        """Return the value of an expression.

        Raises:
            ValueError: If it is not one of these values.
        """
        return ast.literal_eval(self._resolved(node))

    def named(self, names: list[str]) -> dict[str, Any]:
        """Return the values of names."""
        return {name: self.of(self.known[name]) for name in names}

    def shown(self) -> list[Any]:
        """Return what the code prints or ends with, if it does nothing else but assign; empty if it does more."""
        values = []
        for line in self._tree.body:
            match line:
                case ast.Assign(targets=[ast.Name(id=name)]) if name in self.known:
                    shown: ast.expr = self.known[name]
                case ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=[one], keywords=[])):
                    shown = one
                case ast.Expr(value=one):
                    shown = one
                case _:
                    return []
            try:
                values.append(self.of(shown))
            except NO_LITERAL:
                return []
        return values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return the literal of a name."""
        return self.known.get(node.id, node)

    def _resolved(self, node: ast.expr) -> ast.expr:
        resolved: ast.expr = self.visit(copy.deepcopy(node))
        return resolved
