"""Builds the turns section of a report: each turn with its tree of sub-calls and child runs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rlm_dspy.coverage.text_match import merged
from rlm_dspy.observe.formatting import spent_on, used
from rlm_dspy.text import counted, one_line, seconds, share
from rlm_dspy.trajectory import KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlm_dspy.trajectory import Mark, Span, Step, SubCall

_CALLS_SHOWN = 20
_FAILURES_SHOWN = 50
_LINES_SHOWN = 5_000
_MAX_DEPTH = 8
_LINE_CHARS = 100
_NAMES = {"query": "llm_query"}


@dataclass(frozen=True)
class TurnView:
    """A turn.

    Attributes:
        step: The turn as it was recorded.
        number: The first is 1.
        id: Where links lead to.
        mark: How it ended.
        about: Its time, its usage, and the shares of the inputs that it read, printed and sent.
        groups: Its sub-calls; those of one batch are a group.
    """

    step: Step
    number: int
    id: str
    mark: Mark
    about: str
    groups: tuple[GroupView, ...]


@dataclass(frozen=True)
class GroupView:
    """Sub-calls under one heading; a single one has none.

    Attributes:
        heading: How many calls, of what, and what they used.
        failed: How many failed.
        calls: Those that are shown in full.
        lines: The others, one line each, by their number.
        left_out: How many are not shown.
    """

    heading: str
    failed: int
    calls: tuple[CallView, ...]
    lines: tuple[tuple[int, str], ...] = ()
    left_out: int = 0

    @property
    def others(self) -> int:
        """How many calls are not shown in full."""
        return len(self.lines) + self.left_out


@dataclass(frozen=True)
class CallView:
    """A sub-call: a line that says all in short, and behind it what it was given and answered."""

    call: SubCall
    line: str
    about: str
    child: ChildView | None


@dataclass(frozen=True)
class ChildView:
    """The turns of a child run; none if the child is nested too deeply."""

    turns: tuple[TurnView, ...]
    count: str
    ended: str


def turns(
    steps: Sequence[Step], sizes: dict[str, int], prefix: str = "turn", depth: int = 0
) -> tuple[TurnView, ...]:
    """Return the views of turns.

    Args:
        steps: Of the run, or of a child.
        sizes: The characters of the run's inputs, for shares.
        prefix: Of the turns' ids; `turn` gives `turn-1`.
        depth: Of the run: 0 for the root, 1 for its children.
    """
    return tuple(_turn(number, step, sizes, f"{prefix}-{number}", depth) for number, step in enumerate(steps, 1))


def _turn(number: int, step: Step, sizes: dict[str, int], id_: str, depth: int) -> TurnView:
    about = _about(step, *_coverage(step, sizes))
    groups = (_group(calls, f"{id_}-{n}", depth) for n, calls in enumerate(_grouped(step.calls), 1))
    return TurnView(step, number, id_, KINDS[step.kind], about, tuple(groups))


def _about(part: Step | SubCall, *more: str) -> str:
    told = (f"at {seconds(part.started)}", f"took {seconds(part.seconds)}", used(part.spent), *more)
    return " · ".join(filter(None, told))


def _coverage(step: Step, sizes: dict[str, int]) -> list[str]:
    sent = [span for call in step.calls for span in call.sent]
    uses: dict[str, Sequence[Span]] = {"read": step.read, "printed": step.shown, "sent": sent}
    return [
        f"{use} {share(part / chars)} of {name}"
        for use, spans in uses.items()
        for name, chars in sizes.items()
        if chars and (part := sum(end - start for of, start, end in merged(spans, None) if of == name))
    ]


def _grouped(calls: Sequence[SubCall]) -> list[list[SubCall]]:
    """Return the calls of each batch as a group; consecutive single calls of one name are a group too."""
    groups: list[list[SubCall]] = []
    for batch in (list(batch) for _, batch in groupby(calls, key=lambda call: call.batch)):
        in_a_row = groups and len(batch) == 1 and groups[-1][-1].name == batch[0].name
        if in_a_row and len({call.batch for call in groups[-1]}) == len(groups[-1]):
            groups[-1] += batch
        else:
            groups.append(batch)
    return groups


def _group(calls: list[SubCall], id_: str, depth: int) -> GroupView:
    failed = sum(bool(call.error) for call in calls)
    if len(calls) == 1:
        return GroupView("", failed, (_call(calls[0], id_, depth),))
    numbered = list(enumerate(calls, 1))
    rest = numbered[_CALLS_SHOWN:]
    whole = [*numbered[:_CALLS_SHOWN], *[one for one in rest if one[1].error][:_FAILURES_SHOWN]]
    return GroupView(
        heading=_heading(calls),
        failed=failed,
        calls=tuple(_call(call, f"{id_}-{n}", depth, n) for n, call in whole),
        lines=tuple((n, _asked_and_got(call)) for n, call in rest[:_LINES_SHOWN]),
        left_out=max(0, len(rest) - _LINES_SHOWN),
    )


def _heading(calls: list[SubCall]) -> str:
    how = "at once" if calls[0].batch == calls[1].batch else "one by one"
    cached = sum(call.cached for call in calls)
    took = max(call.started + call.seconds for call in calls) - min(call.started for call in calls)
    number = f"{len(calls):,} calls of {_name(calls[0])} {how}"
    return " · ".join(filter(None, (number, f"{cached:,} reused" if cached else "", used(spent_on(calls), took))))


def _call(call: SubCall, id_: str, depth: int, number: int | None = None) -> CallView:
    line = f"{number}. {_asked_and_got(call)}" if number else f"{_name(call)}: {_asked_and_got(call)}"
    about = _about(call, *_parts(call.sent))
    return CallView(call, line, about, _child(call, id_, depth) if call.steps else None)


def _child(call: SubCall, id_: str, depth: int) -> ChildView:
    ended = f", {call.stop}" if call.stop else ""
    shown = turns(call.steps, {}, f"{id_}-turn", depth + 1) if depth < _MAX_DEPTH else ()
    return ChildView(shown, counted(len(call.steps), "turn"), ended)


def _name(call: SubCall) -> str:
    return _NAMES.get(call.name, call.name)


def _asked_and_got(call: SubCall) -> str:
    asked = one_line(next(iter(call.inputs.values()), ""), _LINE_CHARS)
    return f"{asked} → {one_line(call.error or call.output, _LINE_CHARS)}"


def _parts(sent: Sequence[Span]) -> list[str]:
    names = dict.fromkeys(name for name, _, _ in sent)
    return [
        f"sent {sum(end - start for of, start, end in sent if of == name):,} characters of {name}"
        for name in names
    ]
