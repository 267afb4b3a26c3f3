"""Draws the charts of a report: the timeline, and the tokens and cost of each turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_dspy.observe.formatting import duration, spent_on
from rlm_dspy.text import counted, one_line, price, seconds
from rlm_dspy.trajectory import KINDS, Mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rlm_dspy.observe.record import Record
    from rlm_dspy.trajectory import Step, SubCall

WIDTH = 1000
_TURN_HEIGHT, _LANE_HEIGHT, _MAX_LANES = 10, 5, 12
_MIN_WIDTH = 1.5
_MAX_BARS = 400
_TICKS = 4
_NUMBERS_SHOWN = 20
_FIRST_LINE_CHARS = 160
_TITLE_CHARS = 200
_COLUMN_WIDTH, _COLUMN_HEIGHT = 10, 100


@dataclass(frozen=True)
class Bar:
    """A rectangle of a picture, in units of the picture."""

    class_: str
    x: float
    y: float
    width: float
    height: float
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """An SVG that is stretched to its place, so it contains no text.

    Attributes:
        label: What it shows, in words.
        width: In units of its own.
        height: In units of its own.
        bars: Its rectangles; later ones cover earlier ones.
    """

    label: str
    width: float
    height: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class TimelineRow:
    """A turn of the timeline; the row of the last model call has no number."""

    number: int | None
    mark: Mark
    summary: str
    picture: Picture
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """Rows on one axis of time, with the seconds at its ticks."""

    rows: tuple[TimelineRow, ...]
    ticks: tuple[float, ...]


@dataclass(frozen=True)
class Plot:
    """A column for each turn."""

    title: str
    note: str
    picture: Picture
    numbers: tuple[str, ...]


def timeline(record: Record) -> Timeline:
    """Return a row for each turn: what it did, and when it and its sub-calls ran."""
    steps = record.trajectory
    length = duration(steps, record.usage) or 1.0
    rows = [_row(number, step, length) for number, step in enumerate(steps, 1)]
    if record.stop in ("extracted", "unanswered") and steps:
        rows.append(_last_row(steps[-1].started + steps[-1].seconds, length))
    return Timeline(tuple(rows), tuple(length * n / _TICKS for n in range(_TICKS + 1)))


def _row(number: int, step: Step, length: float) -> TimelineRow:
    first = (step.reasoning.strip() or step.code.strip() or step.output.strip()).partition("\n")[0]
    bars, lanes = _bars(number, step, WIDTH / length)
    height = _TURN_HEIGHT + (1 + lanes * _LANE_HEIGHT if lanes else 0)
    label = f"turn {number} from {seconds(step.started)} on, {counted(len(step.calls), 'sub-call')}"
    picture = Picture(label, WIDTH, height, bars)
    return TimelineRow(number, KINDS[step.kind], one_line(first, _FIRST_LINE_CHARS), picture, step.seconds)


def _last_row(end: float, length: float) -> TimelineRow:
    bar = _span("act", end, length - end, WIDTH / length, 0, _TURN_HEIGHT)
    picture = Picture("last call", WIDTH, _TURN_HEIGHT, (bar,))
    return TimelineRow(
        None, Mark("last call", "warn"), "The answer is extracted from the turns above.", picture, length - end
    )


def _bars(number: int, step: Step, scale: float) -> tuple[tuple[Bar, ...], int]:
    """Return the bars of a turn and its sub-calls, and how many lanes the sub-calls take."""
    title = f"turn {number}: {seconds(step.seconds)}"
    bars = [_span("act", step.started, step.seconds, scale, 0, _TURN_HEIGHT, title)]
    lanes: list[float] = []
    for call in _sampled(step.calls):
        y = _TURN_HEIGHT + 1 + _lane(lanes, call) * _LANE_HEIGHT
        title = one_line(f"{call.name}: {call.error or call.output}", _TITLE_CHARS)
        bars.append(_span(call_class(call), call.started, call.seconds, scale, y, _LANE_HEIGHT - 1, title))
    return tuple(bars), len(lanes)


def _span(
    class_: str, started: float, lasted: float, scale: float, y: float, height: float, title: str = ""
) -> Bar:
    """Return the bar of a span of time, at least wide enough to be seen."""
    return Bar(class_, started * scale, y, max(lasted * scale, _MIN_WIDTH), height, title)


def call_class(call: SubCall) -> str:
    """Return the class that gives a sub-call its colour."""
    if call.error:
        return "failed-bar"
    if call.cached:
        return "cached"
    return "child" if call.kind == "child" else "query"


def _sampled(calls: Sequence[SubCall]) -> list[SubCall]:
    """Return the calls by their start; of very many an even sample, and all that failed."""
    step = -(-len(calls) // _MAX_BARS) or 1
    chosen = [call for n, call in enumerate(calls) if n % step == 0 or call.error]
    return sorted(chosen, key=lambda call: call.started)


def _lane(lanes: list[float], call: SubCall) -> int:
    """Return the first lane that is free when the call starts, and take it; the last one if none is."""
    for number, free_from in enumerate(lanes):
        if free_from <= call.started:
            lanes[number] = call.started + call.seconds
            return number
    if len(lanes) < _MAX_LANES:
        lanes.append(call.started + call.seconds)
    return len(lanes) - 1


def plots(steps: Sequence[Step]) -> tuple[Plot, ...]:
    """Return what each turn used: tokens in, tokens out, and USD if any call had a price."""
    if not steps:
        return ()
    drawn = [
        _plot("Tokens in", [_tokens_in(step) for step in steps], "{:,.0f}".format),
        _plot("Tokens out", [_by_whom(step, "output_tokens") for step in steps], "{:,.0f}".format),
    ]
    if any(step.spent.cost is not None for step in steps):
        drawn.append(_plot("Cost", [_by_whom(step, "cost") for step in steps], price))
    return tuple(drawn)


def _tokens_in(step: Step) -> dict[str, float]:
    parts = _by_whom(step, "input_tokens")
    cached = min(_by_whom(step, "cached_input_tokens")["act"], parts["act"])
    return {"cached": cached, "act": parts["act"] - cached, "query": parts["query"]}


def _by_whom(step: Step, name: str) -> dict[str, float]:
    in_all, of_calls = (getattr(usage, name) or 0.0 for usage in (step.spent, spent_on(step.calls)))
    return {"act": max(0.0, in_all - of_calls), "query": of_calls}


def _plot(title: str, parts: Sequence[dict[str, float]], written: Callable[[float], str]) -> Plot:
    """Return the plot of what each turn used, by the class that gives each part its colour."""
    sums = [sum(part.values()) for part in parts]
    bars = (bar for n, part in enumerate(parts) for bar in _column(n, part, max(sums) or 1.0, written))
    picture = Picture(f"{title} by turn", len(parts) * _COLUMN_WIDTH, _COLUMN_HEIGHT, tuple(bars))
    every = -(-len(parts) // _NUMBERS_SHOWN)
    numbers = (str(n) if n % every == 1 % every else "" for n in range(1, len(parts) + 1))
    note = f"{written(sum(sums))} in all, at most {written(max(sums))} in a turn"
    return Plot(title, note, picture, tuple(numbers))


def _column(n: int, parts: dict[str, float], most: float, written: Callable[[float], str]) -> Iterator[Bar]:
    top = float(_COLUMN_HEIGHT)
    for class_, value in parts.items():
        if value:
            height = value / most * _COLUMN_HEIGHT
            top -= height
            title = f"turn {n + 1}: {written(value)}"
            yield Bar(class_, n * _COLUMN_WIDTH + 1, top, _COLUMN_WIDTH - 2, height, title)
