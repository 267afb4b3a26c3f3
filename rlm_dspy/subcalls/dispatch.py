"""Handles the sub-calls of the REPL on the host: looks them up, checks them, runs and records them."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlm_dspy.cache.sub_call_cache import SubCallCache, digest
from rlm_dspy.errors import InvalidInputs, LimitExceeded, RLMError
from rlm_dspy.events import BatchEvent, unit
from rlm_dspy.prompt.query import Prompt
from rlm_dspy.redaction import safe_message
from rlm_dspy.repl.type_names import bare
from rlm_dspy.repl.value_codec import Media, received, short, taken
from rlm_dspy.subcalls.batch import Answer, Batch, SubCallItem, sub_call_scope
from rlm_dspy.subcalls.frames import read_call
from rlm_dspy.trajectory import without_media_marks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import JsonValue

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.subcalls.frames import CallFrame, Part, Target
    from rlm_dspy.subcalls.target import ActiveRun, Callee
    from rlm_dspy.trajectory import SubCall
    from rlm_dspy.usage import RunUsage

_INPUT_CHARS = 500
_FAR_BEYOND = 2
"""A batch that needs more than this times the calls that are left is refused whole."""


@dataclass
class Tree:
    """The state that the runs of one tree share, besides the ledger.

    Attributes:
        given: The cache of answers; True for one of the tree's own, False for none.
        reused: How many sub-calls were answered by an earlier one.
        failed: How many sub-calls have failed.
        media: The images, sounds and files that REPLs know by name.
        ad_hoc: How often each module that was written in a REPL was called, by its signature.
    """

    given: SubCallCache | bool = True
    reused: int = 0
    failed: int = 0
    media: Media = field(default_factory=Media)
    ad_hoc: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @functools.cached_property
    def cache(self) -> SubCallCache | None:
        """Where answers are kept; None to keep none."""
        return self.given if isinstance(self.given, SubCallCache) else SubCallCache() if self.given else None

    def counted_in(self, usage: RunUsage) -> RunUsage:
        """Return a usage with the sub-calls that were reused, that failed, and that were ad hoc."""
        with self.lock:
            counts = {"reused": self.reused, "failed": self.failed, "ad_hoc": dict(self.ad_hoc)}
        return usage.model_copy(update=counts)


@dataclass
class SubCalls:
    """Handles the sub-calls of one run.

    Attributes:
        run: The run, as runs inside it find their parent.
        find: Gives what a call is for: its callee.
        ledger: What the tree may still spend.
        tree: What else its runs share.
        lm: The LM of sub-calls; None leaves the one in force.
        inputs: The run's inputs, which the REPL names instead of sending them.
        guard: Says why not to make a child, or nothing.
    """

    run: ActiveRun
    find: Callable[[Target], Callee]
    ledger: Ledger
    tree: Tree
    lm: Any
    inputs: dict[str, Any]
    guard: Callable[[dict[str, Any], str], str]
    log: list[tuple[Callee, int, SubCallItem]] = field(default_factory=list)
    _batches: int = 0
    _items: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer(self, call: JsonValue) -> dict[str, Any]:
        """Answer a call of the REPL: what its host function returns."""
        try:
            return self._answer(read_call(call))
        except InvalidInputs as error:
            return self._refused(error)

    def _answer(self, call: CallFrame) -> dict[str, Any]:
        with unit(BatchEvent(name=call.called, items=[_shown(item, call.same) for item in call.items])) as batch:
            try:
                answers = self.call(call)
            except (RLMError, TypeError, ValueError) as error:
                refused = self._refused(error)
                batch.end(refused=refused["refused"])
                return refused
            batch.end(answers=answers)
            return {"answers": answers}

    def _refused(self, error: Exception) -> dict[str, str]:
        return {"refused": safe_message(error, self.lm, self.run.lm), "kind": type(error).__name__}

    def begin(self) -> None:
        """Begin a turn: `taken` returns the calls made from now on."""
        with self._lock:
            self.log, self._batches = [], 0

    def taken(self) -> tuple[SubCall, ...]:
        """Return the turn's sub-calls so far, in the order they were asked for; listeners know of all then."""
        with self._lock:
            log = list(self.log)
        for callee, batch, asked in log:
            asked.tell(callee, batch)
        return tuple(asked.entry(callee, batch) for callee, batch, asked in log)

    def enter(self, callee: Callee, items: list[SubCallItem]) -> int:
        """Number the items of a call and note them for the turn; return the number of the batch in the turn."""
        with self._lock:
            self._batches += 1
            for item in items:
                self._items += 1
                item.number = self._items
            self.log += [(callee, self._batches, item) for item in items]
            return self._batches

    def call(self, call: CallFrame) -> list[Answer]:
        """Answer the items of one call.

        Returns:
            One answer an item, in order. An item that does not fit, that fails, or that the limits no longer
            allow, is an `error` answer; the others are kept.

        Raises:
            RLMError: If there is nothing of that name, or the batch is far beyond what is left.
            TypeError: If it is called with fields that it does not have.
        """
        callee = self.find(call.to)
        items = self._read(callee, call.items, call.same)
        number = self.enter(callee, items)
        self._count_ad_hoc(callee, len(items))
        leaders = self._known(callee, [item for item in items if not item.answer])
        for item in leaders if callee.kind == "child" else ():
            if problem := self.guard(item.inputs, digest(callee.interface.name, item.inputs)):
                item.answer = {"error": problem, "kind": "Refused"}
        waiting = [item for item in leaders if not item.answer]
        try:
            self._check_budget(callee, len(waiting))
        except LimitExceeded as error:
            for item in items:
                item.answer = item.answer or {"error": str(error), "kind": type(error).__name__, "refused": True}
                item.tell(callee, number)
            raise
        if waiting:
            batch = Batch(callee, waiting, self.tree.cache, self.ledger, number)
            with sub_call_scope(self.run, self.lm):
                batch.run()
        self._spread(items)
        for item in items:
            item.tell(callee, number)
        return [item.answer for item in items]

    def _read(self, callee: Callee, items: list[Part], same: Part) -> list[SubCallItem]:
        """Return the items, each with what is wrong with it as its answer; nothing is paid for these.

        Raises:
            LimitExceeded: If the run's time ends meanwhile.
        """
        constants = self._inputs_of(same)
        interface, keyed = callee.interface, self.tree.cache is not None
        unknown = sorted(
            {name for item in [same, *items] for part in item for name in part} - set(interface.inputs)
        )
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no such argument. Call it as {interface.call}.")
        common, known = self._checked(callee, constants)
        state = (
            [callee.state(self.lm), {name: digest(constants[name]) for name in sorted(constants)}] if keyed else []
        )
        shown = {name: short(value, _INPUT_CHARS) for name, value in constants.items()}
        read = []
        for part in items:
            self.ledger.check_open()  # reading many goes on when the code that asked has been stopped
            given = self._inputs_of(part)
            values, problems = self._checked(callee, given)
            given_names = given.keys() | constants.keys() | interface.defaults.keys()
            problems += [f"{name}: missing" for name in interface.inputs if name not in given_names]
            asked = SubCallItem(
                {**common, **values},
                {**shown, **{name: short(value, _INPUT_CHARS) for name, value in given.items()}},
                self.run.watch,
                digest(*state, given) if keyed else "",
            )
            if problems := [*known, *problems]:
                asked.fail(InvalidInputs(f"{interface.call}: {'; '.join(problems)}"))
            read.append(asked)
        return read

    def _inputs_of(self, part: Part) -> dict[str, Any]:
        values, handles = part
        if unknown := sorted(set(handles.values()) - self.inputs.keys()):
            raise InvalidInputs(
                f"No input of the run is named {', '.join(unknown)}; there are: {', '.join(self.inputs)}."
            )
        given = {name: taken(without_media_marks(value), self.tree.media) for name, value in values.items()}
        return {**given, **{name: self.inputs[own] for name, own in handles.items()}}

    def _checked(self, callee: Callee, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        values, problems = {}, []
        for name, value in given.items():
            try:
                if callee.kind == "query" and isinstance(value, list):
                    values[name] = Prompt(value, self.tree.media)
                    continue
                kind = callee.interface.inputs[name]
                values[name] = value if callee.kind == "child" and bare(kind) == kind else received(value, kind)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        return values, problems

    def _known(self, callee: Callee, items: list[SubCallItem]) -> list[SubCallItem]:
        """Answer what was answered before; return the first of each group of the others that ask the same."""
        leaders: dict[str, SubCallItem] = {}
        cache = self.tree.cache
        for number, item in enumerate(items):
            if cache is not None and callee.reused:
                found, value = cache.get(item.key)
                if found:
                    item.answer, item.cached = {"value": value}, True
                    continue
            leaders.setdefault(item.key or str(number), item)
        return list(leaders.values())

    def _check_budget(self, callee: Callee, needed: int) -> None:
        """Refuse a batch that is far beyond what is left.

        Raises:
            LimitExceeded: If it is; nothing was asked.
        """
        if needed > 1 and needed > _FAR_BEYOND * (left := self.ledger.calls_left):
            self.ledger.meet("max_llm_calls")
            raise LimitExceeded(
                f"{needed} calls of {callee.interface.name} were asked for, {left} of "
                f"{self.ledger.limits.max_llm_calls} model calls are left; none was made. Ask for at most {left}: "
                "narrow down with code first, or put several pieces into one call."
            )

    def _spread(self, items: list[SubCallItem]) -> None:
        """Give the answer of each group's first to those that asked the same; count the reused and the failed."""
        first: dict[str, SubCallItem] = {}
        for item in items:
            if not item.answer:
                item.repeat(first[item.key])
            elif item.key:
                first.setdefault(item.key, item)
        with self.tree.lock:
            self.tree.reused += sum(item.cached for item in items)
            self.tree.failed += sum("error" in item.answer for item in items)

    def _count_ad_hoc(self, callee: Callee, calls: int) -> None:
        if callee.kind == "ad_hoc" or callee.interface.whole:
            with self.tree.lock:
                self.tree.ad_hoc[callee.interface.name] += calls


def _shown(item: Part, same: Part) -> dict[str, Any]:
    """Return the inputs of an item, those that all of its batch share too; inputs of the run by their name."""
    shown: dict[str, Any] = {}
    for values, handles in (same, item):
        shown |= values
        shown |= {name: f"the whole input {own!r}" for name, own in handles.items()}
    return shown
