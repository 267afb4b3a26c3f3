"""Defines `AnswerServer`: the Redis server in which processes on several machines share answers."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from rlm_dspy.cache.redis_client import redis_client
from rlm_dspy.inputs.addresses import without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    from redis.lock import Lock

T = TypeVar("T")
_logger = logging.getLogger("dspy.rlm_dspy")

SCHEMES = ("redis://", "rediss://", "unix://")
_PREFIX = "rlm_dspy:"
_LEASE_SECONDS = 30.0
"""Seconds after which a killed process no longer holds its keys."""
_REST_SECONDS = 30.0
"""Seconds before a failed server is asked again."""


@dataclass(eq=False)
class AnswerServer:
    """Holds answers as text by key, and leases keys that are being computed: an `AnswerFile` for many machines.

    If the server fails, one warning is logged, and the server is treated as empty. A caller that holds a key never
    waits for another key, because that could be a deadlock.

    Args:
        url: Where the server is, e.g. `redis://host:6379/0`.
    """

    url: str
    _client: redis.Redis | None = field(default=None, repr=False)
    _leases: dict[str, Lock] = field(default_factory=dict, repr=False)
    _keeper: threading.Thread | None = field(default=None, repr=False)
    _warned: bool = False
    _rests_until: float = 0.0

    def open(self) -> None:
        """Connect now instead of at the first use.

        Raises:
            ImportError: If the extra `redis` is not installed.
            ValueError: If the address is not valid.
        """
        self._connected()
        self.find("")

    def find(self, key: str) -> str | None:
        """Return the answer, or None if there is none; delete a value that is not JSON."""
        name = f"{_PREFIX}answer:{key}"
        try:
            found = self._asked(lambda client: client.get(name), None)
            json.loads(found or "0")
        except ValueError:  # of JSON, or of UTF-8
            self._asked(lambda client: client.delete(name), 0)
            return None
        return None if found is None else str(found)

    def __len__(self) -> int:
        return self._asked(lambda client: sum(1 for _ in client.scan_iter(f"{_PREFIX}answer:*", count=1_000)), 0)

    def take(self, answers: dict[str, str], *, at_once: bool = False) -> None:
        """Move answers to the server; those that it does not store stay in `answers`.

        Args:
            answers: The answers by key.
            at_once: Whether to try even if the server failed recently.
        """
        if at_once:
            self._rests_until = 0.0
        named = {f"{_PREFIX}answer:{key}": answer for key, answer in answers.items()}

        def store(client: redis.Redis) -> None:
            for name, answer in named.items():
                client.setnx(name, answer)
            answers.clear()

        if answers:
            self._asked(store, None)

    def close(self, *, with_locks: bool) -> None:
        """Close the connections; the next use opens them again."""
        if self._client is not None and with_locks:
            self._client.close()

    def forked(self) -> None:
        """Start anew in a forked process: leases stay with its parent."""
        self._client, self._leases, self._keeper = None, {}, None

    def lock(self, key: str) -> bool:
        """Lease a key; return False if another process has the lease. Without a server, no process waits."""
        lease = self._connected().lock(f"{_PREFIX}lease:{key}", timeout=_LEASE_SECONDS, thread_local=False)
        if not self._asked(lambda _: lease.acquire(blocking=False), True):
            return False
        self._leases[key] = lease
        if self._keeper is None or not self._keeper.is_alive():
            self._keeper = threading.Thread(target=self._keep_leases, daemon=True, name="rlm-leases")
            self._keeper.start()
        return True

    def unlock(self, key: str) -> None:
        """End a lease."""
        lease = self._leases.pop(key, None)
        if lease is not None and lease.local.token is not None:
            self._asked(lambda _: lease.release(), None)

    def note_wait(self, key: str, held: list[str]) -> str:
        """Return an empty text: the caller may not wait."""
        return ""

    def forget_wait(self, note: str) -> None:
        """Do nothing: no wait was recorded."""

    def _keep_leases(self) -> None:
        """Renew the leases of this process while it has any. A failed renewal logs nothing."""
        from redis.exceptions import LockError, RedisError  # noqa: PLC0415 (an extra)

        while self._leases:
            time.sleep(_LEASE_SECONDS / 3)
            for lease in list(self._leases.values()):
                with contextlib.suppress(LockError, RedisError, OSError):
                    lease.reacquire()

    def _connected(self) -> redis.Redis:
        if self._client is None:
            self._client = redis_client(self.url)
        return self._client

    def _asked(self, ask: Callable[[redis.Redis], T], otherwise: T) -> T:
        """Return the result of a function that calls the server; if the server fails, warn once and pause."""
        client = self._connected()
        from redis.exceptions import LockError, RedisError  # noqa: PLC0415 (an extra)

        if time.monotonic() < self._rests_until:
            return otherwise
        try:
            return ask(client)
        except LockError:  # the lease has expired, because this process was stopped for a while
            return otherwise
        except (RedisError, OSError) as error:
            self._rests_until = time.monotonic() + _REST_SECONDS
            if not self._warned:
                self._warned = True
                where = without_credentials(self.url)
                _logger.warning(
                    "SubCallCache(%r): %s. Answers that it does not store stay in memory.",
                    where,
                    str(error).rstrip("."),
                )
            return otherwise
