"""Encodes the values that a worker sends to the host as JSON, and simplifies other types.

The standard library only.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import json
import pathlib
import uuid
from collections import deque
from collections.abc import ItemsView, KeysView, Mapping, ValuesView
from typing import Any

_AS_TEXT = (
    *(dt.date, dt.time, decimal.Decimal, fractions.Fraction),
    *(pathlib.PurePath, uuid.UUID),
)


def encoded(frame: Mapping[str, object]) -> bytes:
    """Return the JSON of a frame, with sets as lists, dates as ISO text, arrays and frames as lists.

    Raises:
        TypeError: If a value has no such form; the message names its type.
        ValueError: If it refers to itself.
        RecursionError: If it is nested too deeply.
    """
    return _encode(frame).encode("utf-8", "surrogatepass")


def plain(value: Any) -> Any:
    """Convert `value` to a form that is closer to JSON.

    Raises:
        TypeError: If there is none.
    """
    if isinstance(value, set | frozenset):
        return _sorted(value)
    if isinstance(value, _AS_TEXT):
        return value.isoformat() if hasattr(value, "isoformat") else str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if type(value).__module__.partition(".")[0] in ("numpy", "pandas"):
        return _of_table(value)
    if isinstance(value, KeysView | ValuesView | ItemsView | range | deque):
        return list(value)
    raise TypeError(
        f"a value of type {type(value).__name__} cannot leave the REPL; "
        "pass str, numbers, lists and dicts, for example str(...), list(...) or vars(...) of it"
    )


def _sorted(values: set[Any] | frozenset[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _of_table(value: Any) -> Any:
    if hasattr(value, "columns"):
        return value.to_dict(orient="records")
    convert = getattr(value, "isoformat", None) or getattr(value, "tolist", None)
    return convert() if convert else None


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=plain).encode
