"""Computes 95 % intervals and an exact test for small samples of runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import dspy

if TYPE_CHECKING:
    from collections.abc import Sequence

Interval = tuple[float, float]
_Z = 1.959964  # of 95 %


def wilson(right: float, count: int) -> Interval:
    """Return the 95 % interval of a proportion (Wilson, 1927).

    Args:
        right: The number of successes; for scores between 0 and 1 their sum (a slightly wide interval).
        count: The number of trials.
    """
    if not count:
        return 0.0, 1.0
    share, z2 = right / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(differences: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean of paired differences of scores between 0 and 1.

    With scores of 0 and 1 it is Agresti and Min's (2005) for matched pairs: half a win, half a loss and one tie
    are added, so that equal results on few examples do not look certain.
    """
    count = len(differences) + 2
    mean = sum(differences) / count
    variance = (sum(d * d for d in differences) + 1) / count - mean * mean
    half = _Z * math.sqrt(max(0.0, variance) / count)
    return max(-1.0, mean - half), min(1.0, mean + half)


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of equally likely wins and losses (McNemar's test for 0 and 1)."""
    count, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**count))


Judgement: TypeAlias = bool | int | float | dspy.Prediction
"""The result of a metric: a bool, a number, or a `dspy.Prediction` with `score` and optional `feedback`."""
Metric = Callable[..., Judgement]
"""`metric(example, prediction, trace=None)`, as DSPy's optimizers call it."""


def score_of(value: Judgement) -> float:
    """Return the number in a metric's result.

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
