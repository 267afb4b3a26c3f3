"""One process of a worker as the host sees it: its socket, its handle, and frames that may be anything."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from rlm_dspy.interpreters import wire


class Process:
    """A process that runs cells, or a sleeping copy of one.

    Args:
        sock: The host's end of its socket.
        handle: Its pidfd; -1 while it is not known.
    """

    def __init__(self, sock: socket.socket, handle: int = -1) -> None:
        self._sock = sock
        self.handle = handle
        self.pid = 0
        """Its number where the fork server lives."""
        self._assembler = wire.Assembler()
        self._sending = threading.Lock()

    @classmethod
    def new(cls) -> tuple[Process, socket.socket]:
        """Return one that is yet to be made, and the end that it is to be given."""
        ours, theirs = wire.pair()
        return cls(ours), theirs

    def fileno(self) -> int:
        """Return the socket's descriptor, to be polled."""
        return self._sock.fileno()

    def send(self, frame: wire.Frame, fds: list[int] | None = None, number: int = 0) -> None:
        """Send a frame.

        Raises:
            OSError: If it is gone, or does not read.
        """
        payload = wire.encoded(frame)
        with self._sending:
            wire.send(self._sock, payload, number, fds or ())

    def received(self) -> wire.Frame | None:
        """Take what has arrived; return a frame if one is complete.

        Raises:
            EOFError: If the other side is closed.
            wire.Violation: If it is not of the protocol.
        """
        while True:
            try:
                packet = wire.receive_packet(self._sock, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except ConnectionError:
                raise EOFError from None
            payload = self._assembler.add(packet)
            if payload is not None:
                return wire.decoded(payload)

    def expect(self, kind: str, seconds: float) -> wire.Frame:
        """Wait for a frame of `kind`; others on the way are dropped.

        Raises:
            EOFError: If it is gone.
            TimeoutError: If none comes within `seconds`.
            wire.Violation: If it sends what is not of the protocol.
        """
        deadline = time.monotonic() + seconds
        while self.readable(deadline - time.monotonic()):
            frame = self.received()
            if frame is not None and frame.get("t") in (kind, "failed"):
                return frame
        raise TimeoutError(f"no answer within {seconds:g} seconds")

    def readable(self, seconds: float) -> bool:
        """Wait until something has arrived, or it is gone; false if `seconds` pass first."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(max(0, seconds * 1000)))

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        return bool(poll.poll(0))

    def check_alive(self) -> None:
        """Raises EOFError if it has ended and all that it sent is read."""
        if self.ended and not self.readable(0):
            raise EOFError

    def signal(self, number: int) -> None:
        """Send a signal, if it still lives."""
        if self.handle >= 0:
            with suppress(OSError):
                signal.pidfd_send_signal(self.handle, number)

    def host_pid(self) -> int:
        """Return its number in the host's own numbering; 0 if it is gone."""
        with suppress(OSError), open(f"/proc/self/fdinfo/{self.handle}", encoding="ascii") as info:  # noqa: PTH123 (no path)
            for line in info:
                if line.startswith("Pid:"):
                    return max(0, int(line.split()[1]))
        return 0

    def close(self) -> None:
        """Let go of it: a sleeping copy then ends by itself."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # also wakes a thread of ours that is sending
        self._sock.close()
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def detach(self) -> None:
        """Close the descriptors of this process only; whoever else has them goes on."""
        self._sock.close()
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def text_of(frame: wire.Frame, name: str) -> str:
    """Return a text of a frame.

    Raises:
        wire.Violation: If it has none of that name.
    """
    value: Any = frame.get(name)
    if not isinstance(value, str):
        raise wire.Violation(f"a frame without {name}")
    return value
