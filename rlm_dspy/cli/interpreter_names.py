"""The interpreters by the names that commands know them by."""

from __future__ import annotations

from enum import StrEnum

import dspy

from rlm_dspy import interpreters


class InterpreterName(StrEnum):
    """Where code can run."""

    python = "python"
    local = "local"
    process = "process"
    deno = "deno"


FACTORIES = {
    InterpreterName.python: interpreters.PythonInterpreter,
    InterpreterName.local: interpreters.LocalPythonInterpreter,
    InterpreterName.process: dspy.LocalInterpreter,
    InterpreterName.deno: dspy.PythonInterpreter,
}
