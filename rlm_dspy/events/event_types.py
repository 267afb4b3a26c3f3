"""Defines the events: one frozen class for each kind of unit."""

from __future__ import annotations

import functools
import itertools
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from rlm_dspy.usage import RunUsage, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    import dspy

    from rlm_dspy.limits import Limits
    from rlm_dspy.trajectory import CallKind, Step, StepKind, SubCall, ToolCall

Phase = Literal["started", "ended", "failed"]
_SHARED = ("run", "parent_run", "depth", "turn", "subcall", "began", "lm_calls")
"""What a unit has of the unit around it."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """A unit of a run started, ended or failed.

    What is known only at the end (an output, what was used) has its default in the event of the start.

    Attributes:
        phase: Which of the three.
        id: Names the unit: the same at start and end.
        parent: The unit around it; None for a run that is called from outside.
        run: The run that it belongs to, by the id of its `RunEvent`; a run belongs to itself.
        parent_run: The run that the run is inside of; None for a root.
        depth: How many runs the run is inside of.
        turn: The number of the turn that it belongs to, from 1; None outside of turns.
        subcall: The innermost sub-call that it is part of, of the run or of those around it.
        began: When the root run began, by `time.monotonic`.
        seconds: When this happened, in seconds since then.
        error: What has left the unit, if it failed.
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
        """Be nothing elsewhere: DSPy's settings may be pickled while a run goes on."""
        return type(None), ()

    def within(self, outer: Event | None) -> Self:
        """Return this unit as part of another."""
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
        usage: What it and its children used.
        final_reasoning: The model's last words.
        steps: What it did.
    """

    stop: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    usage: RunUsage = RunUsage()  # noqa: RUF009 (frozen)
    final_reasoning: str = ""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunEvent(Event):
    """A call of an RLM.

    Attributes:
        name: Its class.
        signature: Its signature.
        inputs: What it was called with, by name; not checked yet.
        limits: What it may spend.
        lm: Who takes its turns.
        sub_lm: Who answers what its code asks, if that is another.
        started_at: The time of day, UTC.
        outcome: What came of it; also if it failed, unless it could not begin.
    """

    name: str
    signature: type[dspy.Signature]
    inputs: Mapping[str, Any]
    limits: Limits
    lm: dspy.BaseLM | None
    sub_lm: dspy.BaseLM | None
    started_at: datetime = field(default_factory=functools.partial(datetime.now, UTC))
    outcome: Outcome = Outcome()

    def within(self, outer: Event | None) -> Self:
        """Return this run as part of another's unit."""
        placed = super().within(outer)
        return replace(
            placed,
            run=placed.id,
            parent_run=outer.run if outer else None,
            depth=outer.depth + 1 if outer else 0,
            turn=None,
            began=outer.began if outer else time.monotonic(),
            lm_calls=itertools.count(1),
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
    """A step outside of a turn: a summary of turns, or the rest of a turn that was cut short."""

    step: Step


@dataclass(frozen=True, kw_only=True)
class CellEvent(Event):
    """The execution of a turn's code.

    Attributes:
        reasoning: What the model wrote around it.
        code: The code.
        kind: How it ended; `submitted` also if the values do not fit.
        output: What it printed, or what went wrong.
        submitted: What SUBMIT was called with, if it was.
    """

    reasoning: str
    code: str
    kind: StepKind = "output"
    output: str = ""
    submitted: Any = None


@dataclass(frozen=True, kw_only=True)
class ToolEvent(Event):
    """A call of a user's tool. It also ends if the tool raises: see `call.error_type`.

    Attributes:
        name: Its name.
        arguments: What it was called with: by name, and those without one under `args`.
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
        name: What it calls, in its words: `llm_query`, `dspy.Predict('text -> topic')`, the name of a sub.
        items: The inputs of each, by name.
        answers: The answer of each: `value`, or `error` and its `kind`.
        refused: Why nothing was asked, if the whole call was refused.
    """

    name: str
    items: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]] = ()
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class SubCallEvent(Event):
    """One item of a batch. An item that was cached or rejected has an end and no start.

    Attributes:
        name: What is called, as in `SubCall.name`.
        kind: As in `SubCall.kind`.
        call: The sub-call as the trajectory has it.
    """

    name: str
    kind: CallKind
    call: SubCall | None = None

    def within(self, outer: Event | None) -> Self:
        """Return this sub-call as part of a batch."""
        placed = super().within(outer)
        return replace(placed, subcall=placed.id)


@dataclass(frozen=True, kw_only=True)
class LMEvent(Event):
    """A model call inside a run. Each attempt has its own event.

    Attributes:
        number: Its number in the run; the first is 1.
        lm: Who is asked. Its settings may hold keys.
        role: As in `usage["by_role"]`; empty for a model that a tool asks by itself.
        prompt: What is sent, if it is one text.
        messages: What is sent.
        outputs: What it answered.
        usage: What it reported of the call: tokens and cost.
        cached: Whether DSPy's cache answered.
        price: What the call cost by the known price of the model, if it does not say itself; USD.
    """

    number: int
    lm: dspy.BaseLM
    role: str
    prompt: Any = None
    messages: Sequence[Mapping[str, Any]] = ()
    outputs: Any = None
    usage: Usage = Usage()  # noqa: RUF009 (frozen)
    cached: bool = False
    price: float | None = None
