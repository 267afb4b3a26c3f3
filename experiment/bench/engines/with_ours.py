"""rlm_dspy, with `PythonInterpreter`: code runs in a confined process."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import dspy
from sharing import made_once

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import CellLimits, PythonInterpreter

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker import Task

VERSION = f"rlm-dspy {version('dspy-recursive-lm')}, dspy {version('dspy')}"
NOTES = "dspy.LM(cache=False), policy=None"


def lm_of(task: Task, model: str = "") -> dspy.LM:
    """Return DSPy's LM at the address of the run; one for all runs at the same address, as in a user's program."""
    return _lm(model or task.model, task.base_url, task.api_key)


@made_once
def _lm(model: str, base_url: str, api_key: str) -> dspy.LM:
    return dspy.LM(f"openai/{model}", api_base=base_url, api_key=api_key, cache=False)


def rlm_of(task: Task, interpreter_factory: Callable[[], Any]) -> RLM:
    """Return our module with the limits of the task."""
    limits = Limits(
        max_iters=task.limits.turns,
        max_llm_calls=task.limits.calls,
        max_output_chars=task.limits.output_chars,
        max_concurrency=task.limits.concurrency or Limits.max_concurrency,
    )
    signature = "context, question -> answer: str"
    return RLM(
        signature,
        limits=limits,
        interpreter_factory=interpreter_factory,
        policy=task.policy or None,
        sub_lm=lm_of(task, task.sub_model) if task.sub_model else None,
    )


def interpreter(task: Task) -> Callable[[], Any]:
    """Return what makes the interpreter of a run."""
    return lambda: PythonInterpreter(cell_limits=CellLimits(seconds=task.limits.cell_seconds))


def run(task: Task) -> str | None:
    """Run once."""
    with dspy.context(lm=lm_of(task)):
        prediction = rlm_of(task, interpreter(task))(context=task.context, question=task.question)
    return str(prediction.answer)


async def arun(task: Task) -> str | None:
    """Run once on the running event loop."""
    with dspy.context(lm=lm_of(task)):
        rlm = rlm_of(task, interpreter(task))
        return str((await rlm.acall(context=task.context, question=task.question)).answer)
