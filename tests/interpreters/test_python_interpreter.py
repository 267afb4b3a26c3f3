"""The confined interpreter keeps the contract of all interpreters."""

from __future__ import annotations

from rlm_dspy.interpreters.python import PythonInterpreter
from tests.interpreter_contract import ExecutionContract


class TestPythonInterpreter(ExecutionContract):
    """Every fact of the contract, with no case of its own."""

    make = PythonInterpreter
