"""`dspy.RLM` with its default, `dspy.PythonInterpreter`: code runs in Pyodide, in a process of Deno."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy
from with_dspy import VERSION, lm_of, rlm_of

if TYPE_CHECKING:
    from worker import Task

__all__ = ["NOTES", "VERSION", "arun", "run"]

NOTES = "dspy.LM(cache=False); the default interpreter, whose module from deno.land comes from an import map"

with dspy.PythonInterpreter() as _probe:  # it says now why it cannot start
    _probe.execute("1")


def run(task: Task) -> str | None:
    """Run once."""
    with dspy.context(lm=lm_of(task)):
        rlm = rlm_of(task, dspy.PythonInterpreter)
        return str(rlm(context=task.context, question=task.question).answer)


async def arun(task: Task) -> str | None:
    """Run once on the running event loop."""
    with dspy.context(lm=lm_of(task)):
        rlm = rlm_of(task, dspy.PythonInterpreter)
        return str((await rlm.acall(context=task.context, question=task.question)).answer)
