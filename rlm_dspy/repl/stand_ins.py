"""Says which objects of the host have a stand-in in the REPL, and what it consists of."""

from __future__ import annotations

import enum
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import BaseModel

from rlm_dspy.inputs import MEDIA, HostInput, Record, Row, about
from rlm_dspy.inputs.media import media_facts
from rlm_dspy.json_values import fields_of_model

if TYPE_CHECKING:
    from collections.abc import Callable

    Key = Callable[[dspy.Type | HostInput], str]

_MIXED_IN = (enum.StrEnum, enum.IntEnum, str, int, float)


def described(value: Any, key: Key | None = None) -> tuple[str, str, dict[str, Any]] | None:
    """Return kind, class name and fields of an object with a stand-in in the REPL; None for other values.

    Args:
        value: Any value.
        key: Stores an image, a sound, a file or a folder, and returns its key; None if they have no stand-in.
    """
    if isinstance(value, type):
        return None
    name = type(value).__name__
    if key is not None and isinstance(value, (*MEDIA, HostInput)):
        return _described_handle(value, key(value))
    if isinstance(value, Record):
        return value.kind, value.name, dict(value)
    if isinstance(value, Row):
        return "namedtuple", value.name, value._asdict()
    if isinstance(value, enum.Enum):
        return _described_member(value)
    found = _kind_and_fields(value)
    return found and (found[0], name, found[1])


def _described_handle(value: dspy.Type | HostInput, key: str) -> tuple[str, str, dict[str, Any]]:
    name = type(value).__name__
    if isinstance(value, HostInput):
        return "host", name, {"key": key, **value.stand_in()}
    return "media", name, {"key": key, "about": about(value), **media_facts(value)}


def _described_member(value: enum.Enum) -> tuple[str, str, dict[str, Any]] | None:
    members = type(value).__members__
    if value.name not in members:  # combined flags
        return None
    base = next((kind.__name__ for kind in _MIXED_IN if isinstance(value, kind)), "")
    values = {key: member.value for key, member in members.items()}
    return "enum", type(value).__name__, {"member": value.name, "base": base, "members": values}


def _kind_and_fields(value: Any) -> tuple[str, dict[str, Any]] | None:
    if isinstance(value, BaseModel):
        return "model", fields_of_model(value)
    if isinstance(value, dspy.Example):  # a Prediction is one
        alone = getattr(type(value), "outputs_alone", None)
        return "prediction", alone(value) if alone else dict(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "namedtuple", dict(zip(value._fields, value, strict=False))
    if is_dataclass(value):
        return "dataclass", {item.name: getattr(value, item.name) for item in fields_of(value)}
    return None
