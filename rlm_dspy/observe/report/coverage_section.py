"""Builds the inputs section of a report: the parts read, printed and sent, and where the answer appears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_dspy.observe.coverage_shares import coverage_of, covered
from rlm_dspy.observe.report.charts import WIDTH
from rlm_dspy.text import counted, share

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_dspy.coverage.tracker import Occurrence
    from rlm_dspy.observe.record import Record
    from rlm_dspy.trajectory import Span

STRIP, _HEIGHT, _TOP = 30, 20, 5
_USES = {"read": "read", "shown": "printed", "sent": "sent"}
_STRIP_CHARS = 400
_MIN_WIDTH = 3
_TICKS = 4


@dataclass(frozen=True)
class StripView:
    """A use of an input: its class, in words, its share of the input, and its parts as an SVG path."""

    class_: str
    words: str
    share: str
    path: str


@dataclass(frozen=True)
class InputView:
    """An input whose coverage was watched.

    Attributes:
        name: Of the input.
        chars: Its size.
        summary: The share of each use, in words.
        strips: One for each use; empty for a short input, which needs the summary only.
        marks: Where the answer appears in it, on the scale of the strips.
        ticks: The characters at the ticks of the axis.
    """

    name: str
    chars: int
    summary: str
    strips: tuple[StripView, ...]
    marks: tuple[float, ...]
    ticks: tuple[int, ...]


@dataclass(frozen=True)
class PlaceView:
    """A place in an input where the answer appears, and the turns that printed or sent it."""

    place: Occurrence
    where: str


@dataclass(frozen=True)
class ValueView:
    """A value of the answer and its places; None for a field that appears nowhere."""

    field: str
    value: str | None
    count: str
    places: tuple[PlaceView, ...]


def coverage(record: Record) -> tuple[InputView, ...]:
    """Return the inputs whose coverage was watched, the largest first."""
    spans, shares = covered(record), coverage_of(record)
    by_size = sorted(shares, key=lambda name: -record.input_chars[name])
    return tuple(
        _input(record, name, spans, shares[name], drawn=n == 0 or record.input_chars[name] >= _STRIP_CHARS)
        for n, name in enumerate(by_size)
    )


def _input(
    record: Record, name: str, spans: dict[str, list[Span]], shares: dict[str, float], *, drawn: bool
) -> InputView:
    chars = record.input_chars[name]
    of_input = {use: [span for span in spans[use] if span[0] == name] for use in _USES}
    strips = tuple(
        StripView(use, words, share(shares[use]), _path(of_input[use], chars, number * STRIP + _TOP))
        for number, (use, words) in enumerate(_USES.items())
    )
    places = (one for found in record.occurrences.values() for one in found if one.input == name)
    return InputView(
        name=name,
        chars=chars,
        summary=", ".join(f"{strip.words} {strip.share}" for strip in strips),
        strips=strips if drawn else (),
        marks=tuple(one.start / chars * WIDTH - _MIN_WIDTH / 2 for one in places),
        ticks=tuple(chars * n // _TICKS for n in range(_TICKS + 1)),
    )


def _path(spans: Iterable[Span], chars: int, y: int) -> str:
    """Return an SVG path with a rectangle for each span; spans that touch at this scale are one."""
    drawn: list[list[int]] = []
    for _, start, end in spans:
        left = start * WIDTH // chars
        right = max(left + _MIN_WIDTH, -(-end * WIDTH // chars))
        if drawn and left <= drawn[-1][1]:
            drawn[-1][1] = max(drawn[-1][1], right)
        else:
            drawn.append([left, right])
    return "".join(f"M{left} {y}H{right}v{_HEIGHT}H{left}z" for left, right in drawn)


def lineage(record: Record) -> tuple[ValueView, ...]:
    """Return where the values of the answer appear in the inputs."""
    return tuple(view for field, found in record.occurrences.items() for view in _values(record, field, found))


def _values(record: Record, field: str, found: list[Occurrence]) -> Iterable[ValueView]:
    for value in dict.fromkeys(one.value for one in found):
        places = tuple(PlaceView(one, _where(record, one)) for one in found if one.value == value)
        yield ValueView(field, value, counted(len(places), "place"), places)
    if not found and isinstance(record.outputs.get(field), str | list | dict):
        yield ValueView(field, None, "", ())


def _where(record: Record, one: Occurrence) -> str:
    chars = record.input_chars.get(one.input) or 1
    return f"at {one.start:,} of {one.input} ({share(one.start / chars)}); {_seen(record, one)}"


def _seen(record: Record, one: Occurrence) -> str:
    """Return in which turns the place was printed, and in which it was sent to a sub-model."""

    def holds(spans: Iterable[Span]) -> bool:
        return any(name == one.input and start <= one.start and one.end <= end for name, start, end in spans)

    steps = list(enumerate(record.trajectory, 1))
    printed = ", ".join(str(number) for number, step in steps if holds(step.shown))
    sent = ", ".join(str(number) for number, step in steps if any(holds(call.sent) for call in step.calls))
    return ", ".join(
        [
            f"printed in turn {printed}" if printed else "not printed",
            f"sent to a sub-call in turn {sent}" if sent else "not sent to a sub-call",
        ]
    )
