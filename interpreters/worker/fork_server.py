"""The fork server: starts with an empty environment, loads modules, confines itself, forks workers.

`python fork_server.py <socket>`: its config comes through that socket. It ends when the host does. It imports the
standard library only.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

_PACKAGE = "rlm_worker"
"""The name under which worker and fork server import their modules: `rlm_dspy` itself is never loaded there."""

if __name__ == "__main__":
    package = types.ModuleType(_PACKAGE)
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules[_PACKAGE] = package
    __package__ = f"{_PACKAGE}.worker"

import gc
import importlib
import os
import select
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, cast

from ..confinement import confine, kernel
from ..confinement.limits import WorkerLimits, make_room
from ..confinement.recursion import cap_recursion
from . import figures as _figures  # noqa: F401 (matplotlib finds it loaded)
from . import importing, memory, wire
from .cell import Cells
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .frames import Config

# fmt: off
_COMMON = [
    "array", "bisect", "calendar", "collections.abc", "colorsys", "copy", "csv", "dataclasses", "datetime",
    "decimal", "difflib", "fnmatch", "fractions", "glob", "hashlib", "heapq", "html", "html.parser", "itertools",
    "locale", "logging", "math", "operator", "pprint", "queue", "random", "secrets", "shlex", "shutil",
    "statistics", "string", "tempfile", "textwrap", "typing", "unicodedata", "urllib.parse", "uuid",
    "xml.etree.ElementTree", "zlib", "gzip", "zoneinfo", "encodings.idna", "encodings.latin_1",
    "encodings.utf_16", "encodings.utf_32", "concurrent.futures.thread",
]
# fmt: on
"""Modules of the standard library that workers find loaded."""


def _report_failure(sock: socket.socket, error: BaseException) -> None:
    """Report to the host why this process ends."""
    wire.send(sock, wire.encoded({"t": "failed", "error": f"{type(error).__name__}: {error}"}))


_FAILED = {
    "spawn": "a process could not be started",
    "room": "no room for the values",
    "watch": "the worker ended at once",
}
"""The message for each order that fails."""


class ForkServerProcess:
    """The main loop of the fork server, after loading and confinement."""

    def __init__(self, control: socket.socket, host: int, config: Config) -> None:
        self._control = control
        self._host = host
        self._confinement = confine.Confinement(**config["confinement"])
        self._zero_copy = False
        self._groups: dict[int, str] = {}
        self._cells = Cells()
        """The cells of each worker, made before the fork."""

    def run(self, config: Config) -> NoReturn:
        """Load modules, confine the process, report to the host, and serve until the host is gone."""
        inside = self._confinement.leave_namespaces()
        if inside:
            self._go_on_as_process_1()
        else:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)  # this process adopts the children of ended workers
        missing = _load(config["preload"], config["search"])
        found = importing.loaded(config["preload"], config["search"])
        self._confinement.readable = sorted({*self._confinement.readable, *found})
        sys.meta_path.append(importing.Finder(config["modules"], config["metadata"], config["standard"]))
        importable = importing.tops(set(config["packages"]) - missing.keys(), config["paths"])
        packages = {name.partition(".")[0] for name in (*sys.modules, *config["modules"])} | set(importable)
        sys.path += config["paths"]
        self._zero_copy = _child_says(memory.can_attach)
        self._confinement.close_server()
        _forget(config)
        if inside:
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user would have cleared it
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then reaps ended children
        gc.collect()
        gc.freeze()
        packages -= sys.stdlib_module_names | {_PACKAGE, "__main__"}
        report = {"missing": missing, "importable": importable, "packages": sorted(packages)}
        self._reply({"t": "ready", **report, "readable": self._confinement.readable, "zero_copy": self._zero_copy})
        self._serve()

    def _go_on_as_process_1(self) -> None:
        inner = os.fork()
        if inner:
            self._control.close()
            os.waitpid(inner, 0)
            os._exit(0)

    def _serve(self) -> NoReturn:
        orders: dict[str, Callable[..., int | None]]
        orders = {"spawn": self._fork_worker, "kill": self._kill, "watch": self._watched, "room": self._make_room}
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._host, select.POLLIN)
        while True:
            if self._host in dict(poll.poll()):
                self._end()
            try:
                frame, fds = wire.receive_trusted(self._control)
            except (OSError, EOFError):
                self._end()
            handles = []
            try:
                pid = orders[frame["t"]](*fds, **frame["arguments"])
                handles += [os.pidfd_open(pid)] if pid else []
            except OSError as error:
                why = f"{_FAILED.get(frame['t'], frame['t'])}: {error}"
                self._reply({"t": "failed", "id": frame["id"], "error": why})
            else:
                self._reply({"t": "done", "id": frame["id"], "pid": pid}, handles)
            for fd in (*fds, *handles):
                os.close(fd)

    def _end(self) -> NoReturn:
        for group in self._groups:
            _kill_group(group)
        os._exit(0)

    def _reply(self, frame: Mapping[str, object], handles: Sequence[int] = ()) -> None:
        wire.send(self._control, wire.encoded(frame), 0, handles)

    def _fork_worker(self, fd: int, session: str, **options: Any) -> int:
        """Fork a worker."""
        pid = os.fork()
        if pid == 0:
            self._become_worker(socket.socket(fileno=fd), **options)
        self._groups[pid] = session
        return pid

    def _become_worker(
        self,
        sock: socket.socket,
        *,
        scratch: str,
        limits: dict[str, int],
        processes: int | None,
        max_output_chars: int,
    ) -> NoReturn:
        try:
            os.setsid()
            if "namespaces" not in self._confinement.layers:
                kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            self._control.close()
            os.close(self._host)
            self._confinement.close_worker(scratch, WorkerLimits(**limits), processes=processes)
            _settle(scratch)
            cap_recursion()
        except BaseException as error:  # noqa: BLE001 (after any error, no code may run)
            _report_failure(sock, error)
            os._exit(1)
        try:
            Worker(sock, self._cells, max_output_chars, zero_copy=self._zero_copy).serve()
        finally:
            os._exit(70)

    def _kill(self, session: str, group: int) -> None:
        """End a session: all processes that descend from its first one."""
        if self._groups.get(group) == session:
            del self._groups[group]
            _kill_group(group)

    def _watched(self, session: str, group: int, pid: int) -> int:
        """Return the number of a copy, if it is one of the session."""
        if not self._is_of_session(session, group, pid):
            raise OSError("no such process of this session")
        return pid

    def _make_room(self, session: str, group: int, pid: int, limits: dict[str, int], **bytes_: int) -> None:
        """Let a process map more of the host's values; it cannot raise its own limits."""
        if "limits" in self._confinement.layers and self._is_of_session(session, group, pid):
            make_room(pid, WorkerLimits(**limits), **bytes_)

    def _is_of_session(self, session: str, group: int, pid: int) -> bool:
        with suppress(OSError):
            return os.getpgid(pid) == group and self._groups.get(group) == session
        return False


def _kill_group(group: int) -> None:
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL)


def _settle(scratch: str) -> None:
    """Point code to its own scratch folder for its files and modules, and give it random numbers of its own."""
    os.environ.update(HOME=scratch, TMPDIR=scratch)
    sys.path.append(scratch)  # the last: a file of the name of a module does not take its place
    sys.modules["tempfile"].tempdir = scratch  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _child_says(question: Callable[[], bool]) -> bool:
    """Return the answer of a function that runs in a child; False if the child crashes."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if question() else 1)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _load(preload: list[str], search: list[str]) -> dict[str, str]:
    """Import the modules that workers are to find loaded.

    Returns:
        The modules of `preload` that could not be imported, each with the reason.
    """
    failed = {}
    kept = list(sys.path)
    for name in _COMMON:
        importlib.import_module(name)
    sys.path[:] = [*kept, *search]
    for name in preload:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 (a broken package must not end the others)
            failed[name] = f"{type(error).__name__}: {error}"
    sys.path[:] = kept
    sys.dont_write_bytecode = True
    return failed


def _forget(config: Config) -> None:
    """Remove the names of the host's folders from this process, except those that workers import from."""
    for folder in config["search"]:
        sys.path_importer_cache.pop(folder, None)
    cast("dict[str, object]", config).clear()
    sys.argv[:], sys.orig_argv[:] = [""], []
    sys.executable = sys._base_executable = ""  # type: ignore[attr-defined]  # noqa: SLF001 (subprocess reads it)
    sys.prefix = sys.exec_prefix = sys.base_prefix = sys.base_exec_prefix = "/usr"


def main() -> None:
    """Run the fork server that the host has started with a socket and a config."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    config: Config
    config, _ = wire.receive_trusted(control)
    try:
        host = os.pidfd_open(os.getppid())
        if os.getppid() != config["host"]:
            os._exit(0)
        ForkServerProcess(control, host, config).run(config)
    except Exception as error:  # noqa: BLE001 (the host decides what to do without this fork server)
        _report_failure(control, error)
        os._exit(1)


if __name__ == "__main__":
    main()
