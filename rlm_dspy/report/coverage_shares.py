"""Coverage of a recorded run: the shares of each input that were read, printed and sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.coverage.text_match import merged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rlm_dspy.report.record import Record
    from rlm_dspy.trajectory import Span, Step


def coverage_of(record: Record) -> dict[str, dict[str, float]]:
    """Return which share of each input was `read` by code, `shown` to the model, and `sent` to sub-models.

    Returns:
        Three shares from 0 to 1 by input; empty if coverage was not watched. The text that a child
        received counts only as `sent`.
    """
    parts = covered(record.trajectory).items()
    sizes = record.input_chars.items()
    return {name: {use: chars_of(spans, name) / chars for use, spans in parts} for name, chars in sizes if chars}


def share_covered(input_chars: dict[str, int], steps: Sequence[Step]) -> float | None:
    """Return which share of all inputs' characters code read, the model was shown or sub-models were sent.

    None if coverage was not watched, or no input can be watched.
    """
    chars = sum(input_chars.values())
    spans = merged((span for part in covered(steps).values() for span in part), most=None)
    return sum(end - start for _, start, end in spans) / chars if chars else None


def chars_of(spans: Iterable[Span], name: str) -> int:
    """Return the number of characters in some spans."""
    return sum(end - start for of, start, end in spans if of == name)


def covered(steps: Sequence[Step]) -> dict[str, list[Span]]:
    """Return the parts of the inputs that were `read`, `shown` and `sent` in all steps, each merged."""
    return {
        "read": merged((span for step in steps for span in step.read), most=None),
        "shown": merged((span for step in steps for span in step.shown), most=None),
        "sent": merged((span for step in steps for call in step.calls for span in call.sent), most=None),
    }
