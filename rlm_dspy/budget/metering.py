"""Defines `Meter`, which reserves and records the usage of LM calls in a scope, and `LMRequest`."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import dspy
from dspy.lm15 import Response

from rlm_dspy._dspy_compat import UsageTracker
from rlm_dspy.budget.ledger import NOTHING, Amount
from rlm_dspy.budget.lm_info import check_price, price_of, reported_cost, tokens_of
from rlm_dspy.errors import LimitExceeded
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from rlm_dspy.budget.ledger import Ledger, Tally
    from rlm_dspy.limits import Limits

HistoryEntry = Mapping[str, Any]
"""What DSPy keeps of a request in `lm.history`."""
Outputs: TypeAlias = list[Any] | Response | None
"""What an LM returns: a list of texts or dicts with `text`; for a `dspy.lm15.Request` the response."""


@dataclass(eq=False)
class LMRequest:
    """One request to an LM: its bounds before it is sent, and what DSPy reports about it.

    Attributes:
        lm: The LM that is asked.
        meter: The innermost meter in force.
        input_tokens: The most tokens that its messages have; 0 where nothing limits them.
        output_tokens: The most tokens that its replies have.
        usage: What it used; DSPy adds to it.
        keeps_history: Whether DSPy keeps its entry in the history of the LM.
        entries: What DSPy has entered into its history meanwhile.
        outputs: What the LM returned; None until it has been answered.
    """

    lm: dspy.BaseLM
    meter: Meter
    input_tokens: int
    output_tokens: int
    usage: RequestUsage
    keeps_history: bool
    entries: list[HistoryEntry] = field(default_factory=list)
    outputs: Outputs = None

    def entry(self, outputs: Outputs) -> HistoryEntry:
        """Return the history entry of the LM's outputs; an empty one if there is none."""
        found = (
            each for each in self.entries if outputs is each.get("outputs") or outputs is each.get("response")
        )
        return next(found, {})

    def most(self, limits: Limits) -> Amount:
        """Return the most that the request can use.

        Raises:
            UnknownPrice: If the cost is limited and the price of the LM is not known.
        """
        price = check_price(self.lm, limits)
        cost = price.at_most(self.input_tokens, self.output_tokens) if price is not None else 0.0
        return Amount(self.input_tokens, self.output_tokens, cost)

    def used(self, limits: Limits, *, failed: bool) -> Usage:
        """Return what the request used."""
        usage = self.usage.total
        cached = not failed and not self.usage.is_reported
        cost = self._cost(usage, limits) if usage else None
        return Usage(calls=1, cached_calls=cached, failures=failed, cost=cost, **tokens_of(usage))

    def _cost(self, usage: Mapping[str, Any], limits: Limits) -> float | None:
        """Return what it cost in USD, as reported, else by the price that is known; None if neither is."""
        if (reported := reported_cost(self.entry(self.outputs))) is not None:
            return reported
        price = price_of(self.lm, limits.prices)
        return price.of(Usage(**tokens_of(usage))) if price is not None else None


class RequestUsage(UsageTracker):
    """Collects the usage of one request, and passes it on to the caller's tracker.

    Args:
        callers: The tracker in force; None if the caller has none.
    """

    def __init__(self, callers: UsageTracker | None = None) -> None:
        super().__init__()
        # An LM that asks another: each counts its own.
        self.callers: UsageTracker | None = callers.callers if isinstance(callers, RequestUsage) else callers
        self.is_reported = False

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Add the usage that DSPy reports, without details that cannot be summed."""
        self.is_reported = True
        usage_entry = {
            name: value
            for name, value in self._flatten_usage_entry(usage_entry).items()
            if not name.endswith(("_tokens", "_details")) or isinstance(value, dict) == name.endswith("_details")
        }
        super().add_usage("", usage_entry)
        if self.callers is not None:
            self.callers.add_usage(lm, usage_entry)

    @property
    def total(self) -> dict[str, Any]:
        """The usage in OpenAI's field names; empty if none was reported."""
        total: dict[str, Any] = self.get_total_tokens().get("", {}) if self.is_reported else {}
        return total


@dataclass(eq=False)
class Meter:
    """Records the LM calls of one scope, and reserves the most that a request can use before it is sent.

    Attributes:
        ledger: Where the calls are entered.
        role: Who asks: `act`, `query`, a sub's name, `ad_hoc`, `extract`, `fold`; of a child `child.` and these.
        keeper: The run that may use what is kept for its last turn, or None; see `Ledger.hold`.
        counted: Whether each request takes one of `max_llm_calls`.
        mirrors: Where what they used is added up too.
        input_tokens: The most tokens that the request reads, if that is known and no other is under way: the reply
            may then take half of what is left beyond them, else a fair part of it.
        raw: Whether replies are returned as the LM gives them: with thinking, and also if they were cut short.
        read_at_most: The most tokens that the last request had; 0 where nothing limits them.
        read: The tokens that the last request had, as reported; 0 if nothing was.
        outputs: What the LM returned for each request, unchanged; None for one that failed.
        refusal: Why a request was refused; None if none was.
    """

    ledger: Ledger
    role: str
    keeper: object = None
    counted: bool = False
    mirrors: tuple[Tally, ...] = ()
    input_tokens: float | None = None
    raw: bool = False
    read_at_most: int = 0
    read: int = 0
    outputs: list[Outputs] = field(default_factory=list)
    refusal: LimitExceeded | None = None
    _under_way: dict[LMRequest, None] = field(default_factory=dict)
    _why: LimitExceeded | None = None

    def hold(self, request: LMRequest) -> None:
        """Reserve the most that a request can use, until it is settled.

        Raises:
            LimitExceeded: If the limits do not allow it; nothing is held then.
        """
        self.read_at_most = request.input_tokens
        try:
            if self._why is not None:
                raise self._why
            most = request.most(self.ledger.limits) if self.ledger.bounded else NOTHING
            self.ledger.hold(request, most, keeper=self.keeper, calls=int(self.counted), give_up=self.give_up)
        except LimitExceeded as refusal:
            self.refusal = refusal
            raise
        self._under_way[request] = None

    def give_back(self, request: LMRequest) -> None:
        """Release the reservation of a request that another ledger rejected."""
        if self._under_way.pop(request, self) is None:
            self.ledger.give_back(request, calls=int(self.counted))

    def settle(self, request: LMRequest, *, failed: bool) -> None:
        """Record what a request used. A request that was given up is not counted again."""
        used = request.used(self.ledger.limits, failed=failed)
        self.outputs.append(request.outputs)
        self.read = used.input_tokens
        if self._under_way.pop(request, self) is not None:
            used = used.model_copy(update={"calls": 0, "cached_calls": 0, "failures": 0})
        self._enter(request, used)

    def give_up(self, why: LimitExceeded | None = None) -> None:
        """Record the requests under way as failed: nobody waits for them any more.

        Args:
            why: Why all later ones are refused; None if they are not.
        """
        self._why = why or self._why
        for request in list(self._under_way):
            if self._under_way.pop(request, self) is None:
                self._enter(request, Usage(calls=1, failures=1))

    def _enter(self, request: LMRequest, used: Usage) -> None:
        self.ledger.settle(self.role, request.lm.model, used, key=request)
        for mirror in self.mirrors:
            mirror.add(used)


METERS = "rlm_dspy_meters"
"""The key of `dspy.settings` that holds the meters in force: it reaches the threads that DSPy starts."""


def meters_in_force() -> tuple[Meter, ...]:
    """Return the innermost meter in force of each ledger, the innermost scope first."""
    return dspy.settings.get(METERS) or ()


request_under_way: ContextVar[LMRequest | None] = ContextVar("request_under_way", default=None)
latest_entry: ContextVar[HistoryEntry] = ContextVar("latest_entry", default={})  # noqa: B039 (never changed)
"""What DSPy has entered into its history last in this context, outside of any `metered` scope."""


def role() -> str:
    """Return the role of the innermost scope; empty outside of any."""
    return next((meter.role for meter in meters_in_force()), "")


def reported(outputs: Outputs) -> Usage:
    """Return the tokens and price of the LM call that has just ended, and whether the answer was cached.

    Tokens are 0 and the price is None where nothing is reported, as of a call that failed.

    Args:
        outputs: What the call returned.
    """
    request, entry = request_under_way.get(), latest_entry.get()
    if request is not None:
        entry = request.entry(outputs)
    elif entry.get("outputs") is not outputs:
        entry = {}
    cached = bool(getattr(entry.get("response"), "cache_hit", False))
    if cached:
        return Usage(cached_calls=1)
    return Usage(cost=reported_cost(entry), **tokens_of(entry.get("usage") or {}))
