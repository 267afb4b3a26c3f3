"""How types are named to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspy.adapters.utils import get_annotation_name

if TYPE_CHECKING:
    from collections.abc import Iterable


def type_name(annotation: Any) -> str:
    """Return a type's name; of a pydantic model or an enum also what it consists of."""
    name, parts = str(get_annotation_name(annotation)), consists_of([annotation])
    return f"{name} ({parts})" if parts else name


def consists_of(annotations: Iterable[Any], kind: str = "dict") -> str:
    """Return of which fields and values the pydantic models and enums in some types consist; each is told once.

    Args:
        annotations: The types.
        kind: What code has in place of a model's instance.
    """
    seen: set[Any] = set()
    return "; ".join(_told(part, kind) for annotation in annotations for part in _parts_of(annotation, seen))


def _told(part: Any, kind: str) -> str:
    if members := getattr(part, "__members__", None):
        return f"{part.__name__} is one of {[member.value for member in members.values()]}"
    fields = (f"{key}: {get_annotation_name(field.annotation)}" for key, field in part.model_fields.items())
    return f"{part.__name__} is a {kind} with {', '.join(fields)}"


def _parts_of(annotation: Any, seen: set[Any]) -> list[Any]:
    """Return the pydantic models and enums that a type is made of, the outermost first."""
    found = []
    if (hasattr(annotation, "model_fields") or hasattr(annotation, "__members__")) and annotation not in seen:
        seen.add(annotation)
        found.append(annotation)
        for field in getattr(annotation, "model_fields", {}).values():
            found += _parts_of(field.annotation, seen)
    for argument in getattr(annotation, "__args__", ()):
        found += _parts_of(argument, seen)
    return found
