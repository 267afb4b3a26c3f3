"""Handles the sub-calls of the REPL on the host: looks them up, checks them, runs and records them."""

from __future__ import annotations

import functools
import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rlm_dspy.artifacts import ArtifactStore
from rlm_dspy.cache.sub_call_cache import SubCallCache, digest
from rlm_dspy.errors import InvalidInputs, LimitExceeded, RLMError
from rlm_dspy.events import BatchEvent, unit
from rlm_dspy.prompt.query import Prompt
from rlm_dspy.redaction import safe_message
from rlm_dspy.repl.type_names import bare
from rlm_dspy.repl.value_codec import Media, received, short, taken, without_media_marks
from rlm_dspy.subcalls.batch import Batch
from rlm_dspy.subcalls.child import Guard
from rlm_dspy.subcalls.frames import CallFrame, refusal_of
from rlm_dspy.subcalls.item import SubCallItem, failed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import JsonValue

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.subcalls.frames import Part
    from rlm_dspy.subcalls.item import ActiveRun, Answer, RecordedCalls
    from rlm_dspy.subcalls.target import Callee, Callees
    from rlm_dspy.trajectory import SubCall

_INPUT_CHARS = 500
_FAR_BEYOND = 2
"""A batch that needs more than this multiple of the remaining calls is refused whole."""


@dataclass
class Tree:
    """The state that the runs of one tree share, besides the ledger.

    Attributes:
        given: The cache of answers; True for the tree's own, False for none.
        media: The images, sounds and files that REPLs have by name.
        artifacts: The files that their code wrote.
        children: Numbers the runs below the root.
    """

    given: SubCallCache | bool = True
    media: Media = field(default_factory=Media)
    artifacts: ArtifactStore = field(default_factory=ArtifactStore)
    children: Iterator[int] = field(default_factory=functools.partial(itertools.count, 1))

    @functools.cached_property
    def cache(self) -> SubCallCache | None:
        """The cache of answers; None for none."""
        return self.given if isinstance(self.given, SubCallCache) else SubCallCache() if self.given else None


@dataclass
class SubCalls:
    """Handles the sub-calls of one run.

    Attributes:
        run: The run, as the parent of runs inside.
        callees: Finds the callee of a call.
        ledger: The ledger of the tree.
        tree: The other shared state of its runs.
        inputs: The run's inputs, which the REPL sends by name.
        in_log: The sub-calls that were answered before the run was resumed; None if it was not.
    """

    run: ActiveRun
    callees: Callees
    ledger: Ledger
    tree: Tree
    inputs: dict[str, Any]
    in_log: RecordedCalls | None = None
    log: list[tuple[Callee, int, SubCallItem]] = field(default_factory=list)
    _batches: int = 0
    _items: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._lm, self._guard = self.callees.lm, Guard(self.inputs)

    def answer(self, call: JsonValue) -> dict[str, Any]:
        """Answer a call of the REPL's host function."""
        try:
            frame = CallFrame.model_validate(call)
        except (ValidationError, RecursionError) as error:
            return self._refused(refusal_of(error))
        if not self.run.heard:
            return self._answered(frame)
        items = [_shown(item, frame.same) for item in frame.items]
        with unit(BatchEvent(name=frame.called, items=items)) as batch:
            answered = self._answered(frame)
            batch.end(answers=answered.get("answers", ()), refused=answered.get("refused", ""))
            return answered

    def _answered(self, call: CallFrame) -> dict[str, Any]:
        try:
            return {"answers": self.call(call)}
        except (RLMError, TypeError, ValueError) as error:
            return self._refused(error)

    def _refused(self, error: Exception) -> dict[str, Any]:
        return {"refused": safe_message(error, self._lm, self.run.lm), "kind": type(error).__name__}

    def begin(self) -> None:
        """Begin a turn: `taken` returns the calls made from now on."""
        with self._lock:
            self.log, self._batches = [], 0

    def taken(self) -> tuple[SubCall, ...]:
        """Return the turn's sub-calls so far in call order; emit missing end events."""
        with self._lock:
            log = list(self.log)
        for callee, batch, asked in log:
            asked.emit_end(callee, batch)
        return tuple(asked.entry(callee, batch) for callee, batch, asked in log)

    def enter(self, callee: Callee, items: list[SubCallItem]) -> int:
        """Number the items of a call and record them for the turn; return the batch number in the turn."""
        with self._lock:
            self._batches += 1
            for item in items:
                self._items += 1
                item.number = self._items
                self.log.append((callee, self._batches, item))
            return self._batches

    def call(self, call: CallFrame) -> list[Answer]:
        """Answer the items of one call.

        Returns:
            One answer per item, in order. An item that is invalid, fails, or exceeds the limits gives an `error`
            answer; the others are kept.

        Raises:
            RLMError: If the callee is unknown, or the batch is far beyond what is left.
            TypeError: If it is called with unknown fields.
        """
        callee = self.callees.find(call.to)
        items = self._read(callee, call.items, call.same)
        number = self.enter(callee, items)
        if callee.kind == "ad_hoc" or callee.interface.whole:
            self.ledger.count_ad_hoc(callee.interface.name, len(items))
        leaders = self._leaders(callee, items)
        if self.in_log is not None:
            self._take_recorded(self.in_log, callee, items)
        waiting = [item for item in leaders.values() if not item.answer]
        refusal = self._too_many(callee, len(waiting))
        if refusal is None and waiting:
            Batch(self.run, callee, self.tree.cache, self.ledger, self._lm, number).answer(waiting)
        for item in items:
            if refusal is not None:
                item.answer = item.answer or {"error": str(refusal), "kind": "LimitExceeded", "refused": True}
            elif not item.answer:
                item.answer = leaders[item.key].answer
                item.cached = "value" in item.answer
            if self.run.heard:
                item.emit_end(callee, number)
        if refusal is not None:
            raise refusal
        reused, failures = sum(item.cached for item in items), sum("error" in item.answer for item in items)
        if reused or failures:
            self.ledger.count_answers(reused=reused, failed=failures)
        return [item.answer for item in items]

    def _take_recorded(self, in_log: RecordedCalls, callee: Callee, items: list[SubCallItem]) -> None:
        """Answer the items that were answered before the run was resumed, and keep the answers for later ones.

        Raises:
            LimitExceeded: If the whole call was refused.
        """
        in_log.answer(callee.interface.name, items)
        inside = [call for item in items if item.recorded for call in _calls_inside(item.recorded.call)]
        self.ledger.count_answers(reused=sum(call.cached for call in inside), failed=sum(map(_failed, inside)))
        if refused := [item.answer["error"] for item in items if item.answer.get("refused")]:
            raise LimitExceeded(refused[0])
        if (cache := self.tree.cache) is not None and callee.reused:
            for item in items:
                if item.key and "value" in item.answer:
                    cache.once(item.key, functools.partial(dict(item.answer).__getitem__, "value"))

    def begin_at(self, number: int) -> None:
        """Number the next item after this one."""
        self._items = number

    def _leaders(self, callee: Callee, items: list[SubCallItem]) -> dict[str, SubCallItem]:
        """Return the first of identical items, by key; answer refused children."""
        leaders: dict[str, SubCallItem] = {}
        for item in items:
            if not item.answer:
                leaders.setdefault(item.key or str(item.number), item)
        for item in leaders.values() if callee.kind == "child" else ():
            if problem := self._guard(item.inputs, digest(callee.interface.name, item.inputs)):
                item.answer = {"error": problem, "kind": "Refused"}
        return leaders

    def _read(self, callee: Callee, parts: list[Part], same: Part) -> list[SubCallItem]:
        """Return the items, with answers for invalid and cached ones.

        Raises:
            LimitExceeded: If the run's time limit is reached meanwhile.
        """
        interface, items = callee.interface, list[SubCallItem]()
        unknown = sorted({name for part in [same, *parts] for of in part for name in of} - set(interface.inputs))
        if unknown:
            raise TypeError(f"Unknown argument {', '.join(unknown)}. Call it as {interface.call}.")
        common = self._fields(callee, same)
        if (cache := self.tree.cache) is not None:
            state = callee.state(self._lm) if callee.reused else "", digest(common.given) if common.given else ""
        for part in parts:
            if items:
                self.ledger.check_open()  # validating many items continues after the calling code was stopped
            own = self._fields(callee, part)
            item = SubCallItem(common.inputs | own.inputs, common.shown | own.shown, self.run.watch)
            items.append(item)
            known = common.given | own.given
            missing = [name for name in interface.inputs if name not in known and name not in interface.defaults]
            problems = [*common.problems, *own.problems, *(f"{name}: missing" for name in missing)]
            if cache is not None:
                item.key = digest(*state, own.given)
            if self.run.heard:
                item.asked = digest(interface.name, known)
            if problems:
                item.answer = failed(InvalidInputs(f"{interface.call}: {'; '.join(problems)}"))
            elif cache is not None and callee.reused:
                item.cached, value = cache.get(item.key)
                item.answer = {"value": value} if item.cached else {}
        return items

    def _fields(self, callee: Callee, part: Part) -> _Fields:
        """Return the fields of an item, or those that all items share.

        Raises:
            InvalidInputs: If the run has no input of that name.
            ValueError: If a value cannot be decoded.
        """
        values, handles = part
        if unknown := sorted(set(handles.values()) - self.inputs.keys()):
            raise InvalidInputs(f"Unknown input {', '.join(unknown)}; the inputs are: {', '.join(self.inputs)}.")
        fields, media = _Fields(), self.tree.media
        for name, value in values.items():
            fields.given[name] = taken(without_media_marks(value), media)
        for name, own in handles.items():
            fields.given[name] = self.inputs[own]
        for name, value in fields.given.items():
            fields.shown[name] = short(value, _INPUT_CHARS)
            kind = callee.interface.inputs[name]
            try:
                if callee.kind == "query" and isinstance(value, list):
                    fields.inputs[name] = Prompt.of(value, media)
                elif callee.kind == "child" and bare(kind) == kind:
                    fields.inputs[name] = value
                else:
                    fields.inputs[name] = received(value, kind)
            except ValueError as error:
                fields.problems.append(f"{name}: {error}")
        return fields

    def _too_many(self, callee: Callee, needed: int) -> LimitExceeded | None:
        """Return an error if a batch is far beyond what is left, else None."""
        if needed <= 1 or needed <= _FAR_BEYOND * (left := self.ledger.calls_left):
            return None
        self.ledger.meet("max_llm_calls")
        return LimitExceeded(
            f"This needs {needed} calls of {callee.interface.name}, but only {left} of "
            f"{self.ledger.limits.max_llm_calls} model calls are left; none was made. Ask for at most {left}: "
            "narrow down with code first, or put several pieces into one call."
        )


def _calls_inside(call: SubCall) -> Iterator[SubCall]:
    """Yield the sub-calls of the runs inside a sub-call, at any depth."""
    for step in call.steps:
        for inner in step.calls:
            yield inner
            yield from _calls_inside(inner)


def _failed(call: SubCall) -> bool:
    return bool(call.error)


@dataclass
class _Fields:
    """The fields of an item, or those that all items of a call share.

    Attributes:
        given: The values from code, by field.
        inputs: The values for the callee.
        shown: The values in short form, for the trajectory.
        problems: The reasons why values do not fit.
    """

    given: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _shown(item: Part, same: Part) -> dict[str, Any]:
    """Return the inputs of an item with those shared by its batch; inputs of the run by name."""
    shown: dict[str, Any] = {}
    for values, handles in (same, item):
        shown |= values
        shown |= {name: f"the whole input {own!r}" for name, own in handles.items()}
    return shown
