"""Starts remote interpreters: where they run, and the factory that users pass on."""

from __future__ import annotations

import sys
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlm_dspy.interpreters.confinement_policy import CHOICES, GUARANTEES, ConfinementPolicy, unsupported
from rlm_dspy.interpreters.diagnosis import Diagnosis, Rung
from rlm_dspy.interpreters.host.fork_server_client import NoRung
from rlm_dspy.interpreters.host.packages import listed, only_these
from rlm_dspy.interpreters.host.servers import close_server, server_for
from rlm_dspy.interpreters.python import PythonInterpreter
from rlm_dspy.interpreters.remote.command import Command
from rlm_dspy.interpreters.remote.far_server import START_SECONDS, FarServer
from rlm_dspy.interpreters.remote.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.host.checkpoints import Mode
    from rlm_dspy.interpreters.host.deadlines import CellLimits
    from rlm_dspy.interpreters.host.servers import Server
    from rlm_dspy.interpreters.host.session import Session
    from rlm_dspy.interpreters.remote.carrier import Carrier


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where code runs, with which packages and confinement. Equal places share one connection."""

    carrier: Carrier
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
        with self.hinting():
            return FarServer(self.carrier.open(), self.asked())

    @contextmanager
    def hinting(self) -> Iterator[None]:
        """Add a hint to the error of a failed connection."""
        try:
            yield
        except (ConnectionError, FileNotFoundError) as error:
            raise ConnectionError(f"{error}{self.carrier.hint}") from None

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
            self._describe_packages(place.packages)

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
        with self.place.hinting(), closing(Link(self.place.carrier.open())) as link:
            report = link.ask("doctor", self.place.asked(), START_SECONDS)
        rungs = tuple(Rung(**{**rung, "layers": tuple(rung["layers"])}) for rung in report.pop("rungs"))
        return Diagnosis(rungs=rungs, readable=tuple(report.pop("readable")), **report)

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
        TypeError: If a word is not a str.
        ValueError: If there is no guarantee of a name in `trusts`, or a shell but no command that starts it.
    """
    if shell and not words:
        raise ValueError("shell=True is for a command that starts a shell: remote.argv('ssh', 'lab', shell=True).")
    if not all(isinstance(word, str) for word in words):
        raise TypeError(
            "The words of the command are arguments of their own: remote.argv('ssh', 'lab', shell=True)."
        )
    command = Command(words=words, python=python or ("python3" if words else sys.executable), shell=shell)
    return box_of(
        command,
        packages=packages,
        confinement=confinement,
        trusts=trusts,
        worker_limits=worker_limits,
        cell_limits=cell_limits,
        checkpoint=checkpoint,
    )


def box_of(
    carrier: Carrier,
    *,
    packages: Sequence[str] | None = None,
    confinement: ConfinementPolicy | None = None,
    trusts: Collection[str] = (),
    worker_limits: WorkerLimits | None = None,
    cell_limits: CellLimits | None = None,
    checkpoint: Mode = "auto",
) -> Box:
    """Return a factory of interpreters that run at the far end of a carrier; `argv` documents the rest.

    Raises:
        ValueError: If there is no guarantee of a name in `trusts`.
    """
    trusted = frozenset(listed("trusts", trusts))
    if unknown := sorted(trusted - set(GUARANTEES)):
        raise ValueError(f"trusts names {unknown}, which are not guarantees; choose from {', '.join(GUARANTEES)}.")
    place = Place(
        carrier=carrier,
        packages=None if packages is None else listed("packages", packages),
        confinement=confinement or ConfinementPolicy(),
        trusts=trusted,
    )
    return Box(place=place, worker_limits=worker_limits, cell_limits=cell_limits, checkpoint=checkpoint)
