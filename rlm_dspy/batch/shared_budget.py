"""Bounds what all runs of a batch use together: each leases a share, and gives back what it did not use."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.errors import LedgerLost
from rlm_dspy.usage import CAPS, NOTHING, Amount

if TYPE_CHECKING:
    from collections.abc import Hashable

    from rlm_dspy.limits import Limits
    from rlm_dspy.usage import Usage

_PART = 256
"""A lease is at least this part (1/n) of the budget, as long as so much is left."""


class Taken(Protocol):
    """A counter, shared by processes, of how much of a budget is used or leased."""

    def take(self, amount: Amount, caps: Amount) -> bool:
        """Add an amount unless one of its units would then be above its cap; return whether it was added.

        Raises:
            LedgerLost: If the place is gone.
        """

    def amount(self) -> Amount:
        """Return what is used or leased.

        Raises:
            LedgerLost: If the place is gone.
        """


@dataclass(frozen=True)
class SharedBudget:
    """What a batch may use. The leases of a killed process are not returned.

    Attributes:
        taken: What of it is used or leased.
        limits: `max_cost`, `max_input_tokens` and `max_output_tokens` of the whole, and `prices`.
    """

    taken: Taken
    limits: Limits

    def take(self, amount: Amount) -> bool:
        """Lease an amount; return whether the whole allows it.

        Raises:
            LedgerLost: If it is not known what is left.
        """
        return self.taken.take(amount, self._caps())

    def give_back(self, amount: Amount) -> None:
        """Give back what was leased; it stays taken if the ledger is gone."""
        with contextlib.suppress(LedgerLost):
            self.taken.take(NOTHING - amount, Amount(math.inf, math.inf, math.inf))

    def left(self) -> Amount:
        """Return what is neither used nor leased; infinite for what is not limited.

        Raises:
            LedgerLost: If it is not known.
        """
        return self._caps() - self.taken.amount()

    def affords(self, runs: int, used: Usage, ended: int) -> bool:
        """Return whether what is left is enough for a number of runs like those that have ended.

        Args:
            runs: The number.
            used: What those that have ended used.
            ended: How many these are.

        Raises:
            LedgerLost: If it is not known what is left.
        """
        spent = Amount(used.input_tokens, used.output_tokens, used.cost or 0.0)
        units = zip(numbers(self.left()), numbers(spent), strict=True)
        return all(left > 0 and (not ended or left * ended >= of * runs) for left, of in units)

    def _caps(self) -> Amount:
        caps = {unit: getattr(self.limits, name) for name, unit in CAPS.items()}
        return Amount(**{unit: math.inf if cap is None else cap for unit, cap in caps.items()})


class LeasedLedger(Ledger):
    """Counts one run, within what it leases of a budget. Give the rest back with `give_back_lease`.

    Args:
        whole: The budget.
    """

    def __init__(self, whole: SharedBudget) -> None:
        super().__init__(whole.limits)
        self._whole, self._leased = whole, NOTHING

    def keep(self, keeper: Hashable, amount: Amount) -> None:
        """Reserve an amount for the last turn of a run, and lease it as far as the whole allows."""
        super().keep(keeper, amount)
        with self._lock, contextlib.suppress(LedgerLost):  # the next request says so
            self._lease(NOTHING - self._left(None))

    def left(self, keeper: Hashable = None) -> Amount:
        """Return what the run has leased and not used, and what it may still lease."""
        leased = super().left(keeper)
        with contextlib.suppress(LedgerLost):  # a request that needs more than the lease says so
            return leased + self._whole.left()
        return leased

    def give_back_lease(self) -> None:
        """Give back what is leased and not used."""
        with self._lock:
            rest = self._leased - self._spent
            self._leased = self._spent
        self._whole.give_back(rest)

    def _left(self, keeper: Hashable) -> Amount:
        limited = super()._left(keeper)
        return Amount(
            *(
                there if math.isinf(there) else there - getattr(self.limits, name) + getattr(self._leased, unit)
                for (name, unit), there in zip(CAPS.items(), numbers(limited), strict=True)
            )
        )

    def _check_amount(self, most: Amount, keeper: Hashable) -> None:
        if not self._lease(most - self._left(keeper)):
            super()._check_amount(most, keeper)

    def _lease(self, missing: Amount) -> bool:
        """Lease what is missing, or more to ask less often; return whether that was possible."""
        missing = missing.most(NOTHING)
        if missing == NOTHING:
            return True
        caps = ((unit, getattr(self.limits, name)) for name, unit in CAPS.items())
        part = Amount(**{unit: cap / _PART for unit, cap in caps if cap is not None})
        for amount in (missing.most(part), missing):
            if self._whole.take(amount):
                self._leased += amount
                return True
        return False


def numbers(amount: Amount) -> tuple[float, float, float]:
    """Return input tokens, output tokens and USD."""
    return amount.input_tokens, amount.output_tokens, amount.cost
