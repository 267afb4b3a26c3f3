"""Formats token usage and cost as text, and sums them over the steps of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.text import price, seconds
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm_dspy.trajectory import Step, SubCall
    from rlm_dspy.usage import RunUsage


def tokens(spent: Usage) -> str:
    """Format the tokens used; empty if none were used."""
    into, cached, out = spent.input_tokens, spent.cached_input_tokens, spent.output_tokens
    if not into and not out:
        return ""
    return f"{into:,} tokens in{f' ({cached:,} cached)' if cached else ''}, {out:,} out"


def used(usage: Usage, took: float | None = None) -> str:
    """Format time, tokens and cost; skip unknown ones."""
    pieces = [
        "" if took is None else seconds(took),
        tokens(usage),
        "" if usage.cost is None else price(usage.cost),
    ]
    return ", ".join(part for part in pieces if part)


def spent_on(calls: Iterable[SubCall]) -> Usage:
    """Return the total usage of sub-calls."""
    return sum((call.spent for call in calls), Usage())


def all_calls(steps: Iterable[Step]) -> Iterator[SubCall]:
    """Yield the sub-calls of steps, and those of their children's steps."""
    for step in steps:
        for call in step.calls:
            yield call
            yield from all_calls(call.steps)


def duration(steps: Iterable[Step], usage: RunUsage) -> float:
    """Return the seconds of a run: those of its usage, at least the end of its last step."""
    ends = [step.started + step.seconds for step in steps]
    return max([usage.seconds, *ends])
