"""Tracks the processes that were forked from one worker, and releases what they share after the last."""

from __future__ import annotations

import itertools
import math
import os
import signal
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.interpreters.host.deadlines import Deadline
from rlm_dspy.interpreters.host.memory_monitor import THREADS, all_pids, group_of, memory_of, stat_of, tree_of
from rlm_dspy.interpreters.host.worker_connection import WorkerConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.host.fork_server_client import ForkServer
    from rlm_dspy.interpreters.host.input_transfer import Forms, Shared
    from rlm_dspy.interpreters.worker.wire import JSON

_START_SECONDS = 30
_KILL_SECONDS = 5
"""How long to wait for the fork server to end a session; it does so later if it is stuck."""
_numbers = itertools.count(1)


@dataclass(eq=False)
class Group:
    """A session, its copies and its branches.

    Attributes:
        server: The fork server they came from.
        limits: Of each process.
        scratch: Their folder.
        pid: Number of the first process where the fork server lives; names the process group.
    """

    server: ForkServer
    limits: WorkerLimits
    scratch: str
    pid: int = 0
    _name: str = field(default_factory=lambda: f"{os.getpid()}.{next(_numbers)}")
    _host_group: int = 0
    _users: int = 1
    _mapped: int = 0
    _private: int = 0
    _shared: list[Shared] = field(default_factory=list)
    _carriers: set[WorkerConnection] = field(default_factory=set)
    _busy: set[object] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start_worker(self, max_output_chars: int) -> WorkerConnection:
        """Start the first process.

        Raises:
            OSError: If it cannot be started or confined.
        """
        process, theirs = WorkerConnection.new()
        order: dict[str, JSON] = {"session": self._name, "scratch": self.scratch, "limits": asdict(self.limits)}
        order |= {"processes": self._counted_processes(), "max_output_chars": max_output_chars}
        with ExitStack() as undo:
            undo.callback(process.close)
            with theirs:
                answer, (process.handle,) = self.server.ask("spawn", order, (theirs.fileno(),))
            process.pid = self.pid = answer["pid"]
            try:
                ready = process.expect("ready", Deadline(_START_SECONDS))
            except EOFError:
                raise OSError("the worker ended at its start") from None
            if ready["t"] == "failed":
                raise OSError(f"the worker cannot confine itself: {ready.get('error')}")
            undo.pop_all()
        self._host_group = process.host_pid()
        self._carriers.add(process)
        self.server.watch.add(self)
        return process

    def _counted_processes(self) -> int | None:
        """Return the limit where the kernel counts all processes of the user, not the worker's alone."""
        if "namespaces" in self.server.layers:
            return None
        return self.limits.max_processes + _threads_of(self.server.uid or os.getuid())

    def watch(self, process: WorkerConnection, pid: int) -> None:
        """Get a handle on a copy that has woken.

        Raises:
            OSError: If `pid` is no process of this group.
        """
        _, (process.handle,) = self.server.ask("watch", {**self._named(), "pid": pid})
        process.pid = pid
        self._carriers.add(process)

    def make_room(self, process: WorkerConnection, forms: Forms, seconds: float = math.inf) -> None:
        """Let a process map these values, and keep what they share until the group ends.

        Raises:
            TimeoutError: If the fork server does not do it within `seconds`.
            OSError: If it cannot be done.
        """
        self._shared += forms.shared
        forms.shared = []
        if forms.mapped:
            self._mapped += forms.mapped
            self._private += forms.private
            order = {**self._named(), "pid": process.pid, "limits": asdict(self.limits)}
            self.server.ask("room", {**order, "mapped": self._mapped, "private": self._private}, seconds=seconds)

    def _named(self) -> dict[str, JSON]:
        return {"session": self._name, "group": self.pid}

    def join(self) -> None:
        """Count one more session."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Count one less; the last kills what still lives, removes the scratch and gives values back."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self.server.watch.remove(self)
        if self.pid:
            with suppress(OSError):
                self.server.ask("kill", self._named(), seconds=_KILL_SECONDS)
        self.server.drop_scratch(self.scratch)
        for shared in self._shared:
            shared.release()

    def memory_over(self, process: WorkerConnection) -> int:
        """Return the bytes that a session's processes take together, if that is over the limit; else 0.

        Processes whose parents have ended count as well, for each session that has branches in this group.
        """
        pids = set(self.server.watch.of_group(self._host_group))
        for other in self._sessions() - {process}:
            pids -= set(tree_of(other.host_pid()))
        return memory_of(sorted(pids), self.limits.memory_bytes)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Say that a cell runs, whose session looks at the memory itself."""
        token = object()
        self._busy.add(token)
        try:
            yield
        finally:
            self._busy.discard(token)

    def end_hogs(self) -> None:
        """Between cells: kill remaining processes if all together exceed the memory limit."""
        sessions = {process.host_pid() for process in self._sessions()}
        pids = self.server.watch.of_group(self._host_group)
        if not self._busy and memory_of(pids, self.limits.memory_bytes * max(1, len(sessions))):
            for pid in set(pids) - sessions:
                _kill_if_in(pid, self._host_group)

    def _sessions(self) -> set[WorkerConnection]:
        """Return the processes that carry a session of this group now."""
        self._carriers = {process for process in self._carriers if process.handle >= 0}
        return self._carriers

    def sweep(self, kept: WorkerConnection) -> None:
        """Kill the children of a killed process, unless the group has live branches."""
        if self._users > 1 or not self._host_group:
            return
        for _ in range(3):
            left = [pid for pid in all_pids() if group_of(pid) == self._host_group and pid != kept.host_pid()]
            for pid in left:
                _kill_if_in(pid, self._host_group)
            if not left:
                return


def _kill_if_in(pid: int, group: int) -> None:
    with suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if os.getpgid(pid) == group:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _threads_of(uid: int) -> int:
    """Return how many threads the processes of a user have."""
    threads = 0
    for pid in all_pids():
        with suppress(OSError, IndexError):
            threads += stat_of(pid)[THREADS] if Path(f"/proc/{pid}").stat().st_uid == uid else 0
    return threads
