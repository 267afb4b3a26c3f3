"""What a run may spend, and the one ledger that counts it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlm_dspy.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may spend. A limit that is reached never throws away what was found; the run converges.

    Raises:
        ValueError: If a number is out of its range.
    """

    max_iters: int = 20
    """Turns of the root model; at least 1. On the last one the model is told so."""
    max_llm_calls: int = 50
    """Model calls made from inside the REPL, failed ones and retries of items included; 0 allows none."""
    max_output_chars: int = 10_000
    """Characters of one turn's output that the model is shown and the trajectory keeps; at least 100."""
    max_concurrency: int = 16
    """Calls of one batch that are under way at once; at least 1."""
    max_depth: int = 1
    """How deep children may be nested: 1 allows children of the root, 0 none."""

    def __post_init__(self) -> None:
        for name, least in {
            "max_iters": 1,
            "max_llm_calls": 0,
            "max_output_chars": 100,
            "max_concurrency": 1,
            "max_depth": 0,
        }.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}.")


@dataclass
class Spent:
    """What a role or a model has used."""

    calls: int = 0
    failures: int = 0
    cached_calls: int = 0
    """Calls answered by DSPy's cache: no tokens, no cost."""
    input_tokens: int = 0
    cached_input_tokens: int = 0
    """The part of `input_tokens` that the provider had cached."""
    output_tokens: int = 0
    cost: float | None = None
    """USD; None if no call reported a price. Never 0 for an unknown price."""

    def add(self, tokens: dict[str, int], cost: float | None) -> None:
        """Add one call's tokens (by field name) and its price."""
        self.input_tokens += tokens.get("input_tokens", 0)
        self.cached_input_tokens += tokens.get("cached_input_tokens", 0)
        self.output_tokens += tokens.get("output_tokens", 0)
        if cost is not None:
            self.cost = (self.cost or 0.0) + cost


@dataclass
class Ledger:
    """Counts what a run spends, across threads. Calls are reserved before they are made."""

    limits: Limits
    started: float = field(default_factory=time.monotonic)
    _reserved: int = 0
    _by_role: dict[str, Spent] = field(default_factory=dict)
    _by_model: dict[str, Spent] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def reserve(self, calls: int = 1) -> None:
        """Take `calls` from the model calls that code may make.

        Raises:
            LimitExceeded: If fewer are left; nothing is taken then.
        """
        with self._lock:
            left = self.limits.max_llm_calls - self._reserved
            if calls > left:
                raise LimitExceeded(
                    f"{left} of {self.limits.max_llm_calls} sub-model calls are left, {calls} were asked for. "
                    "Go on with plain Python, or SUBMIT what you have."
                )
            self._reserved += calls

    @property
    def calls_left(self) -> int:
        """Model calls that code may still make."""
        with self._lock:
            return self.limits.max_llm_calls - self._reserved

    def settle(
        self, role: str, model: str, usage: dict[str, Any], cost: float | None, *, cached: bool, failed: bool
    ) -> None:
        """Enter one finished model call.

        Args:
            role: Who asked: `act`, `query`, `extract`, or a sub's name.
            model: The model that was asked.
            usage: The provider's usage, in OpenAI's field names; empty if none was reported.
            cost: USD, or None if it is not known.
            cached: Whether DSPy's cache answered.
            failed: Whether the call raised.
        """
        tokens = tokens_of(usage)
        with self._lock:
            for table, key in ((self._by_role, role), (self._by_model, model)):
                spent = table.setdefault(key, Spent())
                spent.calls += 1
                spent.cached_calls += cached
                spent.failures += failed
                spent.add(tokens, cost)

    def usage(self) -> dict[str, Any]:
        """Return what has been spent: totals, `seconds`, and the same by role and by model."""
        with self._lock:
            by_role = {role: vars(spent).copy() for role, spent in self._by_role.items()}
            by_model = {model: vars(spent).copy() for model, spent in self._by_model.items()}
        seconds = time.monotonic() - self.started
        return {**_sum(by_role.values()), "seconds": seconds, "by_role": by_role, "by_model": by_model}

    def totals(self) -> dict[str, Any]:
        """Return what has been spent in all, by the fields of `Spent`."""
        with self._lock:
            return _sum([vars(spent) for spent in self._by_role.values()])

    def since(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return what has been spent since `totals` returned `before`."""
        now = self.totals()
        return {name: None if now[name] is None else now[name] - (before[name] or 0) for name in now}


def _sum(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums, field by field; None where no part knows."""
    totals: dict[str, Any] = vars(Spent()).copy()
    for part in parts:
        for name, value in part.items():
            if value is not None:
                totals[name] = (totals[name] or 0) + value
    return totals


def tokens_of(usage: dict[str, Any]) -> dict[str, int]:
    """Return the tokens of a provider's usage (OpenAI's field names) by the fields of `Spent`."""
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, dict) else getattr(details, "cached_tokens", None)
    return {
        "input_tokens": usage.get("prompt_tokens") or 0,
        "cached_input_tokens": cached or 0,
        "output_tokens": usage.get("completion_tokens") or 0,
    }
