"""Makes system calls that Python does not offer, through ctypes.

The standard library only: this runs in the fork server and in the worker, before it confines itself.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

from . import syscalls

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_GET_NAME = 16
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_VMA = 0x53564D41


@cache
def libc() -> ctypes.CDLL:
    """Return the C library, with the types of what is called here."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    library.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    library.mount.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return library


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


@cache
def _numbers() -> dict[str, int]:
    return syscalls.own(syscalls.machine())


def call(name: str, *arguments: Any) -> int:
    """Make the system call `name` with integers, bytes or ctypes objects.

    Raises:
        OSError: If the kernel refuses, or the machine is not known.
    """
    native = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return _checked(libc().syscall(ctypes.c_long(_numbers()[name]), *native), name)


def prctl(option: int, *arguments: int) -> int:
    """Call `prctl`; missing arguments are 0.

    Raises:
        OSError: If the kernel refuses.
    """
    return _checked(libc().prctl(option, *(*arguments, 0, 0, 0, 0)[:4]), "prctl")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` (CLONE_NEW...) name.

    Raises:
        OSError: If the kernel refuses.
    """
    _checked(libc().unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount.

    Raises:
        OSError: If the kernel refuses.
    """
    encoded = [None if item is None else os.fsencode(item) for item in (source, target, kind)]
    data = None if options is None else options.encode()
    _checked(libc().mount(*encoded, flags, data), f"mount on {target}")


def detach(target: str) -> None:
    """Unmount lazily what is mounted on `target`.

    Raises:
        OSError: If the kernel refuses.
    """
    _checked(libc().umount2(os.fsencode(target), 2), f"umount {target}")
