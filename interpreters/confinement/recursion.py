"""Bounds the recursion of code by the stack that it has. The standard library only."""

from __future__ import annotations

import resource
import sys

_LEVEL_BYTES = 3 << 10
"""The stack that a level of recursion through C takes, at most."""
_MOST_LEVELS = 20_000


def cap_recursion() -> None:
    """Bound `sys.setrecursionlimit` by the size of the stack; print a message if code asks for more.

    A limit that is never reached lets recursion without end fill the memory, which takes minutes.
    """
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    levels = _MOST_LEVELS if stack == resource.RLIM_INFINITY else min(_MOST_LEVELS, stack // _LEVEL_BYTES)
    most = max(levels, sys.getrecursionlimit())
    change = sys.setrecursionlimit

    def setrecursionlimit(limit: int, /) -> None:
        """Set the maximum depth of the Python interpreter stack, which is bounded here."""
        if isinstance(limit, int) and limit > most:
            sys.stderr.write(f"The recursion limit is set to {most:,}, the most that is possible here.\n")
            limit = most
        change(limit)

    sys.setrecursionlimit = setrecursionlimit
