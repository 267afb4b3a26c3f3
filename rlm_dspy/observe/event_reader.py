"""Reads an event log into one `Record` for each run, including the log of a process that was killed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.lm_info import count_of
from rlm_dspy.json_values import json_objects
from rlm_dspy.limits import Limits
from rlm_dspy.observe.event_log import VERSION
from rlm_dspy.report.record import Record
from rlm_dspy.trajectory import Step, SubCall, ToolCall
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

_TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens")
_CUT_OFF = "(The log ends here: the process was gone before this turn had ended.)"


def read_log(path: str | os.PathLike[str]) -> list[Record]:
    """Return the runs of a `RunLog` file, in the order in which they started.

    Children are part of the calls that made them, not of the list. A run without an end has the stop `killed`;
    its last step, of the kind `killed`, holds what is known of the unfinished turn: its code and the
    ended sub-calls.

    Lines that are not events of this version are skipped, also a truncated last one. A run whose
    end cannot be read is `killed`.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it contains no readable run: none starts one, or only in other versions.
    """
    others: list[Any] = []
    runs = _runs(_events(path, others))
    records = [run.record() for run in runs.values() if run.is_root]
    if not any(records) and others:
        raise ValueError(f"{path} is a log of version {others[0]!r}; this rlm_dspy reads version {VERSION}.")
    if not any(records):
        raise ValueError(f"{path} is not a log of runs: none of its lines has the event `run_started`.")
    return [record for record in records if record is not None]


@dataclass
class _Run:
    """The state of a run, from its events so far.

    Attributes:
        started: The event of its start.
        is_root: Whether it has no parent in the log.
        steps: The steps that have ended.
        turn: The known fields of the unfinished turn's `Step`.
        children: The runs inside unfinished sub-calls of the turn.
        calls: The sub-calls that have ended, by number.
        ended: The event of its end.
        last: The time of its last event.
        ledger: The model calls of the run and its children.
        passing: The numbers of the steps that stand for a turn that was cut short.
    """

    started: dict[str, Any]
    is_root: bool
    steps: list[Step] = field(default_factory=list)
    turn: dict[str, Any] | None = None
    children: list[_Run] = field(default_factory=list)
    calls: dict[int, SubCall] = field(default_factory=dict)
    ended: dict[str, Any] | None = None
    last: float = 0.0
    ledger: Ledger = field(default_factory=lambda: Ledger(Limits()))
    passing: set[int] = field(default_factory=set)

    def add(self, event: Mapping[str, Any]) -> None:
        """Enter a step."""
        calls = [self.calls[number] for number in event.get("calls", ()) if number in self.calls]
        self.steps.append(Step.model_validate({**event["step"], "calls": calls}))
        if event["event"] == "step_added" and self.steps[-1].kind != "folded":
            self.passing.add(len(self.steps) - 1)

    def go_on(self) -> None:
        """Enter that the run is resumed."""
        self.ended = self.turn = None
        self.steps, self.children = self._lasting_steps(), []

    def _lasting_steps(self) -> list[Step]:
        """Return the steps that a resumed run keeps: it takes a turn again that was cut short or had submitted."""
        steps = [step for number, step in enumerate(self.steps) if number not in self.passing]
        self.passing.clear()
        return steps[:-1] if steps and steps[-1].kind == "submitted" else steps

    def spend(self, event: Mapping[str, Any], used: Usage) -> None:
        """Add the usage of a model call of the run or a child."""
        self.ledger.settle(str(event.get("role", "")), str(event.get("model", "")), used)
        if self.turn:
            self.turn["spent"] += used

    def all_steps(self) -> list[Step]:
        """Return the steps, and the unfinished turn at the end of the log."""
        if self.ended or self.turn is None:
            return self.steps
        calls = (*self.turn["calls"], *(child.call() for child in self.children))
        known = {**self.turn, "calls": calls, "seconds": self.last - self.turn["started"]}
        return [*self.steps, Step(output=_CUT_OFF, kind="killed", **known)]

    def record(self) -> Record | None:
        """Return the run; None if its events are incomplete."""
        killed = {"stop": "killed", "usage": self.ledger.usage().model_copy(update={"seconds": self.last})}
        for ended in (self.ended or killed, killed):
            for date in (self.started.get("at"), None):
                with contextlib.suppress(ValidationError):
                    known = {"trajectory": self.all_steps(), "started_at": date}
                    return Record.model_validate({**self.started, **ended, **known})  # the rest is ignored
        return None

    def call(self) -> SubCall:
        """Return the run as the unfinished sub-call that contains it."""
        began = self.started["t"]
        return SubCall(
            name="rlm",
            kind="child",
            inputs=self.started.get("inputs", {}),
            error=_CUT_OFF,
            started=began,
            seconds=self.last - began,
            spent=self.ledger.totals(),
            stop=(self.ended or {}).get("stop", "killed"),
            steps=tuple(self.all_steps()),
        )


def _events(path: str | os.PathLike[str], others: list[Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a file in order; add the versions of events in other versions to `others`."""
    for event in json_objects(path):
        if isinstance(event.get("event"), str):
            if event.get("v") == VERSION:
                yield event
            else:
                others.append(event.get("v"))


def _runs(events: Iterable[dict[str, Any]]) -> dict[str, _Run]:
    runs: dict[str, _Run] = {}
    above: dict[str, str] = {}
    for event in events:
        name, parent = str(event.get("run")), str(event.get("parent"))
        if event["event"] == "run_started":
            runs[name] = _Run(event, is_root=parent not in runs)
            above[name] = parent
            if parent in runs:
                runs[parent].children.append(runs[name])
        if name in runs:
            with contextlib.suppress(ValidationError, KeyError, TypeError):
                _enter(event, runs[name], runs)
        if event["event"] == "lm_ended":
            used = usage_in(event)
            while name in runs:
                runs[name].spend(event, used)
                name = above[name]
    return runs


def usage_in(event: Mapping[str, Any]) -> Usage:
    """Return the usage of a call; a field that holds something else counts as not reported."""
    tokens = {name: count_of(event.get(name)) or 0 for name in _TOKENS}
    cost = event.get("cost")
    is_known = isinstance(cost, int | float) and not isinstance(cost, bool)
    failed, cached = event.get("error") is not None, bool(event.get("cached"))
    return Usage(calls=1, failures=failed, cached_calls=cached, cost=cost if is_known else None, **tokens)


def _code_in(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a step that are known when its code is reviewed, or runs."""
    if event["event"] == "cell_started":
        return {name: event[name] for name in ("reasoning", "code")}
    return {"code": event["asked"]["code"]} if event["hook"] == "on_code" else {}


def _enter(event: dict[str, Any], run: _Run, runs: dict[str, _Run]) -> None:
    run.last = event["t"]
    match event["event"]:
        case "turn_started":
            run.turn = {"started": event["t"], "spent": Usage(), "calls": (), "tool_calls": ()}
            run.children = []
        case "cell_started" | "review_started" if run.turn:
            run.turn |= _code_in(event)
        case "tool_ended" if run.turn:
            run.turn["tool_calls"] += (ToolCall.model_validate(event["tool"]),)
        case "subcall_ended":
            inside = [runs[name] for name in event.get("children", ()) if name in runs]
            steps = [step for child in inside for step in child.steps]
            call = SubCall.model_validate({**event["subcall"], "number": event["number"], "steps": steps})
            run.calls[event["number"]] = call
            if run.turn:
                run.turn["calls"] += (call,)
                run.children = [child for child in run.children if child not in inside]
        case "turn_ended" | "step_added":
            run.turn = None
            if "step" in event:
                run.add(event)
        case "run_ended":
            run.ended = event
        case "run_resumed":
            run.go_on()
