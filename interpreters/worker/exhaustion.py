"""Makes an error that code can read of the end of its stack and memory. The standard library only."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cell import Outcome

_LEVEL_BYTES = 3 << 10
"""The stack that a level of recursion through C takes, at most."""
_MOST_LEVELS = 20_000
_LITTLE_BYTES = 4 << 20


def cap_recursion() -> None:
    """Let `sys.setrecursionlimit` go no further than the stack does; code is told so when it asks for more.

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


def memory_named(outcome: Outcome) -> Outcome:
    """Call an error of Python's own a `MemoryError` if the memory is full: that is what it comes from then."""
    if not isinstance(outcome.exception, SystemError) or not _is_full():
        return outcome
    lines, _, last = outcome.error.rpartition("\n")
    return replace(outcome, error=f"{lines}\nMemoryError ({last})".lstrip(), exception=MemoryError())


def _is_full() -> bool:
    try:
        bytearray(_LITTLE_BYTES)
    except MemoryError:
        return True
    return False
