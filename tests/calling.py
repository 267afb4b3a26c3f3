"""Runs whose code calls one tool, awaited and blocking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable


SECONDS = 60
"""How long a test waits for what must happen."""
FACTORIES: list[Callable[[], Any]] = [LocalPythonInterpreter, PythonInterpreter, dspy.LocalInterpreter]
ASK = "SUBMIT(answer=str(ask()))"


async def acall(tool: Any, code: str = ASK, factory: Any = LocalPythonInterpreter, **options: Any) -> Any:
    """Await a run whose code calls a tool."""
    rlm = RLM("question -> answer", tools=[tool], interpreter_factory=factory, **options)
    with dspy.context(lm=ScriptedLM(lambda _: block(code))):
        return await rlm.acall(question="?")


def call(tool: Any, code: str = ASK, factory: Any = LocalPythonInterpreter, **options: Any) -> Any:
    """Do the same in a blocking way."""
    rlm = RLM("question -> answer", tools=[tool], interpreter_factory=factory, **options)
    with dspy.context(lm=ScriptedLM(lambda _: block(code))):
        return rlm(question="?")
