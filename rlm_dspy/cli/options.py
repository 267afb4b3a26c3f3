"""Options that several commands take: `--interpreter`, where code runs; `--trace`, which logs to MLflow."""

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
"""How a run of MLflow ended, by `Record.stop`."""


class InterpreterName(StrEnum):
    """Where code can run."""

    python = "python"
    local = "local"
    process = "process"
    deno = "deno"


def factory_of(name: InterpreterName) -> Callable[[], dspy.CodeInterpreter]:
    """Return what makes interpreters of this name."""
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
    """What is traced.

    Attributes:
        stop: Why it ended, as in a `Record`; empty if it just ended.
    """

    stop: str = ""


@contextlib.contextmanager
def traced(name: str) -> Iterator[Traced]:
    """Log DSPy's calls to MLflow: `MLFLOW_TRACKING_URI`, else a file in the working directory.

    Whatever is to be printed or saved is printed or saved inside: the end of the scope waits for the store.

    Args:
        name: What the run of MLflow is called.

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
    """Wait until the traces are stored, and tell so; return False if that was interrupted."""
    from rlm_dspy import tracing

    look = f"Look at it: {_store() if _store().startswith('http') else 'rlm-dspy ui'}"
    try:
        tell(f"Storing the trace in {_store()} ...")
        tracing.flush()
    except KeyboardInterrupt:
        tell(
            f"Interrupted. Ending the trace, in at most {_HURRY_SECONDS} seconds; Ctrl-C again leaves it as it is."
        )
    else:
        tell(f"Logged to MLflow. {look}")
        return True
    with contextlib.suppress(KeyboardInterrupt):
        tracing.hurry(_HURRY_SECONDS)
    tell(f"The trace in MLflow may lack parts, or its end. {look}")
    return False
