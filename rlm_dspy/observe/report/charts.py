"""The pictures of a report that have an axis: the timeline, and tokens and cost turn by turn. SVG, no script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.observe.formatting import duration, price, seconds, spent_on
from rlm_dspy.observe.report.html import Html, joined, tag
from rlm_dspy.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rlm_dspy.observe.record import Record
    from rlm_dspy.observe.report.html import Value
    from rlm_dspy.trajectory import Step, StepKind, SubCall

MARKS: dict[StepKind, tuple[str, str]] = {
    "output": ("ran", ""),
    "error": ("code error", "bad"),
    "submitted": ("SUBMIT", "good"),
    "refused": ("refused", "warn"),
    "no_code": ("no code", "warn"),
    "interpreter_lost": ("lost", "bad"),
    "killed": ("killed", "bad"),
    "folded": ("folded", ""),
}
"""How each kind of turn is marked: a word and a class."""

_WIDTH = 1000
_TURN_HEIGHT, _LANE_HEIGHT, _MAX_LANES = 10, 5, 12
_MAX_BARS = 400
_TICKS = 4
_NUMBERS_SHOWN = 20


def svg(tall: float, *children: Html, label: str, across: float = _WIDTH, **attributes: Value) -> Html:
    """Return an SVG that is as wide as its place and stretches what it holds, so it must hold no text.

    Args:
        tall: Its height in units of its own.
        children: What it holds.
        label: What it shows, in words.
        across: Its width in units of its own.
        attributes: Others of the element.
    """
    return tag(
        "svg",
        *children,
        viewBox=f"0 0 {across:g} {tall:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
        **attributes,
    )


def bar(class_: str, x: float, y: float, width: float, height: float, title: str = "") -> Html:
    """Return a rectangle, at least wide enough to be seen."""
    shown = tag("title", title) if title else None
    return tag(
        "rect",
        shown,
        class_=class_,
        x=f"{x:.1f}",
        y=f"{y:g}",
        width=f"{max(width, 1.5):.1f}",
        height=f"{height:g}",
    )


def key(*entries: tuple[str, str]) -> Html:
    """Return what the colours mean: class and words of each."""
    named = (tag("span", tag("span", class_=f"key {class_}"), words) for class_, words in entries)
    return tag("p", joined(named, " "), class_="soft keys")


def timeline(record: Record) -> Html:
    """Return a row for each turn: what it did, and when it and its sub-calls ran."""
    steps = record.trajectory
    length = duration(steps, record.usage) or 1.0
    rows = [_row(number, step, length) for number, step in enumerate(steps, 1)]
    end = steps[-1].started + steps[-1].seconds if steps else 0.0
    if record.stop in ("extracted", "unanswered") and steps:
        rows.append(_last_row(end, length))
    ticks = (tag("span", seconds(length * n / _TICKS)) for n in range(_TICKS + 1))
    axis = tag(
        "div",
        tag("span"),
        tag("span"),
        tag("span"),
        tag("span", *ticks, class_="ticks bars"),
        tag("span"),
        class_="row axis",
    )
    legend = key(
        ("act", "turn: the model writes, then its code runs"),
        ("query", "sub-call"),
        ("child", "child run"),
        ("cached", "answered before, not asked again"),
        ("failed-bar", "failed"),
    )
    return tag("div", legend, *rows, axis)


def _row(number: int, step: Step, length: float) -> Html:
    words, class_ = MARKS[step.kind]
    first = (step.reasoning.strip() or step.code.strip() or step.output.strip()).partition("\n")[0]
    return tag(
        "a",
        tag("span", str(number), class_="n"),
        tag("span", tag("span", words, class_=f"badge {class_}")),
        tag("span", first[:160], class_="what"),
        tag("span", _bars(number, step, length), class_="bars"),
        tag("span", seconds(step.seconds), class_="n soft"),
        href=f"#turn-{number}",
        class_="row",
    )


def _last_row(end: float, length: float) -> Html:
    drawn = svg(
        _TURN_HEIGHT,
        bar("act", end / length * _WIDTH, 0, (length - end) / length * _WIDTH, _TURN_HEIGHT),
        label="the last call",
        height=_TURN_HEIGHT,
    )
    return tag(
        "div",
        tag("span"),
        tag("span", tag("span", "last call", class_="badge warn")),
        tag("span", "The answer is read from the steps above.", class_="what"),
        tag("span", drawn, class_="bars"),
        tag("span", seconds(length - end), class_="n soft"),
        class_="row",
    )


def _bars(number: int, step: Step, length: float) -> Html:
    scale = _WIDTH / length
    turn = bar(
        "act",
        step.started * scale,
        0,
        step.seconds * scale,
        _TURN_HEIGHT,
        f"turn {number}: {seconds(step.seconds)}",
    )
    lanes: list[float] = []
    drawn = []
    for call in _worth_drawing(step.calls):
        lane = _lane(lanes, call)
        title = f"{call.name}: {call.error or call.output}"[:200]
        y = _TURN_HEIGHT + 1 + lane * _LANE_HEIGHT
        drawn.append(bar(call_class(call), call.started * scale, y, call.seconds * scale, _LANE_HEIGHT - 1, title))
    height = _TURN_HEIGHT + (1 + len(lanes) * _LANE_HEIGHT if lanes else 0)
    label = f"turn {number} from {seconds(step.started)} on, {counted(len(step.calls), 'sub-call')}"
    return svg(height, turn, *drawn, label=label, height=height)


def call_class(call: SubCall) -> str:
    """Return the class that a sub-call is coloured by."""
    if call.error:
        return "failed-bar"
    if call.cached:
        return "cached"
    return "child" if call.kind == "child" else "query"


def _worth_drawing(calls: Sequence[SubCall]) -> list[SubCall]:
    """Return the calls by their beginning; of very many every so manieth, and those that failed."""
    step = -(-len(calls) // _MAX_BARS) or 1
    chosen = [call for n, call in enumerate(calls) if n % step == 0 or call.error]
    return sorted(chosen, key=lambda call: call.started)


def _lane(lanes: list[float], call: SubCall) -> int:
    """Return the first lane that is free when the call begins, and take it; the last one if none is."""
    for number, free_from in enumerate(lanes):
        if free_from <= call.started:
            lanes[number] = call.started + call.seconds
            return number
    if len(lanes) < _MAX_LANES:
        lanes.append(call.started + call.seconds)
    return len(lanes) - 1


def plots(steps: Sequence[Step]) -> Html:
    """Return what each turn used: tokens in, tokens out, and USD if any call had a price."""
    if not steps:
        return Html()
    priced = any(step.spent.cost is not None for step in steps)
    drawn = [
        _columns("Tokens in", steps, _tokens_in, lambda n: f"{n:,.0f}"),
        _columns("Tokens out", steps, lambda step: _by_whom(step, "output_tokens"), lambda n: f"{n:,.0f}"),
        _columns("Cost", steps, lambda step: _by_whom(step, "cost"), price) if priced else None,
    ]
    legend = key(
        ("act", "the model's turn"), ("cached", "of it, cached by the provider"), ("query", "its sub-calls")
    )
    return joined([legend, tag("div", *drawn, class_="plots")])


def _tokens_in(step: Step) -> dict[str, float]:
    parts = _by_whom(step, "input_tokens")
    cached = min(_by_whom(step, "cached_input_tokens")["act"], parts["act"])
    return {"cached": cached, "act": parts["act"] - cached, "query": parts["query"]}


def _by_whom(step: Step, name: str) -> dict[str, float]:
    in_all, of_calls = (getattr(usage, name) or 0.0 for usage in (step.spent, spent_on(step.calls)))
    return {"act": max(0.0, in_all - of_calls), "query": of_calls}


def _columns(
    title: str,
    steps: Sequence[Step],
    parts_of: Callable[[Step], dict[str, float]],
    written: Callable[[float], str],
) -> Html:
    parts = [parts_of(step) for step in steps]
    most = max(sum(part.values()) for part in parts)
    height = most or 1.0
    drawn = [
        column for n, part in enumerate(parts) for column in _column(n, part, height, f"turn {n + 1}", written)
    ]
    every = -(-len(steps) // _NUMBERS_SHOWN)
    numbers = (tag("span", str(n) if n % every == 1 % every else "") for n in range(1, len(steps) + 1))
    total_ = written(sum(sum(part.values()) for part in parts))
    return tag(
        "div",
        tag(
            "div",
            tag("b", title),
            tag("span", f"{total_} in all, at most {written(most)} in a turn", class_="soft"),
            class_="ticks",
        ),
        tag("div", svg(100, *drawn, label=f"{title} by turn", across=len(steps) * 10), class_="columns"),
        tag("div", *numbers, class_="ticks numbers"),
        class_="plot",
    )


def _column(
    n: int, parts: dict[str, float], most: float, title: str, written: Callable[[float], str]
) -> Iterable[Html]:
    top = 100.0
    for class_, value in parts.items():
        if value:
            height = value / most * 100
            top -= height
            yield tag(
                "rect",
                tag("title", f"{title}: {written(value)}"),
                class_=class_,
                x=f"{n * 10 + 1}",
                y=f"{top:.2f}",
                width="8",
                height=f"{height:.2f}",
            )
