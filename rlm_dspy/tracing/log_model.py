"""Logs a program with an RLM as an MLflow model, without its API keys."""

from __future__ import annotations

import contextlib
import importlib.metadata
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy
import mlflow
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, Schema

from rlm_dspy.errors import RLMError
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.redaction import without_secrets
from rlm_dspy.text import one_line
from rlm_dspy.tracing._mlflow_compat import MlflowCallback
from rlm_dspy.tracing.autolog import known_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

_REQUIRED = ("dspy", "litellm", "mlflow", "pydantic")


def log_model(program: dspy.Module, name: str = "model", **options: Any) -> Any:
    """Log a program as an MLflow model, with `dspy.settings` (including its LM) but without keys.

    The model reads keys where it runs, from the environment variables of its provider, such as
    `OPENAI_API_KEY`. It is a pickle: `MLFLOW_ALLOW_PICKLE_DESERIALIZATION=true` must be set where it is loaded or
    served, and this package must be installed there.

    Args:
        program: An `RLM`, or a module that contains one.
        name: The name of the model.
        **options: Further arguments of `mlflow.dspy.log_model`.

    Returns:
        MLflow's `ModelInfo`; load the model by its `model_uri`.

    Raises:
        RLMError: If the model would still contain a known key, e.g. in a variable of a tool, or if it cannot be
            pickled. Nothing is logged then.
    """
    options.setdefault("pip_requirements", [f"{each}=={importlib.metadata.version(each)}" for each in _REQUIRED])
    if isinstance(program, RLM):
        options.setdefault("signature", model_signature(program))
    with _keyless(program) as bare:
        _refuse_keys(bare)
        return mlflow.dspy.log_model(bare, name=name, **options)


def model_signature(rlm: RLM) -> ModelSignature:
    """Return the input and output columns of a served RLM."""

    def schema(fields: Mapping[str, FieldInfo]) -> Schema:
        return Schema([ColSpec(_column(field.annotation), name) for name, field in fields.items()])

    return ModelSignature(inputs=schema(rlm.signature.input_fields), outputs=schema(rlm.signature.output_fields))


def _column(annotation: Any) -> Any:
    return {str: "string", int: "long", float: "double", bool: "boolean"}.get(annotation) or AnyType()


@contextlib.contextmanager
def _keyless(program: dspy.Module) -> Iterator[dspy.Module]:
    """Yield a copy of a program, and set DSPy's settings, with LMs without keys and history.

    Of the callbacks only those of tracing stay: a model does not hold this process's display or log.
    """
    bare = program.deepcopy()
    for _, module in [("self", bare), *bare.named_sub_modules(dspy.Module)]:
        for attribute, value in list(vars(module).items()):
            if isinstance(value, dspy.BaseLM):
                setattr(module, attribute, _keyless_lm(value))
    lm = dspy.settings.lm
    settings = {"lm": None if lm is None else _keyless_lm(lm), "usage_tracker": None, "trace": None}
    tracing = [callback for callback in dspy.settings.callbacks if isinstance(callback, MlflowCallback)]
    with dspy.context(**settings, caller_modules=None, callbacks=tracing):
        yield bare


def _keyless_lm(lm: dspy.BaseLM) -> dspy.BaseLM:
    known_secrets.learn_lm(lm)
    bare = lm.copy()
    bare.kwargs = without_secrets(lm.kwargs)
    return bare


def _refuse_keys(program: dspy.Module) -> None:
    known_secrets.learn_environment()
    try:
        content = cloudpickle.dumps((program, dict(dspy.settings.config)))
    except (TypeError, AttributeError, PicklingError, RecursionError) as error:
        raise RLMError(
            f"The program cannot be written to a file: {one_line(str(error), 300)}. Look for a lock, a connection "
            "or an open file in its tools and LMs: a tool should open it when it is called, not when it is made."
        ) from error
    if found := known_secrets.found_in(content):
        shown = ", ".join(f"{value[:3]}... ({len(value)} characters)" for value in found)
        raise RLMError(
            f"The model would contain {len(found)} of your keys: {shown}. Look for them in the tools: a tool "
            "should read its key from the environment when it is called, not when it is made."
        )
