"""The processes of workers on this machine: their handles, their CPU time, and the memory of a session's together.

The kernel limits only the memory of each one. The standard library only.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
import weakref
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Self

_LOOK_SECONDS = 0.5
_FRESH_SECONDS = 0.2
_LARGEST_TREE = 10_000
_GROUP, _USER_TICKS, _SYSTEM_TICKS, _THREADS = 1, 10, 11, 16
"""Places in what `_stat_of` returns."""
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Handle(Protocol):
    """A process that carries a session, on this machine or another."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the process ends."""

    def signal(self, number: int) -> None:
        """Send a signal, if the process is alive."""

    def cpu_seconds(self) -> float:
        """Return the CPU time that its threads have used; 0 if it is gone."""

    def memory_over(self, others: Collection[Self], limit: int) -> int:
        """Return the bytes that the processes of its session take together, if that is over `limit`; else 0.

        Processes whose parents have ended count as well, for each session that has branches in the group.

        Args:
            others: The processes that carry other sessions of its group.
            limit: Bytes.
        """

    def end_hogs(self, others: Collection[Self], limit: int) -> None:
        """Kill what its group has beside the processes that carry sessions, if all together take too much.

        Args:
            others: The processes that carry other sessions of its group.
            limit: Bytes for each session.
        """

    def sweep(self) -> None:
        """Kill all others of its group."""

    def close(self) -> None:
        """Release the handle; the process goes on."""


class LocalHandle:
    """A process of this machine.

    Args:
        pidfd: Its descriptor, closed with the handle.
        watch: Looks at what came from its fork server.
        leads: Whether it leads its process group, or will: it may not have done so yet.
    """

    def __init__(self, pidfd: int, watch: LocalWatch, *, leads: bool) -> None:
        self._pidfd = pidfd
        self._watch = watch
        self._group = self.host_pid() if leads else _group_of(self.host_pid())

    def fileno(self) -> int:
        """Return its pidfd."""
        return self._pidfd

    def signal(self, number: int) -> None:
        """Send a signal, if it is alive."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, number)

    def host_pid(self) -> int:
        """Return its number in the host's own numbering; 0 if it is gone."""
        for line in _text(f"/proc/self/fdinfo/{self._pidfd}").splitlines():
            if line.startswith("Pid:"):
                return max(0, int(line.split()[1]))
        return 0

    def cpu_seconds(self) -> float:
        """Return the CPU time that its threads have used; 0 if it is gone."""
        counts = _stat_of(self.host_pid())
        return (counts[_USER_TICKS] + counts[_SYSTEM_TICKS]) / _TICKS if counts else 0.0

    def memory_over(self, others: Collection[Self], limit: int) -> int:
        """Look at the processes that came from the fork server; see `Handle.memory_over`."""
        pids = set(self._watch.of_group(self._group))
        for other in others:
            pids -= set(_tree_of(other.host_pid()))
        return _memory_of(sorted(pids), limit)

    def end_hogs(self, others: Collection[Self], limit: int) -> None:
        """See `Handle.end_hogs`."""
        sessions = {handle.host_pid() for handle in (self, *others)}
        pids = self._watch.of_group(self._group)
        if _memory_of(pids, limit * len(sessions)):
            for pid in set(pids) - sessions:
                _kill_if_in(pid, self._group)

    def sweep(self) -> None:
        """See `Handle.sweep`."""
        for _ in range(3):
            left = [pid for pid in _all_pids() if _group_of(pid) == self._group and pid != self.host_pid()]
            for pid in left:
                _kill_if_in(pid, self._group)
            if not left:
                return

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self._pidfd)
        self._pidfd = -1


class Watch(Protocol):
    """Looks at groups of processes while none of their cells runs."""

    def add(self, group: Watched) -> None:
        """Check a group until it is removed or gone."""

    def remove(self, group: Watched) -> None:
        """Stop checking a group."""


class Watched(Protocol):
    """A group of processes that is monitored while none of its cells runs."""

    def end_hogs(self) -> None:
        """Kill the processes that exceed the memory limit."""


class LocalWatch:
    """Looks at the processes that came from a fork server; also at those whose parents have ended.

    Args:
        root: The fork server's number in the host's own numbering.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._by_group: dict[int, list[int]] = {}
        self._looked_at = 0.0
        self._watched: set[weakref.ref[Watched]] = set()  # a WeakSet may change while it is iterated
        self._looking = False
        self._closed = threading.Event()

    def add(self, group: Watched) -> None:
        """Check a group twice a second from now on, until it is gone or this is closed."""
        with self._lock:
            self._watched.add(weakref.ref(group))
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="rlm-watch", daemon=True).start()

    def remove(self, group: Watched) -> None:
        """Stop checking a group."""
        with self._lock:
            self._watched.discard(weakref.ref(group))

    def close(self) -> None:
        """Stop checking."""
        self._closed.set()

    def of_group(self, group: int) -> list[int]:
        """Return the processes of a process group, as they were a moment ago."""
        with self._lock:
            if time.monotonic() - self._looked_at > _FRESH_SECONDS:
                self._by_group = _by_group(self._root)
                self._looked_at = time.monotonic()
            return self._by_group.get(group, [])

    def _look(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            with self._lock:
                groups = [group for each in self._watched if (group := each()) is not None]
                self._watched = {weakref.ref(group) for group in groups}
                self._looking = bool(groups)
            for group in groups:
                group.end_hogs()
            if not groups:
                return


def _tree_of(pid: int) -> list[int]:
    """Return a process of the host and all that came from it and still belong to it."""
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < _LARGEST_TREE:
        found.append(todo.pop())
        for thread in _names(f"/proc/{found[-1]}/task"):
            todo += map(int, _text(f"/proc/{found[-1]}/task/{thread}/children").split())
    return found


def _memory_of(pids: list[int], limit: int) -> int:
    """Return the private bytes of some processes together, if that is over `limit`; else 0.

    What a process shares with its parent since the fork counts in part for each of them.
    """
    if len(pids) < 2 or sum(map(_private_at_most, pids)) <= limit:  # noqa: PLR2004 (the kernel limits one alone)
        return 0
    total = sum(map(_share_of_private, pids))
    return total if total > limit else 0


def _all_pids() -> list[int]:
    """Return the processes of the host."""
    return [int(name) for name in _names("/proc") if name.isdigit()]


def _stat_of(pid: int) -> list[int]:
    """Return the numbers behind name and state in `/proc/PID/stat`: the parent first; none if it is gone."""
    return [int(word) for word in _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[1:]]


def _group_of(pid: int) -> int:
    """Return the process group of a process; 0 if it is gone."""
    counts = _stat_of(pid)
    return counts[_GROUP] if counts else 0


def _by_group(root: int) -> dict[int, list[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for pid in _tree_of(root)[1:]:
        found[_group_of(pid)].append(pid)
    return found


def _private_at_most(pid: int) -> int:
    words = _text(f"/proc/{pid}/statm").split()
    return (int(words[1]) - int(words[2])) * mmap.PAGESIZE if words else 0


def _share_of_private(pid: int) -> int:
    for line in _text(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) << 10
    return 0


def _names(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)  # noqa: PTH208 (names, not paths: this is done often)
    return []


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(encoding="ascii", errors="replace")
    return ""


def threads_of(uid: int) -> int:
    """Return how many threads the processes of a user have."""
    threads = 0
    for pid in _all_pids():
        with suppress(OSError, IndexError):
            threads += _stat_of(pid)[_THREADS] if Path(f"/proc/{pid}").stat().st_uid == uid else 0
    return threads


def _kill_if_in(pid: int, group: int) -> None:
    with suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if os.getpgid(pid) == group:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
