"""Keeps what a log holds of the calls of a run's turns, to be taken once each."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Occurrences(Generic[T]):
    """Calls by what was asked, in order; each is taken once.

    A turn that is taken again logs again what it takes from the log, so of several attempts at one turn, the n-th
    equal call is the same one.
    """

    _waiting: dict[str, deque[T]] = field(default_factory=dict)
    _of_turn: dict[str, list[T]] = field(default_factory=dict)
    _seen: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin_attempt(self) -> None:
        """Begin another attempt at the same turn."""
        self._seen.clear()

    def begin_turn(self) -> None:
        """Begin another turn."""
        for asked, calls in self._of_turn.items():
            self._waiting.setdefault(asked, deque()).extend(calls)
        self._of_turn.clear()
        self._seen.clear()

    def add(self, asked: str, call: T) -> T:
        """Add a call of this attempt; return it, or the same one of an earlier attempt."""
        calls = self._of_turn.setdefault(asked, [])
        self._seen[asked] += 1
        if self._seen[asked] > len(calls):
            calls.append(call)
        return calls[self._seen[asked] - 1]

    def take(self, asked: str) -> T | None:
        """Return the next equal call; None if there is none left."""
        with self._lock:
            waiting = self._waiting.get(asked)
            return waiting.popleft() if waiting else None
