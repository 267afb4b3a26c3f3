"""Defines `Ledger`, which counts and limits what a run and its child runs spend."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlm_dspy.concurrency.wait_scope import Cancellation, enter_slot, wait_scope
from rlm_dspy.errors import LimitExceeded
from rlm_dspy.usage import RunUsage, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from rlm_dspy.limits import Limits

_CAPS = {"max_input_tokens": "input_tokens", "max_output_tokens": "output_tokens", "max_cost": "cost"}
"""The limits on what model calls use, and the field of `Amount` that each bounds."""


@dataclass(frozen=True)
class Amount:
    """The usage of model calls, or an upper bound of it."""

    input_tokens: float = 0
    output_tokens: float = 0
    cost: float = 0.0
    """USD."""

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost + other.cost,
        )

    def __sub__(self, other: Amount) -> Amount:
        return Amount(
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
            self.cost - other.cost,
        )


NOTHING = Amount()
NOTHING_USED = Usage()


_LOOK_SECONDS = 0.05


@dataclass
class Ledger:
    """Counts what a run and its children spend, across threads.

    What a request can use at most is held before it is made, and given back when what it used is entered. So the
    limits on tokens and cost hold at every moment, however many requests are under way.
    """

    limits: Limits
    windows: dict[str, int] = field(default_factory=dict)
    """The tokens that LMs can hold, by `lm.model`, as refusals of requests that were too long have told."""
    started: float = field(default_factory=time.monotonic)
    cancellation: Cancellation[LimitExceeded] = field(default_factory=Cancellation, repr=False)
    """Ends the requests of the tree's code when the ledger is closed."""
    _reserved: int = 0
    _spent: Amount = NOTHING
    _held: dict[object, Amount] = field(default_factory=dict)
    _open: dict[object, Callable[[LimitExceeded], object]] = field(default_factory=dict)
    _kept: dict[object, Amount] = field(default_factory=dict)
    _met: str | None = None
    _spared: object = None
    _by_role: dict[str, Usage] = field(default_factory=dict)
    _by_model: dict[str, Usage] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _slots: threading.Semaphore = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.bounded = any(getattr(self.limits, name) is not None for name in _CAPS)
        """Whether tokens or cost are limited."""
        self._slots = threading.Semaphore(self.limits.max_concurrency)

    def slot(self) -> Callable[[], None]:
        """Wait until one more of `max_concurrency` sub-calls may be under way; return what ends it, once.

        A sub-call that is asked for inside another is part of that one: it would wait for whom it holds up.

        Raises:
            LimitExceeded: If the ledger was closed meanwhile.
        """
        if wait_scope().slot is self:
            return lambda: None
        while not self._slots.acquire(timeout=_LOOK_SECONDS):
            self.check_open()
        enter_slot(self)
        ends = [self._slots.release]
        return lambda: ends.pop()() if ends else None

    def meet(self, limit: str | None) -> None:
        """Record that a limit rejected something; `usage` reports the first one."""
        self._met = self._met or limit

    @property
    def calls_left(self) -> int:
        """Model calls that the code may still make."""
        with self._lock:
            return self.limits.max_llm_calls - self._reserved

    @property
    def calls_made(self) -> int:
        """Model calls that the code has made."""
        with self._lock:
            return self._reserved

    def hold(
        self,
        key: Hashable,
        most: Amount,
        *,
        keeper: Hashable = None,
        calls: int = 0,
        give_up: Callable[[LimitExceeded], object] | None = None,
    ) -> None:
        """Reserve the most that a request can use, until it is settled under `key`.

        Args:
            key: Names the request.
            most: What it can use at most.
            keeper: Who may also use what was kept for it; others may not.
            calls: How many of the model calls that code may make it takes.
            give_up: What has it settled if nobody waits for it any more; see `give_up`.

        Raises:
            LimitExceeded: If it does not fit what is left; nothing is held or taken then.
        """
        with self._lock:
            self.check_open(keeper)
            self._check_calls(calls)
            if most is not NOTHING:
                self._check_amount(most, self._left(keeper))
                self._held[key] = most
            self._reserved += calls
            if give_up is not None:
                self._open[key] = give_up

    def _check_calls(self, calls: int) -> None:
        left = self.limits.max_llm_calls - self._reserved
        if calls > left:
            self.meet("max_llm_calls")
            raise LimitExceeded(
                f"{left} of {self.limits.max_llm_calls} sub-model calls are left, {calls} were asked for. "
                "Go on with plain Python, or SUBMIT what you have.",
                "max_llm_calls",
            )

    def _check_amount(self, most: Amount, left: Amount) -> None:
        for name, unit in _CAPS.items():
            wanted, there = getattr(most, unit), getattr(left, unit)
            if getattr(self.limits, name) is not None and wanted > there:
                self.meet(name)
                raise LimitExceeded(
                    f"{name}={getattr(self.limits, name)} does not allow this call: it could use up to "
                    f"{_written(name, wanted)}, and {_written(name, max(0, there))} are left for calls. "
                    "Ask about smaller pieces, go on with plain Python, or SUBMIT what you have.",
                    name,
                )

    def give_up(self) -> None:
        """Have the callers of the requests under way settle them: nobody waits for them any more."""
        with self._lock:
            under_way = list(self._open.values())
        for give_up in under_way:
            give_up(self.closed or LimitExceeded("The run has ended."))

    def give_back(self, key: Hashable, *, calls: int = 0) -> None:
        """Release the amount and the calls reserved for a request that was not sent."""
        with self._lock:
            self._held.pop(key, None)
            self._open.pop(key, None)
            self._reserved -= calls

    def keep(self, keeper: Hashable, amount: Amount) -> None:
        """Reserve an amount for the last turn of one run; it replaces the amount reserved before."""
        with self._lock:
            self._kept[keeper] = amount

    def release(self, keeper: Hashable) -> None:
        """Release what is reserved for a run that has ended."""
        with self._lock:
            self._kept.pop(keeper, None)

    def left(self, keeper: Hashable = None) -> Amount:
        """Return what is left for requests, without the amounts reserved for requests and for runs but `keeper`.

        Of what is not limited, infinitely much is left.
        """
        with self._lock:
            return self._left(keeper)

    def _left(self, keeper: Hashable) -> Amount:
        gone = sum(self._held.values(), self._spent)
        gone = sum((amount for key, amount in self._kept.items() if key is not keeper), gone)
        caps = {unit: getattr(self.limits, name) for name, unit in _CAPS.items()}
        left = {unit: math.inf if cap is None else cap - getattr(gone, unit) for unit, cap in caps.items()}
        return Amount(**left)

    def close(self, why: LimitExceeded, spared: Hashable = None) -> None:
        """Reject all further requests, and cancel those that somebody waits for (see `cancellation`).

        Args:
            why: What the refused are told.
            spared: The keeper whose own requests are not refused: the run that converges.
        """
        self._spared = spared  # first, as `closed` is read without a lock
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
            raise LimitExceeded(str(closed), closed.limit)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the run began."""
        return time.monotonic() - self.started

    def settle(self, role: str, model: str, used: Usage, *, key: Hashable = None) -> None:
        """Record what a model call used.

        Args:
            role: Who asked: `act`, `query`, `extract`, or a sub's name.
            model: The model that was asked.
            used: What it used; without `calls` what a call used that was given up and entered before.
            key: Under which it was held, if it was.
        """
        with self._lock:
            self._held.pop(key, None)
            self._open.pop(key, None)
            self._spent += Amount(used.input_tokens, used.output_tokens, used.cost or 0.0)
            self._by_role[role] = self._by_role.get(role, NOTHING_USED) + used
            self._by_model[model] = self._by_model.get(model, NOTHING_USED) + used

    def usage(self, limit: str | None = None) -> RunUsage:
        """Return what has been spent: totals, `seconds`, and the same by role and by model.

        Args:
            limit: The limit because of which the run converged, if one did; else the first that refused a call is
                told.
        """
        with self._lock:
            totals = sum(self._by_role.values(), NOTHING_USED)
            return RunUsage(
                **dict(totals),
                seconds=self.seconds,
                limit=limit or self._met,
                by_role=self._by_role.copy(),
                by_model=self._by_model.copy(),
            )

    def totals(self) -> Usage:
        """Return what has been spent in all."""
        with self._lock:
            return sum(self._by_role.values(), NOTHING_USED)


class Tally:
    """Sums the usage of the model calls of one sub-call, across threads."""

    def __init__(self) -> None:
        self.used = NOTHING_USED
        self._lock = threading.Lock()

    def add(self, used: Usage) -> None:
        """Add what a model call used."""
        with self._lock:
            self.used += used


def _written(name: str, value: float) -> str:
    return f"${value:.4f}" if name == "max_cost" else f"{value:,.0f} tokens"
