"""Tracks the time limits and pending host calls of one cell, and when to interrupt it."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_CALLS = 1_000_000
"""Calls to the host in one cell: each costs the host some 0.1 ms."""
MOST_BYTES = 4 << 30
"""Bytes of the calls of one cell."""
MOST_BYTES_AT_ONCE = 256 << 20
"""Bytes of calls that wait for an answer; the host reads no further call until one is answered."""
_LATE_ANSWER_SECONDS = 10


@dataclass(frozen=True)
class CellLimits:
    """The time limits of a cell.

    Raises:
        ValueError: If a limit is not positive.
    """

    seconds: float | None = None
    """Wall-clock time of the cell, calls to tools included; None for no limit."""
    busy_seconds: float | None = 600.0
    """Time in which no call waits for the host, and CPU time; None for no limit."""
    grace_seconds: float = 2.0
    """Time between the first interrupt and the kill."""

    def __post_init__(self) -> None:
        for name in ("seconds", "busy_seconds", "grace_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                or_none = "" if name == "grace_seconds" else " or None"
                raise ValueError(f"{name} must be positive{or_none}, not {value!r}.")


class Deadline:
    """The end of a wait.

    Args:
        seconds: How long from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left; 0 or less once it has passed."""
        return self._end - time.monotonic()


class Clock:
    """The deadlines of one cell, its pending host calls, and its interrupts so far."""

    def __init__(self, limits: CellLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._started = self._resumed = time.monotonic()
        self._busy = 0.0
        self._cpu: float | None = None
        self._worked = 0.0
        self._waiting = 0
        self._bytes = self._bytes_at_once = 0
        self._next: float | None = None
        self._ended: Deadline | None = None
        self.calls = 0
        """Calls that the cell has made."""
        self.unanswered = 0
        """Calls whose answers were not sent yet: each holds a thread of the host."""
        self.asked = 0
        """How often it was interrupted."""
        self.reason = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the cell began."""
        return time.monotonic() - self._started

    @property
    def full(self) -> bool:
        """Whether the pending calls hold as much memory as they may."""
        return self._bytes_at_once > MOST_BYTES_AT_ONCE

    @property
    def over(self) -> bool:
        """Whether the cell has ended."""
        return self._ended is not None

    def call_starts(self, size: int) -> None:
        """Stop counting time as busy: a call of `size` bytes waits for the host."""
        with self._lock:
            if self._waiting == 0:
                self._busy += time.monotonic() - self._resumed
            self._waiting += 1
            self.unanswered += 1
            self.calls += 1
            self._bytes += size
            self._bytes_at_once += size

    def call_ends(self) -> None:
        """Count time as busy again if no other call waits for the host."""
        with self._lock:
            self._waiting -= 1
            if self._waiting == 0:
                self._resumed = time.monotonic()

    def call_answered(self, size: int) -> None:
        """Forget a call of `size` bytes: its answer was sent or given up."""
        with self._lock:
            self.unanswered -= 1
            self._bytes_at_once -= size

    def worked(self, cpu_seconds: float) -> None:
        """Take note of the CPU time that the worker and the host's handling of its frames have used up to now."""
        if self._cpu is None:
            self._cpu = cpu_seconds
        self._worked = min(cpu_seconds - self._cpu, self.elapsed)

    def ends(self) -> None:
        """Record that the cell has ended."""
        self._ended = Deadline(_LATE_ANSWER_SECONDS)

    def left(self) -> float:
        """Return the seconds until the cell is due: 0 or less if it is, infinite if nothing bounds it."""
        if self._next is not None:
            return self._next - time.monotonic()
        left, reason = min(self._bounds())
        if left <= 0:
            self.reason = reason
        return left

    def left_for_answer(self) -> float:
        """Return the seconds that an answer may wait for the worker to read it.

        While the cell runs, its own deadline is what ends the wait, and this is never 0.
        """
        return math.inf if self._ended is None else self._ended.left()

    def _bounds(self) -> Iterator[tuple[float, str]]:
        """Yield the seconds that each bound leaves, and what the cell did when they are over."""
        yield math.inf, ""
        seconds, busy_seconds = self._limits.seconds, self._limits.busy_seconds
        if seconds is not None:
            yield seconds - self.elapsed, f"ran longer than {seconds:g} s"
        if busy_seconds is not None:
            with self._lock:
                waiting = self._waiting > 0
                busy = self._busy if waiting else self._busy + time.monotonic() - self._resumed
            left = busy_seconds - max(busy, self._worked)
            if left <= 0 or not waiting:  # else it stands still
                yield left, f"computed for longer than {busy_seconds:g} s"
        if self.calls > MOST_CALLS:
            yield 0, f"called functions more than {MOST_CALLS:,} times"
        if self._bytes > MOST_BYTES:
            yield 0, f"passed more than {MOST_BYTES >> 30} GB to functions"

    def ask(self, reason: str = "") -> None:
        """Count an interrupt; the next is due after half of the grace."""
        self.asked += 1
        self.reason = self.reason or reason
        self._next = time.monotonic() + self._limits.grace_seconds / 2
