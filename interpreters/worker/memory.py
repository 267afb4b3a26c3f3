"""Shares values in sealed memory: the host writes them once, any number of workers map them.

A `str` or `bytes` is attached without a copy: its characters stay in the shared read-only mapping, and a private
page in front of it holds the object's header. `can_attach()` tests this on the running Python; if it fails,
the mapping is decoded once. The standard library only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ENCODINGS = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}
"""How characters of 1, 2 and 4 bytes lie in a str."""
_SAMPLES = {(1, True): "ab", (1, False): "\xe9\xe9", (2, False): "\u0100\u0100", (4, False): "\U00010000" * 2}
_ASCII_HEADER = sys.getsizeof("ab") - 3
_WIDE_HEADER = sys.getsizeof("\u0100\u0100") - 6
_BYTES_HEADER = sys.getsizeof(b"ab") - 3
_STATE_AT = 32
_REFERENCES = 1 << 30
"""A reference count that code cannot bring to 0, and that no Python treats as immortal."""
_WRITE_AT_ONCE = 1 << 30
_ADD_SEALS, _ALL_SEALS = 1033, 0xF
_NO_ACCESS, _READ, _READ_WRITE = 0, 1, 3
_SHARED, _PRIVATE, _PRIVATE_ANONYMOUS, _FIXED = 1, 2, 0x22, 0x10
_MAP_FAILED = (1 << 64) - 1
_FULL = "the value cannot be mapped: the worker's address space is full"


class Layout(NamedTuple):
    """The contents of a piece of shared memory."""

    how: str
    """`str` or `bytes`."""
    length: int
    """Characters or bytes."""
    kind: int = 1
    """Bytes a character."""
    ascii: bool = True

    @property
    def size(self) -> int:
        """Bytes in all, with the null that ends it."""
        return (self.length + 1) * self.kind


def create() -> int:
    """Return a descriptor of new shared memory."""
    if sys.platform != "linux":
        raise OSError("shared memory of this kind is on Linux only")
    return os.memfd_create("rlm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


@contextmanager
def created() -> Iterator[int]:
    """Give a descriptor of new shared memory to write to; afterwards nobody can change it or its size again."""
    fd = create()
    try:
        yield fd
        if sys.platform == "linux":
            import fcntl

            fcntl.fcntl(fd, _ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(fd)
        raise


def write(fd: int, parts: Iterable[bytes | memoryview]) -> None:
    """Write all of `parts`."""
    for part in parts:
        view, done = memoryview(part).cast("B"), 0
        while done < len(view):
            done += os.write(fd, view[done : done + _WRITE_AT_ONCE])


def published(value: str | bytes) -> tuple[int, Layout]:
    """Write a value to new sealed memory; return its descriptor and its layout."""
    layout, raw = _raw(value)
    with created() as fd:
        write(fd, [raw])
    return fd, layout


def _raw(value: str | bytes) -> tuple[Layout, bytes | memoryview]:
    if isinstance(value, bytes):
        return Layout("bytes", len(value)), _view(id(value) + _BYTES_HEADER, len(value) + 1)
    kind = _kind(value)
    layout = Layout("str", len(value), kind or narrowest(value), value.isascii())
    if kind is None:
        return layout, value.encode(ENCODINGS[layout.kind], "surrogatepass") + bytes(layout.kind)
    header = _ASCII_HEADER if layout.ascii else _WIDE_HEADER
    return layout, _view(id(value) + header, layout.size)


def _view(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


@cache
def _kind_shift() -> int | None:
    """Return where in a str's state its kind is; None if this Python keeps it elsewhere."""
    if sys.implementation.name != "cpython" or hasattr(sys, "getobjects"):
        return None
    for shift in range(29):
        if all((_state(text) >> shift) & 7 == kind for (kind, _), text in _SAMPLES.items()):
            return shift
    return None


def _state(text: str) -> int:
    return ctypes.c_uint32.from_address(id(text) + _STATE_AT).value


def _kind(text: str) -> int | None:
    """Return the bytes a character; None if the characters do not follow the header in memory."""
    shift = _kind_shift()
    if shift is None or not (_state(text) >> (shift + 3)) & 1:
        return None
    return (_state(text) >> shift) & 7


def narrowest(text: str) -> int:
    """Return how many bytes the widest character of `text` takes in a str."""
    if text.isascii():
        return 1
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return 2 if len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text) else 4
    return 1


def attached(fd: int, layout: Layout, *, copy: bool = False) -> str | bytes:
    """Map a descriptor and return its value; the descriptor may be closed afterwards.

    Args:
        fd: Sealed memory.
        layout: The layout of its content.
        copy: Decode instead of mapping; for a Python on which `can_attach()` is false.
    """
    if not copy:
        return _with_header(fd, layout)
    with mmap.mmap(fd, layout.size, mmap.MAP_PRIVATE, mmap.PROT_READ) as shared:
        raw = memoryview(shared)[: layout.size - layout.kind]
        value = bytes(raw) if layout.how == "bytes" else str(raw, ENCODINGS[layout.kind], "surrogatepass")
        raw.release()
        return value


def _with_header(fd: int, layout: Layout) -> str | bytes:
    from ..confinement.kernel import libc

    header = _header(layout)
    pages = -(-layout.size // mmap.PAGESIZE) * mmap.PAGESIZE
    base = libc().mmap(None, mmap.PAGESIZE + pages, _NO_ACCESS, _PRIVATE_ANONYMOUS, -1, 0)
    if base in (None, _MAP_FAILED):
        raise MemoryError(_FULL)
    first = libc().mmap(base, mmap.PAGESIZE, _READ_WRITE, _PRIVATE_ANONYMOUS | _FIXED, -1, 0)
    data = base + mmap.PAGESIZE
    forms = (_SHARED, _PRIVATE)  # gVisor and old kernels refuse to share sealed memory, even to read it
    if first != base or not any(libc().mmap(data, pages, _READ, form | _FIXED, fd, 0) == data for form in forms):
        raise MemoryError(_FULL)
    address = data - len(header)
    ctypes.memmove(address, header, len(header))
    value: str | bytes = ctypes.cast(address, ctypes.py_object).value
    return value


def _header(layout: Layout) -> bytes:
    if layout.how == "bytes":
        template: str | bytes = bytes(bytearray(b"ab"))
        header = bytearray(ctypes.string_at(id(template), _BYTES_HEADER))
    else:
        sample = _SAMPLES[layout.kind, layout.ascii]
        template = "".join([sample[0], sample[1]])
        header = bytearray(ctypes.string_at(id(template), _ASCII_HEADER if layout.ascii else _WIDE_HEADER))
    struct.pack_into("<q", header, 0, _REFERENCES)
    struct.pack_into("<qq", header, 16, layout.length, -1)  # the length; no hash yet
    if layout.how == "str" and not layout.ascii:
        struct.pack_into("<qq", header, _WIDE_HEADER - 16, 0, 0)  # no UTF-8 form yet
    return bytes(header)


def can_attach() -> bool:
    """Return whether values can be attached without a copy on this Python.

    A wrong layout may crash the process: call this in a process that may crash.
    """
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return False
    if _kind_shift() is None or sys.byteorder != "little" or struct.calcsize("P") != 8:  # noqa: PLR2004 (64 bits)
        return False
    texts = ("", "x", "hello world " * 900, "\xe9t\xe9 " * 50, "\u0142\u4e2d " * 50, "\U0001f600x" * 50)
    return all(_survives(text) for text in (*texts, b"", b"\x00ab" * 99))


def _survives(value: str | bytes) -> bool:
    fd, layout = published(value)
    try:
        mapped = attached(fd, layout)
    finally:
        os.close(fd)
    same = mapped == value and len(mapped) == len(value) and hash(mapped) == hash(value)
    again = mapped[1:7] == value[1:7] and mapped * 2 == value * 2 and {mapped: 1}[value] == 1
    return same and again and type(mapped) is type(value) and bool(repr(mapped) == repr(value))
