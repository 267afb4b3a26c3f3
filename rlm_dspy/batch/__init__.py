"""Runs a program on many examples: in threads, processes or on other machines, resumed after a kill."""

from rlm_dspy.batch.module import on
from rlm_dspy.batch.runs import run
from rlm_dspy.batch.store import Row

__all__ = ["Row", "on", "run"]
