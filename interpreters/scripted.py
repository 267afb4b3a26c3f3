"""Plays back scripted results instead of running code, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy
from dspy.primitives.facade import HOST_TOKEN_VAR

from rlm_dspy.interpreters.base import Interpreter, TakesObjects, outside_loop
from rlm_dspy.interpreters.worker.cell import SETUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Call:
    """One `execute` call that the script answered."""

    code: str
    """The source."""
    variables: Mapping[str, Any]
    """The variables; may be empty."""


class ScriptedInterpreter(Interpreter, TakesObjects):
    """Answers each `execute` with the next of `results`, and records the calls.

        >>> repl = ScriptedInterpreter(["3 lines", dspy.FinalOutput({"answer": "42"})])
        >>> repl.execute("print('anything')")
        '3 lines'

    A result is returned as it is (a `str`, None, a list, a `dspy.FinalOutput` or `Submission`); an exception is
    raised; a function is called with the code, the variables and the tools, as code would call them, and what it
    returns is the result. What a module runs to set the REPL up (`dspy.RLM` its stand-in for `dspy`, ours its
    functions) is answered with None and counts for nothing.

    Args:
        results: The results, in order.
        tools: Host functions by name, for functions among the results.
        output_fields: Stored, because modules set and read them.
        callbacks: Callbacks of this instance, in addition to those of `dspy.settings`.

    Attributes:
        calls: The calls so far.
        started: Whether it was started.
        closed: Whether it was shut down.

    Raises:
        dspy.CodeInterpreterError: From `execute`, if the results are used up.
    """

    execution_instructions = "Code is not run: the results were written in advance."

    def __init__(
        self,
        results: Iterable[Any],
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(tools, output_fields, callbacks=callbacks)
        self._results = list(results)
        self.calls: list[Call] = []

    @property
    def started(self) -> bool:
        """Whether it was started."""
        return self._started

    @property
    def closed(self) -> bool:
        """Whether it was shut down."""
        return self._ended

    def _execute(self, code: str, variables: Mapping[str, Any]) -> Any:
        if HOST_TOKEN_VAR in variables or code.startswith(SETUP):
            return None
        if len(self.calls) == len(self._results):
            raise dspy.CodeInterpreterError(
                f"All {len(self._results)} scripted results are used up; there is none for this code:\n{code}"
            )
        result = self._results[len(self.calls)]
        self.calls.append(Call(code, variables))
        if isinstance(result, BaseException):
            raise result
        if not callable(result):
            return result
        functions = self._functions()
        return outside_loop(lambda: result(code, variables, functions))
