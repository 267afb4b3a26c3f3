"""Estimates the cost of a compile from a few pilot runs."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.limits import Limits
from rlm_dspy.optimize.rollouts import run_each
from rlm_dspy.optimize.statistics import score_of
from rlm_dspy.text import price, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    import dspy

    from rlm_dspy.optimize.statistics import Metric

_DRAWS = 2_000


@dataclass(frozen=True)
class Pilot:
    """The cost of one trial run.

    Attributes:
        seconds: Wall-clock time.
        tokens: Input and output tokens, including sub-calls.
        cost: USD; None if no call reported a price.
        score: The metric's score.
    """

    seconds: float
    tokens: int
    cost: float | None
    score: float


@dataclass(frozen=True)
class Forecast:
    """The estimated cost of a number of runs: each pair is the median and the 95th percentile.

    Attributes:
        runs: The number of runs.
        tokens: Input and output tokens.
        cost: USD; None if no pilot reported a price.
        seconds: Wall-clock time with the given threads.
    """

    runs: int
    tokens: tuple[float, float]
    cost: tuple[float, float] | None
    seconds: tuple[float, float]


def pilot(program: dspy.Module, examples: Sequence[dspy.Example], metric: Metric) -> list[Pilot]:
    """Run a program on some examples in order. Examples that raise are left out.

    Raises:
        Exception: The error of the last one, if all raised.
    """
    return run_each(lambda example: _one(program, example, metric), examples)


def _one(program: dspy.Module, example: dspy.Example, metric: Metric) -> Pilot:
    ledger, started = Ledger(Limits()), time.monotonic()
    with metered(ledger, "pilot", raw=True):
        prediction = program(**example.inputs())
    seconds, used = time.monotonic() - started, ledger.totals()
    tokens = used.input_tokens + used.output_tokens
    return Pilot(seconds, tokens, used.cost, score_of(metric(example, prediction)))


def forecast(pilots: Sequence[Pilot], runs: int, *, threads: int = 1, seed: int = 0) -> Forecast:
    """Estimate the cost of `runs` runs from the pilots.

    The percentiles are those of the total over many bootstrap samples of the pilots: with few or
    uneven pilots they are far apart. The optimizer's own model calls are not counted.

    Args:
        pilots: The pilots; at least one.
        runs: The number of runs to expect.
        threads: Concurrent runs.
        seed: The seed of the samples.

    Raises:
        ValueError: If there is no pilot.
    """
    if not pilots:
        raise ValueError("A forecast needs at least one pilot run; pass pilots from `pilot`.")
    costs = [p.cost for p in pilots if p.cost is not None]
    return Forecast(
        runs,
        _percentiles([p.tokens for p in pilots], runs, seed),
        _percentiles(costs, runs, seed) if costs else None,
        _percentiles([p.seconds for p in pilots], runs / threads, seed),
    )


def _percentiles(values: Sequence[float], times: float, seed: int) -> tuple[float, float]:
    rng = random.Random(seed)  # noqa: S311  # sampling, not a secret
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(_DRAWS))
    return means[_DRAWS // 2] * times, means[int(_DRAWS * 0.95)] * times


def describe_forecast(cast: Forecast, pilots: Sequence[Pilot]) -> str:
    """Format a forecast as text."""
    right = sum(p.score for p in pilots)
    cost = f"{price(cast.cost[0])} (95 %: {price(cast.cost[1])})" if cast.cost else "cost unknown"
    return (
        f"{len(pilots)} pilot runs scored {right:g}. At most {cast.runs:,} runs: "
        f"{cast.tokens[0]:,.0f} tokens (95 %: {cast.tokens[1]:,.0f}), {cost}, "
        f"{seconds(cast.seconds[0])} (95 %: {seconds(cast.seconds[1])}). The optimizer's own "
        "model calls are not included."
    )
