"""A clock that a test can put forward, for hooks that a person keeps waiting."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rlm_dspy.concurrency import timeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def clock_put_forward(monkeypatch: pytest.MonkeyPatch, *others: str) -> Callable[[float], None]:
    """Return a function that lets seconds pass for the clock of runs, and for the `time` of other modules."""
    passed = 0.0

    class Time:
        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + passed

    def put_forward(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(timeouts, "time", Time)
    for other in others:
        monkeypatch.setattr(other, Time)
    return put_forward
