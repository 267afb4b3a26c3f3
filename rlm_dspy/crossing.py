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
from rlm_dspy.trajectory import clip, sendable, without_media_marks


class _Short(reprlib.Repr):
    """Writes values shortened, and records as code in the REPL sees them."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Return a dict, or what stands for a record, as text."""
        if "__record__" not in x:
            return super().repr_dict(x, level)
        fields = (f"{name}={self.repr1(value, level - 1)}" for name, value in x["fields"].items())
        return f"{x['__record__']}({', '.join(fields)})"


_SHORT = _Short()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxset = _SHORT.maxdict = 20
_SHORT.maxstring = _SHORT.maxother = 200


def sent(value: Any) -> Any:
    """Return a value as it is sent to the REPL: models and predictions as records, all else as JSON has it."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, Text | str):
        return str(value)
    if (fields := _fields(value)) is not None:
        name = "Prediction" if isinstance(value, dspy.Example) else type(value).__name__
        return {"__record__": name, "fields": {str(key): sent(item) for key, item in fields.items()}}
    if isinstance(value, dict):
        return {str(sent(key)): sent(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [sent(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return to_jsonable_python(value, fallback=repr, inf_nan_mode="strings")


def _fields(value: Any) -> dict[str, Any] | None:
    """Return the fields of what becomes a record; None of anything else."""
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dspy.Example):  # a Prediction is one
        return dict(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    return None


def received(value: Any, annotation: Any) -> Any:
    """Return a value of the REPL, or an input of the run, in the type of an input field.

    Raises:
        ValueError: If it does not fit; the message says what is needed and what was given.
    """
    value = without_media_marks(plain(value))
    return value if annotation in (Any, object) else read_value(value, annotation)


def short(value: Any, max_chars: int) -> str:
    """Return a value as text for the trajectory, cut."""
    if isinstance(value, Text | str):
        return sendable(clip(str(value), max_chars))
    return sendable(clip(repr(value) if isinstance(value, BaseModel) else _SHORT.repr(value), max_chars))
