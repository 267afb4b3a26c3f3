"""`predict-rlm` with its default: code runs in Pyodide, in a process of Deno."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dspy
from with_predict_rlm import VERSION, rlm_of

if TYPE_CHECKING:
    from worker import Task

__all__ = ["NOTES", "VERSION", "arun", "run"]

NOTES = (
    "the default interpreter, whose module from deno.land comes from an import map; dspy.ChatAdapter, "
    "dspy.LM(cache=False)"
)


def run(task: Task) -> str | None:
    """Run once."""
    rlm, lm = rlm_of(task)
    with dspy.context(lm=lm):
        return str(rlm(context=task.context, question=task.question).answer)


async def arun(task: Task) -> str | None:
    """Run once on the running event loop."""
    rlm, lm = rlm_of(task)
    with dspy.context(lm=lm):
        return str((await rlm.acall(context=task.context, question=task.question)).answer)
