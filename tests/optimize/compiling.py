"""Compiles programs with scripted replies."""

from __future__ import annotations

from typing import Any

import dspy

from rlm_dspy import RLM
from rlm_dspy.optimize import TrajectoryFewShot
from rlm_dspy.testing import ScriptedLM
from tests.optimize.matrix_programs import exact
from tests.playing import block

ASK = "context, question -> answer"
SIX_TURNS = [
    block("print(len(context))", "Size."),
    block("missing", "Try."),
    block("present = 1", "Mend."),
    block("print('no')", "Wander."),
    block("print('yes')", "Find."),
    block("SUBMIT(answer='yes')", "Answer."),
]


def example(answer: str = "yes", context: Any = "c", question: str = "?") -> dspy.Example:
    """Return an example of the task."""
    return dspy.Example(context=context, question=question, answer=answer).with_inputs("context", "question")


def compiled(
    replies: Any, train: list[dspy.Example], program: Any = None, metric: Any = exact, **options: Any
) -> tuple[Any, ScriptedLM]:
    """Compile a program with scripted replies."""
    lm = ScriptedLM(replies)
    with dspy.context(lm=lm):
        return TrajectoryFewShot(metric, **options).compile(program or RLM(ASK), trainset=train), lm
