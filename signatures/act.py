"""Defines `Act`, the signature of one turn. It does not depend on the task, so what it learns transfers."""

from __future__ import annotations

import dspy

from rlm_dspy.signatures.environment import Environment
from rlm_dspy.trajectory import Trajectory


class Act(dspy.Signature):
    """Solve the task by writing Python for a REPL, one block a turn.

    The inputs are variables there; they may be far too long to print. First look: print sizes, structure and
    small samples. Then narrow down with code: search, split, count, compute. Where meaning matters and code
    cannot decide, ask a model about small pieces. Print only what you need to see. State is kept from turn to
    turn. Check what you found against the data before you submit it.
    """

    environment: Environment = dspy.InputField(desc="the task, the variables and the functions of this REPL")
    trajectory: Trajectory = dspy.InputField(desc="the turns so far: what was run and what came out")
    reasoning: str = dspy.OutputField(desc="one or two sentences: what is known, what this block does")
    code: str = dspy.OutputField(desc="Python to run now")


class Query(dspy.Signature):
    """Answer the prompt. Be brief and exact."""

    prompt: str = dspy.InputField()
    response: str = dspy.OutputField()
