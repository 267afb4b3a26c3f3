"""The part of a report on the inputs: what of them was looked at, and where the answer stands in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.observe.coverage_shares import coverage_of, covered
from rlm_dspy.observe.formatting import share
from rlm_dspy.observe.report.charts import key, svg
from rlm_dspy.observe.report.html import Html, joined, tag
from rlm_dspy.text import clip, counted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rlm_dspy.coverage.watch import Occurrence
    from rlm_dspy.observe.record import Record
    from rlm_dspy.trajectory import Span

_WIDTH = 1000
_STRIP, _HEIGHT = 30, 20
_USES = {"read": "read", "shown": "printed", "sent": "sent"}
_PLACES_SHOWN = 3
_STRIP_CHARS = 400
_MIN_WIDTH = 3
_VALUE_CHARS = 200


def coverage(record: Record) -> Html:
    """Return a strip for each input, with what was read, shown and sent, and where the answer stands."""
    if not record.input_chars and record.stop == "killed":
        return tag(
            "p", "A log tells what was read, printed and sent when its run ends; this one was killed before."
        )
    if not record.input_chars:
        return tag(
            "p",
            "Coverage was not watched in this run. ",
            tag("code", "rlm-dspy ask --report"),
            " watches it, and in Python ",
            tag("code", "with coverage.watched():"),
            ".",
        )
    spans, shares = covered(record), coverage_of(record)
    by_size = sorted(shares, key=lambda name: -record.input_chars[name])
    legend = key(
        ("read", "read: named by code, whole unless the code says which part (an upper bound)"),
        ("shown", "printed: in an output, so that the model saw it"),
        ("sent", "sent: handed to a sub-model"),
        ("found", "the answer stands here"),
    )
    inputs = (
        _input(record, name, spans, shares[name])
        if record.input_chars[name] >= _STRIP_CHARS or name == by_size[0]
        else _short_input(record, name, shares[name])
        for name in by_size
    )
    left_out = (
        tag("p", tag("b", name), f" is left out: {why}.", class_="soft") for name, why in record.left_out.items()
    )
    return joined([legend, *inputs, *left_out])


def _short_input(record: Record, name: str, shares: dict[str, float]) -> Html:
    told = ", ".join(f"{words} {share(shares[use])}" for use, words in _USES.items())
    return tag("p", tag("b", name), tag("small", f" {record.input_chars[name]:,} characters: {told}"))


def _input(record: Record, name: str, spans: dict[str, list[Span]], shares: dict[str, float]) -> Html:
    chars = record.input_chars[name]
    places = [one for found in record.occurrences.values() for one in found if one.input == name]
    strips = [
        tag(
            "path",
            class_=use,
            d=_path((span for span in spans[use] if span[0] == name), chars, number * _STRIP + 5),
        )
        for number, use in enumerate(_USES)
    ]
    tracks = [
        tag("rect", class_="track", x="0", y=str(n * _STRIP + 5), width=str(_WIDTH), height=str(_HEIGHT))
        for n in range(3)
    ]
    marks = [
        tag("rect", class_="found", x=f"{one.start / chars * _WIDTH - 1.5:.1f}", y="0", width="3", height="90")
        for one in places
    ]
    label = ", ".join(f"{share(shares[use])} {words}" for use, words in _USES.items())
    rows = [
        part
        for use, words in _USES.items()
        for part in (tag("span", words), tag("span", share(shares[use]), class_="n"))
    ]
    ticks = (tag("span", f"{chars * n // 4:,}") for n in range(5))
    return tag(
        "div",
        tag("h3", name, tag("small", f" {chars:,} characters")),
        tag(
            "div",
            *rows,
            svg(3 * _STRIP, *tracks, *strips, *marks, label=f"{name}: {label}"),
            tag("div", *ticks, class_="ticks"),
            class_="strips",
        ),
        class_="input",
    )


def _path(spans: Iterable[Span], chars: int, y: int) -> str:
    """Return an SVG path of a rectangle for each span, those that look the same drawn once."""
    drawn: list[list[int]] = []
    for _, start, end in spans:
        left = start * _WIDTH // chars
        right = max(left + _MIN_WIDTH, -(-end * _WIDTH // chars))
        if drawn and left <= drawn[-1][1]:
            drawn[-1][1] = max(drawn[-1][1], right)
        else:
            drawn.append([left, right])
    return "".join(f"M{left} {y}H{right}v{_HEIGHT}H{left}z" for left, right in drawn)


def lineage(record: Record) -> Html:
    """Return where the inputs say what the answer says, the words around it, and the turns that saw it."""
    parts = []
    for field, found in record.occurrences.items():
        values = dict.fromkeys(one.value for one in found)
        parts += [_value(record, field, value, [one for one in found if one.value == value]) for value in values]
        if not found and isinstance(record.outputs.get(field), str | list | dict):
            parts.append(tag("p", tag("b", field), ": stands nowhere in the inputs word for word."))
    return joined(parts)


def _value(record: Record, field: str, value: str, found: list[Occurrence]) -> Html:
    shown = [_place(record, one) for one in found]
    more = shown[_PLACES_SHOWN:]
    rest = tag("details", tag("summary", f"{len(more):,} more"), tag("ul", *more), class_="rest") if more else None
    heading = tag(
        "p",
        tag("b", field),
        ": ",
        tag("mark", clip(value, _VALUE_CHARS)),
        tag("small", f" in {counted(len(found), 'place')}"),
    )
    return tag("div", heading, tag("ul", *shown[:_PLACES_SHOWN]), rest, class_="places")


def _place(record: Record, one: Occurrence) -> Html:
    chars = record.input_chars.get(one.input) or 1
    where = f" at {one.start:,} of {one.input} ({share(one.start / chars)}); {_seen(record, one)}"
    return tag(
        "li", f"… {one.before}", tag("mark", clip(one.value, _VALUE_CHARS)), f"{one.after} … ", tag("small", where)
    )


def _seen(record: Record, one: Occurrence) -> str:
    """Return in which turns the place was printed, or sent to a sub-model."""

    def holds(spans: Iterable[Span]) -> bool:
        return any(name == one.input and start <= one.start and one.end <= end for name, start, end in spans)

    steps = list(enumerate(record.trajectory, 1))
    printed = [str(number) for number, step in steps if holds(step.shown)]
    sent = [str(number) for number, step in steps if any(holds(call.sent) for call in step.calls)]
    told = [
        f"printed in turn {', '.join(printed)}" if printed else "not printed",
        f"sent to a sub-model in turn {', '.join(sent)}" if sent else "not sent to a sub-model",
    ]
    return ", ".join(told)
