"""Runs the code of a recorded run again without a model: model answers come from the record.

This shows whether a run is reproducible: on other inputs, in another interpreter, after a change of this package.
"""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import ValidationError

from rlm_dspy.errors import InvalidInputs, LimitExceeded
from rlm_dspy.json_values import jsonable
from rlm_dspy.limits import Limits
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.loop.run_state import Run
from rlm_dspy.loop.turn import Turn
from rlm_dspy.subcalls.ad_hoc import signature_from
from rlm_dspy.subcalls.dispatch import SubCalls
from rlm_dspy.subcalls.frames import SignatureFrame
from rlm_dspy.subcalls.item import answer_of
from rlm_dspy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rlm_dspy.report.record import Record
    from rlm_dspy.subcalls.frames import CallFrame
    from rlm_dspy.subcalls.item import Answer, SubCallItem
    from rlm_dspy.subcalls.target import Callee
    from rlm_dspy.trajectory import Step, SubCall

_KEPT_LIMITS = ("max_iters", "max_llm_calls", "max_output_chars", "max_concurrency", "max_depth")
_TOLD_CHARS = 80
_NOT_IN_RECORD = "NotInRecord"


@dataclass(frozen=True)
class ReplayedStep:
    """A recorded step and the result of running its code again.

    Attributes:
        number: Its number; the first is 1.
        recorded: The recorded step.
        replayed: The step of the replay.
        missing: The sub-calls of the replay that the record cannot answer, each with the reason.
        answered_otherwise: Whether the submitted values differ from the recorded outputs.
    """

    number: int
    recorded: Step
    replayed: Step
    missing: tuple[str, ...] = ()
    answered_otherwise: bool = False

    @property
    def same(self) -> bool:
        """Whether kind, output and answer of the step are the same."""
        then, now = self.recorded, self.replayed
        same = (then.kind, then.output.rstrip()) == (now.kind, now.output.rstrip())
        return same and not self.missing and not self.answered_otherwise

    def difference(self) -> str:
        """Return the difference of the outputs as a unified diff; empty if they are equal."""
        then, now = (f"[{step.kind}]\n{step.output}".splitlines() for step in (self.recorded, self.replayed))
        return "\n".join(difflib.unified_diff(then, now, "recorded", "replayed", lineterm=""))


def replay(
    record: Record,
    inputs: Mapping[str, Any],
    interpreter_factory: Callable[[], dspy.CodeInterpreter] | None = None,
    *,
    tools: Iterable[Callable[..., Any]] = (),
) -> list[ReplayedStep]:
    """Run the code of a record's steps in a fresh interpreter, in order, and compare the results.

    Sub-calls are answered from the record by name and inputs, each answer once, those of the same turn first. One
    that is not recorded fails with a message, and so does one whose answer was too long to record. Children
    are not run: the record has their answers. The unfinished last step of a killed run is left out.

    Args:
        record: The run.
        inputs: Its inputs by name; a record holds only the short form of long ones.
        interpreter_factory: Returns the interpreter; default as for an `RLM`.
        tools: The tools of the run, which are called for real.

    Raises:
        InvalidInputs: If the inputs do not fit the record's signature.
        ValueError: If the name of a tool is taken.
        dspy.CodeInterpreterError: If no interpreter can be started.
    """
    steps = [step for step in record.trajectory if step.kind not in ("killed", "folded")]
    run = _ReplayedRun(_module(record, list(tools)), inputs, interpreter_factory)
    run.subcalls.recorded = _Answers([call for step in steps for call in step.calls])
    run.open()
    try:
        return [_again(run, number, step, record) for number, step in enumerate(steps, 1)]
    finally:
        run.repl.close()


def _again(run: _ReplayedRun, number: int, step: Step, record: Record) -> ReplayedStep:
    run.subcalls.of_turn, run.subcalls.missing = _Answers(step.calls), []
    now = Turn(_Recorded(step), run)(number=number)
    run.keep(now)
    is_end = record.stop == "submitted" and number == len(record.trajectory)
    otherwise = is_end and jsonable(now.answer) != record.outputs
    return ReplayedStep(number, step, now, tuple(run.subcalls.missing), otherwise)


class _Recorded(dspy.Module):
    """Replaces `act` by the recorded reply of each step."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self._step = step

    def forward(self, **_: Any) -> dspy.Prediction:
        """Return reasoning and code of the step."""
        return dspy.Prediction(reasoning=self._step.reasoning, code=self._step.code)


@dataclass
class _RecordedCalls(SubCalls):
    """Answers the sub-calls of a run from a record.

    Attributes:
        recorded: All sub-calls of the record.
        of_turn: Those of the current turn.
        missing: The sub-calls of that turn that could not be answered.
    """

    recorded: _Answers = field(default_factory=lambda: _Answers([]))
    of_turn: _Answers = field(default_factory=lambda: _Answers([]))
    missing: list[str] = field(default_factory=list)

    def call(self, call: CallFrame) -> list[Answer]:
        """Answer the items of one call from the record.

        Raises:
            LimitExceeded: If the whole call was refused in the recorded run.
            RLMError: As `SubCalls.call`.
            TypeError: As `SubCalls.call`.
        """
        callee = self.callees.find(call.to)
        items = self._read(callee, call.items, call.same)
        self.enter(callee, items)
        with self._lock:
            for item in items:
                item.answer = item.answer or self._recorded(callee, item)
        if refused := [item.answer["error"] for item in items if item.answer.get("refused")]:
            raise LimitExceeded(refused[0])
        return [item.answer for item in items]

    def _recorded(self, callee: Callee, asked: SubCallItem) -> Answer:
        name = callee.interface.name
        found = self.of_turn.find(name, asked.shown) or self.recorded.find(name, asked.shown)
        whole = answer_of(found) if found else None
        if whole is not None:
            return whole
        why = "its answer was too long to be kept" if found else "it was not made then"
        given = ", ".join(f"{key}={one_line(value, _TOLD_CHARS)!r}" for key, value in asked.shown.items())
        label = f"{name}({given})"
        self.missing.append(f"{label}: {why}")
        message = f"{_NOT_IN_RECORD}: {label} cannot be answered from the record: {why}."
        return {"error": message, "kind": _NOT_IN_RECORD}


class _Answers:
    """Recorded sub-calls by name and inputs; each is returned once, and the last one again after that."""

    def __init__(self, calls: Sequence[SubCall]) -> None:
        self._waiting: dict[str, list[SubCall]] = {}
        for call in reversed(calls):
            self._waiting.setdefault(_key(call.name, call.inputs), []).append(call)

    def find(self, name: str, inputs: dict[str, str]) -> SubCall | None:
        """Return the next one; None if there was none."""
        waiting = self._waiting.get(_key(name, inputs))
        if not waiting:
            return None
        return waiting.pop() if len(waiting) > 1 else waiting[0]


class _ReplayedRun(Run):
    """A run whose sub-calls are answered from a record."""

    @functools.cached_property
    def subcalls(self) -> _RecordedCalls:
        """Answers the sub-calls of the run's code from the record."""
        return self._subcalls_of(_RecordedCalls)


def _key(name: str, inputs: dict[str, str]) -> str:
    return json.dumps([name, inputs], sort_keys=True)


def _module(record: Record, tools: list[Callable[..., Any]]) -> RLM:
    """Return a module whose REPL has the same names as in the record."""
    limits = {name: record.limits[name] for name in _KEPT_LIMITS if name in record.limits}
    return RLM(
        signature_of(record),
        tools=tools,
        subs=_subs(call for step in record.trajectory for call in step.calls),
        limits=Limits(**limits),
        cache=False,
        policy=None,
    )


def signature_of(record: Record) -> Any:
    """Return the signature of a record; untyped if a type exists only in the original program."""
    try:
        return signature_from(SignatureFrame(text=record.signature, instructions=record.instructions))
    except (InvalidInputs, ValidationError):  # the file is not trusted: no name in it is resolved
        inputs = {name: (Any, dspy.InputField()) for name in record.inputs}
    outputs = {name: (Any, dspy.OutputField()) for name in record.output_types}
    return dspy.Signature(inputs | outputs, record.instructions)


def _subs(calls: Iterable[SubCall]) -> dict[str, Any]:
    """Return stand-ins for the called subs, with the fields of the REPL's functions."""
    given: dict[str, list[dict[str, str]]] = {}
    for call in calls:
        if call.kind in ("sub", "child") and call.name.isidentifier() and call.name != "rlm_query":
            given.setdefault(call.name, []).append(call.inputs)
    return {name: dspy.Predict(_stand_in(inputs)) for name, inputs in given.items()}


def _stand_in(given: list[dict[str, str]]) -> Any:
    """Return a signature with the recorded fields; those not always given are optional."""
    names = list(dict.fromkeys(name for inputs in given for name in inputs))
    always = [name for name in names if all(name in inputs for inputs in given)]
    fields = {name: (Any, dspy.InputField(**({} if name in always else {"default": None}))) for name in names}
    return dspy.Signature(fields | {"answer": (Any, dspy.OutputField())}, "Answered from the record.")
