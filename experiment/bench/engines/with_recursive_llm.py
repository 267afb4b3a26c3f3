"""`recursive-llm` (`import rlm`): code runs in RestrictedPython, in a worker process."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from rlm import RLM

if TYPE_CHECKING:
    from worker import Task

VERSION = f"recursive-llm {version('recursive-llm')}"
NOTES = "5 seconds a cell unless a limit is given"


def rlm_of(task: Task) -> RLM:
    """Return the library's object with the limits of the task."""
    asked = {"repl_timeout": task.limits.cell_seconds, "max_concurrent_subcalls": task.limits.concurrency}
    return RLM(
        f"openai/{task.model}",
        api_base=task.base_url,
        api_key=task.api_key,
        recursive_model=f"openai/{task.sub_model or task.model}",
        max_iterations=task.limits.turns + 1,
        max_output_chars=task.limits.output_chars,
        max_total_calls=task.limits.calls + task.limits.turns,
        **{name: value for name, value in asked.items() if value},
    )


def run(task: Task) -> str | None:
    """Run once."""
    return str(rlm_of(task).complete(task.question, task.context))


async def arun(task: Task) -> str | None:
    """Run once on the running event loop."""
    return str(await rlm_of(task).acomplete(task.question, task.context))
