"""Bounds what all runs of a batch use together: each leases a share, and gives back what it did not use."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_dspy.budget.ledger import CAPS, Ledger
from rlm_dspy.usage import NOTHING, Amount, Usage

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

    from rlm_dspy.limits import Limits

_PART = 256
"""A lease is at least this part (1/n) of the whole, while there is as much."""
_BUSY_SECONDS = 60.0
_SCHEMA = "CREATE TABLE IF NOT EXISTS taken (input_tokens REAL, output_tokens REAL, cost REAL)"
_START = "INSERT INTO taken SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM taken)"
_TAKE = """
UPDATE taken SET input_tokens = input_tokens + ?1, output_tokens = output_tokens + ?2, cost = cost + ?3
WHERE input_tokens + ?1 <= ?4 AND output_tokens + ?2 <= ?5 AND cost + ?3 <= ?6
"""


@dataclass(frozen=True)
class SharedBudget:
    """What a batch may use, and what of it is used or leased, in an SQLite file that its processes share.

    What a killed process had leased stays taken.

    Attributes:
        path: The file.
        limits: `max_cost`, `max_input_tokens` and `max_output_tokens` of the whole, and `prices`.
    """

    path: Path
    limits: Limits

    def take(self, amount: Amount) -> bool:
        """Lease an amount; return whether the whole allows it. A negative one is given back."""
        caps = self._caps() if amount.least(NOTHING) == NOTHING else Amount(math.inf, math.inf, math.inf)
        with self._connected() as connection:
            changed = connection.execute(_TAKE, (*_numbers(amount), *_numbers(caps))).rowcount
        return bool(changed)

    def left(self) -> Amount:
        """Return what is neither used nor leased; infinite for what is not limited."""
        with self._connected() as connection:
            (taken,) = connection.execute("SELECT input_tokens, output_tokens, cost FROM taken")
        return self._caps() - Amount(*taken)

    def affords(self, runs: int, used: Usage, ended: int) -> bool:
        """Return whether what is left is enough for a number of runs like those that have ended.

        Args:
            runs: The number.
            used: What those that have ended used.
            ended: How many these are.
        """
        spent = Amount(used.input_tokens, used.output_tokens, used.cost or 0.0)
        units = zip(_numbers(self.left()), _numbers(spent), strict=True)
        return all(left > 0 and (not ended or left * ended >= of * runs) for left, of in units)

    def _caps(self) -> Amount:
        caps = {unit: getattr(self.limits, name) for name, unit in CAPS.items()}
        return Amount(**{unit: math.inf if cap is None else cap for unit, cap in caps.items()})

    def _connected(self) -> contextlib.closing[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")  # a killed process loses nothing, a machine may
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}; {_START}; COMMIT")
        return contextlib.closing(connection)


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
        with self._lock:
            self._lease(NOTHING - self._left(None))

    def left(self, keeper: Hashable = None) -> Amount:
        """Return what the run has leased and not used, and what it may still lease."""
        return super().left(keeper) + self._whole.left()

    def give_back_lease(self) -> None:
        """Give back what is leased and not used."""
        with self._lock:
            rest = self._spent - self._leased
            self._leased = self._spent
        self._whole.take(rest)

    def _left(self, keeper: Hashable) -> Amount:
        limited = super()._left(keeper)
        return Amount(
            *(
                there if math.isinf(there) else there - getattr(self.limits, name) + getattr(self._leased, unit)
                for (name, unit), there in zip(CAPS.items(), _numbers(limited), strict=True)
            )
        )

    def _check_amount(self, most: Amount, left: Amount) -> None:
        if not self._lease(most - left):
            super()._check_amount(most, left)

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


def _numbers(amount: Amount) -> tuple[float, float, float]:
    return amount.input_tokens, amount.output_tokens, amount.cost
