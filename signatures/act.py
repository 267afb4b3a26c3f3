"""Defines `Act`, the signature of one turn. It does not depend on the task, so what it learns transfers."""

from __future__ import annotations

import dspy

from rlm_dspy.signatures.first_message import Environment
from rlm_dspy.trajectory import Trajectory


class Act(dspy.Signature):
    """Solve the task by writing Python for a REPL, one code block per turn.

    The inputs are variables in the REPL, and long ones cannot be printed whole. Find the parts that the task is
    about and print them; read what was printed. Where there is too much to read, pass the parts to a model, one
    call for each. Count and compute with code. Variables persist between turns. Submit an answer when an output
    shows it.
    """

    environment: Environment = dspy.InputField(desc="the task, the variables and the functions of this REPL")
    trajectory: Trajectory = dspy.InputField(desc="the turns so far: code and output")
    reasoning: str = dspy.OutputField(desc="one or two sentences: what you know, what this code does")
    code: str = dspy.OutputField(desc="Python code to run next")


class Query(dspy.Signature):
    """Answer the prompt. Be brief and exact."""

    prompt: str = dspy.InputField()
    response: str = dspy.OutputField()
