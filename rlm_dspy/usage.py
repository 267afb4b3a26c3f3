"""Defines `Usage` and `RunUsage`, what model calls used in tokens, cost and time, and `Amount`, a bound of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


class Usage(BaseModel):
    """The usage of some model calls. `+` and `-` work field by field; `sum(parts, Usage())` adds many."""

    model_config = ConfigDict(frozen=True)

    calls: int = 0
    failures: int = 0
    """Calls that raised."""
    cached_calls: int = 0
    """Calls answered by DSPy's cache: no tokens, no cost."""
    input_tokens: int = 0
    cached_input_tokens: int = 0
    """The part of `input_tokens` that the provider had cached."""
    output_tokens: int = 0
    cost: float | None = None
    """USD; None if no call reported a price. Never 0 for an unknown price."""

    def __add__(self, other: Usage) -> Usage:
        cost = self.cost if other.cost is None else (self.cost or 0.0) + other.cost
        return self._with(other, 1, cost)

    def __sub__(self, other: Usage) -> Usage:
        return self._with(other, -1, None if self.cost is None else self.cost - (other.cost or 0.0))

    def _with(self, other: Usage, sign: int, cost: float | None) -> Usage:
        return Usage(cost=cost, **{name: getattr(self, name) + sign * getattr(other, name) for name in _COUNTS})


_COUNTS = [name for name in Usage.model_fields if name != "cost"]


class RunUsage(Usage):
    """The usage of a run and its children, in total and by role. `Prediction.usage` is its `model_dump()`."""

    seconds: float = 0.0
    """Wall-clock seconds since the run began."""
    waited: float = 0.0
    """Those of them in which the run waited for a hook, e.g. for a person who approves; no limit counts them."""
    limit: str | None = None
    """The limit that ended the run early, else the first that refused a call; None if none did."""
    by_role: dict[str, Usage] = {}
    """The same by role: `act`, `query`, `extract`, the name of a sub; for children with the prefix `child.`."""
    by_model: dict[str, Usage] = {}
    reused: int = 0
    """Sub-calls answered by an earlier identical one."""
    failed: int = 0
    """Sub-calls that failed."""
    ad_hoc: dict[str, int] = {}
    """Number of calls of each module written in the REPL, by class and signature."""

    def __getitem__(self, name: str) -> Any:
        """Return a number by its name, as `Prediction.usage` does, which is a dict."""
        return self.model_dump()[name]


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
        return self + Amount(-other.input_tokens, -other.output_tokens, -other.cost)

    def least(self, other: Amount) -> Amount:
        """Return the smaller number of each."""
        return Amount(
            min(self.input_tokens, other.input_tokens),
            min(self.output_tokens, other.output_tokens),
            min(self.cost, other.cost),
        )

    def most(self, other: Amount) -> Amount:
        """Return the larger number of each."""
        return NOTHING - (NOTHING - self).least(NOTHING - other)


NOTHING = Amount()
CAPS = {"max_input_tokens": "input_tokens", "max_output_tokens": "output_tokens", "max_cost": "cost"}
"""The limits on what model calls use, and the field of `Amount` that each bounds."""
