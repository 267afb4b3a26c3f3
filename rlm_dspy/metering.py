"""Enters every model call that is made under a role into the run's ledger."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.usage_tracker import UsageTracker

from rlm_dspy.limits import tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.limits import Ledger

_HISTORY_ENTRIES_SEARCHED = 256
_usage_of_this_call: ContextVar[dict[str, Any] | None] = ContextVar("_usage_of_this_call", default=None)


class Meter(BaseCallback):
    """Listens to LM calls. Tokens come from DSPy's usage tracking, the price from the LM's history."""

    def __init__(self, ledger: Ledger, role: str) -> None:
        self.ledger = ledger
        self.role = role
        self._lms: dict[str, Any] = {}

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Remember which LM was called."""
        _usage_of_this_call.set(None)
        self._lms[call_id] = instance

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Enter the call."""
        lm = self._lms.pop(call_id)
        usage = _usage_of_this_call.get()
        entry = _history_entry(lm, outputs)
        self.ledger.settle(
            self.role,
            lm.model,
            usage or {},
            entry.get("cost") if usage else None,
            cached=usage is None and exception is None,
            failed=exception is not None,
        )


class _Tracker(UsageTracker):
    """Hands each call's usage to the meter in the same context, and to the tracker of the caller."""

    def __init__(self, ledger: Ledger, parent: UsageTracker | None) -> None:
        super().__init__()
        self.ledger = ledger
        self.parent = parent

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Note the usage of the call that has just ended."""
        _usage_of_this_call.set(self._flatten_usage_entry(usage_entry))
        if self.parent is not None:
            self.parent.add_usage(lm, usage_entry)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tracker:
        """Stay the same object: `dspy.Parallel` copies trackers for its threads and drops the copies."""
        return self


@contextlib.contextmanager
def metered(ledger: Ledger, role: str) -> Iterator[None]:
    """Enter every model call made inside this scope into `ledger` under `role`.

    The caller's own usage tracking and callbacks go on as they were. A scope inside another of the same
    ledger takes its place: no call is entered twice.
    """
    parent = dspy.settings.usage_tracker
    if isinstance(parent, _Tracker) and parent.ledger is ledger:
        parent = parent.parent
    others = [c for c in dspy.settings.callbacks if not (isinstance(c, Meter) and c.ledger is ledger)]
    with dspy.context(callbacks=[Meter(ledger, role), *others], usage_tracker=_Tracker(ledger, parent)):
        yield


def reported(lm: Any, outputs: Any) -> dict[str, Any]:
    """Return what the LM says of the call that returned `outputs`: tokens by the fields of `Spent`, price, cached.

    Tokens are 0 and the price is None where it says nothing, as it does of a call that failed.
    """
    entry = _history_entry(lm, outputs)
    cached = bool(getattr(entry.get("response"), "cache_hit", False))
    cost = None if cached else entry.get("cost")
    return {**tokens_of({} if cached else entry.get("usage") or {}), "cost": cost, "cached": cached}


def _history_entry(lm: Any, outputs: Any) -> dict[str, Any]:
    """Return the LM's history entry of the call that returned `outputs`, or an empty one."""
    for entry in reversed(lm.history[-_HISTORY_ENTRIES_SEARCHED:]):
        if entry.get("outputs") is outputs:
            return dict(entry)
    return {}
