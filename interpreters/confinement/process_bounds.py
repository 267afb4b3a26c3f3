"""Bounds a process of one task, e.g. one that parses a file of unknown origin.

The standard library only. A script imports it from the folder that this package is in, without the rest.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from . import landlock
from .limits import ADDRESS_ROOM


def bind(*, memory_bytes: int, seconds: int, file_bytes: int) -> None:
    """Limit memory, time and the size of the files that this process writes. Windows knows none of these.

    Args:
        memory_bytes: Private memory.
        seconds: The kernel ends the process after this time, also if whoever started it is gone.
        file_bytes: The size of each file that it writes.
    """
    if sys.platform == "win32":
        return
    import resource
    import signal

    signal.alarm(seconds)
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_AS: memory_bytes + ADDRESS_ROOM,
    }
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        # SIGXCPU reports the limit of CPU time; at the hard limit, a second later, SIGKILL follows.
        most = value + (name == resource.RLIMIT_CPU)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError, OSError):  # macOS knows no limit of address space
            resource.setrlimit(name, (min(value, most), most))


def close_files() -> None:
    """Allow no file to be opened by its path from now on, where the kernel has Landlock."""
    if sys.platform == "linux":
        with suppress(OSError):
            landlock.Rules().apply()


def close_descriptors() -> None:
    """Allow no new descriptor from now on: no file, no socket, no pipe. Those that are open stay open."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
