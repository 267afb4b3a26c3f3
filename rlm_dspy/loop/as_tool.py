"""Gives an RLM the call signature for `inspect` and `dspy.Tool`, from the inputs of its DSPy signature."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Annotated, Any

import dspy
from pydantic import Field, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from typing_extensions import TypeAliasType

from rlm_dspy.repl.type_names import description_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from rlm_dspy.report.representation import RunPrediction


class _Call(functools.partial[Any]):
    """`rlm.__call__`, with the inputs of the signature as its parameters."""

    @property
    def __signature__(self) -> inspect.Signature:
        return _of_call(self.args[0])

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]  # what typing.get_type_hints reads
        return {name: parameter.annotation for name, parameter in self.__signature__.parameters.items()}


class _CallOfInstance:
    def __get__(self, instance: AsTool | None, owner: type) -> Any:
        return dspy.Module.__call__ if instance is None else _Call(dspy.Module.__call__, instance)


class _SignatureOf:
    def __get__(self, instance: AsTool | None, owner: type[AsTool]) -> inspect.Signature:
        if instance is not None:
            return _of_call(instance)
        _, *parameters = inspect.signature(owner.__init__).parameters.values()
        return inspect.Signature(parameters)


class AsTool:
    """Gives a module with a `signature` named parameters, so that `dspy.Tool` accepts it."""

    signature: type[dspy.Signature]
    __signature__ = _SignatureOf()

    if TYPE_CHECKING:  # DSPy has no types: without this, a run would return anything

        def __call__(self, **inputs: Any) -> RunPrediction:
            """Run, with the signature's inputs."""

        async def acall(self, **inputs: Any) -> RunPrediction:
            """Await a run, with the signature's inputs."""

    else:
        __call__ = _CallOfInstance()


def _of_call(module: AsTool) -> inspect.Signature:
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if of.is_required() else of.get_default(call_default_factory=True),
            annotation=_described(name, of),
        )
        for name, of in module.signature.input_fields.items()
    ]
    return inspect.Signature(parameters, return_annotation=dspy.Prediction)


def _described(name: str, of: FieldInfo) -> Any:
    """Return the type of a field with its description, if any; `Any` for a type without a JSON schema.

    `typing.get_type_hints` strips `Annotated`, but not an alias.
    """
    kind: Any = of.annotation
    try:
        TypeAdapter(kind).json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError):
        kind = Any
    description = description_of(name, of)
    return TypeAliasType(name, Annotated[kind, Field(description=description)]) if description else kind
