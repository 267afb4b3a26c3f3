"""Defines `Ledger`, which counts and limits what a run and its children spend, and `Meter`, one scope's share."""

from __future__ import annotations

import math
import threading
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlm_dspy.budget.lm_info import Price, price_of
from rlm_dspy.concurrency.timeouts import Stopwatch
from rlm_dspy.concurrency.wait_scope import Cancellation
from rlm_dspy.errors import LimitExceeded, RunEnded
from rlm_dspy.usage import CAPS, NOTHING, Amount, RunUsage, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import dspy

    from rlm_dspy.budget.lm_info import RecordedReplies, RecordedReply
    from rlm_dspy.limits import Limits

NOTHING_USED = Usage()
_LOOK_SECONDS = 0.05
_has_slot_of: ContextVar[Ledger | None] = ContextVar("has_slot_of", default=None)
"""The ledger that counts this context as one of its running sub-calls."""


@dataclass
class Ledger:
    """Counts the usage of a run and its children, across threads.

    The maximum usage of a request is held before it is sent, and released when the actual usage is entered. So the
    limits on tokens and cost hold at any time, for any number of concurrent requests.
    """

    limits: Limits
    outer: Ledger | None = None
    """The ledger of what the run is a part of: its rest bounds the run too, its own meter enters the usage."""
    windows: dict[str, int] = field(default_factory=dict)
    """The context windows of LMs by `lm.model`, as known from rejected requests."""
    without_system_role: set[str] = field(default_factory=set)
    """The LMs, by `lm.model`, that rejected a system message."""
    without_streams: set[str] = field(default_factory=set)
    """The LMs, by `lm.model`, whose server was asked for a stream and sent none."""
    clock: Stopwatch = field(default_factory=Stopwatch, repr=False)
    """Paused while the run waits for a hook."""
    cancellation: Cancellation[LimitExceeded] = field(default_factory=Cancellation, repr=False)
    """Ends the requests of the tree's code when the ledger is closed."""
    recorded: RecordedReplies | None = None
    """The replies that arrived before the run was resumed; None if it was not."""
    calls_made: int = 0
    """Model calls that the code has made, or has reserved."""
    _spent: Amount = NOTHING
    _held: dict[Hashable, Amount] = field(default_factory=dict)
    _open: dict[Hashable, Meter] = field(default_factory=dict)
    _kept: dict[Hashable, Amount] = field(default_factory=dict)
    _met: str | None = None
    _spared: Hashable = None
    _settled: list[tuple[str, str, Usage]] = field(default_factory=list)
    """Role, model and usage of calls not summed yet."""
    _by_role: dict[str, Usage] = field(default_factory=dict)
    _by_model: dict[str, Usage] = field(default_factory=dict)
    _reused: int = 0
    _failed: int = 0
    _ad_hoc: Counter[str] = field(default_factory=Counter)
    _prices: dict[tuple[str, bool], Price | None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _slots: threading.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = any(getattr(self.limits, name) is not None for name in CAPS)
        self.bounded: bool = own or (self.outer is not None and self.outer.bounded)
        """Whether tokens or cost are limited."""
        self._slots = threading.Semaphore(self.limits.max_concurrency)

    def slot(self) -> Callable[[], None]:
        """Wait for one of `max_concurrency` slots; return the function that releases it, once.

        A sub-call inside another shares its slot: otherwise it would wait for its own caller.

        Raises:
            LimitExceeded: If the ledger was closed meanwhile.
        """
        if _has_slot_of.get() is self:
            return lambda: None
        while not self._slots.acquire(timeout=_LOOK_SECONDS):
            self.check_open()
        _has_slot_of.set(self)
        ends = [self._slots.release]
        return lambda: ends.pop()() if ends else None

    def meet(self, limit: str | None) -> None:
        """Record that a limit refused a call; `usage` reports the first one."""
        self._met = self._met or limit

    @property
    def calls_left(self) -> int:
        """Model calls that the code may still make."""
        return max(0, self.limits.max_llm_calls - self.calls_made)

    def price(self, lm: dspy.BaseLM) -> Price | None:
        """Return the price of an LM, looked up once; None if it is not known."""
        key = (lm.model, isinstance(getattr(lm, "engine", None), str))
        if key not in self._prices:
            self._prices[key] = price_of(lm, self.limits.prices) or (self.outer.price(lm) if self.outer else None)
        return self._prices[key]

    def hold(
        self, key: Hashable, most: Amount, *, keeper: Hashable = None, calls: int = 0, meter: Meter | None = None
    ) -> None:
        """Reserve the maximum usage of a request, until it is settled under `key`.

        Args:
            key: Identifies the request.
            most: Its maximum usage.
            keeper: The run that may also use its own reserve.
            calls: The number of model calls it takes.
            meter: Settles an abandoned request; see `give_up`.

        Raises:
            LimitExceeded: If it does not fit what is left; nothing is held or taken.
        """
        with self._lock:
            self.check_open(keeper)
            self._check_calls(calls)
            if most is not NOTHING:
                self._check_amount(most, keeper)
                self._held[key] = most
            self.calls_made += calls
            if meter is not None:
                self._open[key] = meter

    def _check_calls(self, calls: int) -> None:
        left = self.calls_left
        if calls > left:
            self.meet("max_llm_calls")
            raise LimitExceeded(
                f"{left} of {self.limits.max_llm_calls} model calls are left, but this needs {calls}. "
                "Continue with plain Python, or SUBMIT what you have.",
                "max_llm_calls",
            )

    def _check_amount(self, most: Amount, keeper: Hashable) -> None:
        left, kept = self._left(keeper), self._reserved_for_others(keeper)
        for name, unit in CAPS.items():
            wanted, there = getattr(most, unit), getattr(left, unit)
            if getattr(self.limits, name) is not None and wanted > there:
                self.meet(name)
                beside = getattr(kept, unit)
                beside = f" beside {_written(name, beside)} that are kept for the last turn" if beside else ""
                raise LimitExceeded(
                    f"{name}={getattr(self.limits, name)} does not allow this call: it could use up to "
                    f"{_written(name, wanted)}, but only {_written(name, max(0, there))} are left{beside}. "
                    "Ask about smaller pieces, continue with plain Python, or SUBMIT what you have.",
                    name,
                )

    def give_up(self) -> None:
        """Settle the running requests as failed: nobody waits for them any more."""
        with self._lock:
            meters = list(self._open.values())
        for meter in meters:
            meter.give_up(self.closed or RunEnded("The run has ended."))

    def give_back(self, key: Hashable, *, calls: int = 0) -> None:
        """Release the amount and the calls reserved for a request that was not sent."""
        with self._lock:
            self._held.pop(key, None)
            self._open.pop(key, None)
            self.calls_made -= calls

    def keep(self, keeper: Hashable, amount: Amount) -> None:
        """Reserve an amount for the last turn of one run; it replaces the amount reserved before."""
        with self._lock:
            self._kept[keeper] = amount
        if self.outer is not None:
            self.outer.keep(keeper, amount)

    def release(self, keeper: Hashable) -> None:
        """Release the reserve of an ended run."""
        with self._lock:
            self._kept.pop(keeper, None)
        if self.outer is not None:
            self.outer.release(keeper)

    def left(self, keeper: Hashable = None) -> Amount:
        """Return what is left, minus the amounts held for requests and reserved for runs other than `keeper`.

        Infinite for what is not limited.
        """
        with self._lock:
            own = self._left(keeper)
        return own if self.outer is None else own.least(self.outer.left(keeper))

    def _left(self, keeper: Hashable) -> Amount:
        gone = sum(self._held.values(), self._spent) + self._reserved_for_others(keeper)
        caps = [(unit, getattr(self.limits, name)) for name, unit in CAPS.items()]
        return Amount(**{unit: math.inf if cap is None else cap - getattr(gone, unit) for unit, cap in caps})

    def _reserved_for_others(self, keeper: Hashable) -> Amount:
        """Return what is reserved for the last turns of all runs but this keeper's."""
        return sum((amount for key, amount in self._kept.items() if key is not keeper), NOTHING)

    def close(self, why: LimitExceeded, spared: Hashable = None) -> None:
        """Refuse all further requests, and cancel running ones (see `cancellation`).

        Args:
            why: The error of refused requests.
            spared: The keeper whose requests are not refused: the converging run.
        """
        self._spared = spared  # first, because `closed` is read without a lock
        self.cancellation.cancel(why)

    def reopen(self) -> None:
        """Allow requests again."""
        self.cancellation.take_back()

    @property
    def closed(self) -> LimitExceeded | None:
        """Why requests are rejected; None if they are not."""
        return self.cancellation.why

    def check_open(self, keeper: Hashable = None) -> None:
        """Raise if requests of this keeper are rejected.

        Raises:
            LimitExceeded: With the reason.
        """
        closed = self.closed
        if closed is not None and (keeper is None or keeper is not self._spared):
            self.meet(closed.limit)
            raise type(closed)(str(closed), closed.limit)

    @property
    def started(self) -> float:
        """When the run began, by `time.monotonic`."""
        return self.clock.started

    @property
    def seconds(self) -> float:
        """Seconds since the run began that `max_seconds` counts: those without the waits for hooks."""
        return self.clock.seconds

    def settle(self, role: str, model: str, used: Usage, *, key: Hashable = None, calls: int = 0) -> None:
        """Record what a model call used.

        Args:
            role: Who asked: `act`, `query`, `extract`, or a sub's name.
            model: The model that was asked.
            used: Its usage; without `calls` for an abandoned call that was counted before.
            key: The key it was held under, if any.
            calls: The number of model calls it takes, if none was held.
        """
        with self._lock:
            self.calls_made += calls
            self._held.pop(key, None)
            self._open.pop(key, None)
            self._spent += Amount(used.input_tokens, used.output_tokens, used.cost or 0.0)
            self._settled.append((role, model, used))

    def _sum(self) -> Usage:
        """Add the usage settled since the last call; return the total."""
        for role, model, used in self._settled:
            self._by_role[role] = self._by_role.get(role, NOTHING_USED) + used
            self._by_model[model] = self._by_model.get(model, NOTHING_USED) + used
        self._settled.clear()
        return sum(self._by_role.values(), NOTHING_USED)

    def usage(self, limit: str | None = None) -> RunUsage:
        """Return the usage: totals, `seconds`, and the same by role and by model.

        Args:
            limit: The limit that ended the run; default: the first that refused a call.
        """
        with self._lock:
            return RunUsage(
                **dict(self._sum()),
                seconds=self.seconds + self.clock.waited,
                waited=self.clock.waited,
                limit=limit or self._met,
                by_role=self._by_role.copy(),
                by_model=self._by_model.copy(),
                reused=self._reused,
                failed=self._failed,
                ad_hoc=dict(self._ad_hoc),
            )

    def count_answers(self, *, reused: int, failed: int) -> None:
        """Count sub-calls answered by earlier identical ones, and failed ones."""
        with self._lock:
            self._reused += reused
            self._failed += failed

    def count_ad_hoc(self, name: str, calls: int) -> None:
        """Count calls of a module written in the REPL, by its signature."""
        with self._lock:
            self._ad_hoc[name] += calls

    def totals(self) -> Usage:
        """Return the total usage."""
        with self._lock:
            return self._sum()


@dataclass(eq=False)
class Meter:
    """Records the LM calls of one scope, and reserves the maximum usage of a request before it is sent.

    Attributes:
        ledger: The ledger of the calls.
        role: `act`, `query`, a sub's name, `ad_hoc`, `extract` or `fold`; for a child with the prefix `child.`.
        keeper: The run that may use the reserve for its last turn, or None; see `Ledger.hold`.
        counted: Whether each request takes one of `max_llm_calls`.
        mirrors: Lists that also receive the usage of each call.
        input_tokens: An upper bound of the request's input tokens, if known and no other request runs: its reply
            may then take half of the rest, else a fair share.
        raw: Whether to return replies unchanged: with thinking, and also if truncated.
        read_at_most: An upper bound of the last request's input tokens; 0 without a limit.
        read: The reported input tokens of the last request; 0 if not reported.
        outputs: The unchanged outputs for each request; None for a failed one.
        refusal: Why a request was refused; None if none was.
        failure: Why the last request failed; None if it did not.
    """

    ledger: Ledger
    role: str
    keeper: Hashable = None
    counted: bool = False
    mirrors: tuple[list[Usage], ...] = ()
    input_tokens: float | None = None
    raw: bool = False
    read_at_most: int = 0
    read: int = 0
    outputs: list[Any] = field(default_factory=list)
    refusal: LimitExceeded | None = None
    failure: Exception | None = None
    _under_way: dict[Hashable, str] = field(default_factory=dict)
    """The model of each request."""
    _why: LimitExceeded | None = None

    def hold(self, request: Hashable, model: str, most: Amount, keeper: Hashable = None) -> None:
        """Reserve the maximum usage of a request to a model, until it is settled.

        Args:
            request: Identifies it.
            model: The model.
            most: Its maximum usage.
            keeper: The run that may use its reserve, if this meter names none.

        Raises:
            LimitExceeded: If the limits do not allow it; nothing is held.
        """
        self.read_at_most = int(most.input_tokens)
        if self._why is not None:
            raise self._why
        self.ledger.hold(request, most, keeper=self.keeper or keeper, calls=int(self.counted), meter=self)
        self._under_way[request] = model

    def give_back(self, request: Hashable) -> None:
        """Release the reservation of a request that another ledger rejected."""
        if self._under_way.pop(request, None) is not None:
            self.ledger.give_back(request, calls=int(self.counted))

    def settle(self, request: Hashable, model: str, used: Usage) -> None:
        """Record the usage of a request. An abandoned request is not counted again."""
        self.read = used.input_tokens
        if self._under_way.pop(request, None) is None:
            used = used.model_copy(update={"calls": 0, "cached_calls": 0, "failures": 0})
        self._enter(request, model, used)

    def take(self, reply: RecordedReply) -> None:
        """Record a reply that is settled already."""
        self.read = reply.used.input_tokens
        self.outputs.append(reply.outputs)
        for mirror in self.mirrors:
            mirror.append(reply.used)

    def give_up(self, why: LimitExceeded | None = None) -> None:
        """Record the running requests as failed: nobody waits for them any more.

        Args:
            why: The error of all later requests; None to allow them.
        """
        self._why = why or self._why
        for request, model in list(self._under_way.items()):
            if self._under_way.pop(request, None) is not None:
                self._enter(request, model, Usage(calls=1, failures=1))

    def _enter(self, request: Hashable, model: str, used: Usage) -> None:
        self.ledger.settle(self.role, model, used, key=request)
        for mirror in self.mirrors:
            mirror.append(used)


def _written(name: str, value: float) -> str:
    return f"${value:.4f}" if name == "max_cost" else f"{value:,.0f} tokens"
