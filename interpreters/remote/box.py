"""Starts remote interpreters: a command line, what is sent to it first, and the factory that users pass on."""

from __future__ import annotations

import functools
import io
import os
import shlex
import subprocess
import sys
import threading
import zipfile
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_dspy.interpreters.confinement_policy import CHOICES, GUARANTEES, ConfinementPolicy, unsupported
from rlm_dspy.interpreters.diagnosis import Diagnosis, Rung
from rlm_dspy.interpreters.host.fork_server_client import NoRung
from rlm_dspy.interpreters.host.packages import only_these
from rlm_dspy.interpreters.host.servers import close_server, server_for
from rlm_dspy.interpreters.python import PythonInterpreter
from rlm_dspy.interpreters.remote.far_server import FarServer
from rlm_dspy.interpreters.remote.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.host.checkpoints import Mode
    from rlm_dspy.interpreters.host.deadlines import CellLimits
    from rlm_dspy.interpreters.host.servers import Server
    from rlm_dspy.interpreters.host.session import Session

_FILES = (
    "confinement/*.py",
    "worker/*.py",
    "confinement_policy.py",
    "diagnosis.py",
    "host/__init__.py",
    "host/deadlines.py",
    "host/fork_server_client.py",
    "host/packages.py",
    "host/processes.py",
    "host/scratch.py",
    "host/worker_connection.py",
    "host/worker_group.py",
    "remote/far_end.py",
    "remote/relay.py",
)
"""What runs at the far end, of this package."""

BOOT = """
import io, os, sys, tempfile, types, zipfile
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or later is needed there, and this is " + sys.version.split()[0])
def take(size):
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            sys.exit(1)
        data += piece
    return data
modules = take(int(sys.argv[1]))
folder = tempfile.mkdtemp(prefix="rlm-repl-%d-" % os.getpid())
zipfile.ZipFile(io.BytesIO(modules)).extractall(folder)
sys.path[:] = [path for path in sys.path if path]
for name, place in ("rlm_dspy", ""), ("rlm_dspy.interpreters", ""), ("rlm_dspy.interpreters.remote", "/remote"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder + place]
from rlm_dspy.interpreters.remote import far_end
far_end.main(folder)
"""
"""The program of the command: it reads a zip of the modules from stdin, and runs them."""

_DOCTOR_SECONDS = 120
_END_SECONDS = 8
_WORDS_SECONDS = 1
_LAST_LINES, _MOST_LINE = 8, 500


@functools.cache
def _modules() -> bytes:
    """Return a zip of the modules that run at the far end."""
    made, root = io.BytesIO(), Path(__file__).parents[1]
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for pattern in _FILES:
            for path in root.glob(pattern):
                archive.write(path, path.relative_to(root))
    return made.getvalue()


class _Running:
    """A command of this machine that runs and carries the stream.

    Args:
        name: What users know it as.
        command: Its words.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        theirs_in, self.writes = os.pipe()
        self.reads, theirs_out = os.pipe()
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        try:
            self._process = subprocess.Popen(  # noqa: S603 (what the user has named)
                command,
                stdin=theirs_in,
                stdout=theirs_out,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the host alone
            )
        except OSError:
            os.close(self.reads)
            os.close(self.writes)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        self._listener = threading.Thread(target=self._listen, name="rlm-stderr", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stderr:
            for line in stderr:
                self._lines.append(line.strip()[:_MOST_LINE])

    def last_words(self) -> str:
        """Return the last lines that it printed to stderr."""
        self._listener.join(_WORDS_SECONDS)
        return " ".join(self._lines)

    def end(self) -> None:
        """Wait for its end, and kill it if that does not come."""
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of this machine that runs another one, whose stdin and stdout it carries."""

    words: tuple[str, ...]
    """Its words; without any, the other command runs on this machine."""
    python: str
    """The Python to run there."""
    shell: bool
    """Whether a shell reads the words of the other command, as ssh's does."""

    def open(self) -> _Running:
        """Run the far end.

        Raises:
            OSError: If the command cannot be run, or ends at once.
        """
        modules = _modules()
        boot = [self.python, "-c", BOOT, str(len(modules))]
        name = " ".join(self.words) if len(self.words) < 3 else f"{self.words[0]} ... {self.words[-1]}"  # noqa: PLR2004
        running = _Running(name or self.python, [*self.words, *([shlex.join(boot)] if self.shell else boot)])
        try:
            left = memoryview(modules)
            while left:
                left = left[os.write(running.writes, left) :]
        except OSError:
            os.close(running.reads)
            os.close(running.writes)
            running.end()
            raise ConnectionError(
                f"{running.name} does not run: {running.last_words() or 'it ended at once'}"
            ) from None
        return running


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where code runs, with what and how confined. Equal places share one connection."""

    command: Command
    packages: tuple[str, ...] | None
    confinement: ConfinementPolicy
    trusts: frozenset[str]

    def start(self) -> FarServer:
        """Connect, and start a fork server there.

        Raises:
            NoRung: If it cannot hold there what is required, or this system cannot carry the connection.
            OSError: If there is no connection, or no fork server starts.
        """
        if reason := unsupported():
            raise NoRung(f"A remote interpreter cannot be used from here: {reason}. {CHOICES}")
        try:
            return FarServer(self.command.open(), self.asked())
        except ConnectionError as error:
            if self.command.shell or Path(*self.command.words[:1]).name != "ssh":
                raise
            raise ConnectionError(f"{error}. A shell reads what follows ssh: pass shell=True.") from None

    def asked(self) -> dict[str, object]:
        """Return the arguments of the far end for it."""
        layers = self.confinement.layers
        confinement = {**asdict(self.confinement), "layers": None if layers is None else sorted(layers)}
        return {"packages": self.packages, "confinement": confinement, "trusts": sorted(self.trusts)}


class RemoteInterpreter(PythonInterpreter):
    """A `PythonInterpreter` whose worker runs somewhere else; `Box` makes it.

    Args:
        place: Where.
        tools: Host functions, sync or async, by their name in code. They run in this process.
        output_fields: The fields of `SUBMIT`, each with a `name`.
        worker_limits: The resource limits of a worker; None for the default `WorkerLimits`.
        cell_limits: The time limits of a cell; None for the default `CellLimits`.
        callbacks: Callbacks of this instance, in addition to those of `dspy.settings`.
        max_output_chars: Characters of a cell's output to keep, half from each end.
        checkpoint: When the worker is copied; see `PythonInterpreter`.
    """

    def __init__(
        self,
        place: Place,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        worker_limits: WorkerLimits | None = None,
        cell_limits: CellLimits | None = None,
        callbacks: Sequence[Any] | None = None,
        max_output_chars: int = 100_000,
        checkpoint: Mode = "auto",
    ) -> None:
        super().__init__(
            tools,
            output_fields,
            confinement=place.confinement,
            worker_limits=worker_limits,
            cell_limits=cell_limits,
            callbacks=callbacks,
            max_output_chars=max_output_chars,
            packages=(),
            checkpoint=checkpoint,
        )
        self._place = place
        if place.packages:
            self._tell_packages(place.packages)

    def _server(self) -> Server:
        return server_for(self._place)

    def _begun(self, server: Server) -> Session:
        try:
            return super()._begun(server)
        except ConnectionError:  # it was lost since the session before
            return super()._begun(self._server())

    def _import_hint(self, module: str) -> str:
        del module
        return (
            f"{only_these(self._live().group.server.importable)} The user allows others that are installed there "
            f"with `packages=`."
        )


@dataclass(frozen=True, kw_only=True)
class Box:
    """Makes interpreters at one place; pass it as `interpreter_factory`.

    All of them share one connection, which is made when the first starts, again if it was lost, and closed when
    this process ends. A box is a value: it can be copied and pickled, and equal ones share the connection.
    """

    place: Place
    worker_limits: WorkerLimits | None = None
    cell_limits: CellLimits | None = None
    checkpoint: Mode = "auto"

    def __call__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        callbacks: Sequence[Any] | None = None,
        max_output_chars: int = 100_000,
    ) -> RemoteInterpreter:
        """Return a new interpreter; see `RemoteInterpreter`."""
        return RemoteInterpreter(
            self.place,
            tools,
            output_fields,
            worker_limits=self.worker_limits,
            cell_limits=self.cell_limits,
            callbacks=callbacks,
            max_output_chars=max_output_chars,
            checkpoint=self.checkpoint,
        )

    def doctor(self) -> Diagnosis:
        """Try to run a worker there on every set of layers, and return the results.

        Raises:
            OSError: If there is no connection.
        """
        link = Link(self.place.command.open())
        try:
            told = link.ask("doctor", self.place.asked(), _DOCTOR_SECONDS)
        finally:
            link.close()
        rungs = tuple(Rung(**{**rung, "layers": tuple(rung["layers"])}) for rung in told.pop("rungs"))
        return Diagnosis(rungs=rungs, readable=tuple(told.pop("readable")), **told)

    def close(self) -> None:
        """End the connection, with all its sessions. The next interpreter makes a new one."""
        close_server(self.place)


def argv(
    *words: str,
    shell: bool = False,
    python: str | None = None,
    packages: Sequence[str] | None = None,
    confinement: ConfinementPolicy | None = None,
    trusts: Collection[str] = (),
    worker_limits: WorkerLimits | None = None,
    cell_limits: CellLimits | None = None,
    checkpoint: Mode = "auto",
) -> Box:
    """Return a factory of interpreters that run wherever a command runs another one.

    The command is `words`, followed by a Python and a small program that takes everything else from stdin; nothing
    is installed there. Code is confined there as it is by `PythonInterpreter` here.

        remote.argv("ssh", "-o", "BatchMode=yes", "lab", shell=True)
        remote.argv("docker", "run", "-i", "--rm", "--network=none", "python:3.12-slim", trusts={"no_network"})
        remote.argv()  # another process of this machine

    Args:
        words: The words of the command; none for this machine. It must not ask for a password.
        shell: Whether a shell reads what follows the words, as the one that ssh starts does.
        python: The Python there, 3.11 or later. Default: `python3`, or this one without `words`.
        packages: Packages of the Python there that code can import; see `PythonInterpreter`.
        confinement: The required guarantees; None for the default `ConfinementPolicy`.
        trusts: Guarantees of `ConfinementPolicy` that the place holds by itself, as a container without a network
            does: they are believed and not enforced.
        worker_limits: The resource limits of a worker; None for the default `WorkerLimits`.
        cell_limits: The time limits of a cell; None for the default `CellLimits`.
        checkpoint: When a worker is copied; see `PythonInterpreter`.

    Raises:
        TypeError: If a word is no text.
        ValueError: If there is no guarantee of a name in `trusts`.
    """
    if not all(isinstance(word, str) for word in words):
        raise TypeError(
            "The words of the command are arguments of their own: remote.argv('ssh', 'lab', shell=True)."
        )
    if unknown := sorted(set(trusts) - set(GUARANTEES)):
        raise ValueError(f"trusts names {unknown}, which are no guarantees; choose from {', '.join(GUARANTEES)}.")
    command = Command(words=words, python=python or ("python3" if words else sys.executable), shell=shell)
    place = Place(
        command=command,
        packages=None if packages is None else tuple(packages),
        confinement=confinement or ConfinementPolicy(),
        trusts=frozenset(trusts),
    )
    return Box(place=place, worker_limits=worker_limits, cell_limits=cell_limits, checkpoint=checkpoint)
