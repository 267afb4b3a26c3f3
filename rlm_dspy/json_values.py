"""Values as JSON holds them, however deep they are nested.

Pydantic writes values that are at most some 250 levels deep; JSON itself, and what reads it, takes more.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

MAX_DEPTH = 450
"""How deep an answer may be nested. From 490 levels on the confined worker, JSON and `repr` give up."""
_LEFT_OUT = "..."
_CONTAINERS = (dict, list, tuple, set, frozenset)


def jsonable(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN and infinities as strings, halves of surrogate pairs replaced.

    What lies more than `MAX_DEPTH` levels deep, or inside itself, becomes `"..."`.
    """
    try:
        plain = to_jsonable_python(value, fallback=repr)
    except ValueError:  # too deep for pydantic, or inside itself
        plain = _level_by_level(value, set())
    text = json.dumps(plain, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "replace"), parse_constant=str)


def _level_by_level(value: Any, above: set[int]) -> Any:
    """Return a value as JSON-like data, with one Python call for each level.

    Args:
        value: Any value.
        above: The ids of the values that it lies in.
    """
    parts = parts_of(value)
    if not isinstance(value, _CONTAINERS):
        try:
            return to_jsonable_python(value, fallback=repr)
        except ValueError:
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
    return written


def nested_too_deep(value: Any) -> bool:
    """Return whether a value is nested more than `MAX_DEPTH` levels deep, as one that lies inside itself is."""
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
    """Return what a container, a model or a dataclass consists of; None of anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, _CONTAINERS):
        return list(value)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name: getattr(value, name) for name, field in fields if not field.exclude}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
