"""Runs the cells of one session in a process that has confined itself.

Everything here can be reached and changed by the model's code, so the host believes none of it. The standard
library only.
"""

from __future__ import annotations

import asyncio
import base64
import builtins
import contextvars
import functools
import gc
import io
import mmap
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import memory, wire
from .cell import Cells, Outcome, Submit, cannot_leave
from .channel import Channel, Interrupts
from .sleeping_copy import fork_asleep
from .streams import Printed

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from . import frames

_STACK_BYTES = 4 << 20
_RESERVE_BYTES = 2 << 20
"""Reserved, so that the worker can report a cell that filled its memory and the next cell can free it."""
_LITTLE_BYTES = 4 << 20
"""A size that a full memory has no room for."""
_FORMAT_WARNING = warnings.formatwarning


def _warning_in_words(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning as Python formats it; without its place if that is in a file of the host."""
    if filename.startswith("<"):
        return _FORMAT_WARNING(message, category, filename, lineno, line)
    return f"{category.__name__}: {message}\n"


class Worker:
    """Runs the cells of one session.

    Args:
        sock: The socket to the host.
        cells: Runs the cells; it has run none yet.
        max_output_chars: How many characters of a cell's output are kept.
        zero_copy: Whether values can be attached without a copy.
    """

    def __init__(self, sock: socket.socket, cells: Cells, max_output_chars: int, *, zero_copy: bool) -> None:
        self._zero_copy = zero_copy
        self._interrupts = Interrupts()
        self._channel = Channel(sock, self._interrupts)
        self._output = Printed(max_output_chars, self._channel)
        self._cells = cells
        self._copies: list[int] = []
        self._pid = os.getpid()
        self._folder = os.getcwd()  # noqa: PTH109 (faster, and done before each cell)
        self._tools: dict[str, Callable[..., Any]] = {}
        self._pool: ThreadPoolExecutor | None = None
        sys.modules.update({"__main__": self._cells.module, "builtins": self._cells.builtins})
        sys.stdin = io.StringIO()
        sys.__stdout__ = sys.__stderr__ = self._output  # type: ignore[misc, assignment]
        threading.excepthook = self._thread_raised
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        threading.stack_size(_STACK_BYTES)
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", ResourceWarning)  # as Python does, e.g. for open(...).read()
        warnings.formatwarning = _warning_in_words

    def serve(self) -> None:
        """Say that it is ready, then do what the host orders until the host is gone."""
        self._channel.send(wire.encoded({"t": "ready"}))
        while True:
            self._interrupts.forget()
            try:
                frame, fds = self._channel.next_order()
                if frame["t"] == "cell":
                    self._cell(frame, fds)
                elif frame["t"] == "bind":
                    self._furnish(frame, fds)
                    self._channel.send(wire.encoded({"t": "bound", "id": frame["id"]}))
                else:
                    self._copy_only(frame["id"], fds)
            except KeyboardInterrupt:
                continue
            except (EOFError, OSError):
                os._exit(0)

    def _cell(self, frame: frames.Order, fds: list[int]) -> None:
        self._reap()
        self._enter_folder()
        taken = False
        self._output.begin(frame["id"])
        try:
            self._furnish(frame, fds)
        except Exception as error:  # noqa: BLE001 (what a class does when it is rebuilt is its own affair)
            outcome = Outcome("raised", error=_not_taken(error))
        else:
            taken = True
            sys.stdout = sys.stderr = self._output
            outcome = self._run(frame)
        if os.getpid() != self._pid:  # a child that the code has forked, and that came to the end of the cell
            os._exit(0)
        self._end_pool()
        reply: wire.Frame = {"t": "done", "id": frame["id"], "kind": outcome.kind, "output": self._output.end()}
        reply |= {"taken": taken, "threads": threading.active_count() > 1, "missing": outcome.missing}
        self._channel.send(self._encoded(reply, outcome), frame["id"])
        if isinstance(outcome.exception, MemoryError):
            del outcome
            gc.collect()

    def _run(self, frame: frames.Order) -> Outcome:
        reserve = _reserve()
        try:
            self._interrupts.in_cell = True
            outcome = self._cells.run(frame["code"], self._output, self._tools, frame["fields"])
            return _semaphores_named(_memory_named(outcome))
        except KeyboardInterrupt:
            return Outcome("raised", error="KeyboardInterrupt: the cell was interrupted")
        finally:
            self._interrupts.in_cell = False
            if reserve is not None:
                reserve.close()

    def _thread_raised(self, raised: threading.ExceptHookArgs) -> None:
        """Print the error that ended a thread, with the model's own lines only; a SUBMIT is not an error."""
        if raised.exc_value is not None and not isinstance(raised.exc_value, Submit | SystemExit):
            message = self._cells.in_words(raised.exc_value)
            sys.stderr.write(f"A thread ended with an error:\n{message}\n")

    @staticmethod
    def _encoded(reply: wire.Frame, outcome: Outcome) -> bytes:
        values = {name: value for name, value in outcome.values.items() if isinstance(name, str)}
        try:
            return wire.encoded_for_host(
                {**reply, "values": values, "value": outcome.value, "error": outcome.error}
            )
        except (TypeError, ValueError, RecursionError, MemoryError) as error:
            reply = {**reply, "values": {}, "value": None, "error": outcome.error}
            if outcome.kind == "submitted":
                reply |= {"kind": "raised", "error": cannot_leave(error)}
        return wire.encoded(reply)

    def _furnish(self, frame: frames.Order, fds: list[int]) -> None:
        taken = iter(fds)
        for name, form in frame["values"].items():
            self._cells.namespace[name] = self._value(form, taken)
        if "tools" in frame:
            self._tools = {tool["name"]: self._stub(**tool) for tool in frame["tools"]}

    def _value(self, form: frames.Value, fds: Iterator[int]) -> Any:
        if "json" in form:
            return form["json"]
        if "pickle" in form:
            return pickle.loads(base64.b64decode(form["pickle"]))  # noqa: S301 (only the host sends pickles)
        fd = next(fds)
        if "file" in form:
            with open(fd, "rb") as file:  # noqa: PTH123 (it has no path)
                file.seek(0)  # the host has written it
                return pickle.load(file)  # noqa: S301 (as above)
        try:
            if "layout" in form:
                return memory.attached(fd, memory.Layout(*form["layout"]), copy=not self._zero_copy)
            whole = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
        finally:
            os.close(fd)
        stream, *buffers = (whole[start:end] for start, end in form["spans"])
        return pickle.loads(stream, buffers=buffers)  # noqa: S301 (as above)

    def _copy_only(self, number: int, fds: list[int]) -> None:
        started, made, copy = time.perf_counter(), bool(fds), 0
        for fd in fds:
            copy = self._copy(fd)
            if copy == 0:
                return
            made = made and copy > 0
        seconds = time.perf_counter() - started
        report: wire.Frame = {"t": "copied", "id": number, "made": made, "seconds": seconds, "pid": copy}
        self._channel.send(wire.encoded(report))

    def _copy(self, fd: int) -> int:
        """Fork a copy of this session that sleeps until the host wakes it through the socket `fd`.

        Returns:
            The copy's number; 0 in the copy once it is awake; -1 if there can be none.
        """
        self._reap()
        try:
            pid = fork_asleep(self._channel.fileno(), fd)
        except OSError:  # the process limit
            os.close(fd)
            return -1
        if pid:
            os.close(fd)
            self._copies.append(pid)
            return pid
        self._channel.start_anew()
        self._output.start_anew()
        self._copies, self._pool, self._pid = [], None, os.getpid()
        self._channel.next_order()
        self._channel.send(wire.encoded({"t": "awake", "pid": os.getpid()}))
        return 0

    def _enter_folder(self) -> None:
        """Go back to the session's folder if code has deleted the one that it had changed to."""
        try:
            os.getcwd()  # noqa: PTH109 (as above)
        except FileNotFoundError:
            os.chdir(self._folder)

    def _reap(self) -> None:
        """Let go of copies that the host has closed; code that waits for a child of its own must not get them."""
        for pid in list(self._copies):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended = pid
            if ended:
                self._copies.remove(pid)

    def _stub(self, name: str, doc: str, *, is_async: bool) -> Callable[..., Any]:
        """Return the function that code calls to have the tool `name` run on the host."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if is_async and asyncio._get_running_loop() is not None:  # noqa: SLF001 (the public one raises)
                return self._awaitable(functools.partial(self._call, name, *args, **kwargs))
            return self._call(name, *args, **kwargs)

        call.__name__ = call.__qualname__ = name
        call.__doc__ = doc
        call.__module__ = "__main__"
        return call

    def _awaitable(self, call: Callable[[], Any]) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(32)
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._pool, context.run, call)

    def _end_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if os.getpid() != self._pid:
            raise RuntimeError("functions of the REPL cannot be called from a child process; use threads")
        if not name.startswith("_"):
            args, kwargs = self._cells.packed(args), self._cells.packed(kwargs)
        try:
            answer, fds = self._channel.call(name, args, kwargs)
        except EOFError:
            os._exit(0)
        if "error" in answer:
            raise _error(answer["type"], answer["error"])
        return self._value(answer["value"], iter(fds))


def _reserve() -> mmap.mmap | None:
    """Return memory that nobody touches; None if that would leave less than as much again."""
    try:
        mmap.mmap(-1, 2 * _RESERVE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        return mmap.mmap(-1, _RESERVE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError):
        return None


def _memory_named(outcome: Outcome) -> Outcome:
    """Call an error of Python's own a `MemoryError` if the memory is full: that is what it comes from then."""
    if not isinstance(outcome.exception, SystemError) or not _is_full():
        return outcome
    lines, _, last = outcome.error.rpartition("\n")
    return replace(outcome, error=f"{lines}\nMemoryError ({last})".lstrip(), exception=MemoryError())


def _semaphores_named(outcome: Outcome) -> Outcome:
    """Say what `multiprocessing` lacks here: its own error names no file."""
    error = outcome.exception
    if (
        not isinstance(error, FileNotFoundError)
        or error.filename
        or "multiprocessing.synchronize" not in sys.modules
    ):
        return outcome
    hint = "There are no semaphores here, which multiprocessing needs. Use concurrent.futures.ThreadPoolExecutor."
    return replace(outcome, error=f"{outcome.error}\n{hint}")


def _is_full() -> bool:
    try:
        bytearray(_LITTLE_BYTES)
    except MemoryError:
        return True
    return False


def _not_taken(error: Exception) -> str:
    if isinstance(error, StopIteration):
        error = OSError("too many open files")
    if isinstance(error, OSError | MemoryError):
        return f"{type(error).__name__}: the variables could not be loaded ({error}); this cell did not run"
    return f"A variable cannot be rebuilt here: {type(error).__name__}: {error}"


def _error(kind: str, message: str) -> Exception:
    """Return what a tool raised: the builtin of that name, else a RuntimeError that names it."""
    known = getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, Exception):
        try:
            return known(message)
        except TypeError:
            pass
    return RuntimeError(f"{kind}: {message}")
