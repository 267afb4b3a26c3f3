"""The confined interpreter keeps the contract of all interpreters."""

from __future__ import annotations

from rlm_dspy.interpreters.python import PythonInterpreter
from tests.interpreter_contract import ExecutionContract


class TestPythonInterpreter(ExecutionContract):
    """Every fact of the contract, with no case of its own."""

    make = PythonInterpreter


def test_a_warning_of_a_cell_names_no_file_of_the_host() -> None:
    """Python attributes that of a coroutine that nobody awaited to the frame that ran the cell."""
    with PythonInterpreter() as repl:
        told = repl.execute("async def main():\n    pass\n\nmain()\nimport warnings\nwarnings.warn('careful')")
    assert "RuntimeWarning: coroutine 'main' was never awaited" in told
    assert "<cell 1>:6: UserWarning: careful" in told
    assert "worker.py" not in told
