"""Enters every model call of a role into the run's ledger, and refuses what the limits do not allow."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.usage_tracker import UsageTracker

from rlm_dspy.budget.ledger import Amount
from rlm_dspy.budget.lm_info import (
    REPLY_LIMITS,
    longest_reply,
    price_of,
    reported_cost,
    reported_price,
    tokens_at_most,
    tokens_of,
)
from rlm_dspy.errors import LimitExceeded, UnknownPrice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rlm_dspy.budget.ledger import Ledger, Ticket
    from rlm_dspy.budget.lm_info import Price
    from rlm_dspy.limits import Limits

_HISTORY_ENTRIES_SEARCHED = 256
_LONGEST_REPLY_UNKNOWN = 32_768


@dataclass(frozen=True)
class _Call:
    """A call of an LM in this context, and what was reported of it; an LM may ask another meanwhile."""

    call_id: str
    outer: _Call | None
    parts: tuple[dict[str, Any], ...] = ()
    ended: bool = False


_call: ContextVar[_Call | None] = ContextVar("_call", default=None)


def _under_way() -> _Call | None:
    """Return the innermost call that has not ended."""
    call = _call.get()
    while call is not None and call.ended:
        call = call.outer
    return call


class Refused(BaseException):
    """Stops a model call from inside a callback of DSPy, which swallows every `Exception` there.

    It never leaves `metered`, which raises the `LimitExceeded` that it holds.
    """

    def __init__(self, ledger: Ledger, call_id: str, why: LimitExceeded) -> None:
        super().__init__(str(why))
        self.ledger = ledger
        self.call_id = call_id
        self.why = why


class Meter(BaseCallback):
    """Listens to the LM calls of one scope. What a call can use at most is held before it is made.

    Tokens come from DSPy's usage tracking. The price comes from the LM's history; where that has none, from the
    price that is known or given.

    Args:
        ledger: Where the calls are entered.
        role: Under what.
        keeper: Whose last turn this is, or None; see `Ledger.hold`.
        ticket: From what the calls are taken, if `max_llm_calls` counts them.
        mirrors: Where they are entered too.
    """

    def __init__(
        self,
        ledger: Ledger,
        role: str,
        keeper: object = None,
        ticket: Ticket | None = None,
        mirrors: tuple[Ledger, ...] = (),
    ) -> None:
        self.ledger = ledger
        self.role = role
        self.keeper = keeper
        self.ticket = ticket
        self.mirrors = mirrors
        self.read_at_most = 0
        """Tokens that the last request had at most; 0 where nothing limits them."""
        self.used: dict[str, int] | None = None
        """Tokens of the last request, by the fields of `Usage`; None if none were reported."""
        self.outputs: list[Any] = []
        """What the LM returned for each request, whole; None of one that failed."""
        self._lms: dict[str, Any] = {}
        self._given_up: dict[str, Any] = {}
        self._why: LimitExceeded | None = None

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Hold what the call can use at most.

        Raises:
            Refused: If the limits do not allow it.
        """
        if (call := _under_way()) is None or call.call_id != call_id:  # other meters hear of the same call
            _call.set(_Call(call_id, call))
        try:
            if self._why is not None:
                raise self._why
            self.ledger.check_open(self.keeper)
            if self.ledger.bounded:
                self.ledger.hold(call_id, self._most(instance, inputs), keeper=self.keeper)
            if self.ticket is not None:
                self.ticket.take()
        except LimitExceeded as error:
            self.ledger.give_back(call_id)
            _ended(call_id)
            raise Refused(self.ledger, call_id, error) from None
        self._lms[call_id] = instance
        self.ledger.open(call_id, self.give_up)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Enter the call; of one that was given up, what it used all the same."""
        asked = self._lms.pop(call_id, None)
        given_up = self._given_up.pop(call_id, None)
        if (lm := asked or given_up) is None:
            return
        parts = _ended(call_id)
        usage = _added(parts) if parts else {}
        cost = self._cost(lm, outputs, usage)
        self.outputs.append(outputs)
        if asked is None:
            for ledger in (self.ledger, *self.mirrors):
                ledger.add(self.role, lm.model, usage, cost)
            return
        self.used = tokens_of(usage) if usage else None
        cached, failed = not parts and exception is None, exception is not None
        self._settle(call_id, lm, usage, cost, cached=cached, failed=failed)

    def give_up(self, why: LimitExceeded | None = None) -> None:
        """Enter the calls that are still under way as failed: nobody waits for them any more.

        Args:
            why: Why all later ones are refused; None if they are not.
        """
        self._why = why or self._why
        for call_id, lm in list(self._lms.items()):
            self._given_up[call_id] = lm  # first, so that its end finds it in one place or the other
            if self._lms.pop(call_id, None) is not None:
                self._settle(call_id, lm, {}, None, cached=False, failed=True)

    def _settle(self, call_id: str, lm: Any, usage: dict[str, int], cost: float | None, **how: bool) -> None:
        for ledger in (self.ledger, *self.mirrors):
            ledger.settle(self.role, lm.model, usage, cost, key=call_id, **how)

    def forget(self, call_id: str) -> None:
        """Give back what is held for a call that another ledger refused."""
        if self._lms.pop(call_id, None) is not None:
            self.ledger.give_back(call_id)

    def _most(self, lm: Any, inputs: dict[str, Any]) -> Amount:
        options = {**lm.kwargs, **(inputs.get("kwargs") or {})}
        read = self.read_at_most = tokens_at_most(inputs.get("prompt"), inputs.get("messages"))
        told = next((options[name] for name in REPLY_LIMITS if options.get(name)), None)
        written = told or longest_reply(lm) or _LONGEST_REPLY_UNKNOWN
        times = options.get("n") or 1
        price = check_price(lm, self.ledger.limits)
        cost = price.at_most(read, written) if price is not None else 0.0
        return Amount(read * times, written * times, cost * times)

    def _cost(self, lm: Any, outputs: Any, usage: dict[str, int]) -> float | None:
        if not usage:
            return None
        if (reported := reported_cost(_history_entry(lm, outputs))) is not None:
            return reported
        price = price_of(lm, self.ledger.limits.prices)
        return price.of(tokens_of(usage)) if price is not None else None


class _Tracker(UsageTracker):
    """Hands each call's usage to the meters in the same context, and to the tracker of the caller."""

    def __init__(self, ledger: Ledger, parent: UsageTracker | None) -> None:
        super().__init__()
        self.ledger = ledger
        self.parent = parent

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Note the usage of the call that has just ended."""
        usage_entry = {
            name: value
            for name, value in self._flatten_usage_entry(usage_entry).items()
            if not name.endswith(("_tokens", "_details"))
            or isinstance(value, dict) == name.endswith("_details")  # else DSPy cannot add it up
        }
        if (call := _under_way()) is not None:
            _call.set(replace(call, parts=(*call.parts, usage_entry)))
        callers = self.parent
        while isinstance(callers, _Tracker):  # of another ledger, whose meter looks at the same place
            callers = callers.parent
        if callers is not None:
            callers.add_usage(lm, usage_entry)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tracker:
        """Stay the same object: `dspy.Parallel` copies trackers for its threads and drops the copies."""
        return self


@contextlib.contextmanager
def metered(
    ledger: Ledger,
    role: str,
    *,
    keeper: object = None,
    ticket: Ticket | None = None,
    mirror: Ledger | None = None,
) -> Iterator[Meter]:
    """Enter every model call made inside this scope into `ledger` under `role`, and refuse what it does not allow.

    The caller's own usage tracking and callbacks go on as they were. A scope inside another of the same
    ledger takes its place: no call is entered twice.

    Args:
        ledger: Where calls are entered.
        role: Who asks: `act`, `query`, a sub's name, `ad_hoc`, `extract`, `fold`; of a child `child.` and these.
        keeper: For whose last turn this is; see `Ledger.hold`.
        ticket: From what the calls are taken, if `max_llm_calls` counts them.
        mirror: Where they are entered too, with those of scopes inside that take this one's place.

    Raises:
        LimitExceeded: If the limits do not allow a call.
    """
    displaced = [c for c in dspy.settings.callbacks if isinstance(c, Meter) and c.ledger is ledger]
    mirrors = tuple(each for meter in displaced for each in meter.mirrors)
    meter = Meter(ledger, role, keeper, ticket, mirrors if mirror is None else (*mirrors, mirror))
    parent = dspy.settings.usage_tracker
    if isinstance(parent, _Tracker) and parent.ledger is ledger:
        parent = parent.parent
    others = [c for c in dspy.settings.callbacks if c not in displaced]
    try:
        with dspy.context(callbacks=[meter, *others], usage_tracker=_Tracker(ledger, parent)):
            yield meter
    except (TimeoutError, LimitExceeded) as error:
        if isinstance(error.__cause__ or error, TimeoutError):
            meter.give_up()
        raise
    except Refused as refused:
        meter.forget(refused.call_id)
        if refused.ledger is not ledger:
            raise
        raise refused.why from None


_aside: ContextVar[tuple[Meter, ...]] = ContextVar("_aside", default=())
"""Meters that are left out of DSPy's callbacks until an LM is asked."""


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Have DSPy tell the meters in force of nothing in this scope but what is done inside `heard`.

    Telling callbacks of every module is much of what a meter costs. Where others than meters listen there is
    nothing to save: all is told as ever.
    """
    meters = tuple(dspy.settings.callbacks)
    if not are_meters(meters):
        yield
        return
    token = _aside.set(meters)
    try:
        with dspy.context(callbacks=[]):
            yield
    finally:
        _aside.reset(token)


def are_meters(callbacks: Iterable[Any]) -> bool:
    """Whether callbacks are meters, which need no telling of anything but LMs."""
    return all(isinstance(each, Meter) for each in callbacks)


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Have the meters that are left aside hear of what is asked in this scope."""
    meters = _aside.get()
    if not meters:
        yield
        return
    token = _aside.set(())
    try:
        with dspy.context(callbacks=[*meters, *dspy.settings.callbacks]):
            yield
    finally:
        _aside.reset(token)


def narrowest() -> Meter | None:
    """Return the meter of the innermost scope whose ledger limits tokens or cost; None if there is none."""
    return next((meter for meter in _meters() if meter.ledger.bounded), None)


def ledger_in_force() -> Ledger | None:
    """Return the ledger of the innermost scope; None outside of any."""
    return next((meter.ledger for meter in _meters()), None)


def _meters() -> Iterator[Meter]:
    return (each for each in (*_aside.get(), *dspy.settings.callbacks) if isinstance(each, Meter))


def check_price(lm: Any, limits: Limits) -> Price | None:
    """Return the price of an LM; None if it is not known, nor needed.

    If the cost is limited, that of a model whose price is not known is bounded by what its calls so far have cost.

    Raises:
        UnknownPrice: If the cost is limited and the price is not known.
    """
    price = price_of(lm, limits.prices)
    if price is None and limits.max_cost is not None:
        price = reported_price(lm)
    if price is None and limits.max_cost is not None:
        raise UnknownPrice(
            f"max_cost is set, but the price of {lm.model!r} is not known. Give it in USD per million tokens read "
            f"and written, e.g. Limits(max_cost=1.0, prices={{{lm.model!r}: (0.25, 2.0)}}); or call the LM once "
            "before, if its replies tell what they cost.",
            "max_cost",
        )
    return price


def _ended(call_id: str) -> tuple[dict[str, Any], ...]:
    """Return what was reported of a call that has ended."""
    call = _call.get()
    while call is not None and call.call_id != call_id:
        call = call.outer
    if call is None:
        return ()
    _call.set(replace(call, ended=True))
    return call.parts


def _added(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    tracker = UsageTracker()
    for part in parts:
        tracker.add_usage("", part)
    total: dict[str, Any] = tracker.get_total_tokens().get("", {})
    return total


def reported(lm: Any, outputs: Any) -> dict[str, Any]:
    """Return what the LM says of the call that returned `outputs`: tokens by the fields of `Usage`, price, cached.

    Tokens are 0 and the price is None where it says nothing, as it does of a call that failed.
    """
    entry = _history_entry(lm, outputs)
    cached = bool(getattr(entry.get("response"), "cache_hit", False))
    cost = None if cached else reported_cost(entry)
    return {**tokens_of({} if cached else entry.get("usage") or {}), "cost": cost, "cached": cached}


def _history_entry(lm: Any, outputs: Any) -> dict[str, Any]:
    """Return the LM's history entry of the call that returned `outputs`, or an empty one."""
    for entry in reversed(lm.history[-_HISTORY_ENTRIES_SEARCHED:]):
        if entry.get("outputs") is outputs:
            return dict(entry)
    return {}
