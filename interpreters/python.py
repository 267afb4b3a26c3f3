"""The default interpreter on Linux: a confined CPython worker, forked in milliseconds."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, get_args

import dspy

from rlm_dspy.concurrency.timeouts import await_in_thread
from rlm_dspy.concurrency.turn import Turn
from rlm_dspy.errors import briefly_shown
from rlm_dspy.interpreters.base import Interpreter, TakesObjects
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.host.checkpoints import Mode
from rlm_dspy.interpreters.host.deadlines import CellLimits
from rlm_dspy.interpreters.host.fork_server_client import recipe
from rlm_dspy.interpreters.host.packages import import_hint
from rlm_dspy.interpreters.host.servers import server_for
from rlm_dspy.interpreters.host.session import Cell, Session, Settings
from rlm_dspy.interpreters.host.worker_group import Group
from rlm_dspy.interpreters.worker import importing
from rlm_dspy.text import clip

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
    from rlm_dspy.interpreters.host.input_transfer import StandIn
    from rlm_dspy.interpreters.host.servers import Server

_MAX_PACKAGES_CHARS = 300


class PythonInterpreter(Interpreter, TakesObjects):
    """Runs code in its own confined CPython worker: the default on Linux.

    The worker is forked from a server that was started with an empty environment and has confined itself, so it
    starts in milliseconds and never held a secret of this process. `confinement` names the guarantees; if the
    system cannot enforce them, `start` raises and says why.

    Variables enter unchanged: `str` and `bytes` of any size through shared memory without a copy, text files
    likewise (`Text.open`), arrays and DataFrames with their buffers shared and changes kept private, everything
    else that pickle supports. Pydantic models and dataclasses of the host become dicts. Only JSON values leave
    it: sets become lists, dates ISO text, arrays lists, DataFrames lists of records.

    Tools run in this process, concurrently if the code's threads call them concurrently, each in a copy of the
    context of its `execute`. A cell that takes too long is interrupted, and its worker is killed if the cell
    ignores the interrupt; a cell can also crash the worker. A checkpoint (a sleeping copy, forked after the
    previous cell while the host continues) then takes over, `CellUndone` says what was undone, and the session
    continues. Effects of tools are not undone.

    Args:
        tools: Host functions, sync or async, by their name in code.
        output_fields: The fields of `SUBMIT`, each with a `name`.
        confinement: The required guarantees; None for the default `ConfinementPolicy`.
        worker_limits: The resource limits of a worker; None for the default `WorkerLimits`.
        cell_limits: The time limits of a cell; None for the default `CellLimits`.
        callbacks: Callbacks of this instance, in addition to those of `dspy.settings`.
        max_output_chars: Characters of a cell's output to keep, half from each end.
        packages: Packages of this process's Python that the code can import beside the standard library, as they
            are imported or installed (`sklearn` or `scikit-learn`), with what they require; the prompt lists
            their names. None: pydantic, and numpy, pandas and pyarrow if installed. A package is imported when
            code first asks for it; a module that no distribution provides, at the start of the first worker.
        paths: Folders and wheels with further modules, made importable and readable.
        checkpoint: `auto`: after each cell that called a tool, and after others while a copy is cheap compared
            with the time since the last one (large private data makes copies expensive); `always`: after each
            cell; `off`.

    Raises:
        ValueError: If a name is not an identifier or is reserved, a package is not installed, or a limit is too
            small.
    """

    execution_instructions = (
        "Confined CPython: no network, no other programs, files only in the current folder. The value of the last "
        "expression is shown; `await` works at the top level."
    )
    supports_await = True
    takes_text = True
    calls_hook = True

    @briefly_shown()
    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        confinement: ConfinementPolicy | None = None,
        worker_limits: WorkerLimits | None = None,
        cell_limits: CellLimits | None = None,
        callbacks: Sequence[Any] | None = None,
        max_output_chars: int = 100_000,
        packages: Sequence[str] | None = None,
        paths: Sequence[str | os.PathLike[str]] = (),
        checkpoint: Mode = "auto",
    ) -> None:
        super().__init__(tools, output_fields, callbacks=callbacks)
        if checkpoint not in get_args(Mode):
            raise ValueError(f"checkpoint must be 'auto', 'always' or 'off', not {checkpoint!r}.")
        self.worker_limits = worker_limits or WorkerLimits()
        self.cell_limits = cell_limits or CellLimits()
        self.max_output_chars = max_output_chars
        self.checkpoint = checkpoint
        self.stand_in: StandIn | None = None
        """Set before `start`: what to make of values that the worker has no class for; see `values.StandIn`."""
        self._recipe = recipe(packages, confinement, paths)
        if packages:
            self._describe_packages(self._recipe.packages)
        self._session: Session | None = None
        self._closing: weakref.finalize[Any, Any] | None = None

    def _describe_packages(self, names: Sequence[str]) -> None:
        listed = clip(", ".join(importing.tops(names, ())), _MAX_PACKAGES_CHARS)
        self.execution_instructions = (
            f"{type(self).execution_instructions} Packages: {listed}. Files below output/ reach the user."
        )

    @property
    def confinement(self) -> ConfinementPolicy:
        """The confinement policy of this interpreter."""
        return self._recipe.confinement

    @property
    def layers(self) -> list[str]:
        """The confinement layers of its worker; empty before it starts."""
        return [] if self._session is None else sorted(self._session.group.server.layers)

    def put(self, **variables: Any) -> None:
        """Bind variables now, as `execute` does before a cell.

        Raises:
            CannotCross: If one cannot enter the worker.
            dspy.CodeInterpreterError: If a cell runs, a name is invalid, or the session is lost.
        """
        with self._alone():
            self._check_cell("", variables)
            self._live().bind(variables)

    def interrupt(self) -> None:
        """Stop the running cell, from any thread; it ends with a `CellError`. Do nothing without a cell."""
        if self._session is not None and self._running.taken:
            self._session.interrupt("was stopped by the host")

    def rollback(self) -> int:
        """Undo what the last cell did to variables; a second time, only after a further cell.

        Returns:
            The number of the cell before which the session is now. More than one cell is undone if no checkpoint
            was made before the last cell.

        Raises:
            dspy.CodeInterpreterError: If there is no checkpoint, a cell runs, or the session is lost.
        """
        with self._alone():
            return self._live().roll_back()

    def fork(self, count: int = 1) -> list[Self]:
        """Return `count` interpreters that continue from this one's state, with its tools; close each.

        They share its scratch folder and its limit of processes.

        Raises:
            dspy.CodeInterpreterError: If a cell runs, or the copies cannot be made.
        """
        with self._alone():
            return [self._branch(session) for session in self._live().branches(count)]

    async def aexecute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        """Run `execute` without blocking the event loop; cancelling it stops the cell.

        Arguments, result and errors are those of `execute`. Async tools run on this loop.
        """
        return await await_in_thread(self.execute, code, variables, stop=self.interrupt)

    def _start(self) -> None:
        try:
            server = self._server()
            if server.missing:
                raise dspy.CodeInterpreterError(
                    f"packages names modules that cannot be imported: {server.missing}. Mend or remove them."
                )
            self._adopt(self._begun(server))
        except (OSError, ValueError) as error:
            raise dspy.CodeInterpreterError(f"{type(self).__name__} cannot start a worker: {error}") from error

    def _server(self) -> Server:
        return server_for(self._recipe)

    def _begun(self, server: Server) -> Session:
        settings = Settings(self.cell_limits, self.checkpoint, server.packages, self.stand_in)
        with ExitStack() as undo:
            group = Group(server, self.worker_limits, server.new_scratch())
            undo.callback(group.leave)
            process = group.start_worker(self.max_output_chars)
            undo.callback(process.close)
            session = Session(group, process, settings)
            undo.pop_all()
        return session

    def _adopt(self, session: Session) -> None:
        self._session = session
        self._closing = weakref.finalize(self, session.close)

    def _branch(self, session: Session) -> Self:
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        made.tools = dict(self.tools)
        made.callbacks = list(self.callbacks)
        made._running, made._starting = Turn(), threading.Lock()
        made._adopt(session)
        return made

    def _live(self) -> Session:
        if not self._started:
            self.start()
        if self._session is None or self._session.ended:
            raise dspy.CodeInterpreterError("The session was lost; make a new PythonInterpreter.")
        if self._session.owner != os.getpid():
            raise dspy.CodeInterpreterError(
                "This session belongs to the parent process; make a new PythonInterpreter in the forked one."
            )
        return self._session

    def _execute(self, code: str, variables: Mapping[str, Any]) -> Any:
        context = contextvars.copy_context()

        def call(name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
            return context.copy().run(self.invoke_tool, name, args, kwargs)

        session = self._live()
        try:
            ended = session.execute(Cell(code, variables, dict(self.tools), self.output_fields, call))
        except BaseException:
            self.shown = session.printed
            raise
        return self._given(*ended)

    def _import_hint(self, module: str) -> str:
        return import_hint(module, self._recipe.packages, self._live().group.server.importable)

    def _shutdown(self) -> None:
        if self._closing is not None:
            self._closing()
