"""Runs code in this process, without any confinement.

A process has one `sys.stdout`, one `sys.stderr`, one `sys.modules["__main__"]` and one `threading.Thread.start`.
While any cell runs, stand-ins replace them: inside a cell each is the session's own, elsewhere the process's. When
the last cell ends, what the first one found is put back, also if the host has put something else there meanwhile.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import decimal
import functools
import json
import os
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from rlm_dspy.interpreters.base import Interpreter, TakesObjects, outside_loop
from rlm_dspy.interpreters.worker import wire
from rlm_dspy.interpreters.worker.cell import Cells, Outcome, Submit, cannot_leave
from rlm_dspy.interpreters.worker.streams import Capped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class CellStopped(BaseException):
    """Raised inside code that was interrupted."""

    def __init__(self) -> None:
        super().__init__("The host stopped the cell. Variables are kept.")


_starting = threading.RLock()
"""Held while a thread is started, and while one is stopped.

Until a new thread runs, CPython 3.11 keeps it under the ident of the thread that starts it. It would be stopped in
that one's place, before it could say that it runs, and that one would wait for it for ever.
"""


def _stop(thread: int) -> None:
    """Raise `CellStopped` in a thread at its next step; it replaces a pending one."""
    with _starting:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(CellStopped))


def _be_stopped() -> NoReturn:
    """Raise a pending `CellStopped` of this thread now.

    It could be cancelled (`PyThreadState_SetAsyncExc(thread, NULL)`), but then a profiled or traced thread hangs
    in CPython 3.11.
    """
    _stop(threading.get_ident())
    while True:
        time.sleep(0)


class LocalPythonInterpreter(Interpreter, TakesObjects):
    """Runs code in the current process, in the thread that calls `execute`, without any protection.

    The code can do whatever this process can: read its secrets and memory, change or end it, run for ever. Use it
    for trusted code, in notebooks, and for debugging. It has no time limit, because nothing can stop code in its
    own process, and it does not survive a crash.

    What it does keep apart: each session has its own `__main__`; what a cell prints, also from threads it
    started, is captured for it alone, with other cells running in other threads; `sys.exit()` ends nothing; and
    `sys.stdout`, `sys.stderr` and the working directory are after the last running cell what they were before
    the first. A host that replaces `sys.stdout`, `sys.stderr` or `threading.Thread.start` while cells run loses
    that replacement. Output that goes around `sys.stdout` (subprocesses, C code) is not captured, nor is what
    threads print that outlive their cell.

    The working directory belongs to the process: a cell that changes it changes it for all until it ends. Its
    session has it back in the next cell, as it has context variables: the precision of `decimal`, for example.

    Variables, arguments and results of tools, and submitted values are shared objects; without `output_fields`
    the submitted value is JSON, as dspy.ProgramOfThought and dspy.CodeAct need it. If the caller's
    thread runs an event loop, the cell gets a thread of its own, so that `await` and `asyncio.run` work in it.
    Ctrl-C stops the cell and reaches the caller, as does a `KeyboardInterrupt` of the code, which looks the same.
    A process that a cell forks ends with the cell.

    Args:
        tools: Host functions, sync or async, by their name in code.
        output_fields: The fields of `SUBMIT`, each with a `name`.
        callbacks: Callbacks of this instance, in addition to those of `dspy.settings`.
        max_output_chars: Characters of a cell's output to keep, half from each end.
    """

    execution_instructions = "CPython. The value of the last expression is shown; `await` works at the top level."
    supports_await = True
    calls_hook = True
    in_host = True

    _stop_signal = CellStopped

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        callbacks: Sequence[Any] | None = None,
        max_output_chars: int = 100_000,
    ) -> None:
        super().__init__(tools, output_fields, callbacks=callbacks)
        self.max_output_chars = max_output_chars
        self._session = _Session(Capped(max_output_chars))
        self._passed: dict[str, Any] = {}
        self._interrupting = threading.Lock()
        self._thread: int | None = None
        self._stopped = False
        self._in_tool = self._stop_after_tool = False

    def _execute(self, code: str, variables: Mapping[str, Any]) -> Any:
        for name, value in variables.items():
            if name not in self._passed or self._passed[name] is not value:
                self._session.cells.namespace[name] = self._passed[name] = value
        output = self._session.output = Capped(self.max_output_chars)
        functions = self._functions()
        try:
            outcome = outside_loop(lambda: self._run_or_stop(code, output, functions), self.interrupt)
        finally:
            self.shown = output.text().rstrip("\n")
        if isinstance(outcome.exception, KeyboardInterrupt):
            raise outcome.exception
        return self._given(outcome if self.output_fields else _in_json(outcome), output.text())

    def _run_or_stop(self, code: str, output: Capped, functions: dict[str, Callable[..., Any]]) -> Outcome:
        try:
            return self._run(code, output, functions)
        except CellStopped as error:  # it came before the code began, or after its end; no other is on its way
            return Outcome("raised", error=f"CellStopped: {error}", exception=error)

    def _run(self, code: str, output: Capped, functions: dict[str, Callable[..., Any]]) -> Outcome:
        _session.set(self._session)
        process = os.getpid()
        found = self._session.enter_context()
        with _process.shared_with(self._session):
            self._thread = threading.get_ident()
            try:
                outcome = self._session.cells.run(code, output, functions, self.output_fields)
                self._session.keep_context(found)
                return outcome
            finally:
                if os.getpid() != process:
                    os._exit(0)  # of a fork: it would go on with the host's program
                self._thread = None
                # One may be on its way and another being sent: each can end a call. There is no loop and no
                # context manager, as an exception would get out between the rounds or calls.
                try:  # noqa: SIM105
                    self._let_go()
                except CellStopped:
                    pass
                try:  # noqa: SIM105
                    self._let_go()
                except CellStopped:
                    pass
                try:  # noqa: SIM105
                    self._let_go()
                except CellStopped:
                    pass

    def _let_go(self) -> None:
        """Raise a pending exception of this thread now: it must not reach code after the cell."""
        with self._interrupting:  # the sender has finished
            pass
        if self._stopped:
            self._stopped = False
            _be_stopped()

    def interrupt(self) -> None:
        """Stop the running cell, from any thread; it ends with a `CellError`. Do nothing without a cell.

        Code is stopped between two bytecode instructions: not during a system call. A sync tool may return before;
        it is stopped itself only if this is called again, as it would leave half of its work behind.
        """
        with self._interrupting:
            if self._thread is not None:
                self._stopped = True
                if self._in_tool and not self._stop_after_tool:
                    self._stop_after_tool = True
                else:
                    _stop(self._thread)
                self._cancel_tools()

    def _invoke(self, context: contextvars.Context, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if self._thread != threading.get_ident():
            return super()._invoke(context, name, *args, **kwargs)
        self._in_tool = True
        try:
            return super()._invoke(context, name, *args, **kwargs)
        finally:
            with self._interrupting:
                self._in_tool, late, self._stop_after_tool = False, self._stop_after_tool, False
            if late:
                _stop(threading.get_ident())

    def _shutdown(self) -> None:
        self._session.cells.close()


def _in_json(outcome: Outcome) -> Outcome:
    """Return an outcome with the submitted values as JSON has them, or the error that they have no such form."""
    try:
        return replace(outcome, values=json.loads(wire.encoded(outcome.values)))
    except (TypeError, ValueError, RecursionError) as error:
        return Outcome("raised", error=cannot_leave(error), exception=error)


class _Session:
    """The interface of a session for the stand-ins."""

    def __init__(self, output: Capped) -> None:
        self.cells = Cells()
        self.output = output
        self.directory: str | None = None
        """The working directory after its last cell, if changed."""
        self._set: dict[contextvars.ContextVar[Any], Any] = {}
        """The context variables that its cells have set."""

    def enter_context(self) -> contextvars.Context:
        """Set in this context what earlier cells have set; return the context as the host gave it."""
        found = contextvars.copy_context()
        if not self._set:
            decimal.setcontext(decimal.getcontext().copy())  # cells change it in place, and it may be the host's
        for variable, value in self._set.items():
            variable.set(value)
        return found

    def keep_context(self, found: contextvars.Context) -> None:
        """Note what a cell has set in this context, for the next one; `found` is from `enter_context`."""
        now = contextvars.copy_context()
        self._set = {name: value for name, value in now.items() if name not in found or found[name] is not value}


_session: contextvars.ContextVar[_Session | None] = contextvars.ContextVar("rlm_dspy_session", default=None)
"""The session whose cell runs in this context, its tasks and threads."""


class _StandIn:
    """Stands for a stream of the process or for `__main__`: in a cell it is the session's own."""

    def __init__(self, found: object, own: Callable[[_Session], object]) -> None:
        def here() -> object:
            return found if (session := _session.get()) is None else own(session)

        object.__setattr__(self, "here", here)

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "here")(), name)

    def __setattr__(self, name: str, value: Any, /) -> None:
        setattr(object.__getattribute__(self, "here")(), name, value)

    def __dir__(self) -> list[str]:
        return dir(object.__getattribute__(self, "here")())


class _Globals(NamedTuple):
    """Process-wide state."""

    stdout: Any
    stderr: Any
    main: Any
    start_thread: Any

    def stand_ins(self) -> _Globals:
        """Return the stand-ins for running cells."""
        return _Globals(
            _StandIn(self.stdout, lambda session: session.output),
            _StandIn(self.stderr, lambda session: session.output),
            _StandIn(self.main, lambda session: session.cells.module),
            _inheriting(self.start_thread),
        )

    def put(self) -> None:
        """Install it."""
        sys.stdout, sys.stderr, sys.modules["__main__"], threading.Thread.start = self  # type: ignore[method-assign]


def _inheriting(start: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """Return a `Thread.start` that gives threads which a cell starts the cell's context, as Python 3.14 can."""

    @functools.wraps(start)
    def start_in_context(thread: threading.Thread) -> None:
        if _session.get() is not None:
            vars(thread)["run"] = functools.partial(_run_in, contextvars.copy_context(), thread.run)
        with _starting:
            start(thread)

    return start_in_context


def _run_in(context: contextvars.Context, run: Callable[[], None]) -> None:
    for variable, value in context.items():  # not `context.run`: the error is told after it
        variable.set(value)
    session = _session.get()
    try:
        run()
    except Submit:  # it counts for the cell, and is not an error of the thread
        pass
    except Exception as error:  # noqa: BLE001 (it is the model's, not of the host's threads)
        if session is not None:
            sys.stderr.write(f"A thread ended with an error:\n{session.cells.in_words(error)}\n")


class _Process:
    """The process state that running cells share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cells: dict[object, str | None] = {}
        """The working directory that each running cell found."""

    @contextlib.contextmanager
    def shared_with(self, session: _Session) -> Iterator[None]:
        """Install the stand-ins for a cell of `session`; the last cell restores the originals."""
        cell = object()
        try:
            self._begin(cell, session)
            yield
        finally:
            try:
                self._end(cell, session)
            except BaseException:  # Ctrl-C here would leave the stand-ins for good
                self._end(cell, session)
                raise

    def _begin(self, cell: object, session: _Session) -> None:
        with self._lock:
            if not self._cells:
                self._found = _Globals(sys.stdout, sys.stderr, sys.modules["__main__"], threading.Thread.start)
                self._stand_ins = self._found.stand_ins()
                self._directory = _directory()
            self._cells[cell] = _directory()
            self._stand_ins.put()  # an outer cell may have replaced the stream
            _change_directory(session.directory)

    def _end(self, cell: object, session: _Session) -> None:
        """Undo what `_begin` did, also if that was interrupted; a second time, do nothing."""
        with self._lock:
            if cell not in self._cells:
                return
            found, is_last = self._cells[cell], len(self._cells) == 1
            (self._found if is_last else self._stand_ins).put()
            here = _directory()
            if here != found or session.directory is not None:
                session.directory = None if here == self._directory else here
            _change_directory(self._directory if is_last else found)
            del self._cells[cell]


_process = _Process()


def _directory() -> str | None:
    with contextlib.suppress(OSError):
        return os.getcwd()  # noqa: PTH109 (a path object says nothing more)
    return None


def _change_directory(path: str | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            os.chdir(path)
