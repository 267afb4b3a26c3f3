"""Builds DSPy signatures and modules on the host from what the model wrote in the REPL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import dspy

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.repl.coercion import type_of
from rlm_dspy.repl.tools import SETTINGS
from rlm_dspy.repl.type_names import name_of
from rlm_dspy.subcalls.type_grammar import TypeReader, check_name, check_usable, signature_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydantic.fields import FieldInfo

    from rlm_dspy.subcalls.frames import SignatureField, SignatureFrame

_EXAMPLE = "Write e.g. 'text, topic -> score: int'."


def signature_from(frame: SignatureFrame) -> Any:
    """Build the signature that the REPL described: an inline one, or the fields of a class.

    Raises:
        InvalidInputs: If it is invalid.
    """
    types = TypeReader(frame.classes)
    try:
        fields = _checked(_inline(frame.text, types) if frame.text is not None else _fields(frame.fields, types))
        check_name(frame.name, "a signature")
    except InvalidInputs as error:
        raise InvalidInputs(f"Invalid signature {frame.shown}: {error}. {_EXAMPLE}") from None
    made = {name: (field.kind, _WAYS[field.way](**field.options)) for name, field in fields.items()}
    signature = dspy.Signature(made, signature_name=frame.name)
    return signature.with_instructions(frame.instructions) if frame.instructions else signature


class _Field(NamedTuple):
    way: Literal["in", "out"]
    kind: Any
    options: dict[str, Any]
    """Further arguments of `InputField` or `OutputField`."""


_WAYS: dict[str, Callable[..., Any]] = {"in": dspy.InputField, "out": dspy.OutputField}


def _inline(text: str, types: TypeReader) -> Iterator[tuple[str, _Field]]:
    inputs, outputs = signature_parts(text)
    for name, annotation in inputs:
        yield name, _Field("in", types.of(annotation), {})
    for name, annotation in outputs:
        yield name, _Field("out", types.of(annotation), {})


def _fields(described: list[SignatureField] | None, types: TypeReader) -> Iterator[tuple[str, _Field]]:
    for field in described or ():
        options = {"desc": field.desc} if field.desc else {}
        default = {} if field.required else {"default": field.default}
        yield field.name, _Field(field.way, types.field(field)[0], options | default)


def _checked(described: Iterator[tuple[str, _Field]]) -> dict[str, _Field]:
    fields: dict[str, _Field] = {}
    for name, field in described:
        if name in fields:
            raise InvalidInputs(f"two fields are named {name}")
        _check_field(name, field)
        fields[name] = field
    if not any(field.way == "out" for field in fields.values()):
        raise InvalidInputs("it has no output field")
    return fields


def _check_field(name: str, field: _Field) -> None:
    check_name(name, "an input" if field.way == "in" else "an output", taken=dspy.Signature)
    if field.way == "in" and name in SETTINGS:
        raise InvalidInputs(
            f"Invalid name of an input: {name!r} is a setting of a module; use another, e.g. {name}_"
        )
    try:
        check_usable(field.kind)
    except InvalidInputs as error:
        raise InvalidInputs(f"{name}: {error}") from None


def written(signature: type[dspy.Signature]) -> str:
    """Format a signature as a DSPy signature string with types."""

    def fields(of: Mapping[str, FieldInfo]) -> str:
        return ", ".join(f"{name}: {kind}" for name, kind in types_of(of).items())

    return f"{fields(signature.input_fields)} -> {fields(signature.output_fields)}"


def types_of(fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """Return the types of fields by name, as in a DSPy signature string."""
    return {name: name_of(type_of(field)) for name, field in fields.items()}
