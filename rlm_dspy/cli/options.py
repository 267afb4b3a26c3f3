"""Options shared by several commands: `--interpreter` and `--trace`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import typer

from rlm_dspy.cli.errors import INTERRUPTED, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import dspy

_RUN_NAME_CHARS = 80
_DEFAULT_STORE = "sqlite:///mlflow.db"
_HURRY_SECONDS = 5
_STATUS = {"interrupted": "KILLED", "failed": "FAILED"}
"""The status of an MLflow run, by `Record.stop`."""


class InterpreterName(StrEnum):
    """The interpreters that `--interpreter` accepts."""

    python = "python"
    local = "local"
    process = "process"
    deno = "deno"


def factory_of(name: InterpreterName) -> Callable[[], dspy.CodeInterpreter]:
    """Return the factory of an interpreter by name."""
    import dspy

    from rlm_dspy import interpreters

    factories: dict[InterpreterName, Callable[[], dspy.CodeInterpreter]] = {
        InterpreterName.python: interpreters.PythonInterpreter,
        InterpreterName.local: interpreters.LocalPythonInterpreter,
        InterpreterName.process: dspy.LocalInterpreter,
        InterpreterName.deno: dspy.PythonInterpreter,
    }
    return factories[name]


@dataclass
class Traced:
    """The traced run.

    Attributes:
        stop: Why it ended, as in `Record.stop`; empty for a normal end.
    """

    stop: str = ""


@contextlib.contextmanager
def traced(name: str) -> Iterator[Traced]:
    """Log DSPy's calls to MLflow at `MLFLOW_TRACKING_URI`, else to a file in the working directory.

    The end of the scope waits for the store: print and save results inside it.

    Args:
        name: The name of the MLflow run.

    Raises:
        typer.Exit: If the wait for the store was interrupted.
    """
    tell(f"Opening MLflow at {_store()} ...")
    from rlm_dspy import tracing

    tracing.autolog(store=_store(), experiment="rlm-dspy")
    what = Traced()
    with tracing.logged_run(name[:_RUN_NAME_CHARS], lambda: _STATUS.get(what.stop, "FINISHED")):
        try:
            yield what
        finally:
            stored = _stored()
    if not stored:
        raise typer.Exit(INTERRUPTED)


def _store() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or _DEFAULT_STORE


def _stored() -> bool:
    """Wait until the traces are stored and report it; return False after an interrupt."""
    from rlm_dspy import tracing

    look = f"View it: {_store() if _store().startswith('http') else 'rlm-dspy ui'}"
    try:
        tell(f"Storing the trace in {_store()} ...")
        tracing.flush()
    except KeyboardInterrupt:
        tell(
            f"Interrupted. Ending the trace takes at most {_HURRY_SECONDS} seconds; press Ctrl-C again to skip it."
        )
    else:
        tell(f"Logged to MLflow. {look}")
        return True
    with contextlib.suppress(KeyboardInterrupt):
        tracing.hurry(_HURRY_SECONDS)
    tell(f"The trace in MLflow may be incomplete. {look}")
    return False
