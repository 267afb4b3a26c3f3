"""Estimates what a run will use, before it is paid, from the records of past runs."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_dspy.text import price
from rlm_dspy.text import seconds as in_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rlm_dspy.report.record import Record

_ENOUGH = 5
_MOST = 60
_FOR_RANKS = 19
"""From so many runs on, the 95th percentile is one of them; below, it is that of a log-normal distribution."""
_LEVEL = 0.95


@dataclass(frozen=True)
class Range:
    """What a run is likely to use of something.

    Attributes:
        p50: The median.
        p95: What 95 of 100 runs stay within.
    """

    p50: float
    p95: float


@dataclass(frozen=True)
class Forecast:
    """What a run is likely to use.

    Attributes:
        runs: How many past runs it rests on.
        tokens: Input and output tokens.
        cost: USD; None if no past run reported a price.
        seconds: Wall-clock time.
    """

    runs: int
    tokens: Range
    cost: Range | None
    seconds: Range

    def __str__(self) -> str:
        cost = f"{price(self.cost.p50)} (95 %: {price(self.cost.p95)})" if self.cost else "cost unknown"
        return (
            f"{self.tokens.p50:,.0f} tokens (95 %: {self.tokens.p95:,.0f}), {cost}, "
            f"{in_words(self.seconds.p50)} (95 %: {in_words(self.seconds.p95)}), by {self.runs} past runs"
        )


def forecast(
    records: Iterable[Record],
    *,
    model: str | None = None,
    signature: str | None = None,
    input_size: int | None = None,
) -> Forecast:
    """Estimate what the next run will use from past ones, e.g. `forecast(read_log("runs.jsonl"))`.

    Runs that an error or a person ended are left out. Of the others those count that are most like the next one:
    of its model; of its signature, if there are five; and of the nearest size, at most 60. From 19 runs on, p95 is
    the smallest of them that at least 95 % of future runs stay within, if they are drawn like the past ones. Of
    fewer, it is that of a log-normal distribution with their mean and spread, widened for their number.

    Args:
        records: The past runs.
        model: The model of the turns; None for any.
        signature: The signature, as `Record.signature` has it; None for any.
        input_size: The bytes of all inputs in UTF-8; None for any.

    Raises:
        ValueError: If no past run is of this model.
    """
    past = [record for record in records if record.stop in ("submitted", "extracted", "unanswered", "direct")]
    alike = [record for record in past if model in (None, record.model)]
    if not alike:
        raise ValueError(f"No past run{f' of {model}' if model else ''} to forecast from; log some with RunLog.")
    same = [record for record in alike if signature in (None, record.signature)]
    alike = same if len(same) >= _ENOUGH else alike
    if input_size is not None:
        alike = sorted(alike, key=lambda record: abs(math.log((_size(record) + 1) / (input_size + 1))))
    alike = alike[:_MOST] if input_size is not None else alike[-_MOST:]
    costs = [record.usage.cost for record in alike if record.usage.cost is not None]
    return Forecast(
        len(alike),
        _range([record.usage.input_tokens + record.usage.output_tokens for record in alike]),
        _range(costs) if costs else None,
        _range([record.usage.seconds for record in alike]),
    )


def _size(record: Record) -> int:
    return sum(digest.size for digest in record.digests.values())


def _range(values: Sequence[float]) -> Range:
    median, ordered, count = statistics.median(values), sorted(values), len(values)
    if count >= _FOR_RANKS:
        return Range(median, ordered[min(count, math.ceil(_LEVEL * (count + 1))) - 1])
    logs = [math.log(max(value, 1e-9)) for value in values]
    spread = statistics.stdev(logs) if count > 1 else math.log(3)
    z = statistics.NormalDist().inv_cdf(_LEVEL)
    t = z + (z**3 + z) / (4 * max(1, count - 1))  # Student's, by the first term of Fisher's expansion
    bound = math.exp(statistics.fmean(logs) + t * spread * math.sqrt(1 + 1 / count))
    return Range(median, max(bound, ordered[-1]))
