"""Carries the packets of many sockets over one byte stream; both ends of a remote interpreter run it.

The stream is a sequence of frames: kind, number and size of the body in `_HEADER`, then the body.

| kind | number | body |
|---|---|---|
| ORDER | 0 | a JSON object: an order of the near end, an answer or a report of the far end |
| PACKET | a channel | the count of its descriptors, a reference for each, then a packet of `worker.wire` |
| CLOSE | a channel | nothing: no packet follows |
| CREDIT | a channel | how many bytes of packets were delivered since the last |
| PIECE | place among the pieces of a value | the value's digest, then bytes of it; none after the last |
| BEAT | 0 | nothing: the sender lives |

The far end sends `GREETING` first; what a shell prints before it is ignored.

Each channel has a window of bytes that may be in flight, so that a session that is not read does not block others.
The thread that reads the stream never writes to it and never waits, so neither end can block the other. It imports
the standard library only.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from rlm_dspy.interpreters.worker import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

GREETING = b"rlm_dspy: the stream begins\n"
WINDOW = 1 << 20
"""Bytes of the packets of one channel that may be in flight in each direction."""
REFERENCE = struct.Struct("<B20s")
"""The reference for a descriptor: `VALUE` and a digest, or `CHANNEL` and its number."""
VALUE, CHANNEL = 0, 1
NUMBER = struct.Struct("<I16x")

_HEADER = struct.Struct("<BII")
_MOST = 8 << 20
_BEAT_SECONDS, _SILENT_SECONDS, _SENDING_SECONDS = 10, 60, 1
_GREETING_SECONDS = 120
"""A container may have to be downloaded first."""
_DESCRIPTORS = socket.CMSG_SPACE(4 * wire.MAX_DESCRIPTORS)
_READ_AT_ONCE = 1 << 20


class Kind(IntEnum):
    """The kind of a frame."""

    ORDER = 0
    PACKET = 1
    CLOSE = 2
    CREDIT = 3
    PIECE = 4
    BEAT = 5


class Frame(NamedTuple):
    """One frame of the stream."""

    kind: Kind
    number: int
    body: bytes


class Stream:
    """Frames over two descriptors. Any thread may send; one receives.

    Args:
        reads: The descriptor to read from, closed by `close`.
        writes: The descriptor to write to, likewise.
    """

    def __init__(self, reads: int, writes: int) -> None:
        self._reader = open(reads, "rb", buffering=_READ_AT_ONCE)  # noqa: SIM115 (it has no path)
        self._writes = writes
        self._sending = threading.Lock()
        self._heard = time.monotonic()
        self._most_silent = _SILENT_SECONDS
        self._closed = threading.Event()

    def send(self, kind: Kind, number: int = 0, *parts: bytes) -> None:
        """Send a frame.

        Raises:
            OSError: If nobody reads any more.
        """
        self.write(b"".join((_HEADER.pack(kind, number, sum(map(len, parts))), *parts)))

    def write(self, data: bytes) -> None:
        """Send bytes as they are.

        Raises:
            OSError: If nobody reads any more.
        """
        with self._sending:
            view = memoryview(data)
            while view:
                if self._closed.is_set():
                    raise BrokenPipeError("the connection is closed")
                try:
                    view = view[os.write(self._writes, view) :]
                except OSError as error:
                    raise BrokenPipeError(f"the connection is closed: {error}") from error

    def await_greeting(self) -> None:
        """Skip everything before the first frame.

        Raises:
            EOFError: If there is none.
        """
        self._most_silent, line = _GREETING_SECONDS, b""
        while not line.endswith(GREETING):
            line = self._reader.readline(_MOST)
            if not line:
                self._exactly(1)
        self._most_silent, self._heard = _SILENT_SECONDS, time.monotonic()

    def receive(self) -> Frame:
        """Wait for the next frame.

        Raises:
            EOFError: If there is none any more.
            ValueError: If the data violates the protocol.
        """
        kind, number, size = _HEADER.unpack(self._exactly(_HEADER.size))
        if kind > Kind.BEAT or size > _MOST:
            raise ValueError("the other side sends what is not of the protocol")
        body = self._exactly(size)
        self._heard = time.monotonic()
        return Frame(Kind(kind), number, body)

    def _exactly(self, size: int) -> bytes:
        read = self._reader.read(size)
        if len(read) < size:
            self._reader.close()
            raise EOFError
        return read

    def beat(self, lost: Callable[[str], None]) -> None:
        """In a thread of its own: send heartbeats, and call `lost` if the other side is silent."""
        while not self._closed.wait(_BEAT_SECONDS):
            if time.monotonic() - self._heard > self._most_silent:
                lost(f"nothing came for {self._most_silent} seconds")
                return
            if self._sending.locked() or not wire.arrives(self._writes, 0, select.POLLOUT):
                continue  # a frame is being sent, and a wait for the lock could hang
            try:
                self.send(Kind.BEAT)
            except OSError as error:
                lost(str(error))
                return

    def close(self) -> None:
        """End the stream in the direction that this side writes to."""
        self._closed.set()
        alone = self._sending.acquire(timeout=_SENDING_SECONDS)  # a thread that waits to send finds out afterwards
        self.detach()
        if alone:
            self._sending.release()

    def detach(self) -> None:
        """In a forked child: close its copy of the descriptor, and touch nothing that another thread may hold."""
        with suppress(OSError):
            os.close(self._writes)


class _Channel:
    """One socket of this side, with the packets in flight to it and from it."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        self.waiting: deque[tuple[bytes, list[int]]] = deque()
        self.credit = WINDOW
        self.owed = 0
        self.ends = False
        """Whether the other side has announced that nothing follows."""
        self.interest = 0


class Relay:
    """The channels of one stream.

    Args:
        stream: The stream that carries the packets.
        reference: Returns the reference for a descriptor that accompanies a packet; None to accept no descriptors.
    """

    def __init__(self, stream: Stream, reference: Callable[[int], bytes] | None) -> None:
        self._stream = stream
        self._reference = reference
        self._lock = threading.RLock()
        self._channels: dict[int, _Channel] = {}
        self._ready: dict[int, Callable[[], object]] = {}
        self._owing: set[_Channel] = set()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = False
        self.watch(self._wake, lambda: os.eventfd_read(self._wake))

    def watch(self, fd: int, ready: Callable[[], object]) -> None:
        """Call `ready` whenever there is something to read from `fd`, until `forget`."""
        with self._lock:
            if not self._closed:
                self._ready[fd] = ready
                self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor; call this before it is closed."""
        with self._lock:
            if self._ready.pop(fd, None) is not None and not self._closed:
                self._epoll.unregister(fd)

    def add(self, number: int, sock: socket.socket) -> None:
        """Carry what is written to the other end of `sock` to the other side as channel `number`, and back."""
        channel = _Channel(number, sock)
        with self._lock:
            if self._closed:
                sock.close()
                raise BrokenPipeError("the connection is closed")
            self._channels[number] = channel
            self._ready[sock.fileno()] = lambda: self._moves(channel)
            self._look(channel)

    def deliver(self, number: int, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Take a packet for a channel; never wait. The descriptors are closed when it is delivered."""
        with self._lock:
            channel = self._channels.get(number)
            if channel is None:
                for fd in fds:
                    os.close(fd)
                return
            channel.waiting.append((packet, list(fds)))
            if len(channel.waiting) == 1:
                self._flush(channel)

    def end(self, number: int) -> None:
        """Record that nothing follows on a channel."""
        with self._lock:
            channel = self._channels.get(number)
            if channel is not None:
                channel.ends = True
                self._flush(channel)

    def credit(self, number: int, count: int) -> None:
        """Record that the other side has delivered `count` bytes."""
        with self._lock:
            channel = self._channels.get(number)
            if channel is not None:
                channel.credit += count
                self._look(channel)

    def run(self) -> None:
        """In a thread of its own: move packets until this is closed.

        Raises:
            OSError: If the stream is closed.
        """
        try:
            while not self._closed:
                for fd, _ in self._epoll.poll():
                    with self._lock:
                        ready = self._ready.get(fd)
                    if ready is not None:
                        ready()
                self._give_credit()
        finally:
            self.close()
            self._epoll.close()
            os.close(self._wake)

    def _give_credit(self) -> None:
        """Report to the other side how much was delivered."""
        with self._lock:
            owed = [(channel.number, channel.owed) for channel in self._owing]
            for channel in self._owing:
                channel.owed = 0
            self._owing.clear()
        for number, count in owed:
            self._stream.send(Kind.CREDIT, number, count.to_bytes(4, "little"))

    def close(self) -> None:
        """Close all sockets, and end `run`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for channel in list(self._channels.values()):
                self._drop(channel)
            os.eventfd_write(self._wake, 1)

    def _moves(self, channel: _Channel) -> None:
        """Deliver the waiting packets of a ready channel, then read one packet."""
        packet, reference = b"", b""
        with self._lock:
            if self._channels.get(channel.number) is not channel:
                return
            self._flush(channel)
            if channel.credit <= 0:
                return
            try:
                packet, fds = self._taken(channel.sock)
            except BlockingIOError:
                return
            except OSError:
                fds = []
            if packet:
                channel.credit -= len(packet)
                self._look(channel)
            else:
                self._drop(channel)
        if not packet:
            self._stream.send(Kind.CLOSE, channel.number)
            return
        if self._reference is not None:
            reference = b"".join(map(self._reference, fds))
        self._stream.send(Kind.PACKET, channel.number, bytes([len(fds)]) + reference + packet)

    def _taken(self, sock: socket.socket) -> tuple[bytes, list[int]]:
        """Take a packet; one that is too large stays so by a byte, and the host finds that out."""
        room = 0 if self._reference is None else _DESCRIPTORS
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        packet, ancillary, _, _ = sock.recvmsg(wire.MAX_PACKET + 1, room, flags)
        fds = array.array("i")
        for _level, _kind, data in ancillary:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return packet, list(fds)

    def _flush(self, channel: _Channel) -> None:
        """Deliver what waits, as far as the socket takes it."""
        while channel.waiting:
            packet, fds = channel.waiting[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                channel.sock.sendmsg([packet], rights, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:  # nobody reads it any more; that it is closed is found out by reading
                pass
            channel.waiting.popleft()
            for fd in fds:
                os.close(fd)
            channel.owed += len(packet)
            if channel.owed >= WINDOW // 2:
                self._owing.add(channel)
                os.eventfd_write(self._wake, 1)
        if channel.ends and not channel.waiting:
            with suppress(OSError):
                channel.sock.shutdown(socket.SHUT_WR)
        self._look(channel)

    def _look(self, channel: _Channel) -> None:
        """Watch the socket for the events that can be handled now."""
        wanted = (select.EPOLLIN if channel.credit > 0 else 0) | (select.EPOLLOUT if channel.waiting else 0)
        if wanted == channel.interest:
            return
        if not channel.interest:
            self._epoll.register(channel.sock, wanted)
        elif wanted:
            self._epoll.modify(channel.sock, wanted)
        else:  # a closed socket would be reported again and again
            self._epoll.unregister(channel.sock)
        channel.interest = wanted

    def _drop(self, channel: _Channel) -> None:
        del self._channels[channel.number]
        self._owing.discard(channel)
        if channel.interest:
            self._epoll.unregister(channel.sock)
        self._ready.pop(channel.sock.fileno(), None)
        for _, fds in channel.waiting:
            for fd in fds:
                os.close(fd)
        channel.sock.close()
