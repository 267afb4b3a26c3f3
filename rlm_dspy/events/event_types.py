"""Defines the events: one frozen class for each kind of unit."""

from __future__ import annotations

import functools
import itertools
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from rlm_dspy.artifacts import Artifacts
from rlm_dspy.redaction import safe_message
from rlm_dspy.text import one_line
from rlm_dspy.text import seconds as in_seconds
from rlm_dspy.usage import RunUsage, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    import dspy

    from rlm_dspy.limits import Limits
    from rlm_dspy.trajectory import CallKind, Place, Step, StepKind, SubCall, ToolCall

Phase = Literal["started", "ended", "failed"]
_ERROR_CHARS = 200
_SHARED = ("run", "parent_run", "depth", "turn", "subcall", "began", "lm_calls")
"""What a unit takes from its parent."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A unit of a run started, ended or failed.

    Fields known only at the end (output, usage) have their defaults in the event of the start.

    Attributes:
        phase: `started`, `ended` or `failed`.
        id: Identifies the unit: the same at start and end.
        parent: The enclosing unit; None for a root run.
        run: The id of the `RunEvent` that it belongs to; a run belongs to itself.
        parent_run: The parent of the run; None for a root.
        depth: The number of runs around the run.
        turn: The number of its turn, from 1; None outside turns.
        subcall: The innermost sub-call around it, of this run or an outer one.
        began: When the root run began, by `time.monotonic`.
        seconds: When this happened, in seconds since then.
        error: The exception that left the unit, if it failed.
    """

    phase: Phase = "started"
    id: str = ""
    parent: str | None = None
    run: str = ""
    parent_run: str | None = None
    depth: int = 0
    turn: int | None = None
    subcall: str | None = None
    began: float = 0.0
    seconds: float = 0.0
    error: BaseException | None = None
    lm_calls: Iterator[int] = field(default_factory=functools.partial(itertools.count, 1), repr=False)
    """Numbers for the run's model calls."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Pickle nothing: DSPy's settings may be pickled during a run."""
        return type(None), ()

    def within(self, outer: Event | None) -> Self:
        """Return this event as a child of another unit."""
        name = self.id or uuid.uuid4().hex
        if outer is None:
            return replace(self, id=name)
        shared: dict[str, Any] = {name: getattr(outer, name) for name in _SHARED}
        return replace(self, id=name, parent=outer.id, seconds=time.monotonic() - outer.began, **shared)


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        stop: As in `Prediction.stop`; empty if an error ended it.
        outputs: The output fields by name.
        usage: The usage of the run and its children.
        final_reasoning: The text around the code that submitted; else how the answer was found, or why there
            is none.
        steps: Its steps.
        artifacts: The files that its code wrote below `output/`.
        sources: The places in its inputs that its answer came from, by output field.
    """

    stop: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    usage: RunUsage = RunUsage()  # noqa: RUF009 (frozen)
    final_reasoning: str = ""
    steps: tuple[Step, ...] = ()
    artifacts: Artifacts = field(default_factory=Artifacts)
    sources: Mapping[str, list[Place]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunEvent(Event):
    """A call of an RLM.

    Attributes:
        name: Its class.
        signature: Its signature.
        inputs: Its arguments by name; not validated yet.
        session: The id of the session of which it is a call; empty for none.
        limits: Its limits.
        lm: The LM of its turns.
        sub_lm: The LM of its sub-calls, if it is another.
        resumed: Whether it goes on from an event log, under its old id.
        started_at: The time of day, UTC.
        outcome: Its result; also if it failed, unless it could not start.
    """

    name: str
    signature: type[dspy.Signature]
    inputs: Mapping[str, Any]
    session: str = ""
    limits: Limits
    lm: dspy.BaseLM | None
    sub_lm: dspy.BaseLM | None
    resumed: bool = False
    started_at: datetime = field(default_factory=functools.partial(datetime.now, UTC))
    outcome: Outcome = Outcome()

    def within(self, outer: Event | None) -> Self:
        """Return this run as a child of another run's unit."""
        placed = super().within(outer)
        return replace(
            placed,
            run=placed.id,
            parent_run=outer.run if outer else None,
            depth=outer.depth + 1 if outer else 0,
            turn=None,
            began=outer.began if outer else self.began or time.monotonic(),
            lm_calls=self.lm_calls,
        )


@dataclass(frozen=True, kw_only=True)
class TurnEvent(Event):
    """A turn: the model writes code, the REPL runs it.

    Attributes:
        step: What came of it; None if it failed.
    """

    step: Step | None = None

    def within(self, outer: Event | None) -> Self:
        """Return this turn as part of a run."""
        return replace(super().within(outer), turn=self.turn)


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """A step outside of a turn: a summary of turns, or the rest of a turn that was cut short.

    Attributes:
        step: The step.
        kept: The number of turns that the model is still shown after a summary.
    """

    step: Step
    kept: int = 0


@dataclass(frozen=True, kw_only=True)
class ChunkEvent(Event):
    """The model has written a part of a turn's reply. Only listeners with `hears_chunks` receive it.

    The chunks of a field joined are what the model writes, without the fences of its code. What runs is the
    code of the `CellEvent` that follows: it also has code that is only known when the reply has ended, such as
    that of a tool call.

    Attributes:
        field: What it belongs to. `thinking` comes before or inside a reply, `reasoning` is the text around the
            code.
        text: The part.
        again: Whether the reply begins again with this part: its stream broke, and the request is repeated.
    """

    field: Literal["thinking", "reasoning", "code"]
    text: str
    again: bool = False


@dataclass(frozen=True, kw_only=True)
class CellEvent(Event):
    """The execution of a turn's code.

    Attributes:
        reasoning: The model's text around the code.
        code: The code.
        kind: How it ended; `submitted` also if the values do not fit.
        output: Its output, or the error.
        submitted: The arguments of SUBMIT, if it was called.
    """

    reasoning: str
    code: str
    kind: StepKind = "output"
    output: str = ""
    submitted: Any = None


@dataclass(frozen=True, kw_only=True)
class ReviewEvent(Event):
    """A hook of the run is asked: about code before its cell, in a tool call, about an answer after its cell.

    Attributes:
        hook: `on_code`, `on_tool` or `on_submit`.
        asked: What it is asked about, by name: `code`; `tool` and `arguments`; the output fields.
        refused: Why it refused; empty if it did not.
        run_instead: The code that it has run in place of the model's; empty if it has none.
    """

    hook: str
    asked: Mapping[str, Any]
    refused: str = ""
    run_instead: str = ""


@dataclass(frozen=True, kw_only=True)
class ToolEvent(Event):
    """A call of a user's tool. It also ends normally if the tool raises: see `call.error_type`.

    Attributes:
        name: Its name.
        arguments: Its arguments by name; positional ones under `args`.
        result: What it returned.
        call: The call in short form, as `Step.tool_calls` has it.
    """

    name: str
    arguments: Mapping[str, Any]
    result: Any = None
    call: ToolCall | None = None


@dataclass(frozen=True, kw_only=True)
class BatchEvent(Event):
    """One sub-call, or many made together.

    Attributes:
        name: The callee as written in code: `llm_query`, `dspy.Predict('text -> topic')`, the name of a sub.
        items: The inputs of each, by name.
        answers: The answer of each: `value`, or `error` and its `kind`.
        refused: Why the whole call was refused, if it was.
    """

    name: str
    items: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]] = ()
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class SubCallEvent(Event):
    """One item of a batch. A cached or rejected item has an end event but no start event.

    Attributes:
        name: The callee, as in `SubCall.name`.
        kind: As in `SubCall.kind`.
        call: The sub-call as the trajectory has it.
        asked: Identifies what was asked: equal for the same inputs of the same callee.
        answer: The whole answer: a `value`, or an `error` and its `kind`.
        children: The ids of the runs inside, if it was answered before the run was resumed.
    """

    name: str
    kind: CallKind
    call: SubCall | None = None
    asked: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict)
    children: Sequence[str] = ()

    def within(self, outer: Event | None) -> Self:
        """Return this sub-call as part of a batch."""
        placed = super().within(outer)
        return replace(placed, subcall=placed.id)


@dataclass(frozen=True, kw_only=True)
class LMEvent(Event):
    """A model call inside a run. Each attempt has its own event.

    Attributes:
        number: Its number in the run; the first is 1.
        lm: The LM. Its settings may contain keys.
        role: As in `usage["by_role"]`; empty for a model call inside a tool.
        prompt: The prompt, if it is one text.
        messages: The messages.
        outputs: Its outputs.
        finish: Why the provider ended the reply, in lower case: `stop`, `length`, ...
        usage: The reported usage: tokens and cost.
        cached: Whether DSPy's cache answered.
        price: The cost by the known price of the model, if it reports none; USD.
    """

    number: int
    lm: dspy.BaseLM
    role: str
    prompt: Any = None
    messages: Sequence[Mapping[str, Any]] = ()
    outputs: Any = None
    finish: Sequence[str] = ()
    usage: Usage = Usage()  # noqa: RUF009 (frozen)
    cached: bool = False
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class PauseEvent(Event):
    """A model call failed and waits before it is repeated, as long as its provider asks, if it does.

    Attributes:
        lm: The LM. Its settings may contain keys.
        pause: How long it waits, in seconds.
        after: The error, which may quote the request.
    """

    lm: dspy.BaseLM
    pause: float
    after: BaseException

    @property
    def text(self) -> str:
        """The pause and its reason, in one line without secrets."""
        why = one_line(safe_message(self.after, self.lm), _ERROR_CHARS)
        return f"a model call is repeated in {in_seconds(self.pause)}, after {why}"
