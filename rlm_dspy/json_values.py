"""Converts values to JSON at any depth, and reads and appends JSON Lines files.

Pydantic serializes about 250 levels; JSON and its parsers take more.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

MAX_DEPTH = 450
"""How deep an answer may be nested. The confined worker, JSON and `repr` fail from 490 levels on."""
_LEFT_OUT = "..."
_CONTAINERS = (dict, list, tuple, set, frozenset)


def jsonable(value: Any) -> Any:
    r"""Convert a value to a form that JSON can hold: NaN and infinities become strings, lone surrogates `?`.

    Bytes become text; those that are not UTF-8 are written as `\xff`. Values more than `MAX_DEPTH` levels deep, or
    inside themselves, become `"..."`. Sets become sorted lists: equal sets may iterate in different orders.
    """
    try:
        plain = to_jsonable_python(_without_sets(value), fallback=repr)
    except (ValueError, RecursionError):  # too deep for pydantic, inside itself, or bytes that are not UTF-8
        plain = _level_by_level(value, set())
    text = json.dumps(plain, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"), parse_constant=str)


def _without_sets(value: Any) -> Any:
    """Return a value with its sets as sorted lists; the same object if it has none."""
    parts = parts_of(value)
    if not parts:
        return value
    items = list(parts.values()) if isinstance(parts, dict) else parts
    new = []
    for item in items:
        new += [item if isinstance(item, str | int | float | None) else _without_sets(item)]
    if isinstance(value, set | frozenset):
        return _in_order(new)
    if all(a is b for a, b in zip(new, items, strict=True)):
        return value
    if isinstance(value, BaseModel):
        return _without_sets(value.model_dump(by_alias=True))
    return dict(zip(parts, new, strict=True)) if isinstance(parts, dict) else new


def _in_order(items: Iterable[Any]) -> list[Any]:
    """Return items sorted, or by their `repr` if they cannot be compared."""
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=repr)


def _level_by_level(value: Any, above: set[int]) -> Any:
    """Return a value as JSON-like data, recursing once per level.

    Args:
        value: Any value.
        above: The ids of the values that contain it.
    """
    parts = parts_of(value)
    if not isinstance(value, _CONTAINERS):
        try:
            return to_jsonable_python(value, fallback=repr)
        except ValueError:
            if isinstance(value, bytes | bytearray):
                return value.decode("utf-8", "backslashreplace")
            if parts is None:
                raise
    if id(value) in above or len(above) >= MAX_DEPTH:
        return _LEFT_OUT
    above.add(id(value))
    if isinstance(parts, dict):
        written: Any = {}
        for key, part in parts.items():
            (name,) = to_jsonable_python({key: None}, fallback=repr)
            written[name] = _level_by_level(part, above)
    else:
        written = []
        for part in parts or ():
            written.append(_level_by_level(part, above))
    above.remove(id(value))
    return _in_order(written) if isinstance(value, set | frozenset) else written


def nested_too_deep(value: Any) -> bool:
    """Return whether a value is nested more than `MAX_DEPTH` levels deep, or contains itself."""
    level = {id(value): value}
    for _ in range(MAX_DEPTH):
        below = {}
        for outer in level.values():
            parts = parts_of(outer)
            for part in parts.values() if isinstance(parts, dict) else parts or ():
                if not isinstance(part, str | int | float | None):
                    below[id(part)] = part
        if not below:
            return False
        level = below
    return True


def parts_of(value: Any) -> dict[Any, Any] | list[Any] | None:
    """Return the parts of a container, a model or a dataclass; None for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, _CONTAINERS):
        return list(value)
    if isinstance(value, BaseModel):
        left_out = {name for name, field in type(value).model_fields.items() if field.exclude}
        return {name: part for name, part in fields_of_model(value).items() if name not in left_out}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def fields_of_model(value: BaseModel) -> dict[str, Any]:
    """Return the fields that a model has, and what `extra="allow"` let it take besides them."""
    held = vars(value)
    fields = {name: held[name] for name in type(value).model_fields if name in held}
    return {**fields, **(value.model_extra or {})}


class JsonLines:
    """A file with one JSON value on each line; threads and processes may append concurrently.

    An unfinished line of a killed process is terminated before the next one is written; `json_objects` skips it.

    Args:
        path: The file; it is created if it is missing.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._lock = threading.Lock()
        with self.path.open("a+b") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - 1))
            self._torn = file.read(1) not in (b"", b"\n")

    def append(self, line: str) -> None:
        """Append a line in one write, with `?` for lone surrogates.

        Raises:
            OSError: If the line could not be written whole.
        """
        data = line.encode("utf-8", "replace") + b"\n"
        with self._lock, self.path.open("ab", buffering=0) as file:
            data = b"\n" + data if self._torn else data
            written = file.write(data)
            self._torn = written != len(data)
        if self._torn:
            raise OSError(f"only {written} of {len(data)} bytes were written")


def json_objects(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one per line; skip all other lines.

    Raises:
        OSError: If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found
