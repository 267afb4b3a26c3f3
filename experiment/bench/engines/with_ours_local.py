"""rlm_dspy, with `LocalPythonInterpreter`: code runs in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy
from with_ours import NOTES, VERSION, lm_of, rlm_of

from rlm_dspy.interpreters import LocalPythonInterpreter

if TYPE_CHECKING:
    from worker import Task

__all__ = ["NOTES", "VERSION", "arun", "run"]


def run(task: Task) -> str | None:
    """Run once."""
    with dspy.context(lm=lm_of(task)):
        prediction = rlm_of(task, LocalPythonInterpreter)(context=task.context, question=task.question)
    return str(prediction.answer)


async def arun(task: Task) -> str | None:
    """Run once on the running event loop."""
    with dspy.context(lm=lm_of(task)):
        rlm = rlm_of(task, LocalPythonInterpreter)
        return str((await rlm.acall(context=task.context, question=task.question)).answer)
