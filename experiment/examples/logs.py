"""Find the incidents in a log of any size, and their causes: `python logs.py data/service.log`."""

import sys
from datetime import datetime
from typing import Literal

import dspy
from pydantic import BaseModel

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.models import choose_model


class Incident(BaseModel):
    began: datetime
    severity: Literal["low", "high", "outage"]
    cause: str


class FindCause(dspy.Signature):
    """Say what went wrong first; later errors are often its effects."""

    excerpt: str = dspy.InputField()
    cause: str = dspy.OutputField()


class FindIncidents(dspy.Signature):
    """Group warnings and errors by time with code, and ask `find_cause` about the lines around each group."""

    log: Text = dspy.InputField()
    incidents: list[Incident] = dspy.OutputField(desc="the first one first")


if __name__ == "__main__":
    dspy.configure(lm=choose_model())
    find = RLM(FindIncidents, subs=[FindCause], limits=Limits(max_llm_calls=100))
    print(*find(log=Text.open(sys.argv[1])).incidents, sep="\n")
