"""Defines a sub-call: the item of a call, the active sub-call of runs inside, and the error answer."""

from __future__ import annotations

import functools
import json
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypedDict

import dspy

from rlm_dspy.budget.window_errors import as_window_error, is_too_long, sizes_of
from rlm_dspy.errors import ReplyCut, ReplyWithheld, Unanswered
from rlm_dspy.events import SubCallEvent, emit, listeners
from rlm_dspy.redaction import safe_message
from rlm_dspy.repl.value_codec import short
from rlm_dspy.text import clip, sendable
from rlm_dspy.trajectory import SubCall
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rlm_dspy.budget.ledger import Meter
    from rlm_dspy.coverage.tracker import Watch
    from rlm_dspy.subcalls.target import Callee
    from rlm_dspy.trajectory import Span, Step

_ERROR_CHARS = 1_000
_OUTPUT_CHARS = 1_000
_ANSWER_CHARS = 20_000
_CHARS_PER_TOKEN = 3


class Answer(TypedDict, total=False):
    """The answer to an item: a `value`, or an `error` and its `kind`."""

    value: Any
    error: str
    """The error message."""
    kind: str
    """The class of the error."""
    partial: str
    """The received part of a truncated reply."""
    refused: bool
    """Whether the whole call was refused: code gets an exception instead of answers."""


_UNFINISHED: Answer = {"error": "The turn ended before the answer came.", "kind": "Unfinished"}


class RecordedCall(NamedTuple):
    """A sub-call that was answered before its run was resumed.

    Attributes:
        call: Its entry of the trajectory.
        answer: Its answer.
        children: The ids of the runs inside.
    """

    call: SubCall
    answer: Answer
    children: tuple[str, ...] = ()


class RecordedCalls(Protocol):
    """The sub-calls of a run that were answered before it was resumed."""

    def answer(self, name: str, items: Sequence[SubCallItem]) -> None:
        """Answer the items that were answered then."""


class ActiveRun(Protocol):
    """Interface of a run that makes sub-calls; `Run` implements it."""

    lm: dspy.BaseLM
    watch: Watch | None
    depth: int
    heard: bool
    """Whether there is a listener to its events."""


@dataclass
class ActiveSubCall:
    """A running sub-call, as seen by an RLM inside it.

    Attributes:
        run: The run that made the sub-call: the parent of runs inside.
        steps: The steps of ended runs inside.
        stop: How the last run inside ended, as in `Prediction.stop`; empty if there was none.
        final_reasoning: Its final reasoning; if unanswered, the reason.
    """

    run: ActiveRun
    steps: list[Step] = field(default_factory=list)
    stop: str = ""
    final_reasoning: str = ""

    def check(self, result: dspy.Prediction, *, is_child: bool) -> None:
        """Check that the sub-call did not end with an unanswered run inside.

        Args:
            result: The module's result.
            is_child: Whether the module is an RLM. Another module may continue without the answer of a run inside,
                unless it returns that run's prediction.

        Raises:
            Unanswered: If it did; the message says why the run ended and what to do.
        """
        handed_on = isinstance(result, dspy.Prediction) and result.get("stop") == "unanswered"
        if self.stop == "unanswered" and (is_child or handed_on):
            raise Unanswered(
                f"The child ended without an answer. {self.final_reasoning} Give it a smaller part or a simpler "
                "task, or continue with plain Python."
            )


active_sub_call: ContextVar[ActiveSubCall | None] = ContextVar("active_sub_call", default=None)
"""The sub-call of this context; None outside sub-calls, and in the tools of a run."""


@dataclass
class SubCallItem:
    """One item of a call, from request to answer.

    Attributes:
        inputs: The values of the input fields.
        shown: Their short forms, for the trajectory.
        watch: Finds the parts of the run's inputs that were sent with it; None if not watched.
        key: Its cache key; empty if it is not cached.
        asked: Identifies callee and inputs in an event log; empty if there is none.
        recorded: What it was before the run was resumed; None if it is new.
        number: Its number in the run.
        id: Its id for listeners; empty before the call.
        reported: Whether its end event was emitted.
        answer: The answer; empty until there is one.
        attempts: The number of calls of its module.
        cached: Whether the answer comes from an earlier call.
        started: Seconds since the root run began.
        seconds: Its duration.
        spent: The usage of each of its model calls.
        inside: The runs inside it.
        meter: The meter of its last attempt.
        release: Frees its concurrency slot.
    """

    inputs: dict[str, Any]
    shown: dict[str, str]
    watch: Watch | None
    key: str = ""
    asked: str = ""
    recorded: RecordedCall | None = None
    number: int = 0
    id: str = ""
    reported: bool = False
    answer: Answer = field(default_factory=Answer)
    attempts: int = 0
    cached: bool = False
    started: float = 0.0
    seconds: float = 0.0
    spent: list[Usage] = field(default_factory=list)
    inside: ActiveSubCall | None = None
    meter: Meter | None = None
    release: Callable[[], object] = lambda: None

    @functools.cached_property
    def sent(self) -> tuple[Span, ...]:
        """The parts of the run's inputs that the item contains."""
        return self.watch.sent(self.inputs) if self.watch else ()

    def emit_end(self, callee: Callee, batch: int) -> None:
        """Emit the end of the item to listeners, once."""
        reported, self.reported = self.reported, True
        if not reported and listeners():
            call = self.entry(callee, batch)
            emit(
                SubCallEvent(
                    phase="failed" if call.error else "ended",
                    id=self.id,
                    name=call.name,
                    kind=call.kind,
                    call=call,
                    asked=self.asked,
                    answer=self.answer or _UNFINISHED,
                    children=self.recorded.children if self.recorded else (),
                )
            )

    def entry(self, callee: Callee, batch: int) -> SubCall:
        """Return the item as an entry of the trajectory."""
        if self.recorded is not None:
            return self.recorded.call.model_copy(update={"number": self.number, "batch": batch})
        answer = self.answer or _UNFINISHED
        given = answer.get("value", answer.get("partial", ""))
        whole = _whole(given)
        return SubCall(
            name=callee.interface.name,
            kind=callee.kind,
            number=self.number,
            batch=batch,
            inputs=self.shown,
            output=short(given, _OUTPUT_CHARS),
            answer=whole or "",
            truncated=whole is None,
            error=answer.get("error", ""),
            error_type=answer.get("kind", ""),
            refused="refused" in answer,
            cached=self.cached,
            attempts=self.attempts,
            started=self.started,
            seconds=self.seconds,
            spent=sum(self.spent, Usage()),
            sent=self.sent if self.attempts else (),
            stop=self.inside.stop if self.inside else "",
            steps=tuple(self.inside.steps) if self.inside else (),
        )


def _whole(value: Any) -> str | None:
    """Return an answer as JSON: empty for a text whose short form is complete, None if it is very long."""
    if isinstance(value, str) and len(value) <= _OUTPUT_CHARS:
        return ""
    text = sendable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _ANSWER_CHARS else None


def answer_of(call: SubCall) -> Answer | None:
    """Return the answer of an entry, as sent to the REPL; None if it is too long for an entry."""
    given = json.loads(call.answer) if call.answer else call.output
    if call.error:
        answer: Answer = {"error": call.error, "kind": call.error_type}
        if given:
            answer["partial"] = given
        if call.refused:
            answer["refused"] = True
        return answer
    return None if call.truncated else {"value": given}


def failed(error: BaseException, *lms: dspy.BaseLM | None) -> Answer:
    """Return an error as an answer, without secrets of these LMs and of the environment."""
    kind = type(error).__name__
    answer: Answer = {"error": sendable(clip(f"{kind}: {safe_message(error, *lms)}", _ERROR_CHARS)), "kind": kind}
    if isinstance(error, ReplyCut):
        fix = "Ask in other words." if isinstance(error, ReplyWithheld) else "Ask for less at a time."
        hint = f"Its `.partial` holds the received part. {fix}"
        answer |= {"error": f"{answer['error']} {hint}", "partial": sendable(error.partial)}
    return answer


def failed_request(error: Exception, callee: Callee, item: SubCallItem, *lms: dspy.BaseLM | None) -> Answer:
    """Return the error of a call as an answer, with advice if the request is, or may be, too long."""
    if not isinstance(error, dspy.LMError):
        return failed(error, *callee.lms, *lms)
    error = as_window_error(error)
    answer = failed(error, *callee.lms, *lms)
    if callee.kind != "child" and is_too_long(error):  # a child's inputs are not part of its messages
        chars, window = sum(map(len, map(str, item.inputs.values()))), sizes_of(error).window
        size = f" of {window:,} tokens, about {_CHARS_PER_TOKEN * window:,} characters" if window else ""
        sure = "is" if isinstance(error, dspy.ContextWindowExceededError) else "may be"
        answer["error"] += (
            f"\nThe request {sure} too long for the model's context window{size}. Its inputs have {chars:,} "
            "characters: split the text or narrow it down with code."
        )
    return answer
