"""The system call filter of a worker: a list of what it may call, everything else is refused with EPERM.

The standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from . import kernel, syscalls

_Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant: one instruction of the kernel's classic BPF."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH = 0, 4

_NEW_NAMESPACES = 0x7E020080
_AF_UNIX, _SOCK_STREAM, _SOCK_FLAGS = 1, 1, 0o2004000
_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
_MAP_ANONYMOUS_SHARED, _MAP_GROWSDOWN = 0x21, 0x100
_TERMINAL_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5451, 0x5450)
"""TCGETS (isatty), FIONREAD, FIONBIO, FIOCLEX, FIONCLEX."""
_FCNTLS = (0, 1, 2, 3, 4, 6, 7, 1030, 37, 38, 1032, 1034)
"""Duplicate, flags and setting locks; none that sends a signal (F_SETOWN, F_SETSIG) or pins memory (F_SETPIPE_SZ).

F_GETLK is excluded too: it shows the locks of another session on a file that both can read.
"""
_PRCTLS = (kernel.PR_SET_NAME, kernel.PR_GET_NAME, kernel.PR_SET_VMA)


def _argument(index: int, *, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index + (4 if high else 0))


def _answer(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)


_YES, _NO = _answer(_ALLOW), _answer(_ERRNO | errno.EPERM)


def _one_of(index: int, values: tuple[int, ...], otherwise: _Instruction = _NO) -> list[_Instruction]:
    """Allow if the low half of an argument is one of `values`."""
    tests = [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [_argument(index), *tests, otherwise, _YES]


def _is_null(*indices: int) -> list[_Instruction]:
    """Allow if all of these arguments are 0."""
    halves = [_argument(index, high=high) for index in indices for high in (False, True)]
    tests = [
        part for place, half in enumerate(halves) for part in (half, (_EQUAL, 0, 2 * (len(halves) - place) - 1, 0))
    ]
    return [*tests, _YES, _NO]


def _stream_pair() -> list[_Instruction]:
    """Allow a pair of AF_UNIX streams.

    A datagram socket of a pair could still send to any socket that has a path.
    """
    kind = (_AND, 0, 0, 0xFFFFFFFF & ~_SOCK_FLAGS)
    return [
        _argument(0), (_EQUAL, 0, 4, _AF_UNIX), _argument(1), kind, (_EQUAL, 0, 1, _SOCK_STREAM), _YES, _NO
    ]  # fmt: skip


def _maps() -> list[_Instruction]:
    """Allow maps whose memory is counted: none that is shared and of no file, none that grows as a stack."""
    shared = (_AND, 0, 0, _MAP_ANONYMOUS_SHARED)
    return [
        _argument(3),
        (_ANY_BIT, 3, 0, _MAP_GROWSDOWN),
        shared,
        (_EQUAL, 1, 0, _MAP_ANONYMOUS_SHARED),
        _YES,
        _NO,
    ]


def _opens(flags_at: int) -> list[_Instruction]:
    """Allow to open, but not to truncate what is opened for reading: Landlock before version 3 lets that pass."""
    return [_argument(flags_at), (_AND, 0, 0, _O_ACCMODE | _O_TRUNC), (_EQUAL, 0, 1, _O_TRUNC), _NO, _YES]


def _rules(numbers: dict[str, int], *, signals: bool) -> dict[int, list[_Instruction]]:
    """Return what decides for each call whose arguments matter."""
    to_itself = [_YES] if signals else _one_of(0, (0,))
    bodies = {
        "clone": [_argument(0), (_ANY_BIT, 1, 0, _NEW_NAMESPACES), _YES, _NO],
        "clone3": [_answer(_ERRNO | errno.ENOSYS)],  # glibc then uses clone, whose flags can be read here
        "ioctl": _one_of(1, _TERMINAL_IOCTLS, _answer(_ERRNO | errno.ENOTTY)),
        "fcntl": _one_of(1, _FCNTLS),
        "prctl": _one_of(0, _PRCTLS),
        "prlimit64": _is_null(0, 2),  # its own, to be read
        "socketpair": _stream_pair(),
        "mmap": _maps(),
        "sched_getaffinity": _is_null(0),  # its own
        "kill": to_itself,
        "tgkill": [_YES if signals else _NO],
        "openat": _opens(2),
        "open": _opens(1),
    }
    return {number: bodies[name] for name, number in numbers.items()}


def program(machine: str, *, signals: bool) -> bytes:
    """Return the filter.

    Args:
        machine: A key of `syscalls.AUDIT_ARCH`.
        signals: Whether signals to any process are allowed, because Landlock keeps them inside; without, only
            to the worker's own process group.
    """
    code: list[_Instruction] = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, syscalls.AUDIT_ARCH[machine])]
    code += [_answer(_KILL), (_LOAD, 0, 0, _NUMBER)]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, 0x40000000), _answer(_KILL)]  # the x32 calls
    calls = syscalls.allowed(machine)
    hot = list(calls.values())[:14]
    code += [part for number in hot for part in ((_EQUAL, 0, 1, number), _YES)]
    for number, body in _rules(syscalls.checked(machine), signals=signals).items():
        code += [(_EQUAL, 0, len(body), number), *body]
    code += [part for number in list(calls.values())[14:] for part in ((_EQUAL, 0, 1, number), _YES)]
    return b"".join(struct.pack("<HBBI", *part) for part in [*code, _NO])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install(code: bytes) -> None:
    """Apply the filter to this process, all of its threads and all their children, for good.

    Raises:
        OSError: If the kernel refuses.
    """
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = _Program(len(code) // 8, ctypes.addressof(buffer))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.call("seccomp", 1, 1, ctypes.c_void_p(ctypes.addressof(filter_)))
