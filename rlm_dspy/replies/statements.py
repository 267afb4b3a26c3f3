"""Takes statements out of code, line by line, so that all other lines stay as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ast
    from collections.abc import Sequence

_LINE_END = re.compile(r"\r\n?|\n")
"""As Python counts lines."""


def lines_of(code: str) -> list[str]:
    """Return the lines of code as Python counts them."""
    return _LINE_END.split(code)


def has_own_lines(node: ast.stmt, lines: Sequence[str]) -> bool:
    """Whether a top-level statement shares its lines with comments alone."""
    behind = lines[(node.end_lineno or node.lineno) - 1].encode()[node.end_col_offset or 0 :].decode().strip()
    return node.col_offset == 0 and (not behind or behind.startswith("#"))


def without_statements(code: str, nodes: Sequence[ast.stmt]) -> str:
    """Return code without the lines of these statements, which are in order and have lines of their own."""
    lines = lines_of(code)
    for node in reversed(nodes):
        del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines).strip("\n") if nodes else code
