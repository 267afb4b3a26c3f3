"""Intercepts every LM call of a run: reserves budget, sends the request, records usage, retries and rejects.

DSPy has no hook that can refuse a call: it swallows what a callback raises. A proxy of the LM in force would miss
the LMs of predictors, of adapters (`TwoStepAdapter`), of other LMs and of validators. So `metered` puts a door
before `dspy.BaseLM.__call__` and `acall`, through which every call of every LM passes. Outside of a `metered`
scope it lets them through as they are. Inside, a `MeteredLM` makes the call:

1. It lowers `max_tokens` to what the limits leave.
2. It has each meter in force hold the most that the request can use, or raises `LimitExceeded`.
3. It sends one request. DSPy's callbacks, history and usage tracker are told of it as of any other.
4. It enters what the request used.
5. After an error that may pass it does the same again, up to `lm.num_retries` times: DSPy itself would repeat the
   request inside one call, unseen.

Outputs come back without the model's thinking, and a reply that was cut short is a `ReplyCut`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
from typing import TYPE_CHECKING, Any, Protocol

import dspy
from dspy import ContextWindowExceededError, LMError

from rlm_dspy._dspy_compat import adapter_message_call
from rlm_dspy.budget.lm_call import LMCall, readable
from rlm_dspy.budget.lm_info import tokens_at_most
from rlm_dspy.budget.malformed_usage import accept_any_usage
from rlm_dspy.budget.max_reply_tokens import reply_limit, room_for_reply, shorter_reply
from rlm_dspy.budget.metering import (
    METERS,
    LMRequest,
    Meter,
    RequestUsage,
    latest_entry,
    meters_in_force,
    request_under_way,
)
from rlm_dspy.budget.window_errors import as_window_error, sizes_of
from rlm_dspy.concurrency.port import drive
from rlm_dspy.concurrency.wait_scope import pause
from rlm_dspy.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping

    from dspy.lm15 import Request

    from rlm_dspy.budget.ledger import Ledger, Tally
    from rlm_dspy.budget.metering import Outputs

_LONGEST_PAUSE_SECONDS = 60
_OK = 200


@contextlib.contextmanager
def metered(
    ledger: Ledger,
    role: str,
    *,
    keeper: Hashable = None,
    counted: bool = False,
    mirror: Tally | None = None,
    input_tokens: float | None = None,
    raw: bool = False,
) -> Iterator[Meter]:
    """Record every LM call of this scope in `ledger` under `role`, and reject what its limits do not allow.

    A scope inside another of the same ledger takes its place: no call is entered twice.

    Args:
        ledger: See `Meter`, as for the next three, and the last two.
        role: Who asks.
        keeper: The run whose last turn this is.
        counted: Whether each request takes one of `max_llm_calls`.
        mirror: Where what they use is added up too, with that of scopes inside that take this one's place.
        input_tokens: The most tokens that the request reads, if that is known and no other is under way.
        raw: Whether replies are returned as the LM gives them.

    Raises:
        LimitExceeded: If the limits did not allow a call, also if what asked has gone on without it.
    """
    open_door()
    outer = meters_in_force()
    mirrors = [each for meter in outer if meter.ledger is ledger for each in meter.mirrors]
    mirrors += [] if mirror is None else [mirror]
    meter = Meter(ledger, role, keeper, counted, tuple(mirrors), input_tokens, raw)
    try:
        with dspy.context(**{METERS: (meter, *(each for each in outer if each.ledger is not ledger))}):
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


class _Way(Protocol):
    """How a call waits: not at all, or on an event loop."""

    async def ask(self, lm: dspy.BaseLM, call: LMCall) -> Outputs:
        """Send one request, as DSPy does."""

    async def pause(self, seconds: float) -> None:
        """Wait before the next one."""


class MeteredLM:
    """Sends the calls of an LM in a `metered` scope.

    Args:
        lm: The LM.
        way: How it is asked.
        meters: The meters in force, that of the innermost scope first.
    """

    def __init__(self, lm: dspy.BaseLM, way: _Way, meters: tuple[Meter, ...]) -> None:
        self._lm = lm
        self._way = way
        self._meters = meters
        outer = request_under_way.get()
        self._raw = self._meters[0].raw or (outer is not None and outer.meter is self._meters[0])
        self._is_bounded = any(meter.ledger.bounded for meter in self._meters)

    async def ask(self, call: LMCall) -> Outputs:
        """Return the LM's answer, after as many requests as it takes.

        Raises:
            LimitExceeded: If the limits do not allow a request.
            ReplyCut: If a reply was cut short.
            dspy.LMError: If a request failed, and repeating it does not help.
        """
        if not self._raw:
            call = call.sendable()
        repeats, failed, is_shorter = 0, None, False
        while True:
            try:
                request = await self._request(call)
            except LimitExceeded as refusal:
                raise _after(refusal, failed) from failed
            except ContextWindowExceededError as error:
                self._note_window(error)
                shorter = None if is_shorter else shorter_reply(self._lm, call, error)
                if shorter is None:
                    raise
                call, is_shorter = shorter, True
            except LMError as error:
                await self._way.pause(self._seconds_before_repeat(error, repeats, call))
                failed, repeats = error, repeats + 1
            else:
                return request.outputs if self._raw else readable(request)

    async def _request(self, call: LMCall) -> LMRequest:
        """Send one request, for no longer a reply than the limits leave."""
        room = math.inf
        if self._is_bounded or self._meters[0].ledger.windows:
            room = room_for_reply(self._lm, self._meters)
            call = call.within(room)
        lm = self._lm_for(room, call)
        request = self._bounds(lm, call)
        messages = call.messages
        as_adapter = contextlib.nullcontext() if messages is None else adapter_message_call(lm, messages)
        with self._held(request), as_adapter:
            try:
                request.outputs = await self._way.ask(lm, call)
            except Exception as error:  # whatever the client of a caller's own LM raises
                refusal = as_window_error(error)
                if refusal is error:
                    raise
                raise refusal from error
        return request

    @contextlib.contextmanager
    def _held(self, request: LMRequest) -> Iterator[None]:
        """Hold what a request can use at most, and enter what it used."""
        holding: list[Meter] = []
        try:
            for meter in self._meters:
                meter.hold(request)
                holding.append(meter)
        except LimitExceeded:
            for meter in holding:
                meter.give_back(request)
            raise
        token = request_under_way.set(request)
        failed = True
        try:
            with dspy.context(usage_tracker=request.usage, disable_history=False):
                yield
            failed = False
        finally:
            request_under_way.reset(token)
            for meter in self._meters:
                meter.settle(request, failed=failed)

    def _bounds(self, lm: dspy.BaseLM, call: LMCall) -> LMRequest:
        """Return a request with the most tokens that it can have, where something limits them."""
        read = written = 0
        if self._is_bounded:
            read = tokens_at_most(call.prompt, call.messages) * call.answers(lm)
            written = call.most_written(lm) * call.answers(lm)
        outer = request_under_way.get()
        keeps_history = not dspy.settings.disable_history and (outer is None or outer.keeps_history)
        usage = RequestUsage(dspy.settings.usage_tracker)
        return LMRequest(lm, self._meters[0], read, written, usage, keeps_history)

    def _lm_for(self, room: float, call: LMCall) -> dspy.BaseLM:
        """Return the LM that is sent a request: its replies fit the room, and it repeats nothing."""
        changes = {} if math.isinf(room) else reply_limit(self._lm, int(room))
        if self._repeats(call):
            changes["num_retries"] = 0
        if not changes:
            return self._lm
        lm = self._lm.copy(**changes)
        lm.history = self._lm.history  # where the caller looks for it
        return lm

    def _note_window(self, refusal: ContextWindowExceededError) -> None:
        """Note the window that the refusal of a request tells of, for the rest of the run."""
        window = sizes_of(refusal).window
        if window is not None:
            self._meters[0].ledger.windows[self._lm.model] = window

    def _repeats(self, call: LMCall) -> bool:
        """Whether failed requests are repeated here, each counted by itself, and not inside one call of DSPy's.

        Not where parts of the answer may have been shown or paid for already, and not those of an LM that asks in
        a way of its own.
        """
        lm = self._lm
        if not isinstance(lm, dspy.LM) or not lm.num_retries or "forward" in vars(lm) or "aforward" in vars(lm):
            return False
        as_made = type(lm).forward is dspy.LM.forward and type(lm).aforward is dspy.LM.aforward
        return as_made and dspy.settings.send_stream is None and call.answers(lm) == 1

    def _seconds_before_repeat(self, error: LMError, repeats: int, call: LMCall) -> float:
        """Return how long to wait after an error, as DSPy does.

        Raises:
            dspy.LMError: The error, if the request is not repeated.
        """
        again = dspy.is_retryable_lm_error(error) or _is_garbled(error)
        if not again or not self._repeats(call) or repeats >= self._lm.num_retries:
            raise error
        told = getattr(error, "retry_after", None)
        if isinstance(told, int | float) and math.isfinite(told):
            return max(0.0, told)
        return float(min(2**repeats, _LONGEST_PAUSE_SECONDS))


def _is_garbled(error: LMError) -> bool:
    """Whether a provider has answered, but in what is no JSON: a run must not end of it, nor an item be lost."""
    return type(error) is dspy.LMProviderError and getattr(error, "status", None) == _OK


def _after(refusal: LimitExceeded, failed: LMError | None) -> LimitExceeded:
    """Return a refusal that tells of the request before it, if there was one."""
    if failed is None:
        return refusal
    return LimitExceeded(f"{refusal} It would have been repeated after {failed}", refusal.limit)


class _Calling:
    """Asks without an event loop, so that `drive` runs the call to its end."""

    def __init__(self, call: Callable[..., Outputs]) -> None:
        self._call = call

    async def ask(self, lm: dspy.BaseLM, call: LMCall) -> Outputs:
        return self._call(lm, call.prompt, messages=call.messages, **call.options)

    async def pause(self, seconds: float) -> None:
        pause(seconds)


class _Awaiting:
    """Asks on the running event loop."""

    def __init__(self, acall: Callable[..., Awaitable[Outputs]]) -> None:
        self._acall = acall

    async def ask(self, lm: dspy.BaseLM, call: LMCall) -> Outputs:
        return await self._acall(lm, call.prompt, messages=call.messages, **call.options)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


_lock = threading.Lock()
_is_open = False


def open_door() -> None:
    """Route every LM call of this process through this module from now on; see the module."""
    global _is_open  # noqa: PLW0603  # one for each process
    if _is_open:
        return
    with _lock:
        if not _is_open:
            accept_any_usage()
            _put_door(dspy.BaseLM)
            _is_open = True


def _put_door(kind: type[dspy.BaseLM]) -> None:
    call, acall, update_history = kind.__call__, kind.acall, kind.update_history

    @functools.wraps(call)
    def called(
        self: dspy.BaseLM,
        prompt: str | Request | None = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> Any:
        if not (meters := meters_in_force()):
            return call(self, prompt, messages=messages, **options)
        return drive(MeteredLM(self, _Calling(call), meters).ask(LMCall.of(prompt, messages, options)))

    @functools.wraps(acall)
    async def awaited(
        self: dspy.BaseLM,
        prompt: str | Request | None = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> Any:
        if not (meters := meters_in_force()):
            return await acall(self, prompt, messages=messages, **options)
        return await MeteredLM(self, _Awaiting(acall), meters).ask(LMCall.of(prompt, messages, options))

    @functools.wraps(update_history)
    def noted(self: dspy.BaseLM, entry: Mapping[str, Any]) -> None:
        request = request_under_way.get()
        if request is None:
            latest_entry.set(entry)
        else:
            request.entries.append(entry)
        if request is None or request.keeps_history:
            update_history(self, entry)

    kind.__call__, kind.acall, kind.update_history = called, awaited, noted
