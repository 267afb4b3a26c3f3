"""Defines the resource limits of a worker, and applies them to a process.

The standard library only.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

ADDRESS_ROOM = 3 << 29
"""Address space beyond the memory limit: libraries, thread stacks, arenas that are reserved and never used."""
STACK_BYTES = 64 << 20
"""The stack of a worker's main thread, as far as the system allows."""


@dataclass(frozen=True, kw_only=True)
class WorkerLimits:
    """The resource limits of one worker."""

    memory_bytes: int = 2 << 30
    """Private memory of its processes together, its copies included; not what is shared with the host."""
    max_processes: int = 128
    """Processes and threads at once; without namespaces, on top of those the user had when the worker started."""
    scratch_bytes: int = 256 << 20
    """Files in its scratch folder; without a minimal root the size of one file."""
    scratch_files: int = 20_000
    """Files and folders there at once; not limited without a minimal root."""
    max_open_files: int = 256
    """Descriptors of each of its processes."""

    def __post_init__(self) -> None:
        least_of = {"memory_bytes": 64 << 20, "max_processes": 4, "scratch_bytes": 1 << 20, "scratch_files": 16}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)!r}.")
        if self.max_open_files < 32:  # noqa: PLR2004 (what the interpreter itself holds open, with room)
            raise ValueError(f"max_open_files must be at least 32, not {self.max_open_files!r}.")


def bind(limits: WorkerLimits, *, processes: int | None) -> None:
    """Apply `limits` to this process. Only another process can raise its soft memory limits again.

    Args:
        limits: The limits.
        processes: The limit of processes and threads, if it is counted over more than this worker.
    """
    if sys.platform != "linux":
        raise OSError("limits are bound on Linux only")
    import resource

    hard = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_FSIZE: limits.scratch_bytes,
        resource.RLIMIT_NOFILE: limits.max_open_files,
        resource.RLIMIT_NPROC: limits.max_processes if processes is None else processes,
    }
    for name, value in hard.items():
        ceiling = resource.getrlimit(name)[1]
        bound = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(name, (bound, bound))
    ceiling = resource.getrlimit(resource.RLIMIT_STACK)[1]
    bound = STACK_BYTES if ceiling == resource.RLIM_INFINITY else min(STACK_BYTES, ceiling)
    resource.setrlimit(resource.RLIMIT_STACK, (bound, ceiling))
    make_room(0, limits, mapped=0, private=0)


def make_room(pid: int, limits: WorkerLimits, *, mapped: int, private: int) -> None:
    """Set the limits of memory of process `pid` (0: this one) to what the user set and the host's values on top.

    Args:
        pid: A process of the same user.
        limits: What the user set.
        mapped: Bytes that it maps of the host's values.
        private: Those of them that it may change, in copies of its own.

    Raises:
        OSError: If the process is gone.
    """
    if sys.platform != "linux":
        raise OSError("limits are bound on Linux only")
    import resource

    wanted = {
        resource.RLIMIT_DATA: limits.memory_bytes + private,
        resource.RLIMIT_AS: limits.memory_bytes + mapped + ADDRESS_ROOM,
    }
    for name, value in wanted.items():
        hard = resource.prlimit(pid, name)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.prlimit(pid, name, (soft, hard))
