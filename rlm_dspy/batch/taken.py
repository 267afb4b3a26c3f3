"""Counts what of a budget is used or leased: in an SQLite file, or in a Redis server that machines share."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from rlm_dspy.batch.shared_budget import numbers
from rlm_dspy.cache.redis_client import redis_client
from rlm_dspy.errors import LedgerLost
from rlm_dspy.inputs.addresses import without_credentials
from rlm_dspy.usage import Amount

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import redis

T = TypeVar("T")
_BUSY_SECONDS = 60.0
_SCHEMA = "CREATE TABLE IF NOT EXISTS taken (input_tokens REAL, output_tokens REAL, cost REAL)"
_START = "INSERT INTO taken SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM taken)"
_TAKE = """
UPDATE taken SET input_tokens = input_tokens + ?1, output_tokens = output_tokens + ?2, cost = cost + ?3
WHERE input_tokens + ?1 <= ?4 AND output_tokens + ?2 <= ?5 AND cost + ?3 <= ?6
"""


@dataclass(frozen=True)
class TakenInFile:
    """Counts in an SQLite file, which is made when it is first used."""

    path: Path

    def take(self, amount: Amount, caps: Amount) -> bool:
        """Add an amount unless a unit would then be above its cap; return whether it was added."""
        with self._connected() as connection:
            return bool(connection.execute(_TAKE, (*numbers(amount), *numbers(caps))).rowcount)

    def amount(self) -> Amount:
        """Return what is used or leased."""
        with self._connected() as connection:
            (taken,) = connection.execute("SELECT input_tokens, output_tokens, cost FROM taken")
        return Amount(*taken)

    def _connected(self) -> contextlib.closing[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")  # a killed process loses nothing, a machine may
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}; {_START}; COMMIT")
        return contextlib.closing(connection)


_UNITS = ("input_tokens", "output_tokens", "cost")
_TAKE_THERE = """
local units = {'input_tokens', 'output_tokens', 'cost'}
local taken = redis.call('HMGET', KEYS[1], unpack(units))
if not taken[1] then return -1 end
for n = 1, 3 do
  if tonumber(taken[n]) + tonumber(ARGV[n]) > tonumber(ARGV[n + 3]) then return 0 end
end
for n = 1, 3 do redis.call('HINCRBYFLOAT', KEYS[1], units[n], ARGV[n]) end
return 1
"""
"""Returns -1 if nothing is counted there: the server was emptied."""
_ENDLESS = 1e300
"""Stands for no cap: Lua has no word for infinity."""


@dataclass(frozen=True)
class TakenOnServer:
    """Counts in a Redis server, for all batches of a program that name it.

    If the server does not answer, or has lost its data, nothing more can be taken.

    Attributes:
        url: Where the server is.
        name: The key of the count.
    """

    url: str = field(repr=False)
    name: str

    def begin(self, note: Path) -> None:
        """Begin to count at nothing, unless the server counts already.

        Args:
            note: The file that says that this was done: then the server must know the count.

        Raises:
            ImportError: If the extra `redis` is not installed.
            LedgerLost: If the server does not answer, or has lost the count.
            ValueError: If the address is not one of a server.
        """
        where = without_credentials(self.url)
        if note.exists() and note.read_text(encoding="utf-8") == where:
            self.amount()
            return

        def start(client: redis.Redis) -> None:
            for unit in _UNITS:
                client.hsetnx(self.name, unit, "0")

        self._asked(start)
        note.write_text(where, encoding="utf-8")

    def take(self, amount: Amount, caps: Amount) -> bool:
        """Add an amount unless a unit would then be above its cap; return whether it was added.

        Raises:
            LedgerLost: If the server does not answer, or has lost the count.
        """
        given = (*numbers(amount), *(min(cap, _ENDLESS) for cap in numbers(caps)))
        # What is given back is sent once: given back twice, it would be spent twice.
        retries = 0 if min(numbers(amount)) < 0 else 3
        taken = self._asked(lambda client: client.eval(_TAKE_THERE, 1, self.name, *map(repr, given)), retries)
        if taken == -1:
            raise self._lost()
        return bool(taken)

    def amount(self) -> Amount:
        """Return what is used or leased.

        Raises:
            LedgerLost: If the server does not answer, or has lost the count.
        """
        found = self._asked(lambda client: client.hmget(self.name, _UNITS))
        there = [float(number) for number in found if number is not None]
        if not there:
            raise self._lost()
        return Amount(*there)

    def _asked(self, ask: Callable[[redis.Redis], T], retries: int = 3) -> T:
        client = _client(self.url, retries)
        from redis.exceptions import RedisError  # noqa: PLC0415 (an extra)

        try:
            return ask(client)
        except (RedisError, OSError) as error:
            where = without_credentials(self.url)
            raise LedgerLost(
                f"The server of the budget, {where}, failed: {str(error).rstrip('.')}. Nothing more is spent. Run "
                "the batch again when it responds: stored results are not paid for again."
            ) from None

    def _lost(self) -> LedgerLost:
        return LedgerLost(
            f"{without_credentials(self.url)} has lost {self.name!r}, the count of what the budget was used for. "
            "Restore its data; or remove *.ledger from the store, to count from 0, and pass the rest as budget."
        )


@functools.lru_cache(maxsize=8)
def _client(url: str, retries: int) -> redis.Redis:
    return redis_client(url, retries)
