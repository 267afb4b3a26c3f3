"""Formats Python types as text for prompts."""

from __future__ import annotations

import dataclasses
import enum
import types
from typing import TYPE_CHECKING, Annotated, Any, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

import dspy
from pydantic import BaseModel

from rlm_dspy._dspy_compat import get_annotation_name
from rlm_dspy.inputs import MEDIA
from rlm_dspy.redaction import without_credentials

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterable

    from pydantic.fields import FieldInfo
    from typing_extensions import TypeForm

_DEFAULT_CHARS = 60


def name_of(annotation: TypeForm[Any]) -> str:
    """Return a type's name, without its constraints."""
    return str(get_annotation_name(bare(annotation)))


def bare(annotation: TypeForm[Any]) -> TypeForm[Any]:
    """Return a type without its `Annotated` wrappers."""
    origin: Any = get_origin(annotation)
    parts = get_args(annotation)
    if origin is Annotated:
        return bare(parts[0])
    kinds = tuple(map(bare, parts))
    if kinds == parts:
        return annotation
    if origin is types.UnionType:
        origin = Union
    return cast("TypeForm[Any]", origin[kinds])


_PHRASES = {
    "gt": "greater than",
    "ge": "greater than or equal to",
    "lt": "less than",
    "le": "less than or equal to",
    "multiple_of": "a multiple of the given number",
    "min_length": "minimum length",
    "max_length": "maximum length",
    "pattern": "pattern",
    "allow_inf_nan": "allow 'inf', '-inf', 'nan' values",
}
"""Constraints in DSPy's words."""


def description_of(name: str, field: FieldInfo) -> str:
    """Return the user's `desc` of a field; empty for DSPy's placeholder."""
    extra = field.json_schema_extra
    desc = str(extra.get("desc") or "") if isinstance(extra, dict) else ""
    return "" if desc == f"${{{name}}}" else desc


def constraints_of(field: FieldInfo) -> str:
    """Return the constraints of a field's values, as the model sees them: `greater than or equal to: 1`."""
    found = ((name, getattr(part, name, None)) for part in field.metadata for name in _PHRASES)
    return ", ".join(f"{_PHRASES[name]}: {value}" for name, value in found if value is not None)


def type_name(annotation: TypeForm[Any]) -> str:
    """Return a type's name; for enums and classes with fields also their members or fields."""
    name, parts = name_of(annotation), consists_of([annotation])
    return f"{name} ({parts})" if parts else name


def shown_default(value: Any) -> str:
    """Format a default for a model: plain values without secrets; `...` for a host object."""
    if isinstance(value, enum.Enum):
        return str(value)
    text = without_credentials(repr(value)) if _is_plain(value) else "..."
    return text if len(text) <= _DEFAULT_CHARS else "..."


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, bool, int, float)


class _Shown(str):
    """Represents a default value in a signature."""

    __slots__ = ()
    __repr__ = str.__str__


def shown_signature(signature: inspect.Signature) -> str:
    """Format a signature for a model: `(query: str, k: int = 5) -> list[str]`."""
    parameters = [
        part if part.default is part.empty else part.replace(default=_Shown(shown_default(part.default)))
        for part in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters))


def consists_of(annotations: Iterable[TypeForm[Any]], kind: str = "dict") -> str:
    """Describe the fields and values of the classes and enums in some types, each class once.

    Args:
        annotations: The types.
        kind: What code uses instead of an instance.
    """
    seen: set[type] = set()
    return "; ".join(_described(part, kind) for annotation in annotations for part in _parts_of(annotation, seen))


def _described(part: type, kind: str) -> str:
    if members := getattr(part, "__members__", None):
        return f"{part.__name__} is one of {[member.value for member in members.values()]}"
    fields = (f"{key}: {name_of(annotation)}" for key, annotation in _fields_of(part).items())
    return f"{part.__name__} is a {kind} with {', '.join(fields)}"


def _fields_of(kind: TypeForm[Any]) -> dict[str, TypeForm[Any]]:
    """Return the types of the fields of a model, a dataclass, a `NamedTuple` or a `TypedDict`, by name."""
    if not isinstance(kind, type) or issubclass(kind, dspy.Type):
        return {}
    if issubclass(kind, BaseModel):
        return {key: field.annotation or Any for key, field in kind.model_fields.items()}
    if not (dataclasses.is_dataclass(kind) or is_typeddict(kind) or hasattr(kind, "_fields")):
        return {}
    try:
        return get_type_hints(kind)
    except (NameError, TypeError):  # a quoted annotation with an unknown name
        return {}


def holds_media(annotation: TypeForm[Any]) -> bool:
    """Whether values of a type may be, or contain, images, sounds or files."""
    return any(map(_names_media, _with_fields(annotation)))


def alternatives(annotation: TypeForm[Any]) -> int:
    """Return the total number of types in the unions of a type; 0 if it has none."""
    return sum(map(_alternatives, _with_fields(annotation)))


def _with_fields(annotation: TypeForm[Any]) -> list[TypeForm[Any]]:
    return [annotation, *(kind for part in _parts_of(annotation, set()) for kind in _fields_of(part).values())]


def _alternatives(annotation: TypeForm[Any]) -> int:
    parts = get_args(annotation)
    own = len(parts) if get_origin(annotation) in (Union, types.UnionType) else 0
    return own + sum(map(_alternatives, parts))


def _names_media(annotation: TypeForm[Any]) -> bool:
    return annotation in MEDIA or any(map(_names_media, getattr(annotation, "__args__", ())))


def _parts_of(annotation: TypeForm[Any], seen: set[type]) -> list[type]:
    """Return the classes with fields and the enums in a type, outermost first."""
    found: list[type] = []
    fields = _fields_of(annotation)
    if isinstance(annotation, type) and (fields or hasattr(annotation, "__members__")) and annotation not in seen:
        seen.add(annotation)
        found.append(annotation)
        for field in fields.values():
            found += _parts_of(field, seen)
    for argument in getattr(annotation, "__args__", ()):
        found += _parts_of(argument, seen)
    return found
