"""How long a cell may take, and how it is asked to stop."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """How long a cell may take."""

    cell_seconds: float | None
    """From its beginning, calls to the host included; None: for ever."""
    busy_seconds: float | None
    """Of its own, while no call waits for the host; None: for ever."""
    grace_seconds: float
    """Between the first interrupt and the kill."""

    def __post_init__(self) -> None:
        for name in ("cell_seconds", "busy_seconds", "grace_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive{'' if name == 'grace_seconds' else ' or None'}")


class Clock:
    """The deadlines of one cell, and how hard it was asked to stop."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._started = self._resumed = time.monotonic()
        self._busy = 0.0
        self._calls = 0
        self._next: float | None = None
        self.asked = 0
        """How often it was interrupted."""
        self.reason = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the cell began."""
        return time.monotonic() - self._started

    @property
    def calls(self) -> int:
        """Calls to the host that wait for an answer."""
        return self._calls

    def call_starts(self) -> None:
        """While a call waits for the host, the cell is not busy."""
        with self._lock:
            if self._calls == 0:
                self._busy += time.monotonic() - self._resumed
            self._calls += 1

    def call_ends(self) -> None:
        """Go on counting when it was the last."""
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                self._resumed = time.monotonic()

    def remaining(self) -> float | None:
        """Return the seconds until the cell is due; None if there is no limit."""
        now = time.monotonic()
        if self._next is not None:
            return self._next - now
        with self._lock:
            busy = self._busy if self._calls else self._busy + now - self._resumed
        left = []
        if self._bounds.cell_seconds is not None:
            left.append(self._bounds.cell_seconds - (now - self._started))
            if left[-1] <= 0:
                self.reason = f"ran longer than {self._bounds.cell_seconds:g} s"
        if self._bounds.busy_seconds is not None:
            left.append(self._bounds.busy_seconds - busy if not self._calls else self._bounds.busy_seconds)
            if left[-1] <= 0:
                self.reason = f"computed for longer than {self._bounds.busy_seconds:g} s"
        return min(left, default=None)

    def ask(self, reason: str = "") -> None:
        """Count an interrupt; the next is due after half of the grace."""
        self.asked += 1
        self.reason = self.reason or reason
        self._next = time.monotonic() + self._bounds.grace_seconds / 2
