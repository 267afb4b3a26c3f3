"""Runs the items of a sub-call concurrently and keeps their order; a failed item becomes an error answer."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import dspy

from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.budget.window_errors import as_window_error, is_too_long, sizes_of
from rlm_dspy.concurrency.async_forms import must_be_awaited
from rlm_dspy.concurrency.event_loops import LoopCall
from rlm_dspy.concurrency.port import loop_for
from rlm_dspy.errors import LimitExceeded, ReplyCut
from rlm_dspy.events import SubCallEvent, emit, listeners, unit
from rlm_dspy.prompt.free_form_outputs import outputs_in_words
from rlm_dspy.redaction import safe_message
from rlm_dspy.repl.value_codec import sent, short
from rlm_dspy.subcalls.target import ActiveSubCall, active_sub_call, retrying_after
from rlm_dspy.text import clip, sendable
from rlm_dspy.trajectory import SubCall
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from rlm_dspy.budget.ledger import Ledger, Meter
    from rlm_dspy.cache.sub_call_cache import SubCallCache
    from rlm_dspy.coverage.tracker import Watch
    from rlm_dspy.events import Phase
    from rlm_dspy.subcalls.target import ActiveRun, Callee
    from rlm_dspy.trajectory import Span


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


_CHAT = dspy.ChatAdapter()
"""What DSPy uses where no adapter is set; it writes the JSON schemas of a signature, which are slow, only once."""
_CHAT.format_field_structure = functools.lru_cache(maxsize=64)(_CHAT.format_field_structure)
_ERROR_CHARS = 1_000
_OUTPUT_CHARS = 1_000
_ANSWER_CHARS = 20_000
_CHARS_PER_TOKEN = 3


@dataclass
class SubCallItem:
    """One item of a call, from request to answer.

    Attributes:
        inputs: The values of the input fields.
        shown: Their short forms, for the trajectory.
        number: Its number in the run.
        id: Names it to listeners; empty until it is asked.
        told: Whether listeners were told of its end.
        key: Under which the cache keeps its answer; empty if it has none.
        answer: The answer; empty until there is one.
        attempts: How often its target was called.
        cached: Whether the answer is that of an earlier call.
        started: Seconds since the root run began.
        seconds: How long it took.
        spent: What each of its model calls used.
        inside: What the RLMs that ran inside it did.
        watch: Finds the parts of the run's inputs that were sent with it; None if nobody wants to know.
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

    def fail(self, error: BaseException) -> None:
        """Answer the item with an error."""
        self.answer = failed(error)

    def repeat(self, other: SubCallItem) -> None:
        """Answer the item with the answer of an identical item."""
        self.answer, self.cached = other.answer, "value" in other.answer

    def tell(self, callee: Callee, batch: int) -> None:
        """Emit the end of the item to listeners, once."""
        told, self.told = self.told, True
        if not told and listeners():
            call = self.entry(callee, batch)
            phase: Phase = "failed" if call.error else "ended"
            emit(SubCallEvent(phase=phase, id=self.id, name=call.name, kind=call.kind, call=call))

    def entry(self, callee: Callee, batch: int) -> SubCall:
        """Return the item's entry in the trajectory."""
        unfinished: Answer = {"error": "The turn ended before it was answered.", "kind": "Unfinished"}
        answer = self.answer or unfinished
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


def failed(error: BaseException, *lms: Any) -> Answer:
    """Return an error as an answer, without the secrets of these LMs and of the environment."""
    kind = type(error).__name__
    answer: Answer = {"error": sendable(clip(f"{kind}: {safe_message(error, *lms)}", _ERROR_CHARS)), "kind": kind}
    if isinstance(error, ReplyCut):
        hint = "`partial` holds what there is of it. Ask for less at once."
        answer |= {"error": f"{answer['error']} {hint}", "partial": sendable(error.partial)}
    return answer


def _advice(error: Exception, item: SubCallItem) -> str:
    """Return what to do about a request that is, or may be, too long for the model; nothing of other errors."""
    if not isinstance(error, dspy.LMError) or not is_too_long(error):
        return ""
    chars, window = sum(map(len, map(str, item.inputs.values()))), sizes_of(error).window
    told = f" of {window:,} tokens, about {_CHARS_PER_TOKEN * window:,} characters" if window is not None else ""
    sure = "is" if isinstance(error, dspy.ContextWindowExceededError) else "may be"
    return (
        f"\nThe request {sure} too long for the model's window{told}. Its inputs have {chars:,} characters: pass "
        "less at a time, split the text or narrow it down with code."
    )


class Batch:
    """The items of one call.

    Args:
        callee: What is called.
        items: Those to ask.
        cache: Where answers are kept; None to keep none.
        ledger: What the tree may still spend.
        number: Its number in the turn.
    """

    def __init__(
        self, callee: Callee, items: list[SubCallItem], cache: SubCallCache | None, ledger: Ledger, number: int = 1
    ) -> None:
        self._number = number
        self._name = callee.interface.name
        self._done = 0
        self._callee = callee
        self._items = items
        self._cache = cache
        self._ledger = ledger
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._must_be_awaited = must_be_awaited(callee.module)

    def run(self) -> None:
        """Answer every item, at most `max_concurrency` at once, each in a copy of the present context.

        If the ledger is closed meanwhile, what is not answered by then has failed: nobody waits for it.
        """
        timed = self._ledger.limits.max_seconds is not None
        self._loop = loop_for(self._callee.module, self._callee.options.get("lm"), timed=timed)
        present, waiting, changed = contextvars.copy_context(), deque(self._items), threading.Event()
        raised: list[BaseException] = []

        def work() -> None:
            while self._ledger.closed is None and not raised:
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                try:
                    present.copy().run(self._answer, item)
                except BaseException as error:  # noqa: BLE001 (no Exception: it is the caller's)
                    raised.append(error)
                if raised or self._done == len(self._items):
                    changed.set()

        for _ in range(max(1, min(self._ledger.limits.max_concurrency, len(self._items)))):
            threading.Thread(target=work, name=f"rlm-{self._name}", daemon=True).start()
        with self._ledger.cancellation.telling(lambda _: changed.set()):
            while self._done < len(self._items) and not raised and self._ledger.closed is None:
                changed.wait()
                changed.clear()
        if raised:
            raise raised[0]
        if (why := self._ledger.closed) is not None:
            self._give_up(why)

    def _give_up(self, why: LimitExceeded) -> None:
        self._ledger.meet(why.limit)
        with self._lock:
            given_up = [item for item in self._items if not item.answer]
            for item in given_up:
                item.fail(why)
        for item in given_up:
            if item.meter is not None:
                item.meter.give_up(why)
            item.release()
            item.tell(self._callee, self._number)

    def _answer(self, item: SubCallItem) -> None:
        begun = time.monotonic()
        with unit(SubCallEvent(name=self._name, kind=self._callee.kind), ends=False) as asked:
            item.id = asked.event.id
            answer = self._answer_of(item, begun)
        with self._lock:
            late = bool(item.answer)
            if not late:
                item.answer, item.seconds = answer, time.monotonic() - begun
        if not late:
            item.tell(self._callee, self._number)
        with self._lock:
            self._done += 1

    def _answer_of(self, item: SubCallItem, begun: float) -> Answer:
        item.started = begun - self._ledger.started
        if (outer := active_sub_call.get()) is not None:
            item.inside = ActiveSubCall(outer.run)
            active_sub_call.set(item.inside)
        try:
            if self._callee.reserves:
                # Taken before it waits for an equal question: an asker in a slot may wait for this one.
                item.release = self._ledger.slot()
            if self._cache is not None and item.key and self._callee.reused:
                value, item.cached = self._cache.once(item.key, lambda: self._ask(item))
            else:
                value = self._ask(item)
        except Exception as error:  # noqa: BLE001  # one failed item must not lose the paid ones beside it
            error = as_window_error(error) if isinstance(error, dspy.LMError) else error
            answer = failed(error, *self._callee.lms, outer and outer.run.lm)
            if self._callee.kind != "child":  # whose inputs are no part of its messages
                answer["error"] += _advice(error, item)
            return answer
        else:
            return {"value": value}
        finally:
            item.release()

    def _ask(self, item: SubCallItem) -> Any:
        """Return the answer as it is sent; one that cannot be read into the types is asked for again."""
        callee = self._callee
        unread: dspy.AdapterParseError | None = None
        while True:
            self._check_waited_for(item)
            item.attempts += 1
            try:
                entered = metered(self._ledger, callee.role, counted=callee.reserves, mirror=item.spent)
                with entered as item.meter, retrying_after(unread) if unread else contextlib.nullcontext():
                    self._check_waited_for(item)
                    result = self._call(item)
                if item.inside is not None:
                    item.inside.check(result, is_child=callee.kind == "child")
                return sent(callee.interface.value_of(callee.read(result)))
            except dspy.AdapterParseError as error:
                if item.attempts < callee.attempts:
                    unread = error
                elif found := self._in_words(item):
                    return sent(callee.interface.value_of(dspy.Prediction(**found)))
                else:
                    raise

    def _in_words(self, item: SubCallItem) -> dict[str, Any]:
        """Return the outputs of a predictor whose last replies hold them in a form of their own; empty if not."""
        module, replies = self._callee.module, item.meter.outputs if item.meter is not None else []
        return outputs_in_words(module.signature, replies) if isinstance(module, dspy.Predict) else {}

    def _check_waited_for(self, item: SubCallItem) -> None:
        if item.answer:
            raise LimitExceeded(item.answer.get("error", "It has been answered."))

    def _call(self, item: SubCallItem) -> Any:
        """Return the module's result; on an event loop, it ends when the run does."""
        module, inputs = self._callee.module, {**item.inputs, **self._callee.options}
        if self._loop is None and not self._must_be_awaited:
            return module(**inputs)
        name = self._name if self._must_be_awaited else ""
        return LoopCall(module.acall(**inputs), name).result(self._loop)


@contextlib.contextmanager
def sub_call_scope(run: ActiveRun, lm: dspy.BaseLM | None) -> Iterator[None]:
    """Enter a sub-call of `run`, with the LM of sub-calls in force."""
    token = active_sub_call.set(ActiveSubCall(run))
    try:
        with dspy.context(adapter=dspy.settings.adapter or _CHAT, **({"lm": lm} if lm else {})):
            yield
    finally:
        active_sub_call.reset(token)
