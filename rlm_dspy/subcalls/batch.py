"""Runs the items of a sub-call, one or many, concurrently and in order; a failed item becomes an error answer."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.budget.lm_info import only_thinking_of, text_of
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.concurrency.event_loops import LoopCall
from rlm_dspy.concurrency.port import loop_for
from rlm_dspy.concurrency.thread_pool import start_job
from rlm_dspy.errors import LimitExceeded, ReplyCut, Unanswered
from rlm_dspy.events import SubCallEvent, unit
from rlm_dspy.prompt.free_form_outputs import (
    outputs_in_words,
    taken_for_seconds,
    takes_any_text,
    unmarked_outputs,
    with_none,
)
from rlm_dspy.repl.value_codec import sent
from rlm_dspy.subcalls.item import ActiveSubCall, active_sub_call, failed, failed_request
from rlm_dspy.text import clip

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.cache.sub_call_cache import SubCallCache
    from rlm_dspy.subcalls.item import ActiveRun, Answer, SubCallItem
    from rlm_dspy.subcalls.target import Callee

ATTEMPTS = 3
"""Maximum number of attempts until an answer can be parsed into the types."""
_COMPLAINT_CHARS = 600
_forgetting = threading.Lock()
_CHAT = dspy.ChatAdapter()
"""DSPy's default adapter; one instance, because its JSON schemas of a signature are slow to build."""
_CHAT.format_field_structure = functools.lru_cache(maxsize=64)(_CHAT.format_field_structure)


@dataclass
class Batch:
    """The items of one call.

    Args:
        run: The calling run.
        callee: The callee.
        cache: The cache of answers; None for none.
        ledger: The ledger of the tree.
        lm: The LM of sub-calls; None for the configured one.
        number: Its number in the turn.
    """

    run: ActiveRun
    callee: Callee
    cache: SubCallCache | None
    ledger: Ledger
    lm: dspy.BaseLM | None
    number: int
    _done: int = 0
    _loop: asyncio.AbstractEventLoop | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def answer(self, items: list[SubCallItem]) -> None:
        """Answer every item, at most `max_concurrency` at once, each in a copy of the current context.

        If the ledger is closed meanwhile, unanswered items fail: nobody waits for them.
        """
        adapter = dspy.settings.adapter or _CHAT
        with dspy.context(adapter=adapter, **({"lm": self.lm} if self.lm else {})):
            timed = self.ledger.limits.max_seconds is not None
            self._loop = loop_for(self.callee.module, self.callee.options.get("lm"), timed=timed)
            present = contextvars.copy_context()
        waiting, changed, closing = deque(items), threading.Event(), self.ledger.cancellation
        raised: list[BaseException] = []

        def work() -> None:
            while closing.why is None and not raised:
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                try:
                    present.copy().run(self._answer, item)
                except BaseException as error:  # noqa: BLE001 (not an Exception: it belongs to the caller)
                    raised.append(error)
                if raised or self._done == len(items):
                    changed.set()

        with closing.telling(lambda _: changed.set()):
            for _ in range(max(1, min(self.ledger.limits.max_concurrency, len(items)))):
                start_job(work)
            while self._done < len(items) and not raised and closing.why is None:
                changed.wait()
                changed.clear()
        if raised:
            raise raised[0]
        if (why := closing.why) is not None:
            self._give_up(items, why)

    def _give_up(self, items: list[SubCallItem], why: LimitExceeded) -> None:
        self.ledger.meet(why.limit)
        with self._lock:
            given_up = [item for item in items if not item.answer]
            for item in given_up:
                item.answer = failed(why)
        for item in given_up:
            if item.meter is not None:
                item.meter.give_up(why)
            item.release()
            item.emit_end(self.callee, self.number)

    def _answer(self, item: SubCallItem) -> None:
        begun = time.monotonic()
        item.started = begun - self.ledger.started
        if self.run.heard:
            event = SubCallEvent(name=self.callee.interface.name, kind=self.callee.kind)
            with unit(event, ends=False) as asked:
                item.id = asked.event.id
                answer = self._answer_of(item)
        else:
            answer = self._answer_of(item)
        with self._lock:
            late = bool(item.answer)
            if not late:
                item.answer, item.seconds = answer, time.monotonic() - begun
        if self.run.heard and not late:
            item.emit_end(self.callee, self.number)
        with self._lock:
            self._done += 1

    def _answer_of(self, item: SubCallItem) -> Answer:
        item.inside = ActiveSubCall(self.run)
        active_sub_call.set(item.inside)
        try:
            if self.callee.kind != "child":  # which takes them turn by turn
                # Acquired before it waits for an identical call, whose caller may be waiting for this one.
                item.release = self.ledger.slot()
            if self.cache is not None and item.key and self.callee.reused:
                value, item.cached = self.cache.once(item.key, functools.partial(self._ask, item))
            else:
                value = self._ask(item)
        except Exception as error:  # noqa: BLE001  # one failed item must not lose the paid ones
            return failed_request(error, self.callee, item, self.run.lm)
        else:
            return {"value": value}
        finally:
            item.release()

    def _ask(self, item: SubCallItem) -> JsonValue:
        """Return the encoded answer; retry if it cannot be parsed into the types."""
        callee = self.callee
        unread: dspy.AdapterParseError | None = None
        while True:
            result = None
            try:
                entered = metered(self.ledger, callee.role, counted=callee.kind != "child", mirror=item.spent)
                with entered as item.meter, _retrying_after(unread) if unread else contextlib.nullcontext():
                    if item.answer:  # abandoned: nobody waits for it
                        raise LimitExceeded(item.answer.get("error", "It has been answered."))
                    item.attempts += 1
                    result = self._call(item)
                if item.inside is not None and item.inside.stop:
                    item.inside.check(result, is_child=callee.kind == "child")
                return callee.answer(self._said(item, result))
            except (dspy.AdapterParseError, dspy.LMError, ReplyCut, Unanswered) as error:
                if self._asks_cheaply(item):
                    _forget(result)
                    continue  # the usual LM has not seen this reply
                if not isinstance(error, dspy.AdapterParseError):
                    raise
                found = self._in_words(item)
                if found and (item.attempts == ATTEMPTS or not takes_any_text(callee.module.signature)):
                    return sent(callee.value_of(dspy.Prediction(**found)))
                if item.attempts < ATTEMPTS:
                    _forget(result)
                    unread = error
                elif thinking := only_thinking_of(next(reversed(_replies(item)), None)):
                    raise ReplyCut("holds only thinking and no answer", thinking) from error
                else:
                    raise

    def _asks_cheaply(self, item: SubCallItem) -> bool:
        """Whether this attempt is that of the cheap LM: the first."""
        return self.callee.cheap_lm is not None and item.attempts == 1

    def _in_words(self, item: SubCallItem) -> dict[str, Any]:
        """Return the outputs from free-form replies of a predictor; empty if there are none."""
        module = self.callee.module
        return outputs_in_words(module.signature, _replies(item)) if isinstance(module, dspy.Predict) else {}

    def _said(self, item: SubCallItem, result: Any) -> Any:
        """Return the result; if a predictor found only None in a free-form reply, the outputs that it names."""
        module = self.callee.module
        if not isinstance(module, dspy.Predict) or not isinstance(result, dspy.Prediction):
            return result
        said = dict(result.items())
        found = unmarked_outputs(module.signature, said, _replies(item))
        if found is None:
            found = with_none(module.signature, said)
        if problem := taken_for_seconds(found, _replies(item)):
            text = text_of(_replies(item)[-1])
            raise dspy.AdapterParseError("RLM", module.signature, text, message=problem)
        return dspy.Prediction(**found) if found != said else result

    def _call(self, item: SubCallItem) -> Any:
        """Return the module's result; on an event loop, it ends when the run does."""
        callee, inputs = self.callee, {**item.inputs, **self.callee.options}
        if self._asks_cheaply(item):
            inputs["lm"] = callee.cheap_lm
        if self._loop is None and not callee.must_be_awaited:
            return callee.module(**inputs)
        name = callee.interface.name if callee.must_be_awaited else ""
        return LoopCall(callee.module.acall(**inputs), name).result(self._loop)


def _forget(refused: Any) -> None:
    """Remove an answer that is asked for again from DSPy's trace: optimizers would make a demo of it."""
    trace = dspy.settings.trace
    if refused is not None and trace:
        with _forgetting:  # other threads only append
            for at in reversed(range(len(trace))):
                if trace[at][2] is refused:
                    del trace[at]
                    return


def _replies(item: SubCallItem) -> list[Any]:
    """Return the unchanged outputs of the LM in the last attempt."""
    return item.meter.outputs if item.meter is not None else []


@contextlib.contextmanager
def _retrying_after(error: dspy.AdapterParseError) -> Iterator[None]:
    """Append the parse error of the last answer to the messages in this scope."""
    adapter = dspy.settings.adapter or dspy.ChatAdapter()
    again = copy.copy(adapter)
    complaint = clip(str(error.message if hasattr(error, "message") else error), _COMPLAINT_CHARS)
    note = f"\n\nYour last answer could not be parsed: {complaint}\nAnswer again in exactly the requested format."

    def formatted(
        signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = adapter.format(signature, demos, inputs)
        last = messages[-1]
        content = last["content"]
        longer = [*content, {"type": "text", "text": note}] if isinstance(content, list) else f"{content}{note}"
        return [*messages[:-1], {**last, "content": longer}]

    again.format = formatted
    with dspy.context(adapter=again):
        yield
