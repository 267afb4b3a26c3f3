"""Tells the model, before it answers, that it has read little of the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.coverage.text_match import merged
from rlm_dspy.text import share

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rlm_dspy.coverage.tracker import Watch
    from rlm_dspy.trajectory import Step, SubCall


def unread(watch: Watch, below: float, code: str, calls: Iterable[SubCall], steps: Sequence[Step]) -> list[str]:
    """Return why a SUBMIT should wait, if less than a share of the inputs was read; else nothing.

    Args:
        watch: Tracks the run's inputs.
        below: The share, from 0 to 1.
        code: The code that submits.
        calls: Its sub-calls.
        steps: The steps before it.
    """
    sizes = watch.sizes
    spans = [*watch.read(code), *(span for call in calls for span in call.sent)]
    for step in steps:
        spans += [*step.read, *step.shown, *(span for call in step.calls for span in call.sent)]
    together = merged(spans, most=None)
    looked_at = {name: sum(end - start for of, start, end in together if of == name) for name in sizes}
    total = sum(sizes.values())
    if not total or sum(looked_at.values()) >= below * total:
        return []
    longest = max(sizes, key=lambda name: sizes[name] - looked_at[name])
    read, chars = looked_at[longest], sizes[longest]
    why = f"Only {share(read / chars)} of {longest} ({read:,} of {chars:,} characters) was read, printed or sent."
    return [f"{why} If the rest may change the answer, search it first; else submit the same again."]
