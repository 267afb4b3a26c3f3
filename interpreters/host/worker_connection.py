"""Wraps one process of a worker on the host: its socket, its handle and its untrusted frames."""

from __future__ import annotations

import select
import signal
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from rlm_dspy.interpreters.worker import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rlm_dspy.interpreters.host.deadlines import Deadline
    from rlm_dspy.interpreters.host.processes import Handle

_SLICE_SECONDS = 0.5
"""How often a wait without an end event checks whether it has time left."""


class Arrived(NamedTuple):
    """A frame from a worker."""

    frame: wire.Frame
    size: int
    """About how many bytes it takes on the host."""


class WorkerConnection:
    """A process that runs cells, or a sleeping copy of one.

    Args:
        sock: The host's end of its socket.
        handle: Its process; None while it is not known.
    """

    def __init__(self, sock: socket.socket, handle: Handle | None = None) -> None:
        self._sock = sock
        self.handle = handle
        self.pid = 0
        """Its number where the fork server lives; 0 while it is not known."""
        self.given_up = False
        """Whether this copy was ended while it slept, to free memory."""
        self._assembler = wire.Assembler()
        self._sending = threading.RLock()
        self._torn = self._killed = False

    @classmethod
    def new(cls) -> tuple[WorkerConnection, socket.socket]:
        """Return the connection of a process that is yet to be made, and the end of the socket for it."""
        ours, theirs = wire.pair()
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return the socket's descriptor, to be polled."""
        return self._sock.fileno()

    def send(
        self, frame: Mapping[str, object], left: Callable[[], float], fds: Sequence[int] = (), number: int = 0
    ) -> None:
        """Send a frame while `left()`, in seconds, is more than 0.

        Raises:
            TimeoutError: If it is not read in that time.
            OSError: If the process is gone, or an earlier frame was cut off.
        """
        payload = wire.encoded(frame)
        try:
            while not self._sending.acquire(timeout=_slice(left)):
                _check(left)
            if self._torn:
                raise BrokenPipeError("a frame to it was cut off")
            for packet in wire.packets(payload, number, fds):
                self._send_packet(packet, left)
                self._torn = True
            self._torn = False
        finally:
            try:  # noqa: SIM105 (an interrupt at the begin of `suppress` would leave it held)
                self._sending.release()
            except RuntimeError:  # it was not acquired
                pass

    def _send_packet(self, packet: wire.Packet, left: Callable[[], float]) -> None:
        while True:
            try:
                self._sock.sendmsg(*packet, socket.MSG_DONTWAIT)
            except BlockingIOError:
                wire.arrives(self._sock.fileno(), _slice(left), select.POLLOUT)
                _check(left)
            else:
                return

    def received(self) -> Arrived | None:
        """Take one packet, if one has arrived; return the frame that it completes.

        Raises:
            EOFError: If the other side is closed.
            wire.Violation: If it violates the protocol.
        """
        try:
            packet = wire.receive_packet(self._sock, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionError:
            raise EOFError from None
        payload = self._assembler.add(packet)
        return None if payload is None else Arrived(wire.decoded(payload), wire.size_of(payload))

    def peeked(self) -> wire.Frame:
        """Return the next frame, if it has arrived in one packet, and leave it unread; else an empty one."""
        try:
            payload = wire.Assembler().add(wire.receive_packet(self._sock, socket.MSG_DONTWAIT | socket.MSG_PEEK))
            return {} if payload is None else wire.decoded(payload)
        except (OSError, EOFError, ValueError):
            return {}

    def expect(
        self,
        kind: str,
        deadline: Deadline,
        number: int | None = None,
        aside: Callable[[Arrived], None] | None = None,
    ) -> wire.Frame:
        """Wait for a frame of `kind`, and of this `number` if one is given; `aside` gets what else arrives.

        Raises:
            EOFError: If it is gone.
            TimeoutError: If none comes in time.
            wire.Violation: If it violates the protocol.
        """
        while deadline.left() > 0 and self.readable(deadline.left()):
            arrived = self.received()
            if arrived is None:
                continue
            found = arrived.frame.get("t")
            if found == "failed" or (found == kind and number in (None, arrived.frame.get("id"))):
                return arrived.frame
            if aside is not None:
                aside(arrived)
        raise TimeoutError(f"no answer within {deadline.seconds:g} seconds")

    def readable(self, seconds: float) -> bool:
        """Wait until something has arrived, or it is gone; false if `seconds` pass first."""
        return wire.arrives(self._sock.fileno(), seconds)

    @property
    def ended(self) -> bool:
        """Whether the process has ended or is about to; also of a copy that never woke."""
        handle = self.handle
        return self._killed or handle is None or wire.arrives(handle.fileno(), 0)

    @property
    def may_sleep(self) -> bool:
        """Whether this is a copy that has not woken and was not released or ended."""
        return self.handle is None and not self.given_up and self._sock.fileno() >= 0

    def check_alive(self) -> None:
        """Raise EOFError if it has ended and all its data was read."""
        if self.ended and not self.readable(0):
            raise EOFError

    def kill(self) -> None:
        """Kill it."""
        self._killed = True
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal, if it is alive."""
        handle = self.handle
        if handle is not None:
            handle.signal(number)

    def cpu_seconds(self) -> float:
        """Return the CPU time that its threads have used; 0 if it is gone."""
        handle = self.handle
        return 0.0 if handle is None else handle.cpu_seconds()

    def close(self) -> None:
        """Release the process: a sleeping copy then ends by itself."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # also wakes a thread of ours that is sending
        with self._sending:
            self.detach()

    def detach(self) -> None:
        """Close this process's descriptors only; other owners keep theirs."""
        self._sock.close()
        handle, self.handle = self.handle, None
        if handle is not None:
            handle.close()


def _slice(left: Callable[[], float]) -> float:
    return min(max(left(), 0), _SLICE_SECONDS)


def _check(left: Callable[[], float]) -> None:
    if left() <= 0:
        raise TimeoutError("it does not read what it is sent")


def text_of(frame: wire.Frame, name: str) -> str:
    """Return a text of a frame.

    Raises:
        wire.Violation: If it has none of that name.
    """
    value: Any = frame.get(name)
    if not isinstance(value, str):
        raise wire.Violation(f"a frame without {name}")
    return value


def pid_of(frame: wire.Frame) -> int:
    """Return the number of a process in a frame; 0 if it has none."""
    pid = frame.get("pid")
    return pid if type(pid) is int and 0 < pid < 1 << 31 else 0
