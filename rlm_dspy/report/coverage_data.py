"""Computes the inputs section of a report: the parts read, printed and sent, and where the answer was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.report.charts import WIDTH
from rlm_dspy.report.coverage_shares import coverage_of, covered
from rlm_dspy.text import share

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_dspy.coverage.tracker import Occurrence
    from rlm_dspy.report.record import Record
    from rlm_dspy.trajectory import Span

_STRIP, _HEIGHT, _TOP = 30, 20, 5
_USES = {"read": "read", "shown": "printed", "sent": "sent"}
_MIN_WIDTH = 3


def strips(record: Record, name: str) -> list[tuple[str, str, str, str]]:
    """Return for each use of an input its CSS class, label, share of the input, and SVG path."""
    spans, shares, chars = covered(record.trajectory), coverage_of(record)[name], record.input_chars[name]
    return [
        (use, word, share(shares[use]), _path(spans[use], name, chars, row * _STRIP + _TOP))
        for row, (use, word) in enumerate(_USES.items())
    ]


def _path(spans: Iterable[Span], name: str, chars: int, y: int) -> str:
    """Return an SVG path with a rectangle for each span of an input; spans that touch at this scale are merged."""
    drawn: list[list[int]] = []
    for start, end in ((start, end) for of, start, end in spans if of == name):
        left = start * WIDTH // chars
        right = max(left + _MIN_WIDTH, -(-end * WIDTH // chars))
        if drawn and left <= drawn[-1][1]:
            drawn[-1][1] = max(drawn[-1][1], right)
        else:
            drawn.append([left, right])
    return "".join(f"M{left} {y}H{right}v{_HEIGHT}H{left}z" for left, right in drawn)


def seen_in(record: Record, one: Occurrence) -> str:
    """Return the turns in which a place was printed, and those in which it was sent to a sub-model."""

    def holds(spans: Iterable[Span]) -> bool:
        return any(name == one.input and start <= one.start and one.end <= end for name, start, end in spans)

    steps = list(enumerate(record.trajectory, 1))
    printed = ", ".join(str(number) for number, step in steps if holds(step.shown))
    sent = ", ".join(str(number) for number, step in steps if any(holds(call.sent) for call in step.calls))
    how_printed = f"printed in turn {printed}" if printed else "not printed"
    return f"{how_printed}, " + (f"sent to a sub-call in turn {sent}" if sent else "not sent to a sub-call")
