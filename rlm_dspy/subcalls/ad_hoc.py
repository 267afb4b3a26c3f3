"""Builds DSPy signatures and modules on the host from what the model wrote in the REPL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import dspy

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.repl.coercion import type_of
from rlm_dspy.repl.tools import SETTINGS
from rlm_dspy.repl.type_names import name_of
from rlm_dspy.subcalls.type_grammar import TypeReader, check_name, check_usable, signature_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pydantic import JsonValue
    from pydantic.fields import FieldInfo
    from typing_extensions import TypeForm

    from rlm_dspy.subcalls.frames import SignatureField, SignatureFrame

_EXAMPLE = "Write e.g. 'text, topic -> score: int'."


def signature_from(frame: SignatureFrame) -> Any:
    """Return the signature that the REPL described: an inline one, or the fields of a class.

    Raises:
        InvalidInputs: If it is none.
    """
    types = TypeReader(frame.classes)
    try:
        told = list(_inline(frame.text, types) if frame.text is not None else _fields(frame.fields or [], types))
        fields = _checked(told)
        check_name(frame.name, "a signature")
    except InvalidInputs as error:
        raise InvalidInputs(f"Invalid signature {frame.shown}: {error}. {_EXAMPLE}") from None
    made = {name: (kind, _WAYS[way](**options)) for name, (way, kind, options) in fields.items()}
    signature = dspy.Signature(made, signature_name=frame.name)
    return signature.with_instructions(frame.instructions) if frame.instructions else signature


_Way = Literal["in", "out"]
_Field = tuple[_Way, Any, dict[str, Any]]
"""Way, type, and what else `InputField` or `OutputField` takes."""
_WAYS: dict[_Way, Callable[..., Any]] = {"in": dspy.InputField, "out": dspy.OutputField}


def _inline(text: str, types: TypeReader) -> Iterator[tuple[str, _Field]]:
    ways: tuple[_Way, _Way] = ("in", "out")
    for way, parts in zip(ways, signature_parts(text), strict=True):
        for name, annotation in parts:
            yield name, (way, str if annotation is None else types.of(annotation), {})


def _fields(told: list[SignatureField], types: TypeReader) -> Iterator[tuple[str, _Field]]:
    for field in told:
        kind, _ = types.field(field)
        options = {"desc": field.desc} if field.desc else {}
        yield field.name, (field.way, kind, options if field.required else {**options, "default": field.default})


def _checked(told: list[tuple[str, _Field]]) -> dict[str, _Field]:
    if not any(way == "out" for _, (way, _, _) in told):
        raise InvalidInputs("it has no output")
    fields: dict[str, _Field] = {}
    for name, (way, kind, options) in told:
        _check_field(name, way, kind)
        if name in fields:
            raise InvalidInputs(f"two fields are named {name}")
        fields[name] = way, kind, options
    return fields


def _check_field(name: str, way: _Way, kind: TypeForm[Any]) -> None:
    what = "an input" if way == "in" else "an output"
    check_name(name, what, taken=dspy.Signature)
    if way == "in" and name in SETTINGS:
        raise InvalidInputs(
            f"Invalid name of an input: {name!r} is a setting of a module; use another, e.g. {name}_"
        )
    try:
        check_usable(kind)
    except InvalidInputs as error:
        raise InvalidInputs(f"{name}: {error}") from None


def written(signature: type[dspy.Signature]) -> str:
    """Return a signature as DSPy reads it from a string, with its types."""

    def fields(of: Mapping[str, FieldInfo]) -> str:
        return ", ".join(f"{name}: {kind}" for name, kind in types_of(of).items())

    return f"{fields(signature.input_fields)} -> {fields(signature.output_fields)}"


def types_of(fields: Mapping[str, FieldInfo]) -> dict[str, str]:
    """Return the types of fields by name, as DSPy reads them from a string."""
    return {name: name_of(type_of(field)) for name, field in fields.items()}


def module_from(
    kind: Literal["Predict", "ChainOfThought", "ReAct"],
    signature: type[dspy.Signature],
    options: Mapping[str, JsonValue],
    tools: list[dspy.Tool],
) -> dspy.Module:
    """Build the module that the REPL described.

    Args:
        kind: Its class.
        signature: What goes in and what comes out.
        options: What the code set; already checked.
        tools: What a ReAct may call.
    """
    if kind == "ReAct":
        return dspy.ReAct(signature, tools=tools, **options)
    made: dspy.Module = {"Predict": dspy.Predict, "ChainOfThought": dspy.ChainOfThought}[kind](
        signature, **options
    )
    return made
