"""Draws the charts of a report: the timeline, and the tokens and cost of each turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rlm_dspy.report.formatting import spent_on
from rlm_dspy.text import one_line, price, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rlm_dspy.trajectory import Step, SubCall

WIDTH = 1000
_TURN_HEIGHT, _LANE_HEIGHT, _MAX_LANES = 10, 5, 12
_MIN_WIDTH = 1.5
_MAX_BARS = 400
_TITLE_CHARS = 200
_COLUMN_WIDTH, _COLUMN_HEIGHT = 10, 100


class Bar(NamedTuple):
    """A rectangle in the units of the picture."""

    class_: str
    x: float
    y: float
    width: float
    height: float
    title: str = ""


class Plot(NamedTuple):
    """A column for each turn.

    Attributes:
        title: What it shows.
        written: Formats a value.
        sums: The value of each turn.
        bars: The columns, each in parts.
    """

    title: str
    written: Callable[[float], str]
    sums: list[float]
    bars: list[Bar]


def timeline_bars(step: Step, number: int, length: float) -> list[Bar]:
    """Return the bar of a turn and, below it in lanes, the bars of its sub-calls.

    Args:
        step: The turn.
        number: Its number; the first is 1.
        length: Seconds of the whole width.
    """

    def bar(class_: str, part: Step | SubCall, y: float, height: float, title: str) -> Bar:
        width = max(part.seconds * WIDTH / length, _MIN_WIDTH)
        return Bar(class_, part.started * WIDTH / length, y, width, height, title)

    bars = [bar("act", step, 0, _TURN_HEIGHT, f"turn {number}: {seconds(step.seconds)}")]
    lanes: list[float] = []
    for call in _sampled(step.calls):
        y = _TURN_HEIGHT + 1 + _lane(lanes, call) * _LANE_HEIGHT
        title = one_line(f"{call.name}: {call.error or call.output}", _TITLE_CHARS)
        bars.append(bar(_class_of(call), call, y, _LANE_HEIGHT - 1, title))
    return bars


def _class_of(call: SubCall) -> str:
    """Return the CSS class for the colour of a sub-call."""
    if call.error:
        return "failed-bar"
    return "cached" if call.cached else "child" if call.kind == "child" else "query"


def _sampled(calls: Sequence[SubCall]) -> list[SubCall]:
    """Return the calls by start; if there are too many, an even sample and all failures."""
    step = -(-len(calls) // _MAX_BARS) or 1
    chosen = [call for n, call in enumerate(calls) if n % step == 0 or call.error]
    return sorted(chosen, key=lambda call: call.started)


def _lane(lanes: list[float], call: SubCall) -> int:
    """Return and occupy the first lane that is free at the start of the call, else the last one."""
    free = (number for number, free_from in enumerate(lanes) if free_from <= call.started)
    if (lane := next(free, len(lanes))) == _MAX_LANES:
        return _MAX_LANES - 1
    lanes[lane : lane + 1] = [call.started + call.seconds]
    return lane


def plots(steps: Sequence[Step]) -> Iterator[Plot]:
    """Yield what each turn used: tokens in, tokens out, and USD if any call had a price."""
    yield _plot("Tokens in", [_tokens_in(step) for step in steps], "{:,.0f}".format)
    yield _plot("Tokens out", [_by_whom(step, "output_tokens") for step in steps], "{:,.0f}".format)
    if any(step.spent.cost is not None for step in steps):
        yield _plot("Cost", [_by_whom(step, "cost") for step in steps], price)


def _tokens_in(step: Step) -> dict[str, float]:
    parts = _by_whom(step, "input_tokens")
    cached = min(_by_whom(step, "cached_input_tokens")["act"], parts["act"])
    return {"cached": cached, "act": parts["act"] - cached, "query": parts["query"]}


def _by_whom(step: Step, name: str) -> dict[str, float]:
    in_all, of_calls = (getattr(usage, name) or 0.0 for usage in (step.spent, spent_on(step.calls)))
    return {"act": max(0.0, in_all - of_calls), "query": of_calls}


def _plot(title: str, turns: list[dict[str, float]], written: Callable[[float], str]) -> Plot:
    """Return the usage plot of the turns, with the CSS class of each part."""
    sums = [sum(parts.values()) for parts in turns]
    most, bars = max(sums) or 1.0, list[Bar]()
    for number, parts in enumerate(turns):
        top = float(_COLUMN_HEIGHT)
        for class_, value in parts.items():
            height = value / most * _COLUMN_HEIGHT
            top -= height
            if value:
                x, note = number * _COLUMN_WIDTH + 1, f"turn {number + 1}: {written(value)}"
                bars.append(Bar(class_, x, top, _COLUMN_WIDTH - 2, height, note))
    return Plot(title, written, sums, bars)
