"""Keeps the sessions of clients: a bounded number, each closed when it is not used for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class ConversationGone(LookupError):  # noqa: N818 (what happened)
    """There is no conversation of this name, or no longer."""

    def __init__(self) -> None:
        super().__init__(
            "There is no such conversation. One that is not used for long is closed, as is the oldest of many. "
            "Begin another."
        )


class ConversationBusy(RuntimeError):  # noqa: N818 (what it is)
    """A conversation is in use."""

    def __init__(self) -> None:
        super().__init__("A request of this conversation is being answered. Ask again when it has ended.")


class Closable(Protocol):
    """What is kept: a session, or something that holds one."""

    def close(self) -> None:
        """Close it; this may take a moment."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Closable)


@dataclass(eq=False)
class _Entry(Generic[V]):
    value: V
    is_used: bool = False
    timer: asyncio.TimerHandle | None = None


class Kept(Generic[K, V]):
    """Keeps values for the requests of one event loop. One that is in use is never closed.

    Args:
        most: How many; the one that was not used for longest is closed for another.
        idle_seconds: How long a value is kept after its last use.
    """

    def __init__(self, most: int, idle_seconds: float) -> None:
        self._most, self._idle_seconds = most, idle_seconds
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._closing: set[asyncio.Future[None]] = set()

    def add(self, key: K, value: V) -> None:
        """Keep a value."""
        self._entries[key] = entry = _Entry(value)
        self._wait(key, entry)
        idle = [other for other, each in self._entries.items() if not each.is_used and other != key]
        for other in idle[: max(0, len(self._entries) - self._most)]:
            self._drop(other)

    def get(self, key: K) -> V:
        """Return a value, without using it.

        Raises:
            ConversationGone: If there is none of this key.
        """
        return self._entry(key).value

    def _entry(self, key: K) -> _Entry[V]:
        if key not in self._entries:
            raise ConversationGone
        return self._entries[key]

    @contextlib.contextmanager
    def using(self, key: K) -> Iterator[V]:
        """Use a value in this scope, alone.

        Raises:
            ConversationGone: If there is none of this key.
            ConversationBusy: If it is in use.
        """
        entry = self._entry(key)
        if entry.is_used:
            raise ConversationBusy
        self._entries.move_to_end(key)
        if entry.timer:
            entry.timer.cancel()
        entry.is_used = True
        try:
            yield entry.value
        finally:
            entry.is_used = False
            self._wait(key, entry)

    def discard(self, key: K) -> None:
        """Close a value.

        Raises:
            ConversationGone: If there is none of this key.
            ConversationBusy: If it is in use.
        """
        with self.using(key):
            pass
        self._drop(key)

    async def close(self) -> None:
        """Close all; their uses must have ended."""
        for key in list(self._entries):
            self._drop(key)
        if self._closing:
            await asyncio.wait(self._closing)

    def _wait(self, key: K, entry: _Entry[V]) -> None:
        """Close a value when it was not used for long."""
        entry.timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._drop, key)

    def _drop(self, key: K) -> None:
        entry = self._entries.pop(key)
        if entry.timer:
            entry.timer.cancel()
        closing = asyncio.get_running_loop().run_in_executor(None, entry.value.close)
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
