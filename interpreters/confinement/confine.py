"""Applies the confinement layers in order: once in the fork server, then in each worker after its fork.

Nothing degrades here: a layer that was asked for and fails raises, and no code runs. The standard library only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import landlock, limits, namespaces, seccomp, syscalls

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
"""Not `/dev/zero`: a shared map of it is memory that nobody counts."""


@dataclass
class Confinement:
    """The confinement of a fork server and its workers.

    Args:
        layers: The layers to put on. `uid`: root becomes a user that owns nothing. `namespaces`: none of the
            host's processes, network or IPC, and a minimal root. `landlock`, `seccomp`, `limits`: the kernel's.
        readable: The files and folders that can be read.
        hidden: Folders within those that cannot, but for what `readable` names in them.
        base: An empty folder, to build the minimal root on.
        scratches: The folder that the scratch folders of workers are in, where there is no minimal root.
        uid: Whom root becomes; None for an ordinary user.
    """

    layers: Collection[str]
    readable: list[str]
    hidden: list[str]
    base: str
    scratches: str
    uid: int | None = None
    _processes: int = -1
    _rules: landlock.Rules | None = field(default=None, repr=False)
    _filter: bytes = b""
    _kept: int = 0

    def leave_namespaces(self) -> bool:
        """First, before modules are loaded: leave the host's namespaces.

        Returns:
            Whether the next child is process 1 of its own, so that the caller must fork.

        Raises:
            OSError: If this system does not allow it.
        """
        self._processes = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        if "namespaces" in self.layers:
            namespaces.leave(self._processes)
        return "namespaces" in self.layers

    def close_server(self) -> None:
        """After all modules are loaded: drop files and privileges, and prepare the workers' layers.

        Raises:
            OSError: If this system does not allow it.
        """
        if "namespaces" in self.layers:
            namespaces.minimal_root(self.base, [*_DEVICES, *self.readable], self.hidden)
        if "uid" in self.layers and self.uid is not None:
            self._become(self.uid)
        if "landlock" in self.layers:
            self._allow_files()
        if "seccomp" in self.layers:
            inside = "landlock" in self.layers and landlock.version() >= landlock.SCOPES_SIGNALS
            self._filter = seccomp.program(syscalls.machine(), signals=inside)

        self.hidden, self.base = [], ""  # nothing more needs them, and workers could read them

    def close_worker(self, scratch: str, bounds: limits.WorkerLimits, *, processes: int | None) -> None:
        """In a new worker: apply the remaining layers, for good.

        Args:
            scratch: Its own folder, where there is no minimal root.
            bounds: Its limits.
            processes: The limit of processes, if it is counted over all of the user's.

        Raises:
            OSError: If one of them cannot be put on.
        """
        if "namespaces" in self.layers:
            namespaces.own_scratch(self._processes, bounds.scratch_bytes, bounds.scratch_files)
        else:
            os.chdir(scratch)
        os.close(self._processes)
        if self.layers:
            namespaces.drop_capabilities(self._kept)
        if "landlock" in self.layers:
            (self._rules or _rules(self.readable, scratch)).apply()
        if "limits" in self.layers:
            limits.bind(bounds, processes=processes)
        if "seccomp" in self.layers:
            seccomp.install(self._filter)

    def _become(self, uid: int) -> None:
        """Become a user that owns nothing.

        If this user cannot open Python itself, which may lie in a folder of root, the privilege to open the files
        of others is kept, and Landlock alone decides which.

        Raises:
            OSError: If this process is not root, or has no such privilege.
        """
        namespaces.drop_uid(uid)
        closed = _closed(self.readable)
        if closed and "landlock" in self.layers and "namespaces" not in self.layers:
            with suppress(OSError):
                self._kept = namespaces.keep_reading()
                closed = _closed(self.readable)
        if closed:
            raise OSError(
                f"root becomes an ordinary user, who cannot read {closed}: open the folders above it to others"
            )
        namespaces.set_capabilities(self._kept)

    def _allow_files(self) -> None:
        """Prepare the rules of workers; without a minimal root, confine this process by what they have in common.

        Both rules then have to allow a file, so that those of a worker may be broader, but for its scratch.
        """
        if "namespaces" in self.layers:
            self._rules = _rules(self.readable, namespaces.SCRATCH)
            return
        hidden = {os.path.realpath(path) for path in self.hidden}
        shown = [inner for path in self.readable for inner in _beside(os.path.realpath(path), hidden)]
        _rules(shown, self.scratches).apply()


def _rules(readable: Iterable[str], writable: str) -> landlock.Rules:
    rules = landlock.Rules()
    rules.allow(readable, landlock.READ)
    rules.allow(_DEVICES, landlock.DEVICE)
    rules.allow([writable], landlock.WRITE)
    return rules


def _beside(path: str, hidden: set[str]) -> Iterator[str]:
    """Yield `path`, or what is in it beside the folders of `hidden`."""
    if not any(folder.startswith(f"{path}/") for folder in hidden):
        yield path
        return
    for inner in map(str, Path(path).iterdir()):
        if inner not in hidden:
            yield from _beside(inner, hidden)


def _closed(paths: list[str]) -> str:
    """Return the first of these files and folders that this process cannot open; empty if there is none."""
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return path
    return ""
