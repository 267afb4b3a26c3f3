"""Intercepts every LM call of a run: reserves budget, sends the request, records usage, retries and rejects.

DSPy has no hook that can refuse a call: it swallows exceptions of callbacks. A proxy of the configured LM misses
the LMs of predictors, adapters (`TwoStepAdapter`), other LMs and validators. So `metered` wraps
`dspy.BaseLM.__call__` and `acall`, which every call of every LM passes. Outside a `metered` scope, calls are
unchanged. Inside, a `MeteredCall` makes the call:

1. It lowers `max_tokens` to what the limits allow.
2. Each active meter holds the maximum usage of the request, or it raises `LimitExceeded`.
3. It sends one request, with DSPy's callbacks, history and usage tracker as usual.
4. It enters the usage of the request.
5. After a transient error it repeats this, up to `lm.num_retries` times: DSPy itself would retry inside one call,
   unseen.

Outputs are returned without the model's thinking, and a truncated reply raises `ReplyCut`. So does a stream that
breaks after it has sent text: a repetition would send it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import dspy
from dspy import LMError
from dspy.lm15 import Request

from rlm_dspy._dspy_compat import adapter_message_call
from rlm_dspy.budget.broken_stream import RecordedStream
from rlm_dspy.budget.cache_marks import with_cache_marks
from rlm_dspy.budget.ledger import Meter
from rlm_dspy.budget.lm_info import HistoryEntry, Outputs, readable, usage_of
from rlm_dspy.budget.malformed_bodies import RequestUsage, accept_malformed_bodies
from rlm_dspy.budget.max_reply_tokens import LMCall, Messages, Prompt, reply_limit, room_for_reply
from rlm_dspy.budget.provider_errors import add_words, is_withheld, keep_rejected_replies, may_pass, reply_in
from rlm_dspy.budget.system_role import rejects_system_role
from rlm_dspy.budget.window_errors import as_window_error, shorter_reply, sizes_of
from rlm_dspy.concurrency.wait_scope import pause
from rlm_dspy.errors import LimitExceeded, ReplyCut, ReplyWithheld
from rlm_dspy.usage import NOTHING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.usage import Usage

_LONGEST_PAUSE_SECONDS = 60


@contextlib.contextmanager
def metered(
    ledger: Ledger,
    role: str,
    *,
    keeper: Hashable = None,
    counted: bool = False,
    mirror: list[Usage] | None = None,
    input_tokens: float | None = None,
    raw: bool = False,
) -> Iterator[Meter]:
    """Record every LM call of this scope in `ledger` under `role`, and reject what its limits do not allow.

    An inner scope of the same ledger replaces the outer one: no call is entered twice.

    Args:
        ledger: See `Meter`, as for the next three, and the last two.
        role: The role of the calls.
        keeper: The run whose last turn this is.
        counted: Whether each request takes one of `max_llm_calls`.
        mirror: A list that receives the usage of each call, also in inner scopes that replace this one.
        input_tokens: The most tokens that the request reads, if that is known and no other is under way.
        raw: Whether replies are returned as the LM gives them.

    Raises:
        LimitExceeded: If the limits refused a call, even if its caller continued without it.
    """
    open_door()
    mirrors, others = [] if mirror is None else [mirror], []
    for outer in meters_in_force():
        if outer.ledger is ledger:
            mirrors += outer.mirrors
        else:
            others.append(outer)
    meter = Meter(ledger, role, keeper, counted, tuple(mirrors), input_tokens, raw)
    try:
        with dspy.context(**{METERS: (meter, *others)}):
            yield meter
    except (TimeoutError, LimitExceeded) as error:
        if isinstance(error.__cause__ or error, TimeoutError):
            meter.give_up()
        raise
    except Exception:
        if meter.refusal is None:
            raise
    if meter.refusal is not None:
        raise meter.refusal


METERS = "rlm_dspy_meters"
"""The key of `dspy.settings` that holds the active meters: it reaches threads of DSPy."""


def meters_in_force() -> tuple[Meter, ...]:
    """Return the innermost active meter of each ledger, innermost scope first."""
    return dspy.settings.get(METERS) or ()


def role() -> str:
    """Return the role of the innermost scope; empty outside of any."""
    meters = meters_in_force()
    return meters[0].role if meters else ""


request_under_way: ContextVar[MeteredCall | None] = ContextVar("request_under_way", default=None)
latest_entry: ContextVar[HistoryEntry] = ContextVar("latest_entry", default={})  # noqa: B039 (never changed)
"""The last history entry of DSPy in this context, outside any `metered` scope."""


class MeteredCall:
    """One call of an LM in a `metered` scope, with retries. Each attempt is one request.

    Args:
        lm: The LM.
        meters: The active meters, innermost scope first.
        call: The arguments of the call.

    Attributes:
        seconds: The pause before the next attempt; None after the answer.
        lm: The LM of the request: without retries, with replies that fit the limits.
        asked: The call of that LM.
        arguments: The same as arguments of `dspy.BaseLM.__call__`.
        entries: The history entries of DSPy during the call.
        keeps_history: Whether DSPy keeps these entries in the history of the LM.
        outputs: The unchanged outputs of the LM; None before the answer.
        reply: The result for the caller.
    """

    def __init__(self, lm: dspy.BaseLM, meters: tuple[Meter, ...], call: LMCall) -> None:
        if call.prompt is None and isinstance(call.options.get("request"), Request):
            call = LMCall(call.options.pop("request"), call.messages, call.options)
        outer = request_under_way.get()
        self._meters = meters
        self._raw = meters[0].raw or (outer is not None and outer._meters[0] is meters[0])  # noqa: SLF001 (its own)
        self._own_lm = lm
        self._own_call = call if self._raw else call.for_run(lm)
        self._failed: LMError | None = None
        self._repeats_made = 0
        self._is_shorter = False
        self._stream: RecordedStream | None = None
        self.seconds: float | None = 0.0
        self.keeps_history: bool = not dspy.settings.disable_history and (outer is None or outer.keeps_history)
        self.entries: list[HistoryEntry] = []
        self.outputs: Outputs = None
        self.reply: Outputs = None
        self._take_recorded()

    def _take_recorded(self) -> None:
        """Take the reply that this request got before the run was resumed, if it did: it is paid.

        Raises:
            ReplyCut: If it was truncated.
        """
        recorded = next((meter.ledger.recorded for meter in self._meters if meter.ledger.recorded), None)
        if recorded is None:
            return
        asked = self._own_call
        found = recorded.take(self._meters[0].role, self._own_lm.model, asked.prompt, asked.messages)
        if found is None:
            return
        for meter in self._meters:
            meter.take(found)
        used = {"prompt_tokens": found.used.input_tokens, "completion_tokens": found.used.output_tokens}
        entry = {"usage": used, "response": {"finish_reason": found.finish}}
        self.outputs, self.seconds = found.outputs, None
        self.reply = self.outputs if self._raw else readable(self.outputs, entry, self._own_lm)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Send one request in this scope and set `outputs`; prepare a retry after a transient error.

        Raises:
            LimitExceeded: If the limits do not allow the request.
            ReplyCut: If its reply was truncated.
            dspy.LMError: If it failed, and a retry does not help.
        """
        try:
            self._cap()
            with self._held():
                yield
        except LimitExceeded as refusal:
            if self._failed is None:
                raise
            again = f"{refusal} It would have been retried after {self._failed}"
            raise type(refusal)(again, refusal.limit) from self._failed
        except Exception as error:  # noqa: BLE001  # the client of a custom LM may raise anything
            self._recover(error)
        else:
            self.seconds = None
            self.reply = self.outputs if self._raw else readable(self.outputs, self.entry(self.outputs), self.lm)

    def entry(self, outputs: Outputs) -> HistoryEntry:
        """Return the history entry of the LM's outputs; an empty one if there is none."""
        for each in self.entries:
            if outputs is each.get("outputs") or outputs is each.get("response"):
                return each
        return {}

    def _cap(self) -> None:
        """Choose the LM and the call, with a reply that fits the limits."""
        ledger = self._meters[0].ledger
        if self._own_lm.model in ledger.without_system_role:
            self._own_call = self._own_call.without_system_role()
        self.lm, self.asked, changes = self._own_lm, self._own_call, {}
        if any(meter.ledger.bounded for meter in self._meters) or ledger.windows:
            room = room_for_reply(self.lm, self._meters)
            self.asked, changes = self.asked.within(room), reply_limit(self.lm, room)
        if self._meters[0].role.removeprefix("child.") == "act":
            self.asked = with_cache_marks(self.lm, self.asked)
        if self._repeats():
            changes["num_retries"] = 0
        if changes:
            self.lm = self.lm.copy(**changes)
            self.lm.history = self._own_lm.history  # where the caller expects it
        self.arguments = {"prompt": self.asked.prompt, "messages": self.asked.messages, **self.asked.options}

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the maximum usage of a request, and enter its actual usage."""
        holding: list[Meter] = []
        for meter in self._meters:
            try:
                limits = meter.ledger.limits if meter.ledger.bounded else None
                most = NOTHING if limits is None else self.asked.most(self.lm, limits)
                meter.hold(self, self.lm.model, most, self._meters[0].keeper)
            except LimitExceeded as refusal:
                meter.refusal = refusal
                for each in holding:
                    each.give_back(self)
                raise
            holding.append(meter)
        messages, usage, failed = self.asked.messages, RequestUsage(dspy.settings.usage_tracker), True
        token, self.outputs, self.entries = request_under_way.set(self), None, []
        is_whole = self._own_lm.model in self._meters[0].ledger.without_streams
        to = None if is_whole else dspy.settings.send_stream
        if self._stream is not None:
            self._stream.restart()
        self._stream = None if to is None else RecordedStream(to)
        try:
            with (
                dspy.context(usage_tracker=usage, disable_history=False, send_stream=self._stream),
                contextlib.nullcontext() if messages is None else adapter_message_call(self.lm, messages),
            ):
                yield
            failed = False
        finally:
            request_under_way.reset(token)
            self._settle(usage, failed=failed)

    def _settle(self, usage: RequestUsage, *, failed: bool) -> None:
        told, entry = usage.get_total_tokens().get("", {}), self.entry(self.outputs)
        counts = {"calls": 1, "failures": int(failed), "cached_calls": int(not failed and not usage.is_reported)}
        for meter in self._meters:
            used = usage_of(told, entry, meter.ledger.price(self._own_lm)).model_copy(update=counts)
            meter.outputs.append(self.outputs)
            meter.settle(self, self.lm.model, used)

    def _recover(self, error: Exception) -> None:
        """Prepare another attempt after an error.

        Raises:
            Exception: The error, if a retry does not help; as `dspy.ContextWindowExceededError` if it is one.
            ReplyCut: If it broke a stream that has sent text, or the reply is withheld.
        """
        if self._stream is not None and self._stream.text and isinstance(error, LMError):
            why = "broke off because the connection to its server failed"
            raise ReplyCut(why, self._stream.text, too_long=False) from error
        add_words(error)
        if is_withheld(error):
            raise ReplyWithheld("was withheld by the provider's content filter", "") from error
        if rejected := reply_in(error):
            self.outputs, self.seconds = [rejected], None
            self.reply = self.outputs if self._raw else readable(self.outputs, {}, self.lm)
            return
        if rejects_system_role(error, self._own_call.messages):
            self._meters[0].ledger.without_system_role.add(self._own_lm.model)  # for the rest of the run
            self.seconds = 0.0
            return
        reason = as_window_error(error)
        if isinstance(reason, dspy.ContextWindowExceededError):
            sizes = sizes_of(reason)
            if sizes.window is not None:  # for the rest of the run
                self._meters[0].ledger.windows[self._own_lm.model] = sizes.window
            shorter = None if self._is_shorter else shorter_reply(self._own_lm, self._own_call, sizes)
            if shorter is None:
                raise reason from (error if reason is not error else error.__cause__)
            self._own_call, self._is_shorter, self.seconds = shorter, True, 0.0
            return
        self._ask_again(error)

    def _ask_again(self, error: Exception) -> None:
        """Prepare the same request after a pause, or without a stream; raise the error if it does not help."""
        model = self._own_lm.model
        without_streams = self._meters[0].ledger.without_streams
        if self._stream is not None and type(error) is dspy.LMStreamAssemblyError and model not in without_streams:
            without_streams.add(model)  # for the rest of the run
            self.seconds = 0.0
            return
        transient = may_pass(error, is_stream=self._stream is not None)
        if not transient or not self._repeats() or self._repeats_made >= self._own_lm.num_retries:
            raise error
        told = getattr(error, "retry_after", None)
        if not isinstance(told, int | float) or not told <= _LONGEST_PAUSE_SECONDS:  # NaN is not
            told = min(2**self._repeats_made, _LONGEST_PAUSE_SECONDS)
        self.seconds = max(0.0, told)
        self._failed, self._repeats_made = error, self._repeats_made + 1

    def _repeats(self) -> bool:
        """Whether failed requests are retried here, each counted, and not inside one DSPy call.

        Not if parts of the answer may have been paid for, and not for an LM with its own `forward`.
        """
        lm = self._own_lm
        if not isinstance(lm, dspy.LM) or not lm.num_retries or "forward" in vars(lm) or "aforward" in vars(lm):
            return False
        as_made = type(lm).forward is dspy.LM.forward and type(lm).aforward is dspy.LM.aforward
        return as_made and self._own_call.answers(lm) == 1


_lock = threading.Lock()
_is_open = False


def open_door() -> None:
    """Route every LM call of this process through this module from now on; see the module."""
    global _is_open  # noqa: PLW0603  # one for each process
    if _is_open:
        return
    with _lock:
        if not _is_open:
            accept_malformed_bodies()
            keep_rejected_replies()
            _meter_calls(dspy.BaseLM)
            _note_entries(dspy.BaseLM)
            _is_open = True


def _meter_calls(kind: type[dspy.BaseLM]) -> None:
    call, acall = kind.__call__, kind.acall

    @functools.wraps(call)
    def called(self: dspy.BaseLM, prompt: Prompt = None, *, messages: Messages = None, **options: Any) -> Any:
        if not (meters := meters_in_force()):
            return call(self, prompt, messages=messages, **options)
        made = MeteredCall(self, meters, LMCall(prompt, messages, options))
        while (seconds := made.seconds) is not None:
            if seconds:
                pause(seconds)
            with made.attempt():
                made.outputs = call(made.lm, **made.arguments)
        return made.reply

    @functools.wraps(acall)
    async def awaited(
        self: dspy.BaseLM, prompt: Prompt = None, *, messages: Messages = None, **options: Any
    ) -> Any:
        if not (meters := meters_in_force()):
            return await acall(self, prompt, messages=messages, **options)
        made = MeteredCall(self, meters, LMCall(prompt, messages, options))
        while (seconds := made.seconds) is not None:
            if seconds:
                await asyncio.sleep(seconds)
            with made.attempt():
                made.outputs = await acall(made.lm, **made.arguments)
        return made.reply

    kind.__call__, kind.acall = called, awaited


def _note_entries(kind: type[dspy.BaseLM]) -> None:
    update_history = kind.update_history

    @functools.wraps(update_history)
    def noted(self: dspy.BaseLM, entry: HistoryEntry) -> None:
        request = request_under_way.get()
        if request is None:
            latest_entry.set(entry)
        else:
            request.entries.append(entry)
        if request is None or request.keeps_history:
            update_history(self, entry)

    kind.update_history = noted
