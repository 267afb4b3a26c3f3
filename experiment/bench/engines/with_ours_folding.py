"""rlm_dspy as in `with_ours`, with conversations folded to a quarter of what the long run would have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import dspy
from with_ours import VERSION, interpreter, lm_of, rlm_of

if TYPE_CHECKING:
    from worker import Task

__all__ = ["NOTES", "VERSION", "run"]
CONTEXT_TOKENS = 8_000
NOTES = f"dspy.LM(cache=False), policy=None, Limits(max_context_tokens={CONTEXT_TOKENS})"


def run(task: Task) -> str | None:
    """Run once."""
    rlm = rlm_of(task, interpreter(task))
    rlm.limits = replace(rlm.limits, max_context_tokens=CONTEXT_TOKENS)
    with dspy.context(lm=lm_of(task)):
        return str(rlm(context=task.context, question=task.question).answer)
