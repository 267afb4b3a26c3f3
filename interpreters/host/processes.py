"""The processes of workers on this machine: their handles, their CPU time, and the memory of a session's together.

The kernel limits only the memory of each one. The standard library only.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import threading
import time
import weakref
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Self

_LOOK_SECONDS = 0.5
_FRESH_SECONDS = 0.2
_LARGEST_TREE = 10_000
_END_SECONDS = 5
"""How long to wait until a killed copy has ended and its memory is free."""
_GROUP, _USER_TICKS, _SYSTEM_TICKS, _THREADS = 1, 10, 11, 16
"""Indices in the result of `_stat_of`."""
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Eviction(NamedTuple):
    """The result of ending sleeping copies."""

    over: int
    """The bytes of the processes if they exceed the limit even without the copies; else 0."""
    ended: int
    """The number of copies that were ended, from the start of the list."""


class Handle(Protocol):
    """A process that carries a session, on this machine or another."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when the process ends."""

    def signal(self, number: int) -> None:
        """Send a signal, if the process is alive."""

    def cpu_seconds(self) -> float:
        """Return the CPU time that its threads have used; 0 if it is gone."""

    def memory_over(self, others: Collection[Self], limit: int) -> int:
        """Return the total bytes of the processes of its session if they exceed `limit`; else 0.

        Processes whose parents have ended count too, for each session that has branches in the group.

        Args:
            others: The processes that carry other sessions of its group.
            limit: Bytes.
        """

    def give_up(self, copies: Sequence[int], others: Collection[Self], limit: int) -> Eviction:
        """End sleeping copies of its session until it is under `limit`; the last copy only if that is enough.

        Args:
            copies: Their numbers where the fork server lives; the first is ended first.
            others: The processes that carry other sessions of its group.
            limit: Bytes.
        """

    def enforce_memory_limit(self, copies: Sequence[int], others: Collection[Self], limit: int) -> int:
        """If the processes of its group exceed the limit, end sleeping copies; if that is not enough, all others.

        The processes that carry sessions live on.

        Args:
            copies: See `give_up`; of all sessions of the group.
            others: The processes that carry other sessions of its group.
            limit: Bytes for each session.

        Returns:
            The number of copies that were ended, from the start of the list.
        """

    def sweep(self) -> None:
        """Kill all others of its group."""

    def close(self) -> None:
        """Release the handle; the process goes on."""


class LocalHandle:
    """A process of this machine.

    Args:
        pidfd: Its descriptor, closed with the handle.
        watch: Checks the processes that descend from its fork server.
        leads: Whether it leads its process group, or is about to.
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
        """Return its process id on the host; 0 if it is gone."""
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
        return _memory_of(self._own(others), limit)

    def give_up(self, copies: Sequence[int], others: Collection[Self], limit: int) -> Eviction:
        """See `Handle.give_up`."""
        return self._evicted(self._own(others), copies, limit)

    def enforce_memory_limit(self, copies: Sequence[int], others: Collection[Self], limit: int) -> int:
        """See `Handle.enforce_memory_limit`."""
        sessions = {handle.host_pid() for handle in (self, *others)}
        pids = self._watch.of_group(self._group)
        over, ended = self._evicted(pids, copies, limit * len(sessions))
        if over:
            for pid in set(pids) - sessions - set(_host_pids(copies, pids)):
                _kill_if_in(pid, self._group)
        return ended

    def _own(self, others: Collection[Self]) -> list[int]:
        """Return the processes of the group that do not belong to another session."""
        own = self.host_pid()
        pids = set(self._watch.of_group(self._group))
        for other in others:
            # A branch descends from the process that it branched off.
            pids -= set(_tree_of(other.host_pid(), without=own))
        return sorted(pids)

    def _evicted(self, pids: list[int], copies: Sequence[int], limit: int) -> Eviction:
        over = _memory_of(pids, limit)
        if not over:
            return Eviction(0, 0)
        asleep = _host_pids(copies, pids)
        for count, pid in enumerate(asleep, 1):
            is_last = count == len(asleep)
            if is_last and over - _freed_with(pid) > limit:
                return Eviction(over, count - 1)
            _kill_if_in(pid, self._group, _END_SECONDS)
            over = _memory_of(pids, limit)
            if not over or is_last:
                return Eviction(0, count)
        return Eviction(over, 0)

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
        pidfd, self._pidfd = self._pidfd, -1  # first: the number may soon be that of another process's pidfd
        os.close(pidfd)


class Watch(Protocol):
    """Checks groups of processes while none of their cells runs."""

    def add(self, group: Watched) -> None:
        """Check a group until it is removed or gone."""

    def remove(self, group: Watched) -> None:
        """Stop checking a group."""


class Watched(Protocol):
    """A group of processes that is monitored while none of its cells runs."""

    def enforce_memory_limit(self) -> None:
        """Kill the processes that exceed the memory limit."""


class LocalWatch:
    """Checks the processes that descend from a fork server, also those whose parents have ended.

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
                group.enforce_memory_limit()
            if not groups:
                return


def _tree_of(pid: int, without: int = 0) -> list[int]:
    """Return a process of the host and its descendants.

    Args:
        pid: The process.
        without: A process that is left out with its descendants.
    """
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < _LARGEST_TREE:
        if (each := todo.pop()) == without:
            continue
        found.append(each)
        for thread in _names(f"/proc/{each}/task"):
            todo += map(int, _text(f"/proc/{each}/task/{thread}/children").split())
    return found


def _memory_of(pids: list[int], limit: int) -> int:
    """Return the total private bytes of some processes if they exceed `limit`; else 0.

    Memory that a process shares with its parent since the fork counts in part for each of them.
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
    return _in_memory(pid, "Pss_Anon:")


def _freed_with(pid: int) -> int:
    """Return the bytes that become free when a process ends: those that it does not share."""
    return _in_memory(pid, "Private_Dirty:")


def _in_memory(pid: int, name: str) -> int:
    for line in _text(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


def _host_pids(numbers: Sequence[int], pids: list[int]) -> list[int]:
    """Return the host's numbers of processes that are known by those in a namespace; 0 for one that is gone.

    Args:
        numbers: Their numbers in the innermost namespace that they are in.
        pids: The host's numbers of all processes among which they are.
    """
    known = {_number_inside(pid): pid for pid in pids} if numbers else {}
    return [known.get(number, 0) for number in numbers]


def _number_inside(pid: int) -> int:
    for line in _text(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


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


def _kill_if_in(pid: int, group: int, seconds: float = 0) -> None:
    """Kill a process if it is in a group, and wait up to `seconds` for its end."""
    with suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if os.getpgid(pid) == group:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                poll.poll(seconds * 1000)
        finally:
            os.close(handle)
