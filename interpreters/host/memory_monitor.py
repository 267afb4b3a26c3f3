"""Watches the memory of all processes of a session together: the kernel limits only each one."""

from __future__ import annotations

import mmap
import os
import threading
import time
import weakref
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_LOOK_SECONDS = 0.5
_FRESH_SECONDS = 0.2
_LARGEST_TREE = 10_000
_GROUP, USER_TICKS, SYSTEM_TICKS, THREADS = 1, 10, 11, 16
"""Places in what `stat_of` returns."""


class Watched(Protocol):
    """A group of processes that is monitored while none of its cells runs."""

    def end_hogs(self) -> None:
        """Kill the processes that exceed the memory limit."""


class Watch:
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


def tree_of(pid: int) -> list[int]:
    """Return a process of the host and all that came from it and still belong to it."""
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < _LARGEST_TREE:
        found.append(todo.pop())
        for thread in _names(f"/proc/{found[-1]}/task"):
            todo += map(int, _text(f"/proc/{found[-1]}/task/{thread}/children").split())
    return found


def memory_of(pids: list[int], limit: int) -> int:
    """Return the private bytes of some processes together, if that is over `limit`; else 0.

    What a process shares with its parent since the fork counts in part for each of them.
    """
    if len(pids) < 2 or sum(map(_private_at_most, pids)) <= limit:  # noqa: PLR2004 (the kernel limits one alone)
        return 0
    total = sum(map(_share_of_private, pids))
    return total if total > limit else 0


def all_pids() -> list[int]:
    """Return the processes of the host."""
    return [int(name) for name in _names("/proc") if name.isdigit()]


def stat_of(pid: int) -> list[int]:
    """Return the numbers behind name and state in `/proc/PID/stat`: the parent first; none if it is gone."""
    return [int(word) for word in _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[1:]]


def group_of(pid: int) -> int:
    """Return the process group of a process; 0 if it is gone."""
    counts = stat_of(pid)
    return counts[_GROUP] if counts else 0


def _by_group(root: int) -> dict[int, list[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for pid in tree_of(root)[1:]:
        found[group_of(pid)].append(pid)
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
