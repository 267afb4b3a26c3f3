"""What a metric gives, as one number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Metric = Callable[..., Any]
"""`metric(example, prediction, trace=None)`, as DSPy's optimizers call it."""


def score_of(value: Any) -> float:
    """Return the number in what a metric returned: a bool, a number, or a `dspy.Prediction` with `score`.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the number is not finite.
    """
    number = getattr(value, "score", value)
    if number is None or not hasattr(number, "__float__"):
        raise TypeError(f"The metric returned {value!r}; return a bool, a number, or dspy.Prediction(score=...).")
    if not math.isfinite(score := float(number)):
        raise ValueError(f"The metric returned {value!r}; return a finite number, 0 for what cannot be scored.")
    return score
