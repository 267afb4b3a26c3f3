"""Simplifies the values that code sends to the host to what JSON knows.

The standard library only: a worker imports this, and its source is run in other REPLs too (`repl/in_repl`).
"""

from __future__ import annotations

import dataclasses
import decimal
import enum
import fractions
import pathlib
import uuid
from collections import deque
from collections.abc import Callable, ItemsView, Iterable, KeysView, ValuesView
from typing import Any


def plain(value: Any) -> Any:
    """Convert `value` to a form that is closer to JSON.

    Raises:
        TypeError: If there is none.
    """
    for kinds, convert in _CONVERT:
        if isinstance(value, kinds):
            return convert(value)
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    of_a_table = type(value).__module__.partition(".")[0] in ("numpy", "pandas")
    if of_a_table and hasattr(value, "columns"):
        return value.to_dict(orient="records")
    own = getattr(value, "isoformat", None) or getattr(value, "tolist", None)
    if own is not None and not isinstance(value, type):
        return own()
    if of_a_table:  # what stands for a missing value
        return None
    raise TypeError(f"a value of type {type(value).__name__} cannot leave the REPL; {_instead(value)}")


def _instead(value: Any) -> str:
    """Return what to pass instead of a value that cannot leave the REPL."""
    if hasattr(value, "__await__"):
        return "write `await` before the call, and pass the result"
    if callable(value):
        return "call it, and pass the result"
    if hasattr(value, "__next__"):
        return "pass list(...) of it"
    return "pass str, numbers, lists and dicts, for example str(...), list(...) or vars(...) of it"


def in_order(values: Iterable[Any]) -> list[Any]:
    """Return values sorted, or by their `repr` if they cannot be compared."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


_CONVERT: tuple[tuple[tuple[type, ...], Callable[[Any], Any]], ...] = (
    ((set, frozenset), in_order),
    ((KeysView, ValuesView, ItemsView, range, deque), list),
    ((decimal.Decimal, fractions.Fraction, pathlib.PurePath, uuid.UUID, complex), str),
)
