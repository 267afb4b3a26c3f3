"""The turns of a report, and under each its tree of sub-calls, with the turns of children inside."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rlm_dspy.coverage.text_match import merged
from rlm_dspy.observe.formatting import price, seconds, share, spent_on, tokens
from rlm_dspy.observe.report.charts import MARKS
from rlm_dspy.observe.report.html import Html, highlighted, joined, tag
from rlm_dspy.text import clip, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlm_dspy.trajectory import Span, Step, SubCall
    from rlm_dspy.usage import Usage

_CALLS_SHOWN = 20
_FAILURES_SHOWN = 50
_LINES_SHOWN = 5_000
_CALL_CHARS = 4_000
_MAX_DEPTH = 8
_LINE_CHARS = 100
_NAMES = {"query": "llm_query"}


def turns(steps: Sequence[Step], sizes: dict[str, int], prefix: str = "turn", depth: int = 0) -> Html:
    """Return the turns whole.

    Args:
        steps: Of the run, or of a child.
        sizes: The characters of the run's inputs, for shares.
        prefix: Of the turns' ids; `turn` gives `turn-1`.
        depth: Of the run: 0 for the root, 1 for its children.
    """
    return joined(_turn(number, step, sizes, f"{prefix}-{number}", depth) for number, step in enumerate(steps, 1))


def _turn(number: int, step: Step, sizes: dict[str, int], id_: str, depth: int) -> Html:
    words, class_ = MARKS[step.kind]
    about = [
        f"at {seconds(step.started)}",
        f"took {seconds(step.seconds)}",
        *_spent(step.spent),
        *_looked_at(step, sizes),
    ]
    header = tag(
        "header",
        tag("h3", f"Turn {number}"),
        tag("span", words, class_=f"badge {class_}"),
        tag("small", " · ".join(about)),
    )
    return tag(
        "article",
        header,
        tag("p", step.reasoning.strip(), class_="reasoning") if step.reasoning.strip() else None,
        tag("pre", highlighted(step.code), class_="code") if step.code else None,
        sub_calls(step.calls, id_, depth) if step.calls else None,
        tag("p", "error" if class_ == "bad" else "output", class_="label") if step.output else None,
        tag("pre", step.output, class_="failed" if class_ == "bad" else step.kind) if step.output else None,
        tag("p", f"Told along with it: {step.notice}", class_="notice") if step.notice else None,
        class_=f"turn {class_}",
        id=id_,
    )


def _spent(spent: Usage) -> list[str]:
    return [part for part in (tokens(spent), "" if spent.cost is None else price(spent.cost)) if part]


def _looked_at(step: Step, sizes: dict[str, int]) -> list[str]:
    sent = [span for call in step.calls for span in call.sent]
    uses: dict[str, Sequence[Span]] = {"read": step.read, "printed": step.shown, "sent": sent}
    return [
        f"{use} {share(part / chars)} of {name}"
        for use, spans in uses.items()
        for name, chars in sizes.items()
        if chars and (part := sum(end - start for of, start, end in merged(spans, None) if of == name))
    ]


def sub_calls(calls: Sequence[SubCall], id_: str, depth: int) -> Html:
    """Return the sub-calls of a turn, those that were asked together under one heading."""
    groups = [list(group) for _, group in groupby(calls, key=lambda call: call.batch)]
    together: list[list[SubCall]] = []
    for group in groups:
        one_by_one = together and len(group) == 1 and together[-1][-1].name == group[0].name
        if one_by_one and len({call.batch for call in together[-1]}) == len(together[-1]):
            together[-1] += group
        else:
            together.append(group)
    label = tag("p", f"sub-calls: {len(calls):,}", class_="label")
    return joined([label, *(_group(group, f"{id_}-{n}", depth) for n, group in enumerate(together, 1))])


def _group(calls: list[SubCall], id_: str, depth: int) -> Html:
    if len(calls) == 1:
        return _call(calls[0], id_, depth)
    how = "together" if calls[0].batch == calls[1].batch else "one after another"
    failed, cached = sum(bool(call.error) for call in calls), sum(call.cached for call in calls)
    began = min(call.started for call in calls)
    ended = max(call.started + call.seconds for call in calls)
    about = [
        f"{len(calls):,} calls of {_name(calls[0])} {how}",
        f"{cached:,} answered before" if cached else "",
        seconds(ended - began),
        *_spent(spent_on(calls)),
    ]
    summary = tag(
        "summary",
        " · ".join(part for part in about if part) + " ",
        tag("span", f"{failed:,} failed", class_="badge bad") if failed else None,
    )
    numbered = list(enumerate(calls, 1))
    failures = [one for one in numbered[_CALLS_SHOWN:] if one[1].error][:_FAILURES_SHOWN]
    shown = [*numbered[:_CALLS_SHOWN], *failures]
    rest = numbered[_CALLS_SHOWN:] if len(calls) > _CALLS_SHOWN else []
    whole = (_call(call, f"{id_}-{n}", depth, n) for n, call in shown)
    return tag("details", summary, *whole, _in_lines(rest) if rest else None, class_="calls")


def _call(call: SubCall, id_: str, depth: int, number: int | None = None) -> Html:
    marks = [
        tag("span", "failed", class_="badge bad") if call.error else None,
        tag("span", "answered before", class_="badge") if call.cached else None,
        tag("span", f"asked {call.attempts} times", class_="badge warn") if call.attempts > 1 else None,
    ]
    asked_and_got = f"{_first(call)} → {_one_line(call.error or call.output, _LINE_CHARS)} "
    line = f"{number}. {asked_and_got}" if number else f"{_name(call)}: {asked_and_got}"
    about = [
        f"at {seconds(call.started)}",
        f"took {seconds(call.seconds)}",
        *_spent(call.spent),
        *_parts(call.sent),
    ]
    asked = [
        part
        for name, value in call.inputs.items()
        for part in (tag("p", name, class_="label"), tag("pre", clip(value, _CALL_CHARS)))
    ]
    came = ("error", call.error, "failed") if call.error else ("answer", call.output, "")
    return tag(
        "details",
        tag("summary", tag("span", line, *marks)),
        tag("p", tag("small", " · ".join(about))),
        *asked,
        tag("p", came[0], class_="label"),
        tag("pre", clip(came[1], _CALL_CHARS), class_=came[2] or None),
        _child(call, id_, depth) if call.steps else None,
        class_="call",
    )


def _child(call: SubCall, id_: str, depth: int) -> Html:
    ended = f", ended as {call.stop}" if call.stop else ""
    if depth >= _MAX_DEPTH:
        return tag("p", f"Its {counted(len(call.steps), 'turn')}{ended} are in the record.")
    heading = tag("p", f"What the child did: {counted(len(call.steps), 'turn')}{ended}", class_="label")
    return joined([heading, turns(call.steps, {}, f"{id_}-turn", depth + 1)])


def _in_lines(numbered: list[tuple[int, SubCall]]) -> Html:
    """Return calls in a line each, closed."""
    lines = (
        tag("li", f"{_first(call)} → {_one_line(call.error or call.output, _LINE_CHARS)}", value=n)
        for n, call in numbered[:_LINES_SHOWN]
    )
    left = len(numbered) - _LINES_SHOWN
    note = tag("p", f"{left:,} more are in the record.") if left > 0 else None
    return tag(
        "details",
        tag("summary", f"the other {len(numbered):,}, in a line each"),
        tag("ol", *lines),
        note,
        class_="rest",
    )


def _name(call: SubCall) -> str:
    return _NAMES.get(call.name, call.name)


def _first(call: SubCall) -> str:
    return _one_line(next(iter(call.inputs.values()), ""), _LINE_CHARS)


def _parts(sent: Sequence[Span]) -> list[str]:
    names = dict.fromkeys(name for name, _, _ in sent)
    return [
        f"sent {sum(end - start for of, start, end in sent if of == name):,} characters of {name}"
        for name in names
    ]


def _one_line(text: str, chars: int) -> str:
    line = " ".join(text[: chars * 4].split())
    return line if len(line) <= chars else f"{line[: chars - 1]}…"
