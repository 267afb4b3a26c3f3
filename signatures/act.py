"""Defines `Act`, the signature of one turn. It does not depend on the task, so what it learns transfers."""

from __future__ import annotations

import dspy

from rlm_dspy.signatures.first_message import Environment
from rlm_dspy.trajectory import Trajectory


class Act(dspy.Signature):
    """Solve the task by writing Python for a REPL, one code block per turn.

    The inputs are variables in the REPL and may be too long to print. First print sizes, structure and small
    samples. Then use code to search, split, count and compute. If code cannot decide because meaning matters,
    ask a model about small pieces. Print only what you need. Variables persist between turns. Check the answer
    against the data before you submit it.
    """

    environment: Environment = dspy.InputField(desc="the task, the variables and the functions of this REPL")
    trajectory: Trajectory = dspy.InputField(desc="the turns so far: code and output")
    reasoning: str = dspy.OutputField(desc="one or two sentences: what you know, what this code does")
    code: str = dspy.OutputField(desc="Python code to run next")


class Query(dspy.Signature):
    """Answer the prompt. Be brief and exact."""

    prompt: str = dspy.InputField()
    response: str = dspy.OutputField()
