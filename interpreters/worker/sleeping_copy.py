"""Forks a copy of this process that sleeps until it is needed. The standard library only.

Most copies end without ever waking. `os.fork` prepares Python in the child at once, which writes to some 300 pages
that the child must copy first; here that waits until the copy wakes.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import os
import socket
import sys
import warnings

_LIBC = ctypes.PyDLL(None, use_errno=True)
"""The C library. Its functions keep the GIL, because the child has no other thread to take it."""


def fork_asleep(own: int, fd: int) -> int:
    """Fork a copy that sleeps until something arrives at its socket, and ends if the other side is closed.

    Args:
        own: The descriptor of this process's socket. In the copy it is that of the copy's.
        fd: The copy's socket; the copy closes this descriptor.

    Returns:
        The copy's process id; 0 in the copy. If this process has other threads, the copy sleeps when it reads.

    Raises:
        OSError: If there can be no more processes.
    """
    if _thread._count() or not getattr(sys, "_is_gil_enabled", lambda: True)():  # noqa: SLF001 (no public name)
        return _fork_prepared(own, fd)
    dup3, recv, exit_, byte = _LIBC.dup3, _LIBC.recv, _LIBC["_exit"], ctypes.create_string_buffer(1)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _LIBC.fork()
    if pid == 0:
        if dup3(fd, own, os.O_CLOEXEC) != own:
            exit_(1)
        while (arrived := recv(own, byte, 1, socket.MSG_PEEK)) < 1:
            if arrived == 0 or ctypes.get_errno() != errno.EINTR:
                exit_(0)
        ctypes.pythonapi.PyOS_AfterFork_Child()
        os.close(fd)
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "no further process")
    return pid


def _fork_prepared(own: int, fd: int) -> int:
    """Fork as Python does: the copy of a process with threads must free at once what the threads held."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads live: the copy has none
        pid = os.fork()
    if pid == 0:
        os.dup2(fd, own, inheritable=False)
        os.close(fd)
    return pid
