"""Landlock: which files a worker may open; TCP, abstract sockets and signals where the kernel knows them.

The standard library only.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from . import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

_RIGHTS = [
    "EXECUTE",
    "WRITE_FILE",
    "READ_FILE",
    "READ_DIR",
    "REMOVE_DIR",
    "REMOVE_FILE",
    "MAKE_CHAR",
    "MAKE_DIR",
    "MAKE_REG",
    "MAKE_SOCK",
    "MAKE_FIFO",
    "MAKE_BLOCK",
    "MAKE_SYM",
    "REFER",
    "TRUNCATE",
    "IOCTL_DEV",
]
_BIT = {name: 1 << place for place, name in enumerate(_RIGHTS)}


def _bits(names: str) -> int:
    return sum(_BIT[name] for name in names.split())


_OF_FILES = _bits("EXECUTE WRITE_FILE READ_FILE TRUNCATE IOCTL_DEV")
READ = _bits("EXECUTE READ_FILE READ_DIR")
"""Reading; EXECUTE also covers mapping a shared library."""
WRITE = READ | _bits("WRITE_FILE REMOVE_DIR REMOVE_FILE MAKE_DIR MAKE_REG MAKE_SYM REFER TRUNCATE")
DEVICE = READ | _bits("WRITE_FILE")

_KNOWS_TCP = 4
SCOPES_SIGNALS = 6
"""The version from which signals to processes outside are refused."""


def version() -> int:
    """Return the version of Landlock in this kernel; 0 if it is missing or switched off."""
    try:
        return kernel.call("landlock_create_ruleset", 0, 0, 1)
    except OSError:
        return 0


class Rules:
    """A set of rules, to be filled and then applied.

    Raises:
        OSError: If this kernel has no Landlock.
    """

    def __init__(self) -> None:
        abi = version()
        newer = ((2, "REFER"), (3, "TRUNCATE"), (5, "IOCTL_DEV"))
        self._handled = (1 << 13) - 1 | sum(_BIT[name] for since, name in newer if abi >= since)
        parts = [self._handled, *([3] if abi >= _KNOWS_TCP else []), *([3] if abi >= SCOPES_SIGNALS else [])]
        attributes = struct.pack(f"<{len(parts)}Q", *parts)
        self._fd = kernel.call("landlock_create_ruleset", ctypes.c_char_p(attributes), len(attributes), 0)

    def allow(self, paths: Iterable[str], rights: int) -> None:
        """Allow `rights` beneath each path that exists."""
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            granted = rights & self._handled & (-1 if Path(path).is_dir() else _OF_FILES)
            kernel.call("landlock_add_rule", self._fd, 1, ctypes.c_char_p(struct.pack("<Qi", granted, fd)), 0)
            os.close(fd)

    def apply(self) -> None:
        """Confine the calling thread and its children by these rules, for good.

        Raises:
            OSError: If the kernel refuses.
        """
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.call("landlock_restrict_self", self._fd, 0)

    def close(self) -> None:
        """Give the rules' descriptor back; what was applied stays."""
        os.close(self._fd)
