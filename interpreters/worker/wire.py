"""Frames between host, fork server and worker: JSON objects in packets; descriptors travel from the host only.

A packet is one message of a SOCK_SEQPACKET socket: a byte that says whether it is the last of its frame, the
frame's number, then a piece of JSON. The standard library only.
"""

from __future__ import annotations

import array
import json
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from .encoder import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Packet = tuple[list[bytes], list[tuple[int, int, array.array[int]]]]

PACKET = 120 * 1024
"""Bytes of JSON in one packet at most."""
MAX_FRAME = 64 << 20
"""Bytes of JSON that the host reads as one frame; with more the worker is killed."""
MAX_NODES = 1_000_000
"""Values, keys and brackets in one frame at most: each costs the host some 60 bytes."""
MAX_DESCRIPTORS = 64
"""Descriptors in one frame."""
_MAX_DIGITS = 4300
_SPARE = 1 << 16
"""Bytes of a frame for the headers of its packets."""

_HEADER = struct.Struct("<BI")
MAX_PACKET = PACKET + _HEADER.size
"""Bytes of one packet at most."""
_LARGE = 1 << 20
_NODE_BYTES = 80

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=plain).encode

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Frame = dict[str, JSON]
"""A message from a worker: any JSON object, which the host does not trust until it has checked it."""


class Violation(ValueError):  # noqa: N818 (of the protocol: what it says)
    """A received message is not a valid frame of the protocol."""


def encoded(frame: Mapping[str, object]) -> bytes:
    """Return the JSON of a frame, with sets as lists, dates as ISO text, arrays and tables as lists.

    Raises:
        TypeError: If a value has no such form; the message names its type.
        ValueError: If it refers to itself.
        RecursionError: If it is nested too deeply.
    """
    return _encode(frame).encode("utf-8", "surrogatepass")


def encoded_for_host(frame: Mapping[str, object]) -> bytes:
    """Return the JSON of a frame that the host will accept.

    Raises:
        TypeError: As `encoded` does.
        ValueError: If it refers to itself, has an int of more than 4,300 digits, or is larger than the host
            accepts.
        RecursionError: As `encoded` does.
    """
    allowed = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(_MAX_DIGITS)  # code may have raised the limit here, but the host keeps it
    try:
        payload = encoded(frame)
    except ValueError as error:
        if "digits" in str(error):
            raise ValueError(f"it has an int of more than {_MAX_DIGITS:,} digits; send hex(...) of it") from None
        raise
    finally:
        sys.set_int_max_str_digits(allowed)
    if len(payload) > MAX_FRAME - _SPARE:
        raise ValueError(f"it takes {len(payload) >> 20} MB as JSON, more than {MAX_FRAME >> 20} MB; send less")
    if _has_too_many_parts(payload):
        raise ValueError(f"it has more than {MAX_NODES:,} values; send fewer, or join them into one text")
    return payload


def decoded(payload: bytes) -> Frame:
    """Return the frame in `payload`, which may be anything.

    Raises:
        Violation: If it is not a JSON object, or has too many parts.
    """
    if _has_too_many_parts(payload):
        raise Violation("a frame of too many parts")
    try:
        frame = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise Violation(f"a frame that is not JSON ({type(error).__name__})") from None
    if not isinstance(frame, dict):
        raise Violation("a frame that is not an object")
    return frame


def _has_too_many_parts(payload: bytes) -> bool:
    """Return whether a frame would cost the host too much memory; the time for it grows with the length."""
    if len(payload) <= _LARGE or _nodes(payload) <= MAX_NODES:
        return False
    plain = payload.replace(rb"\\", b"").replace(rb"\"", b"")  # every quote left begins or ends a string
    return plain.count(b'"') > 2 * MAX_NODES or _nodes(b"".join(plain.split(b'"')[::2])) > MAX_NODES


def _nodes(payload: bytes) -> int:
    return sum(map(payload.count, (b",", b"[", b"{")))


def size_of(payload: bytes) -> int:
    """Return about how many bytes the frame in `payload` takes on the host at most."""
    return len(payload) + _NODE_BYTES * _nodes(payload)


def packets(payload: bytes, number: int = 0, fds: Sequence[int] = ()) -> Iterator[Packet]:
    """Yield the packets of an encoded frame: header and piece, and with the first what carries the descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    for start in range(0, len(payload) or 1, PACKET):
        last = start + PACKET >= len(payload)
        yield [_HEADER.pack(last, number), payload[start : start + PACKET]], rights if start == 0 else []


def send(sock: socket.socket, payload: bytes, number: int = 0, fds: Sequence[int] = ()) -> None:
    """Send one encoded frame; its first packet carries the descriptors.

    Raises:
        OSError: If nobody reads any more.
    """
    for packet in packets(payload, number, fds):
        sock.sendmsg(*packet)


class Assembler:
    """Puts packets together. One frame at a time: packets of another in between are a violation."""

    def __init__(self, max_bytes: int = MAX_FRAME) -> None:
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self._number: int | None = None

    def add(self, packet: bytes) -> bytes | None:
        """Take a packet; return the frame's payload when it was the last.

        Raises:
            Violation: If it does not belong to the frame begun, or the frame grows too large.
        """
        if len(packet) < _HEADER.size:
            raise Violation("a packet without a header")
        last, number = _HEADER.unpack_from(packet)
        if last > 1 or self._number not in (None, number):
            raise Violation("a packet of another frame in between")
        if not last and len(packet) < _HEADER.size + PACKET:
            raise Violation("a piece of a frame that is too small")
        self._number = number
        self._pieces.append(packet[_HEADER.size :])
        self._size += len(packet)
        if self._size > self._max_bytes:
            raise Violation(f"a frame of more than {self._max_bytes} bytes")
        if not last:
            return None
        payload = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._size, self._number = [], 0, None
        return payload


def receive_packet(sock: socket.socket, flags: int = 0) -> bytes:
    """Return the next packet from a worker; descriptors it may carry are not taken.

    Raises:
        EOFError: If the other side is closed.
        Violation: If it is larger than a packet.
        BlockingIOError: If `flags` say not to wait and there is none.
    """
    packet, _, received, _ = sock.recvmsg(MAX_PACKET, 0, flags)
    if not packet:
        raise EOFError
    if received & socket.MSG_TRUNC:
        raise Violation("a packet that is too large")
    return packet


def receive_trusted(sock: socket.socket) -> tuple[Any, list[int]]:
    """Return the next frame from the host or the fork server, which are trusted, and the descriptors with it.

    Raises:
        EOFError: If the other side is closed.
    """
    pieces: list[bytes] = []
    fds = array.array("i")
    last = 0
    while not last:
        packet, ancillary, _, _ = sock.recvmsg(
            MAX_PACKET, socket.CMSG_SPACE(4 * MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
        )
        if not packet:
            raise EOFError
        last = packet[0]
        pieces.append(packet[_HEADER.size :])
        for _level, _kind, data in ancillary:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return json.loads(b"".join(pieces)), list(fds)


def arrives(fd: int, seconds: float, event: int = 0) -> bool:
    """Wait for an event of `select.poll`, by default for something to read; false if `seconds` pass first."""
    poll = select.poll()
    poll.register(fd, event or select.POLLIN)
    return bool(poll.poll(max(0, seconds) * 1000))


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets for frames; sending waits 10 seconds at most for the other side to read."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
    return ends
