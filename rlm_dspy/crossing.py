"""Values on their way between the code in a REPL and the modules that it calls: JSON-like both ways."""

from __future__ import annotations

import base64
import dataclasses
import enum
import reprlib
from typing import Any

import dspy
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from rlm_dspy.answers import read_value
from rlm_dspy.inputs import Text, plain
from rlm_dspy.trajectory import clip

_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 20
_SHORT.maxstring = _SHORT.maxother = 200


def sent(value: Any) -> Any:
    """Return a value as it is sent to the REPL: models and predictions as records, all else as JSON has it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has neither NaN nor infinity
    if isinstance(value, Text | str):
        return str(value)
    if isinstance(value, BaseModel):
        fields = {name: sent(getattr(value, name)) for name in type(value).model_fields}
        return {"__record__": type(value).__name__, "fields": fields}
    if isinstance(value, dspy.Prediction | dspy.Example):
        return {"__record__": "Prediction", "fields": {str(name): sent(item) for name, item in value.items()}}
    if isinstance(value, enum.Enum):
        return sent(value.value)
    if isinstance(value, dict):
        return {str(name.value if isinstance(name, enum.Enum) else name): sent(i) for name, i in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [sent(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {item.name: sent(getattr(value, item.name)) for item in dataclasses.fields(value)}
        return {"__record__": type(value).__name__, "fields": fields}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return to_jsonable_python(value, fallback=repr, inf_nan_mode="strings")


def received(value: Any, annotation: Any) -> Any:
    """Return a value of the REPL, or an input of the run, in the type of an input field.

    Raises:
        ValueError: If it does not fit; the message says what is needed and what was given.
    """
    return plain(value) if annotation in (Any, object) else read_value(plain(value), annotation)


def short(value: Any, max_chars: int) -> str:
    """Return a value as text for the trajectory, cut."""
    if isinstance(value, Text | str):
        return clip(str(value), max_chars)
    if isinstance(value, BaseModel):
        return clip(repr(value), max_chars)
    return clip(_SHORT.repr(value), max_chars)
