"""What the tests of the confined interpreter share."""

from __future__ import annotations

from typing import Any

from rlm_dspy.interpreters.python import PythonInterpreter


def light(*args: Any, **options: Any) -> PythonInterpreter:
    """Return an interpreter without packages, which starts soonest."""
    return PythonInterpreter(*args, packages=(), **options)
