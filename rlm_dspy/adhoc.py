"""Modules that are written in the REPL and made on the host: their types, their signatures, themselves."""

from __future__ import annotations

import datetime as dt
import enum
from typing import TYPE_CHECKING, Any, Literal, Union

import dspy
from dspy.adapters.utils import get_annotation_name
from pydantic import Field, create_model

from rlm_dspy.errors import InvalidInputs

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMED: dict[str, Any] = {
    **{kind.__name__: kind for kind in (str, int, float, bool, bytes, list, dict, tuple, set, frozenset, object)},
    **{kind.__name__: kind for kind in (dt.date, dt.datetime, dt.time, dt.timedelta)},
    "None": None,
    "Any": Any,
    "...": ...,
}
_OPTIONS = frozenset({"temperature", "top_p", "max_tokens", "stop", "seed", "rollout_id"})
"""What code may set for the model calls of a module; not who answers them, nor where."""


def type_of(told: Any) -> Any:
    """Return the type that the REPL told (see `in_repl`): a class of the REPL's own is made anew.

    Raises:
        InvalidInputs: If there is no such type.
    """
    if isinstance(told, str):
        if told not in _NAMED:
            raise InvalidInputs(
                f"A signature in the REPL cannot have the type {told}; use str, numbers, lists, dicts."
            )
        return _NAMED[told]
    if "literal" in told:
        return Literal[tuple(told["literal"])]
    if "union" in told:
        return Union[tuple(type_of(part) for part in told["union"])]  # noqa: UP007  # its parts are known only now
    if "of" in told:
        return _NAMED[told["of"]][tuple(type_of(part) for part in told["args"])]
    if "enum" in told:
        return enum.Enum(told["enum"], told["members"])
    fields: dict[str, Any] = {
        name: (type_of(of["type"]), Field(... if of["required"] else None, description=of["desc"] or None))
        for name, of in told["fields"].items()
    }
    return create_model(told["model"], __doc__=told["doc"] or None, **fields)


def signature_from(told: dict[str, Any]) -> Any:
    """Return the signature that the REPL told: an inline one, or the fields of a class.

    Raises:
        InvalidInputs: If it is none.
    """
    try:
        if "text" in told:
            own = {name: type_of(kind) for name, kind in told["types"].items()}
            signature = dspy.Signature(told["text"], custom_types=own or None)
        else:
            signature = dspy.Signature(_fields(told["fields"]), signature_name=told["name"])
    except (ValueError, TypeError, SyntaxError, NameError) as error:
        raise InvalidInputs(
            f"The signature cannot be read: {error}. Write e.g. 'text, topic -> score: int'."
        ) from error
    if not signature.output_fields:
        raise InvalidInputs("The signature has no output; write e.g. 'text, topic -> score: int'.")
    return signature.with_instructions(told["instructions"]) if told["instructions"] else signature


def _fields(told: list[dict[str, Any]]) -> dict[str, Any]:
    ways: dict[str, Callable[..., Any]] = {"in": dspy.InputField, "out": dspy.OutputField}
    return {
        of["name"]: (type_of(of["type"]), ways[of["way"]](**({"desc": of["desc"]} if of["desc"] else {})))
        for of in told
    }


def written(signature: Any) -> str:
    """Return a signature as DSPy reads it from a string, with its types."""

    def fields(of: dict[str, Any]) -> str:
        return ", ".join(f"{name}: {get_annotation_name(field.annotation)}" for name, field in of.items())

    return f"{fields(signature.input_fields)} -> {fields(signature.output_fields)}"


def module_from(kind: str, signature: Any, config: dict[str, Any], tools: list[dspy.Tool]) -> dspy.Module:
    """Return the module of a kind: Predict, ChainOfThought or ReAct.

    Raises:
        InvalidInputs: If it cannot be had here, or has an option that code may not set.
    """
    if kind == "ReAct":
        if unknown := sorted(config.keys() - {"max_iters"}):
            raise InvalidInputs(f"dspy.ReAct takes signature, tools and max_iters here, not {', '.join(unknown)}.")
        return dspy.ReAct(signature, tools=tools, **config)
    if unknown := sorted(config.keys() - _OPTIONS):
        raise InvalidInputs(f"dspy.{kind} takes {', '.join(sorted(_OPTIONS))} here, not {', '.join(unknown)}.")
    made: dspy.Module = {"Predict": dspy.Predict, "ChainOfThought": dspy.ChainOfThought}[kind](signature, **config)
    return made
