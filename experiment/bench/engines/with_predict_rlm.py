"""`predict-rlm` with `DirectPythonBackend`: code runs in a plain process."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import dspy
from predict_rlm import DirectPythonBackend, PredictRLM
from sharing import made_once

if TYPE_CHECKING:
    from worker import Task

VERSION = f"predict-rlm {version('predict-rlm')}, dspy {version('dspy')}"
NOTES = "interpreter=DirectPythonBackend(), dspy.ChatAdapter, dspy.LM(cache=False)"


def rlm_of(task: Task, **where: Any) -> tuple[PredictRLM, dspy.LM]:
    """Return the library's module with the limits of the task, and its LM."""
    lm = _lm(task.model, task.base_url, task.api_key)
    rlm = PredictRLM(
        "context, question -> answer: str",
        lm=lm,
        sub_lm=_lm(task.sub_model, task.base_url, task.api_key) if task.sub_model else lm,
        max_iterations=task.limits.turns,
        max_llm_calls=task.limits.calls,
        max_output_chars=task.limits.output_chars,
        verbose=False,
        adapter=dspy.ChatAdapter(),
        **where,
    )
    return rlm, lm


@made_once
def _lm(model: str, base_url: str, api_key: str) -> dspy.LM:
    """Return one LM for all runs at the same address."""
    return dspy.LM(f"openai/{model}", api_base=base_url, api_key=api_key, cache=False)


def backend(task: Task) -> Any:
    """Return where code runs."""
    return DirectPythonBackend(**({"exec_timeout": task.limits.cell_seconds} if task.limits.cell_seconds else {}))


def run(task: Task) -> str | None:
    """Run once."""
    rlm, lm = rlm_of(task, interpreter=backend(task))
    with dspy.context(lm=lm):
        return str(rlm(context=task.context, question=task.question).answer)


async def arun(task: Task) -> str | None:
    """Run once on the running event loop."""
    rlm, lm = rlm_of(task, interpreter=backend(task))
    with dspy.context(lm=lm):
        return str((await rlm.acall(context=task.context, question=task.question)).answer)
