"""Starts a fork server and sends it orders. It ends with this process, also if that is killed.

The standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.interpreters.confinement import namespaces
from rlm_dspy.interpreters.confinement_policy import (
    CHOICES,
    LOWER_RUNGS,
    ConfinementPolicy,
    missing,
    unsupported,
)
from rlm_dspy.interpreters.host import packages, scratch
from rlm_dspy.interpreters.host.deadlines import Deadline
from rlm_dspy.interpreters.host.packages import import_names, is_installed, listed
from rlm_dspy.interpreters.host.processes import LocalHandle, LocalWatch, threads_of
from rlm_dspy.interpreters.worker import importing, wire

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.worker.frames import Config, FromForkServer
    from rlm_dspy.interpreters.worker.wire import JSON

_DEFAULT_PACKAGES = ("numpy", "pandas", "pyarrow", "pydantic")
"""pyarrow holds the texts of a DataFrame where it is installed."""
_STANDARD = ("stdlib", "platstdlib")
_DATA = ("/usr/lib/locale", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_START_SECONDS = 60
_ANSWER_SECONDS = 30
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "MPLBACKEND": "module://rlm_worker.worker.figures",  # used if code plots
    "JOBLIB_MULTIPROCESSING": "0",  # no process can be started there, and joblib warns of it
    "MALLOC_ARENA_MAX": "2",  # each arena reserves 64 MB of address space
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}


@dataclass(frozen=True)
class Recipe:
    """The settings of a fork server; equal recipes share one."""

    packages: tuple[str, ...]
    """The modules that workers may import, beside the standard library."""
    paths: tuple[str, ...]
    confinement: ConfinementPolicy
    trusts: frozenset[str] = frozenset()
    """The guarantees that the user says this machine holds by other means."""

    def start(self) -> ForkServer:
        """Start one, with the best set of layers that this system supports.

        Raises:
            NoRung: If no set holds what the policy requires.
        """
        reason = unsupported()
        if reason:
            raise NoRung(f"PythonInterpreter cannot run here: {reason}. {CHOICES}")
        reasons = []
        for name, layers in self.rungs().items():
            lacking = missing(self.confinement, layers, self.trusts)
            failure = f"does not hold {', '.join(lacking)}" if lacking else ""
            if not lacking:
                try:
                    return ForkServer(self, layers)
                except OSError as error:
                    failure = str(error)
            reasons.append(f"{name} ({' + '.join(sorted(layers)) or 'no layers'}): {failure}")
        required = ", ".join(self.confinement.required())
        raise NoRung(
            f"PythonInterpreter cannot hold here what its confinement policy requires ({required}).\n"
            + "\n".join(f"- {reason}" for reason in reasons)
            + f"\n{CHOICES}"
        )

    def rungs(self) -> dict[str, frozenset[str]]:
        """Return the sets of layers to try, best first: the lower ones where something is trusted."""
        return {**self.confinement.rungs(), **(LOWER_RUNGS if self.trusts else {})}


def recipe(
    packages: Sequence[str] | None = None,
    confinement: ConfinementPolicy | None = None,
    paths: Sequence[str | os.PathLike[str]] = (),
    trusts: frozenset[str] = frozenset(),
) -> Recipe:
    """Return what the fork server of an interpreter with these arguments is made from.

    Raises:
        ValueError: If a package is not installed, or `packages` or `paths` is not a list.
    """
    if packages is None:
        packages = default_packages()
    folders = tuple(map(os.path.realpath, listed("paths", paths)))
    return Recipe(import_names(listed("packages", packages)), folders, confinement or ConfinementPolicy(), trusts)


def default_packages() -> list[str]:
    """Return the modules that code may import unless the user says otherwise, beside the standard library."""
    return [name for name in _DEFAULT_PACKAGES if is_installed(name)]


class NoRung(OSError):  # noqa: N818 (what there is not)
    """No set of layers holds here what a policy requires; the message says why and names alternatives."""


class ForkServer:
    """A running fork server.

    Args:
        recipe: Its settings.
        layers: Its confinement layers.

    Raises:
        OSError: If it does not start with these layers; the message has its reason.
    """

    lost = ""
    """Why it can no longer be reached, if it has not ended itself."""

    def __init__(self, recipe: Recipe, layers: frozenset[str]) -> None:
        self.layers = layers
        self.missing: dict[str, str] = {}
        """The modules that had to be imported at once but could not, each with the reason."""
        self.importable: list[str] = []
        """The importable modules for the prompt: the packages by name, and the modules in `paths`."""
        self.packages: frozenset[str] = frozenset()
        """All modules that workers can import beside the standard library, with what the packages require."""
        self.readable: list[str] = []
        """The files and folders that its workers can read, beside their scratch."""
        self.zero_copy = False
        self._lock = threading.RLock()  # an interrupt right after its `acquire` can tell that it is held
        self._owner = os.getpid()
        scratch.remove_stale()
        self.uid = namespaces.unused_uid() if "uid" in layers else None
        self._home = scratch.Folder(self.uid)
        self._folder = self._home.path
        self._count = self._orders = 0
        with ExitStack() as undo:
            undo.callback(self._home.close)
            self._control, self._process = self._started(recipe)
            self.watch = LocalWatch(self._process.pid)
            """Checks the memory of its workers."""
            undo.callback(self.close)
            self._await_ready()
            undo.pop_all()

    def _started(self, recipe: Recipe) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        base, scratches = Path(self._folder, "root"), Path(self._folder, "scratch")
        base.mkdir(mode=0o700)
        scratches.mkdir(mode=0o711)
        ours, theirs = wire.pair()
        config = _config(recipe)
        own = {"layers": sorted(self.layers), "base": str(base), "scratches": str(scratches), "uid": self.uid}
        config["confinement"] |= own
        program = str(Path(__file__).parents[1] / "worker" / "fork_server.py")
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            wire.send(ours, wire.encoded(config))  # arguments are seen by others
            process = subprocess.Popen(  # noqa: S603 (this Python, and a file of this package)
                [sys.executable, "-PsS", "-Xutf8", program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the host alone, which interrupts the cell
            )
            undo.pop_all()
        return ours, process

    def _await_ready(self) -> None:
        frame, _ = self._answer(Deadline(_START_SECONDS))
        if frame["t"] != "ready":
            raise OSError(frame["error"])
        self.missing, self.packages = frame["missing"], frozenset(frame["packages"])
        self.importable, self.readable, self.zero_copy = frame["importable"], frame["readable"], frame["zero_copy"]
        if "namespaces" in self.layers:
            # Its root was replaced, and scratch folders belong to its workers.
            scratch.remove_tree(Path(self._folder))

    @property
    def alive(self) -> bool:
        """Whether it still accepts orders."""
        return self._owner == os.getpid() and self._process.poll() is None and self._control.fileno() >= 0

    def new_scratch(self) -> str:
        """Return a fresh folder for one worker; the name alone where a worker makes its own."""
        if "namespaces" in self.layers:
            return namespaces.OWN_SCRATCH
        with self._lock:
            self._count += 1
            return scratch.new_inner(f"{self._folder}/scratch/{self._count}", self.uid)

    def drop_scratch(self, path: str) -> None:
        """Remove a folder that `new_scratch` made."""
        if "namespaces" not in self.layers:
            scratch.remove_tree(Path(path))

    def spawn(self, order: Mapping[str, JSON], limits: WorkerLimits, end: int) -> tuple[int, LocalHandle]:
        """Start a worker; return its number where the fork server lives, and a handle.

        Args:
            order: The other arguments of `worker.fork_server.ForkServerProcess` for it.
            limits: Its limits.
            end: Its end of its socket.

        Raises:
            OSError: If it cannot be started.
        """
        processes = None
        if "namespaces" not in self.layers:  # the kernel counts all processes of the user, not only the worker's
            processes = limits.max_processes + threads_of(self.uid or os.getuid())
        arguments = {**order, "limits": asdict(limits), "processes": processes}
        answer, (pidfd,) = self._ask("spawn", arguments, (end,))
        return answer["pid"], LocalHandle(pidfd, self.watch, leads=True)

    def watched(self, order: Mapping[str, JSON], limits: WorkerLimits) -> LocalHandle:
        """Return a handle on a copy of a worker, which has the limits of that.

        Raises:
            OSError: If it is not a process of its session.
        """
        del limits
        _, (pidfd,) = self._ask("watch", order)
        return LocalHandle(pidfd, self.watch, leads=False)

    def send_order(self, order: str, arguments: Mapping[str, JSON], seconds: float = _ANSWER_SECONDS) -> None:
        """Send an order without a result, named like a method of `worker.fork_server.ForkServerProcess`, and wait.

        Raises:
            TimeoutError: If it is not done within `seconds`.
            OSError: If the fork server is gone or refuses; the message has its reason.
        """
        self._ask(order, arguments, seconds=seconds)

    def hold(self, session: str, fds: Sequence[int], seconds: float) -> None:
        """Do nothing: workers on this machine get the descriptors themselves."""

    def _ask(
        self, order: str, arguments: Mapping[str, JSON], fds: Sequence[int] = (), seconds: float = _ANSWER_SECONDS
    ) -> tuple[FromForkServer, list[int]]:
        """Send an order and return the answer, with that to `spawn` and `watch` a pidfd of the process.

        A fork server that had 30 seconds and did not answer is killed.
        """
        deadline = Deadline(max(0, min(seconds, _ANSWER_SECONDS)))
        try:
            if not self._lock.acquire(timeout=deadline.seconds):
                raise TimeoutError(f"the fork server was busy for {deadline.seconds:g} seconds")
            self._orders += 1
            frame = {"t": order, "id": self._orders, "arguments": arguments}
            wire.send(self._control, wire.encoded(frame), 0, fds)
            answer, handles = self._answer(deadline)
        finally:
            try:  # noqa: SIM105 (an interrupt at the begin of `suppress` would leave it held)
                self._lock.release()
            except RuntimeError:  # it was not acquired
                pass
        if answer["t"] == "failed":
            raise OSError(answer["error"])
        return answer, handles

    def _answer(self, deadline: Deadline) -> tuple[FromForkServer, list[int]]:
        """Wait for the answer to the last order; that of an order whose wait was interrupted is dropped."""
        frame: FromForkServer
        while wire.arrives(self._control.fileno(), deadline.left()):
            try:
                frame, fds = wire.receive_trusted(self._control)
            except EOFError:
                raise OSError("the fork server ended") from None
            if frame.get("id", self._orders) == self._orders:
                return frame, fds
            for fd in fds:
                os.close(fd)
        if deadline.seconds >= _ANSWER_SECONDS:
            self._process.kill()
        raise TimeoutError(f"the fork server did not answer within {deadline.seconds:g} seconds")

    def close(self) -> None:
        """End the server and all its workers, and remove its folders. In a forked child: only release it."""
        self._control.close()
        self.watch.close()
        if self._owner != os.getpid():
            self._process.returncode = 0  # not this process's child
            return
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._home.close()


def _config(recipe: Recipe) -> Config:
    standard = _standard_library()
    search = [str(Path(path).absolute()) for path in sys.path if path and Path(path).is_dir()]
    search = [path for path in search if path not in standard]
    needed = packages.required(recipe.packages)
    own = [importing.place_of(file, search) for file in needed.modules.values()]
    own += [*needed.libraries, *needed.metadata.values()]
    wanted = [*standard, *_shared_libraries(), *_DATA, *own, *recipe.paths]
    hidden = [path for path in _installed_below(standard) if path not in recipe.paths and Path(path).is_dir()]
    return {
        "packages": list(recipe.packages),
        "preload": packages.own_modules(recipe.packages),
        "paths": list(recipe.paths),
        "search": search,
        "modules": needed.modules,
        "metadata": needed.metadata,
        "standard": standard,
        "host": os.getpid(),
        "confinement": {
            "readable": [path for path in wanted if Path(path).exists()],
            "hidden": [path for path in hidden if any(path.startswith(f"{folder}/") for folder in wanted)],
        },
    }


def _standard_library() -> list[str]:
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    folders = [str(Path(os.__file__).parent), *(sysconfig.get_path(name, vars=base) for name in _STANDARD)]
    zipped = f"{sys.base_prefix}/{sys.platlibdir}/python{sys.version_info[0]}{sys.version_info[1]}.zip"
    return list(dict.fromkeys([*folders, zipped]))


def _shared_libraries() -> list[str]:
    """Return where the system's libraries are, and those that lie beside this Python's own."""
    machine = sysconfig.get_config_var("MULTIARCH") or ""
    system = [f"{folder}/{machine}" for folder in ("/usr/lib", "/lib") if machine]
    if not any(map(os.path.isdir, system)):
        system = ["/usr/lib", "/lib"]
    system += ["/usr/lib64", "/lib64"]
    own = Path(sysconfig.get_config_var("LIBDIR") or sys.base_prefix)
    inside = any(own.resolve().is_relative_to(Path(folder).resolve()) for folder in system)
    return system if inside else [*system, *(str(path) for path in own.glob("lib*.so*"))]


def _installed_below(standard: list[str]) -> list[str]:
    """Return the folders of installed packages that may lie within the standard library or the system's."""
    system = [str(path) for name in importing.INSTALLED for path in Path("/usr").glob(f"lib*/python3*/{name}")]
    return [*system, *(f"{folder}/{name}" for folder in standard for name in importing.INSTALLED)]
