"""Figures as people read them: tokens, seconds, prices, shares, and what a run's steps add up to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm_dspy.trajectory import Step, SubCall
    from rlm_dspy.usage import RunUsage

_MINUTE, _HOUR = 60, 3600
_CENT = 0.01
_SMALL = 0.001


def seconds(value: float) -> str:
    """Return `0.4 s`, `12 s`, `3 min 20 s` or `2 h 5 min`."""
    if value < 10:  # noqa: PLR2004 (one decimal is worth reading)
        return f"{value:.1f} s"
    whole = round(value)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def price(value: float | None) -> str:
    """Return USD; `unknown` for None."""
    if value is None:
        return "unknown"
    return f"${value:.2f}" if value >= _CENT or value == 0 else f"${value:.5f}"


def share(value: float) -> str:
    """Return percent; a share that is neither nothing nor all is never rounded to that."""
    if 0 < value < _SMALL:
        return "< 0.1 %"
    percent = value * 100
    return f"{percent:.1f} %" if 0 < percent < 10 or 99 < percent < 100 else f"{percent:.0f} %"  # noqa: PLR2004


def tokens(spent: Usage) -> str:
    """Return the tokens in words; empty if none were used."""
    into, cached, out = spent.input_tokens, spent.cached_input_tokens, spent.output_tokens
    if not into and not out:
        return ""
    return f"{into:,} tokens in{f' ({cached:,} cached)' if cached else ''}, {out:,} out"


def spent_on(calls: Iterable[SubCall]) -> Usage:
    """Return what sub-calls used in all."""
    return sum((call.spent for call in calls), Usage())


def all_calls(steps: Iterable[Step]) -> Iterator[SubCall]:
    """Yield the sub-calls of steps, and those of their children's steps."""
    for step in steps:
        for call in step.calls:
            yield call
            yield from all_calls(call.steps)


def duration(steps: Iterable[Step], usage: RunUsage) -> float:
    """Return how many seconds a run took: what its usage says, and no less than where its last step ends."""
    ends = [step.started + step.seconds for step in steps]
    return max([usage.seconds, *ends])
