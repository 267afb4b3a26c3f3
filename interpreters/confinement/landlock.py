"""Landlock: which files a worker may open; TCP, abstract sockets and signals where the kernel knows them.

The standard library only.
"""

from __future__ import annotations

import ctypes
import os
import struct
from enum import IntFlag
from pathlib import Path
from typing import TYPE_CHECKING

from . import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

_Right = IntFlag(
    "_Right",
    "EXECUTE WRITE_FILE READ_FILE READ_DIR REMOVE_DIR REMOVE_FILE MAKE_CHAR MAKE_DIR MAKE_REG MAKE_SOCK MAKE_FIFO "
    "MAKE_BLOCK MAKE_SYM REFER TRUNCATE IOCTL_DEV",
)
"""The kernel's, in the order of their bits."""
_FIRST = (1 << 13) - 1
"""Those of the first version."""
_OF_FILES = _Right.EXECUTE | _Right.WRITE_FILE | _Right.READ_FILE | _Right.TRUNCATE | _Right.IOCTL_DEV
_REMOVE = _Right.REMOVE_DIR | _Right.REMOVE_FILE
_MAKE = _Right.MAKE_DIR | _Right.MAKE_REG | _Right.MAKE_SYM
READ = _Right.EXECUTE | _Right.READ_FILE | _Right.READ_DIR
"""Reading; EXECUTE also covers mapping a shared library."""
DEVICE = READ | _Right.WRITE_FILE
WRITE = DEVICE | _REMOVE | _MAKE | _Right.REFER | _Right.TRUNCATE

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
        newer = ((2, _Right.REFER), (3, _Right.TRUNCATE), (5, _Right.IOCTL_DEV))
        self._handled = _FIRST | sum(right for since, right in newer if abi >= since)
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
        """Confine the calling thread and its children by these rules, for good, and close them here.

        Raises:
            OSError: If the kernel refuses.
        """
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.call("landlock_restrict_self", self._fd, 0)
        os.close(self._fd)
