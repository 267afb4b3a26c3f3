"""Reads an event log into what a run needs to go on: its ended turns, and what it was answered since."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from rlm_dspy.budget.lm_info import RecordedReply
from rlm_dspy.events import ReviewEvent, here
from rlm_dspy.json_values import json_objects
from rlm_dspy.observe.event_log import VERSION, request_key
from rlm_dspy.observe.event_reader import usage_in
from rlm_dspy.resume.occurrences import Occurrences
from rlm_dspy.subcalls.item import RecordedCall, answer_of
from rlm_dspy.trajectory import Step, SubCall
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import dspy
    from pydantic import JsonValue

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.budget.lm_info import Price

_FINISHED = ("submitted", "direct", "extracted", "unanswered")
_OF_RUN = ("act", "fold", "extract", "direct")
"""The roles of a root run's own model calls, which do not count as sub-calls."""
_CUT_OFF = ("Unfinished", "RunEnded", "Pause", "HookFailed", "KeyboardInterrupt", "CancelledError", "CellStopped")
"""What ends a call before its answer came: it is made again, and a tool is told as interrupted."""
_LOST = Usage(calls=1, failures=1)
"""What is known of a request that was under way when the process was gone."""


class RecordedStep(NamedTuple):
    """An ended turn, or a summary.

    Attributes:
        step: The step.
        kept: The number of turns that are shown after a summary.
        read: The input tokens of the turn's last request; 0 if they were not reported.
    """

    step: Step
    kept: int = 0
    read: int = 0


@dataclass
class RecordedTool:
    """A tool call.

    Attributes:
        ended: The event of its end; None if there was none.
        not_made: Whether a hook was asked about it and has not agreed.
    """

    ended: dict[str, Any] | None = None
    not_made: bool = False


class _Spent(NamedTuple):
    role: str
    model: str
    used: Usage


@dataclass
class RecordedRun:
    """What a log holds of one run.

    Attributes:
        started: The event of its start.
        journal: What the runs of its tree share.
        parent: The run that made it; None for a root.
        steps: The turns that have ended, and the summaries.
        calls: The answered sub-calls.
        tools: The tool calls.
        hooks: The hooks that were asked.
        reviews: The decisions of hooks in the turn that has not ended, and on the answer after the last one.
        unfinished: The events of the turn that has not ended, of all attempts.
        in_turn: What was spent in that turn.
        sub_calls: The number of sub-calls in ended turns.
        lm_calls: The number of model calls.
        children: Its children that have not answered yet.
        ended: The event of its end, if it has one.
    """

    started: dict[str, Any]
    journal: Journal
    parent: RecordedRun | None
    steps: list[RecordedStep] = field(default_factory=list)
    calls: Occurrences[RecordedCall] = field(default_factory=Occurrences)
    tools: Occurrences[RecordedTool] = field(default_factory=Occurrences)
    hooks: set[str] = field(default_factory=set)
    reviews: Occurrences[ReviewEvent] = field(default_factory=Occurrences)
    unfinished: list[dict[str, Any]] = field(default_factory=list)
    in_turn: Usage = Usage()  # noqa: RUF009 (frozen)
    sub_calls: int = 0
    lm_calls: int = 0
    children: list[RecordedRun] = field(default_factory=list)
    ended: dict[str, Any] | None = None
    _turn: int = 0
    _read: int = 0
    _numbered: dict[int, SubCall] = field(default_factory=dict)
    _tools_by_id: dict[str, RecordedTool] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its id."""
        return str(self.started["run"])

    @property
    def is_finished(self) -> bool:
        """Whether it has ended by itself."""
        return self.ended is not None and self.ended.get("stop") in _FINISHED

    def child(self, known: Mapping[str, Any]) -> RecordedRun | None:
        """Return, once, an unanswered child of this task and these inputs; see `record.asked`."""
        with self.journal.lock:
            for child in self.children:
                if is_same_task(child.started, known):
                    self.children.remove(child)
                    return child
        return None

    def is_below(self, other: RecordedRun) -> bool:
        """Whether another run made this one, or a run above it."""
        return self.parent is not None and (self.parent is other or self.parent.is_below(other))

    def enter(self, event: dict[str, Any], runs: Mapping[str, RecordedRun]) -> None:
        """Add an event of this run."""
        self.unfinished.append(event)
        match event["event"]:
            case "turn_started":
                self._begin(event["turn"])
            case "lm_started":
                self.lm_calls = max(self.lm_calls, event["call"])
                self.journal.asked(self, event)
            case "lm_ended":
                self._read = event.get("input_tokens", 0) if event.get("role", "").endswith("act") else self._read
                self.journal.replied(self, event)
            case "tool_started":
                self._tools_by_id[event["id"]] = self.tools.add(event["asked"], RecordedTool())
            case "tool_ended" if event["tool"].get("error_type") not in _CUT_OFF:
                tool = self._tools_by_id[event["id"]]
                tool.ended = tool.ended or event
            case "review_started" | "review_ended" as name:
                self._review(event, has_ended=name == "review_ended")
            case "subcall_ended":
                self._add_call(event, runs)
            case "turn_ended" | "step_added" if "step" in event:
                self._add_step(event)
            case "run_resumed" | "run_ended" as name:
                self.ended = event if name == "run_ended" else None
                self.reviews.begin_attempt()
                self.journal.lose_requests(self)

    def _begin(self, turn: int) -> None:
        for calls in (self.calls, self.tools, self.reviews):
            calls.begin_turn() if turn != self._turn else calls.begin_attempt()
        self._turn = turn
        self._tools_by_id.clear()

    def _review(self, event: dict[str, Any], *, has_ended: bool) -> None:
        """Enter a question to a hook, or its decision. A call that it has not agreed to is not made."""
        self.journal.waits(event, has_ended=has_ended)
        self.hooks.add(event["hook"])
        has_agreed = has_ended and not event.keys() & {"refused", "error"}
        if (tool := self._tools_by_id.get(event.get("tool_call", ""))) is not None:
            tool.not_made = not has_agreed
            tool.ended = None
        if has_ended and "error" not in event:
            verdict = {name: event.get(name, "") for name in ("refused", "run_instead")}
            self.reviews.add(event["digest"], ReviewEvent(hook=event["hook"], asked=event["asked"], **verdict))

    def _add_call(self, event: dict[str, Any], runs: Mapping[str, RecordedRun]) -> None:
        inside = [runs[name] for name in event.get("children", ()) if name in runs]
        steps = [recorded.step for child in inside for recorded in child.steps]
        call = SubCall.model_validate({**event["subcall"], "number": event["number"], "steps": steps})
        self._numbered[call.number] = call
        if call.error_type in _CUT_OFF:
            return
        if (answer := event.get("answer") or answer_of(call)) is not None:
            self.calls.add(event["asked"], RecordedCall(call, answer, tuple(event.get("children", ()))))
        self.children = [child for child in self.children if child not in inside]
        self.journal.forget_replies(lambda reply: reply.subcall == event["id"])

    def _add_step(self, event: dict[str, Any]) -> None:
        calls = [self._numbered[number] for number in event.get("calls", ()) if number in self._numbered]
        step = Step.model_validate({**event["step"], "calls": calls})
        if step.kind == "folded":
            self.steps.append(RecordedStep(step, event.get("kept", 0)))
            self.journal.forget_replies(lambda reply: reply.run is self and reply.turn is None)
            return
        if event["event"] == "step_added" or step.kind == "submitted":
            return  # the turn is taken again: what it was answered is in the log
        self.steps.append(RecordedStep(step, read=self._read))
        self.sub_calls = max([self.sub_calls, *event.get("calls", ())])
        self.children.clear()
        self.unfinished.clear()
        self.in_turn = Usage()
        self.reviews = Occurrences()
        for recorded in (self.calls, self.tools):
            recorded.begin_turn()
        self.journal.forget_replies(lambda reply: reply.run is self or reply.run.is_below(self))

    def settle(self) -> None:
        """Make what is known of the unfinished turn available; all events are entered."""
        for calls in (self.calls, self.tools, self.reviews):
            calls.begin_turn()


class _Reply(NamedTuple):
    run: RecordedRun
    turn: int | None
    subcall: str | None
    key: str
    """`_turn_key` for the reply of a turn, else the digest of the request."""
    reply: RecordedReply


@dataclass
class Journal:
    """What the runs of one tree share.

    Attributes:
        seconds: The seconds that the tree has run.
        waited: Those of them in which a hook was waited for.
        spent: What each model call used.
        pending: The replies whose sub-call or turn has not ended.
        lock: Guards what threads take.
    """

    seconds: float = 0.0
    waited: float = 0.0
    spent: list[_Spent] = field(default_factory=list)
    pending: list[_Reply] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _under_way: dict[tuple[str, int], tuple[RecordedRun, dict[str, Any]]] = field(default_factory=dict)
    _waits: int = 0
    _waits_since: float = 0.0

    def waits(self, event: dict[str, Any], *, has_ended: bool) -> None:
        """Enter the start or the end of a question to a hook. Questions may overlap."""
        if not self._waits:
            self._waits_since = event["t"]
        self._waits += -1 if has_ended else 1
        if not self._waits:
            self.waited += event["t"] - self._waits_since

    def asked(self, run: RecordedRun, event: dict[str, Any]) -> None:
        """Enter the start of a request."""
        self._under_way[run.id, event["call"]] = run, event

    def replied(self, run: RecordedRun, event: dict[str, Any]) -> None:
        """Enter the end of a request."""
        self._under_way.pop((run.id, event["call"]), None)
        used = usage_in(event)
        is_reported = used.input_tokens or used.output_tokens or used.failures
        self._spend(run, event, used if is_reported else used.model_copy(update={"cached_calls": 1}))
        if "outputs" in event:
            turn, role = event.get("turn"), event.get("role", "")
            key = _turn_key(run.id, turn) if role.endswith("act") else event["request"]
            reply = RecordedReply(event["outputs"], event["finish"], used)
            self.pending.append(_Reply(run, turn, event.get("subcall"), key, reply))

    def _spend(self, run: RecordedRun, event: dict[str, Any], used: Usage) -> None:
        if not (role := event.get("role")):
            return  # a model call inside a tool: no ledger has it
        self.spent.append(_Spent(role, event["model"], used))
        above: RecordedRun | None = run
        while above is not None:
            above.in_turn += used
            above = above.parent

    def lose_requests(self, run: RecordedRun | None = None) -> None:
        """Enter the requests that were under way when the process was gone, of one run or of all, as failed.

        A hook that was waited for is no longer.
        """
        if run is None or run.parent is None:
            self.waited += self.seconds - self._waits_since if self._waits else 0.0
            self._waits = 0
        for key, (of, event) in list(self._under_way.items()):
            if run is None or of is run or of.is_below(run):
                del self._under_way[key]
                self._spend(of, event, _LOST)

    def forget_replies(self, is_over: Callable[[_Reply], bool]) -> None:
        """Forget the replies that nobody will ask for again."""
        self.pending = [reply for reply in self.pending if not is_over(reply)]

    def take(
        self, role: str, model: str, prompt: JsonValue, messages: Sequence[Mapping[str, Any]] | None
    ) -> RecordedReply | None:
        """Return the reply to a request, once; None if there is none.

        A turn takes the reply to that turn, others that to the same messages.
        """
        if not self.pending:
            return None
        at = here()
        of_turn = _turn_key(at.run, at.turn) if at is not None and role.endswith("act") else None
        key = of_turn or request_key(model, prompt, messages)
        with self.lock:
            found = next((each for each in self.pending if each.key == key), None)
            if found is None:
                return None
            self.pending.remove(found)
            return found.reply

    def settle(self, ledger: Ledger, lms: Iterable[dspy.BaseLM | None]) -> None:
        """Enter into a ledger what was paid and the time that has passed."""
        ledger.clock.go_on(self.seconds, self.waited)
        ledger.recorded = self
        prices = {lm.model: ledger.price(lm) for lm in lms if lm is not None}
        for role, model, used in self.spent:
            ledger.settle(role, model, _priced(used, prices.get(model)), calls=int(role not in _OF_RUN))


def _priced(used: Usage, price: Price | None) -> Usage:
    """Return a usage with its cost by the price of the model, if none was reported."""
    tokens = used.model_dump(include={"input_tokens", "cached_input_tokens", "output_tokens"})
    if used.cost is not None or price is None or not any(tokens.values()):
        return used
    return used.model_copy(update={"cost": price.of(**tokens)})


def is_same_task(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the event of a run's start is of this task and these inputs; see `record.asked`."""
    same = all(then.get(name) == now[name] for name in ("signature", "instructions"))
    return same and then.get("digests") == {name: part.model_dump() for name, part in now["digests"].items()}


def _turn_key(run: str, turn: int | None) -> str:
    return f"{run}:{turn}"


def read_roots(path: str | os.PathLike[str]) -> list[RecordedRun]:
    """Return the root runs of an event log in the order in which they started, with what there is of each.

    Raises:
        OSError: If the file cannot be read.
    """
    runs: dict[str, RecordedRun] = {}
    for event in _events(path):
        name = str(event.get("run"))
        if event["event"] == "run_started" and name not in runs:
            parent = runs.get(str(event.get("parent")))
            runs[name] = RecordedRun(event, parent.journal if parent else Journal(), parent)
            if parent is not None:
                parent.children.append(runs[name])
        elif name in runs:
            with contextlib.suppress(ValidationError, KeyError, TypeError):  # another program may write into it
                runs[name].enter(event, runs)
        if name in runs:
            runs[name].journal.seconds = max(runs[name].journal.seconds, float(event.get("t") or 0))
    for run in runs.values():
        run.settle()
        run.journal.lose_requests()
    return [run for run in runs.values() if run.parent is None]


def _events(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the events of this version; lines that are none, such as a torn last one, are skipped."""
    for event in json_objects(path):
        if isinstance(event.get("event"), str) and event.get("v") == VERSION:
            yield event
