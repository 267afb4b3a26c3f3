"""Load the program of `rlm-dspy optimize` from a Python file, with its metric and labels."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rlm_dspy
from rlm_dspy.errors import UsageError

if TYPE_CHECKING:
    from types import ModuleType

    import dspy

    from rlm_dspy.optimize.statistics import Metric
    from rlm_dspy.optimize.traced_runs import Trace


def load_program(where: str) -> tuple[ModuleType, dspy.Module]:
    """Return the module of a Python file and its program: a `dspy.Module`, or the result of a function.

    Args:
        where: `FILE.py`, whose program is named `program`, or `FILE.py:NAME`.

    Raises:
        UsageError: If the file or name does not exist, is not a program, or the file raises.
    """
    import dspy

    from rlm_dspy.optimize.policy_provenance import acts_in

    path, name = program_file(where), where.partition(".py:")[2]
    if not path.is_file():
        raise UsageError(f"File not found: {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name or "program", None)
        found = found() if callable(found) and not isinstance(found, dspy.Module) else found
    except Exception as error:
        raise UsageError(f"{path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, dspy.Module):
        raise UsageError(f"{path} has no dspy.Module named {name or 'program'!r}; name one: {path}:NAME.")
    if not acts_in(found):
        raise UsageError(f"The program in {path} contains no RLM.")
    return module, found


def program_file(where: str) -> Path:
    """Return the file in `FILE.py` or `FILE.py:NAME`."""
    file, _, name = where.partition(".py:")
    return Path(f"{file}.py" if name else where)


def load_metric(module: ModuleType, name: str | None) -> Metric:
    """Return the metric of a program's file; without one, compare all labels.

    Raises:
        UsageError: If the function does not exist, or does not accept the arguments that optimizers pass.
    """
    metric: Metric | None = getattr(module, name or "metric", None)
    if not callable(metric):
        if name:
            raise UsageError(f"No function {name!r} in the program's file.")
        return labels_equal
    try:
        with contextlib.suppress(ValueError):  # builtins without a readable signature
            inspect.signature(metric).bind(None, None, None)
    except TypeError as error:
        raise UsageError(
            f"The metric cannot be called as metric(example, prediction, trace): {error}. Give its other "
            "parameters defaults."
        ) from error
    return metric


def labels_equal(example: dspy.Example, prediction: dspy.Prediction, trace: Trace = None) -> bool:  # noqa: ARG001
    """Return whether the prediction equals every label of the example."""
    return all(prediction.get(name) == value for name, value in example.labels().items())


def labelled(examples: list[dspy.Example], program: dspy.Module, where: str) -> list[dspy.Example]:
    """Return the examples with labels coerced to the types of the program's outputs.

    Args:
        examples: The examples.
        program: The program. Output types are known only if it is an RLM.
        where: The name of their file, for messages.

    Raises:
        UsageError: If an example has no label, an unknown label, or a label of another type.
    """
    from rlm_dspy.repl.coercion import read_value

    outputs = program.signature.output_fields if isinstance(program, rlm_dspy.RLM) else None
    read = []
    for number, example in enumerate(examples, start=1):
        labels = dict(example.labels().items())
        if not labels or (outputs and set(labels) - set(outputs)):
            wanted = f" {sorted(outputs)}" if outputs else ""
            raise UsageError(
                f"{where}, example {number}: the labels {sorted(labels)} cannot be compared with the program's "
                f"outputs{wanted}. Correct them, or define a function `metric` in its file."
            )
        try:
            values = {n: read_value(v, outputs[n].annotation) for n, v in labels.items()} if outputs else {}
        except ValueError as error:
            raise UsageError(f"{where}, example {number}: {error}") from error
        read.append(example.copy(**values).with_inputs(*example.inputs()))
    return read


def input_names(program: dspy.Module) -> list[str]:
    """Return the names of a program's inputs: an RLM's fields, else the required parameters of its `forward`.

    Raises:
        UsageError: If `forward` has no named parameters.
    """
    if isinstance(program, rlm_dspy.RLM):
        return list(program.signature.input_fields)
    parameters = list(inspect.signature(type(program).forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not named:
        raise UsageError("The program's forward has no named inputs; pass --inputs context,question.")
    return [p.name for p in named if p.default is p.empty] or [p.name for p in named]


def optional_inputs(program: dspy.Module) -> set[str]:
    """Return the names of an RLM's inputs with a default."""
    inputs = program.signature.input_fields if isinstance(program, rlm_dspy.RLM) else {}
    return {name for name, field in inputs.items() if not field.is_required()}


def input_types(program: dspy.Module) -> dict[str, Any]:
    """Return the types of an RLM's inputs by name; none of another program's."""
    inputs = program.signature.input_fields if isinstance(program, rlm_dspy.RLM) else {}
    return {name: field.annotation for name, field in inputs.items()}
