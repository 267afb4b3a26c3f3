"""Tracks the processes that were forked from one worker, and releases what they share after the last."""

from __future__ import annotations

import itertools
import math
import os
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rlm_dspy.interpreters.host.deadlines import Deadline
from rlm_dspy.interpreters.host.worker_connection import WorkerConnection, pid_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.host.input_transfer import Forms, Shared
    from rlm_dspy.interpreters.host.processes import Handle
    from rlm_dspy.interpreters.host.servers import Server
    from rlm_dspy.interpreters.worker.wire import JSON

_START_SECONDS = 30
_KILL_SECONDS = 5
"""How long to wait for the fork server to end a session; a busy one ends it later."""
_numbers = itertools.count(1)


class _Copy(NamedTuple):
    """A copy that a worker was ordered to make of itself, by this number."""

    process: WorkerConnection
    worker: WorkerConnection
    order: int


@dataclass(eq=False)
class Group:
    """A session, its copies and its branches.

    Attributes:
        server: The fork server they came from.
        limits: Of each process.
        scratch: Their folder.
        pid: Number of the first process where the fork server lives; names the process group.
    """

    server: Server
    limits: WorkerLimits
    scratch: str
    pid: int = 0
    _name: str = field(default_factory=lambda: f"{os.getpid()}.{next(_numbers)}")
    _users: int = 1
    _mapped: int = 0
    _private: int = 0
    _shared: list[Shared] = field(default_factory=list)
    _carriers: set[WorkerConnection] = field(default_factory=set)
    _copies: list[_Copy] = field(default_factory=list)
    _busy: set[object] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ordering: threading.RLock = field(default_factory=threading.RLock)
    """Held until the fork server knows how much is mapped: an older sum must not come after a newer one."""

    def start_worker(self, max_output_chars: int) -> WorkerConnection:
        """Start the first process.

        Raises:
            OSError: If it cannot be started or confined.
        """
        process, theirs = WorkerConnection.new()
        order: dict[str, JSON] = {"session": self._name, "scratch": self.scratch}
        order["max_output_chars"] = max_output_chars
        with ExitStack() as undo:
            undo.callback(process.close)
            with theirs:
                self.pid, process.handle = self.server.spawn(order, self.limits, theirs.fileno())
            process.pid = self.pid
            try:
                ready = process.expect("ready", Deadline(_START_SECONDS))
            except EOFError:
                raise OSError("the worker ended at its start") from None
            if ready["t"] == "failed":
                raise OSError(f"the worker cannot confine itself: {ready.get('error')}")
            undo.pop_all()
        self._add_carrier(process)
        self.server.watch.add(self)
        return process

    def watch(self, process: WorkerConnection, pid: int) -> None:
        """Get a handle on a copy that has woken.

        Raises:
            OSError: If `pid` is not a process of this group.
        """
        process.handle = self.server.watched({**self._named(), "pid": pid}, self.limits)
        process.pid = pid
        self._add_carrier(process)

    def _add_carrier(self, process: WorkerConnection) -> None:
        with self._lock:
            self._carriers.add(process)

    def add_copy(self, copy: WorkerConnection, worker: WorkerConnection, order: int) -> None:
        """Record a copy that `worker` makes by this order, which may be ended to free memory."""
        with self._lock:
            self._copies.append(_Copy(copy, worker, order))

    def make_room(self, process: WorkerConnection, forms: Forms, seconds: float = math.inf) -> None:
        """Let a process map these values, and keep what they share until the group ends.

        Raises:
            TimeoutError: If the fork server does not do it within `seconds`.
            OSError: If it cannot be done, or the group has ended: a tool may return later.
        """
        deadline = Deadline(seconds)
        with self._lock:
            if not self._users:
                raise BrokenPipeError("the session has ended")
            self._shared += forms.shared
            forms.shared = []
        self.server.hold(self._name, forms.fds, seconds)
        if forms.mapped:
            try:
                if not self._ordering.acquire(timeout=min(max(0, deadline.left()), threading.TIMEOUT_MAX)):
                    raise TimeoutError(f"the fork server was busy for {seconds:g} seconds")
                self._mapped += forms.mapped
                self._private += forms.private
                order = {**self._named(), "pid": process.pid, "limits": asdict(self.limits)}
                order |= {"mapped": self._mapped, "private": self._private}
                self.server.send_order("room", order, deadline.left())
            finally:
                try:  # noqa: SIM105 (an interrupt at the begin of `suppress` would leave it held)
                    self._ordering.release()
                except RuntimeError:  # it was not acquired
                    pass

    def _named(self) -> dict[str, JSON]:
        return {"session": self._name, "group": self.pid}

    def join(self) -> None:
        """Count one more session."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Count one session less; after the last, kill all processes, remove the scratch and release values."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            shared, self._shared = self._shared, []
        self.server.watch.remove(self)
        if self.pid:
            with suppress(OSError):
                self.server.send_order("kill", self._named(), _KILL_SECONDS)
        self.server.drop_scratch(self.scratch)
        for each in shared:
            each.release()

    def memory_over(self, process: WorkerConnection, copies: Sequence[WorkerConnection]) -> int:
        """Return the bytes that a session's processes take together, if that is over the limit; else 0.

        Sleeping copies of the session are given up if that is enough: what code only reads becomes theirs, page by
        page, because Python counts in an object who uses it.

        Args:
            process: The process that carries the session.
            copies: Its copies that sleep, the oldest first.
        """
        handle = process.handle
        others = self._handles() - {handle}
        if handle is None or not handle.memory_over(others, self._most):
            return 0
        over, ended = handle.give_up([copy.pid for copy in copies], others, self._most)
        for copy in copies[:ended]:
            copy.given_up = True
        return over

    @property
    def _most(self) -> int:
        """The bytes that a session's processes may take together: what the kernel allows one of them."""
        return self.limits.memory_bytes + self._private

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Record that a cell runs; its session checks the memory itself."""
        token = object()
        self._busy.add(token)
        try:
            yield
        finally:
            self._busy.discard(token)

    def enforce_memory_limit(self) -> None:
        """Between cells: end copies, or kill remaining processes, if all together exceed the memory limit."""
        handles, copies = self._handles(), self._asleep()
        if handles and not self._busy:
            ended = handles.pop().enforce_memory_limit([copy.pid for copy in copies], handles, self._most)
            for copy in copies[:ended]:
                copy.given_up = True

    def _handles(self) -> set[Handle]:
        """Return the processes that carry sessions of this group now."""
        with self._lock:
            # Read once: another thread may close a process meanwhile.
            handles = {process: process.handle for process in self._carriers}
            self._carriers = {process for process, handle in handles.items() if handle is not None}
            return {handle for handle in handles.values() if handle is not None}

    def _asleep(self) -> list[WorkerConnection]:
        """Return the sleeping copies, the oldest first."""
        with self._lock:
            self._copies = [copy for copy in self._copies if copy.process.may_sleep]
            for copy in self._copies:
                if not copy.process.pid:  # between cells nobody else reads the worker's frames
                    frame = copy.worker.peeked()
                    is_reported = frame.get("t") == "copied" and frame.get("id") == copy.order
                    copy.process.pid = pid_of(frame) if is_reported else 0
            return [copy.process for copy in self._copies if copy.process.pid]

    def sweep(self, kept: WorkerConnection) -> None:
        """Kill the children of a killed process, unless the group has live branches."""
        if self._users == 1 and kept.handle is not None:
            kept.handle.sweep()
