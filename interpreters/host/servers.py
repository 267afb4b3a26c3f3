"""Keeps the fork servers of this process: one per source, started when it is first needed, and again if it dies.

A forked child of this process starts its own.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import dspy

from rlm_dspy.interpreters.host.fork_server_client import NoRung

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.host.processes import Handle, Watch
    from rlm_dspy.interpreters.worker.wire import JSON


class CannotConfine(dspy.CodeInterpreterError):
    """This system cannot enforce what the policy requires; the message says why and names alternatives."""


class Server(Protocol):
    """A fork server, on this machine or another; `ForkServer` documents what it offers."""

    @property
    def layers(self) -> frozenset[str]:
        """The confinement layers of its workers."""

    @property
    def missing(self) -> Mapping[str, str]:
        """The modules that could not be imported, each with the reason."""

    @property
    def importable(self) -> Collection[str]:
        """The importable modules for the prompt."""

    @property
    def packages(self) -> frozenset[str]:
        """All modules that workers can import beside the standard library."""

    @property
    def readable(self) -> Collection[str]:
        """The files and folders that workers can read."""

    @property
    def watch(self) -> Watch:
        """Checks the memory of its workers."""

    @property
    def alive(self) -> bool:
        """Whether it still accepts orders."""

    @property
    def lost(self) -> str:
        """Why the connection to it is gone, if it is."""

    def new_scratch(self) -> str:
        """Return a fresh folder for one worker."""

    def drop_scratch(self, path: str) -> None:
        """Remove it."""

    def spawn(self, order: Mapping[str, JSON], limits: WorkerLimits, end: int) -> tuple[int, Handle]:
        """Start a worker; return its number there, and a handle."""

    def watched(self, order: Mapping[str, JSON], limits: WorkerLimits) -> Handle:
        """Return a handle on a copy of a worker."""

    def hold(self, session: str, fds: Sequence[int], seconds: float) -> None:
        """Let workers of a session get values in shared memory.

        Raises:
            TimeoutError: If that takes longer than `seconds`.
        """

    def send_order(self, order: str, arguments: Mapping[str, JSON], seconds: float = ...) -> None:
        """Send an order without a result."""

    def close(self) -> None:
        """End it and all its workers."""


class Source(Protocol):
    """The settings of a fork server: a hashable value. Equal sources share a server."""

    def start(self) -> Server:
        """Start one."""


_servers: dict[Source, Server] = {}
_starting: dict[Source, threading.Lock] = {}
_lock = threading.Lock()


def server_for(source: Source) -> Server:
    """Return the fork server of a source; start it if there is none.

    Raises:
        CannotConfine: If it cannot hold what the source's policy requires.
        OSError: If it does not start.
    """
    with _lock:
        starting = _starting.setdefault(source, threading.Lock())
    with starting:
        server = _servers.get(source)
        if server is not None and server.alive:
            return server
        if server is not None:
            server.close()
        try:
            _servers[source] = started = source.start()
        except NoRung as error:
            raise CannotConfine(str(error)) from None
        return started


def close_server(source: Source) -> None:
    """End the fork server of a source, if there is one, with all workers."""
    server = _servers.pop(source, None)
    if server is not None:
        server.close()


def close_all() -> None:
    """End every fork server of this process, with all workers."""
    for source in list(_servers):
        with suppress(OSError):
            close_server(source)


def _let_go() -> None:
    """In a forked child of the host: the parent's fork servers are not the child's."""
    global _lock  # noqa: PLW0603 (another thread may have held it at the fork)
    _lock = threading.Lock()
    _starting.clear()
    close_all()


atexit.register(close_all)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)
