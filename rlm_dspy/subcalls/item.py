"""Defines a sub-call: as an item of a call, as the runs inside it find it, and how an error becomes its answer."""

from __future__ import annotations

import functools
import json
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import dspy

from rlm_dspy.budget.window_errors import as_window_error, is_too_long, sizes_of
from rlm_dspy.errors import ReplyCut, Unanswered
from rlm_dspy.events import SubCallEvent, emit, listeners
from rlm_dspy.redaction import safe_message
from rlm_dspy.repl.value_codec import short
from rlm_dspy.text import clip, sendable
from rlm_dspy.trajectory import SubCall
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """What went wrong."""
    kind: str
    """The class of the error."""
    partial: str
    """What there is of a reply that was cut short."""
    refused: bool
    """Whether the call was refused as a whole: code gets an exception in place of answers."""


_UNFINISHED: Answer = {"error": "The turn ended before the answer came.", "kind": "Unfinished"}


class ActiveRun(Protocol):
    """The run that made a sub-call, as sub-calls see it; `Run` is one."""

    lm: dspy.BaseLM
    watch: Watch | None
    depth: int
    heard: bool
    """Whether anybody listens to its events."""


@dataclass
class ActiveSubCall:
    """A sub-call under way, as an RLM that runs inside it finds it.

    Attributes:
        run: The run that made the sub-call: the parent of what runs inside.
        steps: The steps of the runs inside that have ended.
        stop: How the last run inside ended, as in `Prediction.stop`; empty if there was none.
        final_reasoning: Its last words; of one that ended unanswered, why it did.
    """

    run: ActiveRun
    steps: list[Step] = field(default_factory=list)
    stop: str = ""
    final_reasoning: str = ""

    def check(self, result: dspy.Prediction, *, is_child: bool) -> None:
        """Check that the sub-call did not end with a run inside that gave no answer.

        Args:
            result: What the module gave.
            is_child: Whether the module is an RLM. Another module may go on without the answer of a run inside
                it; one that returns the prediction of that run did not.

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
"""The sub-call that runs in this context; None outside of sub-calls, and in the tools of a run."""


@dataclass
class SubCallItem:
    """One item of a call, from request to answer.

    Attributes:
        inputs: The values of the input fields.
        shown: Their short forms, for the trajectory.
        watch: Finds the parts of the run's inputs that were sent with it; None if nobody wants to know.
        key: Under which the cache keeps its answer; empty if it has none.
        number: Its number in the run.
        id: Names it to listeners; empty until it is asked.
        told: Whether listeners were told of its end.
        answer: The answer; empty until there is one.
        attempts: How often its target was called.
        cached: Whether the answer is that of an earlier call.
        started: Seconds since the root run began.
        seconds: How long it took.
        spent: What each of its model calls used.
        inside: What the RLMs that ran inside it did.
        meter: Meters the requests of its last attempt.
        release: Gives its slot to another sub-call.
    """

    inputs: dict[str, Any]
    shown: dict[str, str]
    watch: Watch | None
    key: str = ""
    number: int = 0
    id: str = ""
    told: bool = False
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

    def tell(self, callee: Callee, batch: int) -> None:
        """Emit the end of the item to listeners, once."""
        told, self.told = self.told, True
        if not told and listeners():
            call = self.entry(callee, batch)
            emit(
                SubCallEvent(
                    phase="failed" if call.error else "ended",
                    id=self.id,
                    name=call.name,
                    kind=call.kind,
                    call=call,
                )
            )

    def entry(self, callee: Callee, batch: int) -> SubCall:
        """Return the item's entry in the trajectory."""
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
    """Return an answer as JSON: empty of a text that its short form tells whole, None if it is very long."""
    if isinstance(value, str) and len(value) <= _OUTPUT_CHARS:
        return ""
    text = sendable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _ANSWER_CHARS else None


def failed(error: BaseException, *lms: dspy.BaseLM | None) -> Answer:
    """Return an error as an answer, without the secrets of these LMs and of the environment."""
    kind = type(error).__name__
    answer: Answer = {"error": sendable(clip(f"{kind}: {safe_message(error, *lms)}", _ERROR_CHARS)), "kind": kind}
    if isinstance(error, ReplyCut):
        hint = "`partial` holds the received part. Ask for less at a time."
        answer |= {"error": f"{answer['error']} {hint}", "partial": sendable(error.partial)}
    return answer


def failed_request(error: Exception, callee: Callee, item: SubCallItem, *lms: dspy.BaseLM | None) -> Answer:
    """Return the error of a call as an answer, with what to do if the request is, or may be, too long."""
    if not isinstance(error, dspy.LMError):
        return failed(error, *callee.lms, *lms)
    error = as_window_error(error)
    answer = failed(error, *callee.lms, *lms)
    if callee.kind != "child" and is_too_long(error):  # a child's inputs are no part of its messages
        chars, window = sum(map(len, map(str, item.inputs.values()))), sizes_of(error).window
        told = f" of {window:,} tokens, about {_CHARS_PER_TOKEN * window:,} characters" if window else ""
        sure = "is" if isinstance(error, dspy.ContextWindowExceededError) else "may be"
        answer["error"] += (
            f"\nThe request {sure} too long for the model's context window{told}. Its inputs have {chars:,} "
            "characters: split the text or narrow it down with code."
        )
    return answer
